package market_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/gpu"
	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/scheduler/market/markettest"
)

var update = flag.Bool("update", false, "rewrite the expected output in testdata")

// TestTranscripts runs each testdata/*.txt: commands, each followed by "----" and
// what happened. Lines that start with # are the story. See run for the commands.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(want))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(want) {
				t.Errorf("%s differs; run with -update and look at the difference\n%s", file, firstDifference(got, string(want)))
			}
		})
	}
}

func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range max(len(g), len(w)) {
		var a, b string
		if i < len(g) {
			a = g[i]
		}
		if i < len(w) {
			b = w[i]
		}
		if a != b {
			return fmt.Sprintf("line %d\n got: %s\nwant: %s", i+1, a, b)
		}
	}
	return ""
}

// play executes a transcript and returns it with the output brought up to date.
func play(t *testing.T, text string) string {
	var out strings.Builder
	w := &world{t: t}
	inOutput := false
	for line := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
		switch {
		case line == "----":
			inOutput = true
		case line == "":
			inOutput = false
		case inOutput:
		case strings.HasPrefix(line, "#"):
			out.WriteString(line + "\n")
		default:
			out.WriteString(line + "\n----\n")
			w.log = nil
			w.run(line)
			for _, l := range w.log {
				out.WriteString(l + "\n")
			}
			out.WriteString("\n")
		}
	}
	if w.sim != nil && len(w.sim.Violations) > 0 {
		t.Errorf("broken promises: %v", w.sim.Violations)
	}
	return strings.TrimRight(out.String(), "\n") + "\n"
}

type world struct {
	t     *testing.T
	sim   *markettest.Sim
	log   []string
	rules []rule
	cuts  map[[2]string]bool
}

// rule is the fate of the next n messages of a kind between two nodes.
type rule struct {
	fate     markettest.Fate
	kind     string
	from, to string
	n        int
}

func (w *world) filter(from, to scheduler.NodeID, msg any) markettest.Fate {
	if w.cuts[[2]string{string(from), string(to)}] {
		return markettest.Drop
	}
	name := strings.TrimPrefix(fmt.Sprintf("%T", msg), "market.")
	for i := range w.rules {
		r := &w.rules[i]
		if r.n > 0 && strings.EqualFold(r.kind, name) && r.from == string(from) && r.to == string(to) {
			r.n--
			return r.fate
		}
	}
	return markettest.Deliver
}

// run executes one command:
//
//	node NAME cores=N mem=GIB [gpus=A,B] [roots=a,b]     a node joins
//	submit NODE OFFER [cpu=N] [mem=GIB] [gpu=LIST] [headless] [patient] [strict] [group=G] [attempt=N] [priority=N]
//	run DURATION                                   time passes
//	lose|twice|fail KIND FROM TO [N]               fate of the next N such messages
//	cut A B / heal A B                             both ways
//	kill NODE / restart NODE / down NODE OTHER / up NODE OTHER
//	done NODE LEASE [REASON] / release NODE LEASE / withdraw NODE OFFER
//	drain NODE [stop] / shrink NODE cores=N mem=GIB [gpus=A,B]
//	award OWNER NODE OFFER epoch=N attempt=N       a hand-made award, also a stale one
//	adopt NODE OFFER LEASE epoch=N attempt=N on=NODE / disown NODE OFFER LEASE epoch=N attempt=N on=NODE
//	explain NODE OFFER / leases / config KEY=VALUE...
func (w *world) run(line string) {
	w.t.Helper()
	f := strings.Fields(line)
	cmd, args, opt := f[0], []string{}, map[string]string{}
	for _, a := range f[1:] {
		if k, v, ok := strings.Cut(a, "="); ok {
			opt[k] = v
		} else {
			args = append(args, a)
		}
	}
	has := func(word string) bool {
		for _, a := range args {
			if a == word {
				return true
			}
		}
		return false
	}
	id := func(i int) scheduler.NodeID { return scheduler.NodeID(args[i]) }
	if w.sim == nil {
		cfg := markettest.Config{
			Latency: time.Millisecond, StartTime: 100 * time.Millisecond, DetectDown: 50 * time.Millisecond,
			DHTDelay: 200 * time.Millisecond, Filter: w.filter, Trace: func(s string) { w.log = append(w.log, s) },
		}
		if cmd == "config" {
			cfg.NoGossip = opt["gossip"] == "off"
			cfg.NoDHT = opt["dht"] == "off"
			cfg.Owner.AskWidth = w.num(opt["width"], 0)
			cfg.Resubmit = opt["resubmit"] == "on"
			cfg.Worker.CPUOvercommit = int64(w.num(opt["overcommit"], 0))
		}
		w.cuts = map[[2]string]bool{}
		w.sim = markettest.New(cfg)
		if cmd == "config" {
			return
		}
	}
	fence := market.Fence{Epoch: uint64(w.num(opt["epoch"], 1)), Attempt: uint32(w.num(opt["attempt"], 1))}
	switch cmd {
	case "node":
		c := w.box(opt)
		if opt["roots"] != "" {
			c.HotRoots = strings.Split(opt["roots"], ",")
		}
		w.sim.AddNode(id(0), c)
	case "submit":
		w.sim.Submit(id(0), market.Offer{
			ID: market.OfferID(args[1]), Demand: w.demand(opt, has("strict")), Group: opt["group"],
			Headless: has("headless"), Patient: has("patient"), FirstAttempt: uint32(w.num(opt["attempt"], 0)),
		})
	case "run":
		d, err := time.ParseDuration(args[0])
		if err != nil {
			w.t.Fatal(err)
		}
		w.sim.Run(d)
	case "lose", "twice", "fail":
		n := 1
		if len(args) > 3 {
			n = w.num(args[3], 1)
		}
		fate := map[string]markettest.Fate{"lose": markettest.Drop, "twice": markettest.Twice, "fail": markettest.Fail}[cmd]
		w.rules = append(w.rules, rule{fate, args[0], args[1], args[2], n})
	case "cut", "heal":
		w.cuts[[2]string{args[0], args[1]}] = cmd == "cut"
		w.cuts[[2]string{args[1], args[0]}] = cmd == "cut"
	case "kill":
		w.sim.Kill(id(0))
	case "restart":
		w.sim.Restart(id(0))
	case "down":
		w.sim.StepOwner(id(0), market.NodeDown{Node: id(1), Reason: "pings went unanswered"})
		w.sim.StepWorker(id(0), market.OwnerDown{Peer: id(1)})
	case "up":
		w.sim.StepOwner(id(0), market.NodeUp{Node: id(1)})
		w.sim.StepWorker(id(0), market.OwnerUp{Peer: id(1)})
	case "done":
		reason := market.EndExited
		if len(args) > 2 {
			reason = market.EndReason(args[2])
		}
		w.sim.StepWorker(id(0), market.LeaseDone{Lease: market.LeaseID(args[1]), Reason: reason})
	case "release":
		w.sim.StepOwner(id(0), market.ReleaseLease{Lease: market.LeaseID(args[1]), Reason: "idle"})
	case "withdraw":
		w.sim.StepOwner(id(0), market.Withdraw{Offer: market.OfferID(args[1]), Reason: "cancelled"})
	case "drain":
		w.sim.StepWorker(id(0), market.Drain{On: true, StopAll: has("stop")})
	case "shrink":
		w.sim.StepWorker(id(0), market.SetCapacity{Capacity: w.box(opt)})
	case "award":
		offer := market.OfferID(args[2])
		w.sim.StepWorker(id(1), market.Award{
			Owner: market.OwnerID{Peer: id(0), Epoch: fence.Epoch}, Offer: offer,
			Lease: market.LeaseID(fmt.Sprintf("%s-%d", offer, fence.Attempt)), Fence: fence,
			Demand: w.demand(opt, false), LeaseFor: 15 * time.Second,
		})
	case "adopt":
		w.sim.StepOwner(id(0), market.Adopt{
			Offer: market.Offer{ID: market.OfferID(args[1]), Demand: w.demand(opt, false), Headless: true},
			Lease: market.LeaseID(args[2]), Fence: fence, Node: scheduler.NodeID(opt["on"]),
		})
	case "disown":
		w.sim.StepOwner(id(0), market.Disown{
			Lease: market.LeaseRef{Offer: market.OfferID(args[1]), Lease: market.LeaseID(args[2]), Fence: fence}, Node: scheduler.NodeID(opt["on"]),
		})
	case "explain":
		w.explain(id(0), market.OfferID(args[1]))
	case "leases":
		for _, n := range w.sim.Nodes() {
			if !n.Up {
				w.printf("%s: down", n.ID)
				continue
			}
			var parts []string
			for _, l := range n.Worker.Leases() {
				parts = append(parts, fmt.Sprintf("%s%v", l.Lease, l.Grant.Devices))
			}
			free := n.Worker.Capacity().Free
			w.printf("%s: %s and %s free; %s", n.ID, scheduler.Cores(free.CPUMillis), scheduler.Size(free.MemoryMiB), strings.Join(parts, " "))
		}
	default:
		w.t.Fatalf("unknown command %q", line)
	}
}

func (w *world) explain(node scheduler.NodeID, offer market.OfferID) {
	e, ok := w.sim.Node(node).Owner.Explain(offer)
	if !ok {
		w.printf("nothing is known of %s", offer)
		return
	}
	w.printf("%s is %s, node %q, %d rounds, %d asked, pulled %v", e.Offer, e.State, e.Node, e.Rounds, e.Asked, e.Pulled)
	for _, c := range e.Candidates {
		w.printf("  candidate %s (found by %s): %s", c.Node, c.Source, c.Score)
	}
	for _, r := range e.Refusals {
		w.printf("  refusal %s (found by %s): %v", r.Node, r.Source, r.Reasons)
	}
	for _, m := range e.History {
		w.printf("  %6dms %s", m.At.Milliseconds(), m.Text)
	}
}

func (w *world) printf(format string, args ...any) {
	w.log = append(w.log, fmt.Sprintf(format, args...))
}

func (w *world) num(s string, def int) int {
	if s == "" {
		return def
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		w.t.Fatalf("%q is not a number", s)
	}
	return n
}

func (w *world) box(opt map[string]string) scheduler.Capacity {
	var gpus []string
	if opt["gpus"] != "" {
		gpus = strings.Split(opt["gpus"], ",")
	}
	return markettest.Box(int64(w.num(opt["cores"], 4)), int64(w.num(opt["mem"], 16)), gpus...)
}

func (w *world) demand(opt map[string]string, strict bool) scheduler.Demand {
	d := scheduler.Demand{
		CPUMillis: int64(w.num(opt["cpu"], 1)) * 1000, MemoryMiB: int64(w.num(opt["mem"], 1)) << 10,
		StrictCPU: strict, Priority: w.num(opt["priority"], 0),
	}
	wants, err := gpu.Parse(opt["gpu"], 0)
	if err != nil {
		w.t.Fatal(err)
	}
	d.GPUs = wants
	if opt["roots"] != "" {
		for r := range strings.SplitSeq(opt["roots"], ",") {
			d.Roots = append(d.Roots, scheduler.Root{Name: r, Bytes: 100 << 20})
		}
	}
	return d
}
