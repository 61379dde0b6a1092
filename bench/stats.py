"""Medians, quantiles and the table that the benchmark prints."""


def quantile(values, q):
    """The value at share q of the sorted values, between neighbours by weight."""
    values = sorted(values)
    at = q * (len(values) - 1)
    low = int(at)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (at - low)


def median(values):
    return quantile(values, 0.5)


def spread(values):
    """`median (least-most)` of the rounds, three digits each."""
    return "%s (%s-%s)" % (digits(median(values)), digits(min(values)), digits(max(values)))


def digits(x):
    """x with about three digits, thousands apart."""
    if abs(x) >= 100:
        return "{:,.0f}".format(x)
    return "%.2f" % x if abs(x) < 10 else "%.1f" % x


def table(rows):
    """Rows of text as a Markdown table; the first is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)
