package mesh

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/simulations"
)

// Experiment is the world of this package for "beam sim".
type Experiment struct {
	// Threads bounds the cores used; 0 = 1. The result does not depend on it.
	Threads int
}

var _ simulations.Experiment = Experiment{}

// Name implements simulations.Experiment.
func (Experiment) Name() string { return "mesh" }

// Doc implements simulations.Experiment.
func (Experiment) Doc() string {
	return "Owners and workers of the real scheduler, message by message, with delays, stale views and failures."
}

// The policies.
const (
	Ours      = "ours"
	NoRefresh = "ours-no-refresh"
	FGD       = "fgd-central"
)

// Policies implements simulations.Experiment.
func (Experiment) Policies() []string { return []string{Ours, NoRefresh, FGD} }

// Params implements simulations.Experiment.
func (Experiment) Params() []simulations.Param {
	return []simulations.Param{
		{Name: "list", Kind: simulations.Text, Default: "", Doc: "pod list of the openb trace, which brings its own nodes; empty = made-up nodes and tasks"},
		{Name: "percent", Kind: simulations.Int, Default: "130", Doc: "with list: GPUs wanted by all tasks, in % of the mesh"},
		{Name: "every", Kind: simulations.Duration, Default: "50ms", Doc: "with list: time between two arrivals"},
		{Name: "nodes", Kind: simulations.Int, Default: "1000", Doc: "made-up nodes"},
		{Name: "tasks", Kind: simulations.Int, Default: "10000", Doc: "made-up tasks"},
		{Name: "load", Kind: simulations.Int, Default: "60", Doc: "GPUs that made-up tasks want on average, in % of the mesh"},
		{Name: "zone", Kind: simulations.Int, Default: "1000", Doc: "made-up nodes of a zone"},
		{Name: "owners", Kind: simulations.Int, Default: "16", Doc: "nodes that take tasks"},
		{Name: "run", Kind: simulations.Duration, Default: "10s", Doc: "mean run time of a task, exponential; 0s = with list: no task ends"},
		{Name: "keep", Kind: simulations.Bool, Default: "true", Doc: "tasks that find no room wait as open offers; else they are given up"},
		{Name: "patience", Kind: simulations.Duration, Default: "0s", Doc: "without keep: how long tasks that find no room wait before they are given up"},
		{Name: "latency", Kind: simulations.Duration, Default: "1ms", Doc: "of a message within a zone, one way"},
		{Name: "far", Kind: simulations.Duration, Default: "20ms", Doc: "of a message between zones, one way"},
		{Name: "jitter", Kind: simulations.Duration, Default: "1ms", Doc: "added to both, uniform"},
		{Name: "loss", Kind: simulations.Int, Default: "0", Doc: "messages lost, of a million"},
		{Name: "gossip", Kind: simulations.Duration, Default: "15s", Doc: "shortest time between two adverts of a node: how old views get"},
		{Name: "first", Kind: simulations.Int, Default: "1", Doc: "nodes asked in the first round"},
		{Name: "width", Kind: simulations.Int, Default: "2", Doc: "nodes asked in further rounds"},
		{Name: "rounds", Kind: simulations.Int, Default: "6", Doc: "rounds before a task waits"},
		{Name: "start", Kind: simulations.Duration, Default: "100ms", Doc: "until a container runs"},
		{Name: "renew", Kind: simulations.Duration, Default: "5s", Doc: "time between two renewals; a lease lasts three"},
		{Name: "mix", Kind: simulations.Text, Default: "learned", Doc: "what fragmentation is measured by: learned, known (with list) or none"},
		{Name: "detect", Kind: simulations.Duration, Default: "1s", Doc: "until a dead node's connections break; 0s = never, leases expire"},
		{Name: "takeover", Kind: simulations.Duration, Default: "3s", Doc: "until another host goes on for a dead owner"},
		{Name: "kill_nodes", Kind: simulations.Int, Default: "0", Doc: "nodes that die at once at fault_at, in %"},
		{Name: "kill_owners", Kind: simulations.Int, Default: "0", Doc: "owners that die, one a second from fault_at on"},
		{Name: "fault_at", Kind: simulations.Duration, Default: "5s", Doc: "when things die"},
		{Name: "back", Kind: simulations.Duration, Default: "0s", Doc: "until dead nodes are back; 0s = never"},
		{Name: "until", Kind: simulations.Duration, Default: "1h", Doc: "virtual time at which the run ends if tasks still wait"},
	}
}

// Run implements simulations.Experiment.
func (e Experiment) Run(ctx context.Context, s simulations.Settings) (*simulations.Result, error) {
	cfg, end, err := e.config(s)
	if err != nil {
		return nil, err
	}
	fill := s.Values["list"] != "" && len(cfg.Tasks) > 0 && neverEnd(cfg)
	if s.Policy == FGD {
		if err := Central(ctx, cfg); err != nil {
			return nil, err
		}
		r := &simulations.Result{}
		addUse(r, cfg, fill)
		return r, nil
	}
	w, err := New(*cfg)
	if err != nil {
		return nil, err
	}
	if err := w.Run(ctx, end); err != nil {
		return nil, err
	}
	r := &simulations.Result{}
	addUse(r, cfg, fill)
	w.addTo(r)
	return r, nil
}

func neverEnd(cfg *Config) bool {
	for _, ts := range cfg.Tasks {
		if len(ts) > 0 {
			return ts[0].Run < 0
		}
	}
	return false
}

// config reads the settings.
func (e Experiment) config(s simulations.Settings) (*Config, time.Duration, error) {
	r := s.Reader(e.Params())
	if err := r.Err(); err != nil {
		return nil, 0, err
	}
	renew := r.Duration("renew")
	cfg := &Config{
		Seed: s.Seed, Latency: r.Duration("latency"), Far: r.Duration("far"), Jitter: r.Duration("jitter"), LossPPM: r.Int("loss"),
		GossipEvery: r.Duration("gossip"), Discovery: 200 * time.Millisecond, Start: r.Duration("start"),
		Detect: r.Duration("detect"), TakeOver: r.Duration("takeover"), Keep: r.Bool("keep"), Patience: r.Duration("patience"),
		MixEvery: time.Minute, Threads: max(1, e.Threads), Progress: s.Progress,
		Owner: market.OwnerConfig{
			FirstWidth: r.Int("first"), AskWidth: r.Int("width"), MaxRounds: r.Int("rounds"), LeaseFor: 3 * renew,
			NoHistory: true, MaxOffers: 1 << 20, MaxRecent: 1, IgnoreReplies: s.Policy == NoRefresh,
		},
		Worker: market.WorkerConfig{RenewEvery: renew, NoHistory: true},
	}
	switch s.Policy {
	case Ours, NoRefresh, FGD, "":
	default:
		return nil, 0, fmt.Errorf("unknown policy %q: want %s", s.Policy, strings.Join(e.Policies(), ", "))
	}
	if renew <= 0 {
		return nil, 0, fmt.Errorf("renew %v: want more than zero", renew)
	}
	mixing := r.Text("mix")
	switch mixing {
	case "learned", "known":
	case "none":
		cfg.NoMix = true
	default:
		return nil, 0, fmt.Errorf("mix %q: want learned, known or none", mixing)
	}
	if list := r.Text("list"); list != "" {
		if s.Traces == "" {
			return nil, 0, fmt.Errorf("list %s needs the openb trace: set BEAM_TRACES to the directory that holds openb/", list)
		}
		mix, err := Openb{
			Seed: s.Seed, Traces: s.Traces, List: list, Owners: r.Int("owners"), Percent: int64(r.Int("percent")),
			Every: r.Duration("every"), Run: r.Duration("run"),
		}.Fill(cfg)
		if err != nil {
			return nil, 0, err
		}
		if mixing == "known" || s.Policy == FGD {
			cfg.Mix = mix
		}
	} else {
		if mixing == "known" || s.Policy == FGD {
			return nil, 0, fmt.Errorf("mix known and policy %s need a list", FGD)
		}
		err := Synthetic{
			Seed: s.Seed, Nodes: r.Int("nodes"), ZoneSize: r.Int("zone"), Owners: r.Int("owners"), Tasks: r.Int("tasks"),
			Run: r.Duration("run"), LoadPercent: int64(r.Int("load")),
		}.Fill(cfg)
		if err != nil {
			return nil, 0, err
		}
	}
	percent, owners := r.Int("kill_nodes"), r.Int("kill_owners")
	if percent < 0 || percent > 100 || owners < 0 || owners > len(cfg.Tasks) {
		return nil, 0, fmt.Errorf("kill_nodes %d %%, kill_owners %d: want at most 100 %% and %d owners", percent, owners, len(cfg.Tasks))
	}
	cfg.Check = len(cfg.Nodes) <= maxChecked
	cfg.Faults = KillNodes(cfg, percent, r.Duration("fault_at"), r.Duration("back"))
	for i := range owners {
		cfg.Faults = append(cfg.Faults, Fault{At: r.Duration("fault_at") + time.Duration(i)*time.Second, Node: -1, Owner: i})
	}
	return cfg, r.Duration("until"), nil
}

// maxChecked is the largest mesh of which all books are looked into all along;
// larger ones would spend a tenth of their time on it.
const maxChecked = 20_000

// KillNodes are the faults of so many percent of the nodes that die at once,
// chosen by the seed.
func KillNodes(cfg *Config, percent int, at, back time.Duration) []Fault {
	var fs []Fault
	w := World{cfg: *cfg}
	for i := range cfg.Nodes {
		if w.draw(int32(i), outside, 1)%100 < uint64(percent) {
			fs = append(fs, Fault{At: at, Node: i, Back: back})
		}
	}
	return fs
}

// addUse adds how well the GPUs were used.
func addUse(r *simulations.Result, cfg *Config, fill bool) {
	if !fill {
		var last time.Duration
		for _, ts := range cfg.Tasks {
			if len(ts) > 0 {
				last = max(last, ts[len(ts)-1].At)
			}
		}
		if last > 0 {
			r.Add("allocated_late", "%", 1, float64(Allocated(cfg, last/2, last))/1000)
		}
		return
	}
	curve := simulations.Series{Plot: "unallocated over arrival", XLabel: "GPUs wanted (%)", YLabel: "unallocated (%)"}
	for _, p := range []int64{90, 95, 100, 110, 120, 130} {
		v := float64(Unallocated(cfg, p)) / 1000
		r.Add(fmt.Sprintf("unallocated_at_%d", p), "%", -1, v)
		curve.X, curve.Y = append(curve.X, float64(p)), append(curve.Y, v)
	}
	r.Series = append(r.Series, curve)
}

// addTo adds what the world counted.
func (w *World) addTo(r *simulations.Result) {
	s := w.Stats()
	o := w.Outcome()
	per := func(n int64) float64 { return float64(n) / float64(max(1, w.total)) }
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	r.Add("tasks", "", 0, float64(w.total))
	r.Add("placements", "", 0, float64(s.Placements))
	r.Add("pulled", "", 0, float64(s.Pulled))
	r.Add("given_up", "", -1, float64(o.GivenUp))
	r.Add("refused", "", 0, float64(o.Refused))
	r.Add("lost_leases", "", 0, float64(s.Lost))
	r.Add("lost_tasks", "", -1, float64(o.Lost))
	r.Add("accepted_twice", "", -1, float64(o.Twice))
	r.Add("place_p50", "ms", -1, ms(s.Place.Quantile(500)))
	r.Add("place_p99", "ms", -1, ms(s.Place.Quantile(990)))
	r.Add("replace_p50", "ms", -1, ms(s.Again.Quantile(500)))
	r.Add("replace_p99", "ms", -1, ms(s.Again.Quantile(990)))
	r.Add("asks", "asks/task", -1, per(s.Messages[MsgAsk]))
	r.Add("messages", "messages/task", -1, per(s.Direct()))
	for m := range messageCount {
		r.Add("messages_"+m.String(), "messages/task", 0, per(s.Messages[m]))
	}
	seconds := max(1e-9, w.now.Seconds())
	r.Add("adverts_heard", "messages/owner/s", -1, float64(s.Messages[MsgAdvert])/seconds/float64(len(w.owners)))
	r.Add("adverts_sent", "messages/node/s", -1, float64(s.Published)/seconds/float64(len(w.nodes)))
	r.Add("known_nodes", "nodes/owner", 0, float64(w.known())/float64(len(w.owners)))
	r.Add("events", "", 0, float64(w.events))
	r.Add("simulated", "s", 0, w.now.Seconds())
}

// known is how many nodes the owners know in all.
func (w *World) known() (n int) {
	for i := range w.owners {
		if m := w.owners[i].market; m != nil {
			n += m.View().Len()
		}
	}
	return n
}
