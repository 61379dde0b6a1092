"""The benchmark: `make bench`. Prints its tables and writes docs/benchmarks.md.

Systems are measured in turns (A/B/C, then C/B/A, ...), so that what else the
machine does meets all of them; a figure is the median of the rounds, with the
least and the most beside it. A side is started, warmed up, measured and ended in
its turn; only the mesh's node, which is a daemon, stays.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys

import cold
import idle
import joining
import stats
from mesh import REPO, Mesh, beam

HERE = os.path.dirname(os.path.abspath(__file__))
SIDES = {"beam": "BeamMesh", "ray": "Ray", "dask": "Dask"}
PYTHON = os.path.join(REPO, ".cache", "bench-venv", "bin", "python")


def one_side(name, env, a):
    done = subprocess.run(
        [PYTHON, os.path.join(HERE, "side.py"), name, str(a.calls), str(a.items), str(a.workers)],
        env=env, cwd=HERE, capture_output=True, text=True, timeout=900,
    )
    if done.returncode != 0:
        raise SystemExit("error: the side %s failed:\n%s" % (name, done.stderr[-3000:]))
    return json.loads(done.stdout)


def compare(a):
    """Warm calls and maps of the three systems."""
    rounds = {name: [] for name in SIDES}
    versions = {}
    with Mesh(1) as mesh:
        env = mesh.env()
        for i in range(a.rounds):
            for name in list(SIDES)[:: 1 if i % 2 == 0 else -1]:
                got = one_side(name, env, a)
                versions[name] = got["version"]
                p50, p99 = (stats.quantile(got["calls"], q) * 1e3 for q in (0.5, 0.99))
                rate = got["items"] / got["map_s"]
                rounds[name].append((p50, p99, rate))
                say("round %d, %s: p50 %.2f ms, p99 %.2f ms, map %.0f items/s" % (i + 1, SIDES[name], p50, p99, rate))
    rows = [["", "warm call p50, ms", "p99, ms", "p99 / p50", "map of %s no-ops, items/s" % format(a.items, ",")]]
    for name, title in SIDES.items():
        p50, p99, rate = zip(*rounds[name])
        version = "" if name == "beam" else " " + versions[name]
        tail = [y / x for x, y in zip(p50, p99)]
        rows.append([title + version, stats.spread(p50), stats.spread(p99), stats.spread(tail), stats.spread(rate)])
    for name in ("ray", "dask"):
        # Ratios of the same round, then their median.
        pairs = list(zip(rounds["beam"], rounds[name]))
        ratio = [[b[k] / o[k] for b, o in pairs] for k in range(3)]
        rows.append(["BeamMesh / " + SIDES[name], *("%sx" % stats.spread(r) for r in ratio[:2]), "", stats.spread(ratio[2]) + "x"])
    return rows


def say(text):
    print("  " + text, file=sys.stderr, flush=True)


def machine():
    """The machine in words."""
    model = "unknown processor"
    with open("/proc/cpuinfo") as f:
        for line in f:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    with open("/proc/meminfo") as f:
        gib = int(f.readline().split()[1]) / 2**20
    return "%d cores (%s), %.0f GiB, Linux %s, Python %s" % (os.cpu_count(), model, gib, os.uname().release.split("-")[0], sys.version.split()[0])


def commit():
    """What bin/beam was built from."""
    return beam("version").strip()


def load():
    return "%.1f" % os.getloadavg()[0]


SECTIONS = [
    ("compare", "Function calls and maps", compare, """\
Same machine, same run, {workers} worker processes each, {rounds} rounds in turns, {calls} calls one
after the other and one map in each; warm. Every figure is the median of the rounds
(least-most); a ratio is that of the same round. A BeamMesh call runs in a real
container, its output is streamed, and the task is in the node's journal on disk
before it runs; the tasks of Ray and Dask run in plain processes and are not kept."""),
    ("cold", "A new container", cold.measure, """\
`runc run` starts the same root filesystem with the very runc that the node embeds, in
turns with new containers of the mesh. First line: from the start of `runc run`, or
from the call of `.remote()`, to the first line of Python that the user wrote."""),
    ("idle", "An idle node", idle.measure, """\
Three nodes on this machine, no work, after a quiet minute; node 1 is the founder."""),
    ("joining", "Joining, and an image over the mesh", joining.measure, """\
A node joins with a ticket and simulated GPUs; a node that did not issue the ticket
lists them. The image is the default base, on its first use at a node that lacks it
and was told not to fetch it ahead; beside it a plain TCP copy of as many bytes between the same two nodes, into a file."""),
]


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--calls", type=int, default=1000)
    p.add_argument("--items", type=int, default=10000)
    p.add_argument("--workers", type=int, default=2)
    p.add_argument("--only", action="append", choices=[s[0] for s in SECTIONS], help="these sections only; the others stay as they are in the file")
    a = p.parse_args()
    done = written()
    for key, title, measure, text in SECTIONS:
        if a.only and key not in a.only:
            continue
        say(title.lower())
        now, before = datetime.datetime.now(datetime.timezone.utc), load()
        rows = measure(a)
        print("\n%s\n%s" % (title, stats.table(rows)), flush=True)
        done[title] = "## %s\n\n%s\n\n%s UTC, commit %s, load average %s before and %s after. %s\n\n%s\n" % (
            title, text.format(**vars(a)), now.strftime("%Y-%m-%d %H:%M"), commit(), before, load(), noise(float(before)), stats.table(rows))
        # After each: a section that fails takes no other along.
        with open(DOC, "w") as f:
            f.write(HEAD % machine() + "\n".join(done[t] for _, t, _, _ in SECTIONS if t in done))
    print("\nwritten to docs/benchmarks.md", file=sys.stderr)


DOC = os.path.join(REPO, "docs", "benchmarks.md")

HEAD = """# Benchmarks

Written by `make bench`, which measures again on your machine; one section alone:
`tools/bench.sh --only compare`, or `cold`, `idle`, `joining`. These were taken on
%s.

"""


def written():
    """The sections in the file, by title: those not measured now stay."""
    try:
        with open(DOC) as f:
            parts = f.read().split("\n## ")[1:]
    except OSError:
        return {}
    return {p.partition("\n")[0]: "## " + p.rstrip() + "\n" for p in parts}


def noise(start):
    if start > 0.5 * (os.cpu_count() or 1):
        return "Other work ran on the machine at the same time: read the ratios, not the figures."
    return "The machine was quiet."


if __name__ == "__main__":
    main()
