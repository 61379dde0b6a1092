package sim

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/beammesh/beammesh/cli"
	"github.com/beammesh/beammesh/cli/output"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/gpu"
	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/scheduler/record"
	"github.com/beammesh/beammesh/simulations"
	"github.com/beammesh/beammesh/simulations/replay"
	"github.com/beammesh/beammesh/simulations/results"
)

const replayLong = `Run what a mesh recorded again, and ask what would have been.

Every node keeps a journal of its placement decisions in its data directory
(--market-journal of beam node up bounds it). Replay checks that fresh machines,
fed the same events, decide the same; measures links and container starts; and
simulates the recorded load with the scheduler of the nodes, once as it was and
once with the changes asked for. Each is simulated --runs times with other luck;
the medians are shown.

With --since only what was submitted after a moment counts: start to count when
the mesh is warm and has no work.

With --fit the measurements come from another recording, which shows whether they
hold for other work than their own.

Give --from the data directory of every node that took or ran work. Where the
nodes ran on one machine (beam dev up) say --one-machine: they shared its
processors.`

// change is what a what-if question asks.
type change struct {
	from       []string
	fit        []string
	since      string
	fitSince   string
	add        []string
	remove     []string
	policy     string
	oneMachine bool
	cores      int
	runs       int
	out        string
}

// replayPolicies are the settings of the owners that can be compared.
var replayPolicies = []string{"recorded", "first-bid", "wide"}

func (t *tool) replayCommand() *cobra.Command {
	var c change
	cmd := &cobra.Command{
		Use: "replay --from DIR…", Short: "Run a recorded load again, with a node less or more", Long: replayLong,
		Example: "  beam sim replay --from node1 --from node2 --remove node2\n  beam sim replay --from /var/lib/beam --add 2xRTX4090",
		RunE: func(cmd *cobra.Command, args []string) error {
			c.from = append(c.from, args...)
			if len(c.from) == 0 {
				return cli.Usage(cmd, "want --from and a node's data directory")
			}
			return t.replay(cmd.Context(), c)
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&c.from, "from", nil, "`folder` of a node's data or journal; may be repeated")
	f.StringArrayVar(&c.fit, "fit", nil, "`folder` of other journals to measure links and starts in; may be repeated")
	f.StringVar(&c.since, "since", "", "leave out what came before this `time`, such as 2026-11-22T14:03:00Z, when the mesh had no work")
	f.StringVar(&c.fitSince, "fit-since", "", "the same, of the recording of --fit")
	f.StringArrayVar(&c.remove, "remove", nil, "`node` to take away; may be repeated")
	f.StringArrayVar(&c.add, "add", nil, "`GPUs` of a node to put in, such as 2xRTX4090, or none; may be repeated")
	f.StringVar(&c.policy, "policy", "recorded", "how owners ask: recorded, first-bid (one node at a time), wide (eight)")
	f.BoolVar(&c.oneMachine, "one-machine", false, "the recorded nodes shared one machine")
	f.IntVar(&c.cores, "cores", replay.Defaults.Crowd.Processors, "processors of each recorded machine")
	f.IntVar(&c.runs, "runs", 5, "simulated runs, each with other luck; their medians are shown")
	f.StringVar(&c.out, "results", "", "`file` to append the runs to, for beam sim report")
	return cmd
}

// replayed is one world of the comparison.
type replayed struct {
	Name string `json:"name"`
	// Unfinished calls never ran in it.
	Unfinished int              `json:"unfinished"`
	Metrics    []results.Metric `json:"metrics"`
	result     *simulations.Result
}

type replayReport struct {
	Nodes      int            `json:"nodes"`
	Calls      int            `json:"calls"`
	Failed     int            `json:"failed"`
	Unfinished int            `json:"unfinished"`
	Check      record.Summary `json:"check"`
	Models     replay.Models  `json:"models"`
	Worlds     []replayed     `json:"worlds"`
}

func (t *tool) replay(ctx context.Context, c change) error {
	p, err := t.app.Printer()
	if err != nil {
		return err
	}
	owner, err := ownerPolicy(c.policy)
	if err != nil {
		return err
	}
	if c.cores < 1 || c.cores > 4096 {
		return fault.New(fault.Invalid, fmt.Sprintf("--cores %d", c.cores), "1 to 4096")
	}
	if c.runs < 1 || c.runs > 1000 {
		return fault.New(fault.Invalid, fmt.Sprintf("--runs %d", c.runs), "1 to 1000")
	}
	js, err := journals(c.from, c.since, "--since")
	if err != nil {
		return err
	}
	load := replay.LoadOf(js)
	if len(load.Calls) == 0 {
		return fault.New(fault.NotFound, "the journals have no call that ended", "give the data directory of the node that took the calls, too")
	}
	hostOf := func(node string) string { return node }
	if c.oneMachine {
		hostOf = func(string) string { return "machine" }
	}
	measured := js
	if len(c.fit) > 0 {
		if measured, err = journals(c.fit, c.fitSince, "--fit-since"); err != nil {
			return err
		}
	}
	models, err := replay.Calibrate(ctx, measured, c.cores, hostOf)
	if err != nil {
		return failure(ctx, err, "the same journals lead to the same event")
	}
	r := replayReport{Nodes: len(js), Calls: len(load.Calls), Failed: load.Failed, Unfinished: load.Unfinished,
		Check: replay.Verify(js), Models: models}
	rec := replay.Measure(js)
	r.add("recorded", rec.Result(), 0)
	run := func(name string, l replay.Load, change func(*market.OwnerConfig)) error {
		var runs []*simulations.Result
		open := 0
		for seed := range uint64(c.runs) {
			sim, left, err := replay.Simulate(ctx, l, models, replay.Options{Seed: seed, HostOf: hostOf, Until: rec.End, Owner: change})
			if err != nil {
				return failure(ctx, err, "the same journals lead to the same event")
			}
			m := replay.Measure(sim)
			runs, open = append(runs, m.Result()), max(open, left)
		}
		r.add(name, medianRun(runs), open)
		return nil
	}
	if err := run("simulated", load, nil); err != nil {
		return err
	}
	if name := c.name(); name != "" {
		changed, err := c.apply(load)
		if err != nil {
			return err
		}
		if err := run(name, changed, owner); err != nil {
			return err
		}
	}
	if c.out != "" {
		if err := r.store(c.out, t.version()); err != nil {
			return err
		}
	}
	if p.Format.Machine() {
		return p.Value(r)
	}
	_, err = fmt.Fprint(p.Out, r.page(p))
	return err
}

// medianRun has the median of each metric, and the curves of the first run.
func medianRun(runs []*simulations.Result) *simulations.Result {
	m := *runs[0]
	m.Metrics = slices.Clone(m.Metrics)
	for i := range m.Metrics {
		values := make([]float64, len(runs))
		for k, r := range runs {
			values[k] = r.Metrics[i].Value
		}
		slices.Sort(values)
		m.Metrics[i].Value = values[len(values)/2]
	}
	return &m
}

func (r *replayReport) add(name string, res *simulations.Result, unfinished int) {
	w := replayed{Name: name, Unfinished: unfinished, result: res}
	for _, m := range res.Metrics {
		w.Metrics = append(w.Metrics, results.Metric(m))
	}
	r.Worlds = append(r.Worlds, w)
}

// journals reads a recording.
func journals(from []string, since, flag string) ([]replay.Journal, error) {
	js, err := replay.Read(from)
	if err != nil {
		return nil, fault.New(fault.Invalid, err.Error(), "`beam sim replay --help` says what --from and --fit want")
	}
	if since != "" {
		at, err := time.Parse(time.RFC3339, since)
		if err != nil {
			return nil, fault.New(fault.Invalid, flag+" "+since+" is no time", "such as 2026-11-22T14:03:00Z")
		}
		replay.Since(js, at)
	}
	return js, nil
}

// name of the changed world; "" when nothing is changed.
func (c *change) name() string {
	var parts []string
	for _, n := range c.remove {
		parts = append(parts, "without "+n)
	}
	for _, n := range c.add {
		parts = append(parts, "with "+n)
	}
	if c.policy != "recorded" {
		parts = append(parts, c.policy)
	}
	return strings.Join(parts, ", ")
}

func (c *change) apply(l replay.Load) (replay.Load, error) {
	for _, name := range c.remove {
		if !l.Remove(name) {
			var names []string
			for _, n := range l.Nodes {
				names = append(names, n.Name)
			}
			return l, fault.New(fault.NotFound, fmt.Sprintf("--remove %s: no such node, or the last one", name), "the journals are of "+strings.Join(names, ", "))
		}
	}
	for i, spec := range c.add {
		devices, err := parseDevices(spec)
		if err != nil {
			return l, err
		}
		l.Add("added-"+strconv.Itoa(i+1), devices)
	}
	return l, nil
}

// maxAdded bounds the devices of one added node.
const maxAdded = scheduler.MaxDevices

// parseDevices reads "2xRTX4090", "H100" or "none".
func parseDevices(spec string) ([]scheduler.Device, error) {
	if strings.EqualFold(spec, "none") {
		return nil, nil
	}
	count, class := 1, spec
	if n, rest, ok := strings.Cut(spec, "x"); ok {
		if k, err := strconv.Atoi(n); err == nil {
			count, class = k, rest
		}
	}
	if count < 1 || count > maxAdded || class == "" || strings.ContainsAny(class, " ,:") {
		return nil, fault.New(fault.Invalid, fmt.Sprintf("--add %s is no list of GPUs", spec), fmt.Sprintf("such as 2xRTX4090, H100 or none; at most %d", maxAdded))
	}
	var ds []scheduler.Device
	for i := range count {
		ds = append(ds, scheduler.Device{ID: "added-" + strconv.Itoa(i), Class: gpu.Normalise(class), MemoryMiB: 24 << 10, FreeMilli: scheduler.GPUExclusive, Simulated: true})
	}
	return ds, nil
}

func ownerPolicy(name string) (func(*market.OwnerConfig), error) {
	switch name {
	case "recorded":
		return nil, nil
	case "first-bid":
		return func(c *market.OwnerConfig) { c.AskWidth, c.FirstWidth = 1, 1 }, nil
	case "wide":
		return func(c *market.OwnerConfig) { c.AskWidth, c.FirstWidth = 8, 8 }, nil
	}
	return nil, fault.New(fault.Invalid, fmt.Sprintf("there is no policy %q for a replay", name), "one of "+strings.Join(replayPolicies, ", "))
}

// store appends the worlds as runs that `beam sim report` and compare read.
func (r *replayReport) store(path, version string) error {
	s, err := results.Open(path)
	if err != nil {
		return err
	}
	defer s.Close()
	for _, w := range r.Worlds {
		rec := results.Record{Experiment: "replay", Policy: w.Name, Params: map[string]string{"calls": strconv.Itoa(r.Calls), "nodes": strconv.Itoa(r.Nodes)}}
		if err := rec.SetResult(w.result); err != nil {
			return err
		}
		if err := s.Append(&rec, results.LogEntry{Version: version}); err != nil {
			return err
		}
	}
	return s.Finish()
}

// page is the report for people.
func (r *replayReport) page(p *output.Printer) string {
	var b strings.Builder
	st := p.Style
	fmt.Fprintf(&b, "%s  %d nodes, %d calls", st.Bold("Recorded"), r.Nodes, r.Calls)
	for _, x := range []struct {
		n    int
		what string
	}{{r.Failed, "failed (replayed as if they had not)"}, {r.Unfinished, "never ended (left out)"}} {
		if x.n > 0 {
			fmt.Fprintf(&b, ", %d %s", x.n, x.what)
		}
	}
	s := r.Check
	fmt.Fprintf(&b, "\n%s  %d of %d steps decide the same: %d of %d awards, %d of %d calls sent\n", st.Bold("Checked "),
		s.Equal, s.Steps, s.EqualAwards, s.Awards, s.EqualDispatches, s.Dispatches)
	if s.First != "" {
		fmt.Fprintf(&b, "  %s %s\n", st.Yellow("first difference:"), output.Clean(s.First))
	}
	if s.Lost > 0 || s.Skipped > 0 {
		fmt.Fprintf(&b, "  %s %d records were lost by the nodes, %d steps could not be compared\n", st.Yellow("note:"), s.Lost, s.Skipped)
	}
	m := r.Models
	fmt.Fprintf(&b, "%s  ", st.Bold("Measured"))
	for i, x := range []struct {
		what string
		d    replay.Delay
		n    int
	}{
		{"link", m.Link, m.Samples.Link}, {"award", m.Award, m.Samples.Award}, {"start", m.StartWarm, m.Samples.StartWarm}, {"start without image", m.StartCold, m.Samples.StartCold},
		{"call to container", m.Dispatch, m.Samples.Dispatch}, {"stop", m.Stop, m.Samples.Stop},
	} {
		if i > 0 {
			b.WriteString(", ")
		}
		if x.n == 0 {
			fmt.Fprintf(&b, "%s %s (assumed)", x.what, output.Duration(x.d.Median()))
		} else {
			fmt.Fprintf(&b, "%s %s (%d)", x.what, output.Duration(x.d.Median()), x.n)
		}
	}
	fmt.Fprintf(&b, "\n%s  messages slow down beyond %d at a time (a start counts as %d), as the load to the power of %g\n\n",
		st.Bold("Crowding"), m.Crowd.Processors, m.Crowd.StartLoad, float64(m.Crowd.Power)/2)
	t := output.Table{Columns: []output.Column{{Title: "Metric"}, {Title: "Unit"}}}
	for _, w := range r.Worlds {
		t.Columns = append(t.Columns, output.Column{Title: w.Name, Right: true})
	}
	if len(r.Worlds) > 2 {
		t.Columns = append(t.Columns, output.Column{Title: "Change", Right: true})
	}
	for i, metric := range r.Worlds[0].Metrics {
		row := []string{metric.Name, unit(metric.Unit)}
		for _, w := range r.Worlds {
			row = append(row, results.Number(w.Metrics[i].Value))
		}
		if len(r.Worlds) > 2 {
			row = append(row, changeText(r.Worlds[1].Metrics[i].Value, r.Worlds[2].Metrics[i].Value))
		}
		t.Rows = append(t.Rows, row)
	}
	b.WriteString(p.Grid(t, "  "))
	for _, w := range r.Worlds {
		if w.Unfinished > 0 {
			fmt.Fprintf(&b, "  %s %d calls never ran in %q\n", st.Yellow("note:"), w.Unfinished, w.Name)
		}
	}
	return b.String()
}

// changeText is how b differs from a: "+12 %".
func changeText(a, b float64) string {
	switch percent := (b - a) / a * 100; {
	case a == b || percent > -0.5 && percent < 0.5:
		return "same"
	case a == 0:
		return "new"
	default:
		return fmt.Sprintf("%+.0f %%", percent)
	}
}
