package results

import (
	"encoding/csv"
	"fmt"
	"io"
	"slices"
	"strconv"
)

// WriteCSV writes one row for each run: what it was, its parameters, then its
// metrics with their units in the title. A failed run has the reason and empty
// metrics.
func WriteCSV(w io.Writer, records []Record) error {
	params, metrics, units := columns(records)
	head := append([]string{"experiment", "policy", "seed", "trace"}, params...)
	for _, m := range metrics {
		if u := units[m]; u != "" {
			m += " (" + u + ")"
		}
		head = append(head, m)
	}
	out := csv.NewWriter(w)
	_ = out.Write(append(head, "failed"))
	for i := range records {
		r := &records[i]
		row := identity(r, params)
		for _, m := range metrics {
			v := ""
			if j := slices.IndexFunc(r.Metrics, func(x Metric) bool { return x.Name == m }); j >= 0 {
				v = float(r.Metrics[j].Value)
			}
			row = append(row, v)
		}
		failed := ""
		if r.Failed != nil {
			failed = r.Failed.What
		}
		_ = out.Write(append(row, failed))
	}
	out.Flush()
	if err := out.Error(); err != nil {
		return fmt.Errorf("write csv: %w", err)
	}
	return nil
}

// WriteCurvesCSV writes one row for each point of each series.
func WriteCurvesCSV(w io.Writer, records []Record) error {
	params, _, _ := columns(records)
	out := csv.NewWriter(w)
	_ = out.Write(slices.Concat([]string{"experiment", "policy", "seed", "trace"}, params, []string{"plot", "label", "x_label", "y_label", "x", "y"}))
	for i := range records {
		r := &records[i]
		for _, s := range r.Series {
			for j := range s.X {
				_ = out.Write(append(identity(r, params), s.Plot, s.Label, s.XLabel, s.YLabel, float(s.X[j]), float(s.Y[j])))
			}
		}
	}
	out.Flush()
	if err := out.Error(); err != nil {
		return fmt.Errorf("write csv: %w", err)
	}
	return nil
}

// columns are the parameters and metrics that any record has.
func columns(records []Record) (params, metrics []string, units map[string]string) {
	units = map[string]string{}
	all := make([]map[string]string, len(records))
	for i, r := range records {
		all[i] = r.Params
		for _, m := range r.Metrics {
			if _, ok := units[m.Name]; !ok {
				metrics = append(metrics, m.Name)
				units[m.Name] = m.Unit
			}
		}
	}
	return paramNames(all...), metrics, units
}

func identity(r *Record, params []string) []string {
	row := []string{r.Experiment, r.Policy, strconv.FormatUint(r.Seed, 10), r.Trace}
	for _, p := range params {
		row = append(row, r.Params[p])
	}
	return row
}

func float(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }
