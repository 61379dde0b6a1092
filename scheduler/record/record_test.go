package record_test

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/gpu"
	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/scheduler/record"
	"github.com/beammesh/beammesh/scheduler/replicas"
)

// journal is a small mesh, one owner and a few workers, whose steps are recorded.
type journal struct {
	t       *testing.T
	now     time.Duration
	owner   *market.Owner
	workers map[scheduler.NodeID]*market.Worker
	lines   []string
	config  market.OwnerConfig
}

func newJournal(t *testing.T) *journal {
	j := &journal{t: t, workers: map[scheduler.NodeID]*market.Worker{}, config: market.OwnerConfig{ID: market.OwnerID{Peer: "box0", Epoch: 1}}}
	j.owner = market.NewOwner(j.config)
	j.add(record.Record{Machine: record.Owner, Event: record.OwnerStart{Config: j.config, Name: "box0", Wall: time.Unix(1e9, 0).UTC()}})
	return j
}

func (j *journal) add(r record.Record) {
	j.t.Helper()
	b, err := record.Append(nil, &r)
	if err != nil {
		j.t.Fatal(err)
	}
	j.lines = append(j.lines, string(b))
}

// step feeds the owner and delivers what it sends at once.
func (j *journal) step(ev market.OwnerEvent) {
	j.now += time.Millisecond
	actions := append([]market.OwnerAction(nil), j.owner.Step(j.now, ev)...)
	j.add(record.Record{At: j.now, Machine: record.Owner, Event: ev, Decisions: record.OwnerDecisions(actions)})
	for _, a := range actions {
		switch a := a.(type) {
		case market.SendAsk:
			j.worker(a.To, a.Ask)
		case market.SendAward:
			j.worker(a.To, a.Award)
		case market.SendRelease:
			j.worker(a.To, a.Release)
		case market.SendOpenOffer:
			j.worker(a.To, a.OpenOffer)
		}
	}
}

func (j *journal) worker(id scheduler.NodeID, ev market.WorkerEvent) {
	for _, a := range append([]market.WorkerAction(nil), j.workers[id].Step(j.now, ev)...) {
		switch a := a.(type) {
		case market.ReplyAsk:
			j.step(a.Reply)
		case market.ReplyAward:
			j.step(a.Reply)
		case market.ReplyRelease:
			j.step(a.Reply)
		case market.SendPull:
			j.step(a.Pull)
		case market.SendEnded:
			j.step(a.Ended)
		case market.AdvertChanged:
			j.step(market.AdvertSeen{Advert: a.Advert, Source: scheduler.SourceGossip})
		}
	}
}

func (j *journal) run(seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	for i := range 4 {
		id := scheduler.NodeID(fmt.Sprintf("box%d", i))
		r := scheduler.Resources{CPUMillis: 8000, MemoryMiB: 1 << 15, DiskMiB: 1 << 16}
		c := scheduler.Capacity{Total: r, Free: r, Arch: "amd64"}
		if i > 1 {
			c.Devices = []scheduler.Device{{ID: "gpu-0", Class: "H100", MemoryMiB: 80 << 10, FreeMilli: 1000}}
		}
		j.workers[id] = market.NewWorker(market.WorkerConfig{Node: id, Name: string(id), Boot: "b", Capacity: c})
		j.step(market.AdvertSeen{Advert: j.workers[id].Advert(), Source: scheduler.SourceHello})
	}
	var placed []market.OfferID
	for i := range 60 {
		id := market.OfferID(fmt.Sprintf("job-%d", i))
		d := scheduler.Demand{CPUMillis: 500 + int64(rng.IntN(4))*500, MemoryMiB: 1024}
		if rng.IntN(4) == 0 {
			d.GPUs = []gpu.Want{{Class: "H100", Count: 1}}
		}
		j.step(market.Submit{Offer: market.Offer{ID: id, Demand: d, Group: "g"}})
		placed = append(placed, id)
		if len(placed) > 12 {
			k := rng.IntN(len(placed))
			j.step(market.Withdraw{Offer: placed[k], Reason: "done"})
			placed = append(placed[:k], placed[k+1:]...)
		}
		if i == 20 {
			j.step(market.SetMix{Shapes: []scheduler.Weighted{{Demand: d, Weight: 3}, {Demand: scheduler.Demand{CPUMillis: 1000}, Weight: 1}}})
		}
		if i == 30 {
			j.step(market.NodeDown{Node: "box3", Reason: "killed"})
		}
		j.step(market.Tick{})
	}
}

func verify(t *testing.T, lines []string) record.Summary {
	t.Helper()
	v := record.NewVerifier()
	for _, l := range lines {
		r, err := record.Parse([]byte(l))
		if err != nil {
			t.Fatalf("%v in %s", err, l)
		}
		v.Feed(r)
	}
	return v.Summary()
}

// TestReplayDecidesTheSame: the machines are functions of what is in the journal.
func TestReplayDecidesTheSame(t *testing.T) {
	for seed := range uint64(20) {
		j := newJournal(t)
		j.run(seed)
		s := verify(t, j.lines)
		if s.Equal != s.Steps || s.Awards < 20 || s.EqualAwards != s.Awards || s.Skipped != 0 {
			t.Fatalf("seed %d: %+v", seed, s)
		}
	}
}

// TestReplayNoticesAChange: a journal that tells another story is not waved through.
func TestReplayNoticesAChange(t *testing.T) {
	j := newJournal(t)
	j.run(1)
	for i, l := range j.lines {
		if strings.Contains(l, `"out":["award box1 `) {
			j.lines[i] = strings.Replace(l, `"out":["award box1 `, `"out":["award box0 `, 1)
			break
		}
	}
	s := verify(t, j.lines)
	if s.EqualAwards != s.Awards-1 || s.Equal != s.Steps-1 || !strings.Contains(s.First, "award box0") {
		t.Errorf("got %+v", s)
	}
}

func TestAfterAGapNothingIsCompared(t *testing.T) {
	j := newJournal(t)
	j.run(1)
	j.add(record.Record{Event: record.Gap{Lost: 3}})
	j.step(market.Tick{})
	if s := verify(t, j.lines); s.Skipped != 1 || s.Lost != 3 || s.Equal != s.Steps {
		t.Errorf("got %+v", s)
	}
}

func TestPoolStepsAreCompared(t *testing.T) {
	cfg := replicas.Config{Max: 3, Window: 2, KeepWarm: time.Minute}
	p := replicas.New(cfg)
	var lines []string
	add := func(r record.Record) {
		r.Machine = "pool ws/stub"
		b, err := record.Append(nil, &r)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, string(b))
	}
	add(record.Record{Event: record.PoolStart{Config: cfg, Stub: "square", Demand: scheduler.Demand{CPUMillis: 100}}})
	at := time.Duration(0)
	step := func(ev replicas.Event) {
		at += time.Millisecond
		add(record.Record{At: at, Event: ev, Decisions: record.PoolDecisions(p.Step(at, ev))})
	}
	for i := range 5 {
		step(replicas.Submit{Call: replicas.Call{ID: replicas.CallID(fmt.Sprint("call", i)), RetryFor: []string{"crash"}}})
	}
	step(replicas.ReplicaReady{Replica: "r1", Node: "box1", Took: time.Second})
	step(replicas.Begun{Replica: "r1", Call: "call0", Attempt: 1})
	step(replicas.Result{Replica: "r1", Call: "call0", Attempt: 1, Failure: &replicas.Failure{Kind: replicas.FailException, Name: "ValueError"}})
	s := verify(t, lines)
	if s.Steps != 8 || s.Equal != 8 || s.Dispatches < 2 || s.EqualDispatches != s.Dispatches {
		t.Errorf("got %+v", s)
	}
}

func TestRoundTrip(t *testing.T) {
	for _, r := range []record.Record{
		{At: 5, Machine: record.Worker, Event: market.LeaseDone{Lease: "l-1", Reason: market.EndOOM}},
		{Machine: record.Owner, Event: market.Tick{}, Decisions: []string{"placed a b"}},
		{Machine: "pool a/b", Event: record.PoolEnd{}},
		{Machine: "gap", Event: record.Gap{Lost: 7}},
		{Machine: record.Worker, Event: record.WorkerStart{Config: market.WorkerConfig{Node: "n", Boot: "b"}, Wall: time.Unix(1, 0).UTC()}},
	} {
		b, err := record.Append(nil, &r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := record.Parse(b)
		if err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("got %+v, %v, want %+v", got, err, r)
		}
	}
}

// TestTextsOfProgramsStayOut: a journal is handed on to others.
func TestTextsOfProgramsStayOut(t *testing.T) {
	for _, r := range []record.Record{
		{Machine: record.Worker, Event: market.LeaseDone{Lease: "l-1", Detail: "hunter2"}},
		{Machine: record.Owner, Event: market.Ended{Lease: "l-1", Detail: "hunter2"}},
		{Machine: "pool a", Event: replicas.Result{Call: "c", Failure: &replicas.Failure{Kind: replicas.FailException, Text: "hunter2"}}},
		{Machine: "pool a", Event: replicas.ReplicaLost{Replica: "r", Failure: replicas.Failure{Text: "hunter2"}}},
	} {
		b, err := record.Append(nil, &r)
		if err != nil || strings.Contains(string(b), "hunter2") {
			t.Errorf("%s, %v", b, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for name, in := range map[string]string{
		"empty":           "",
		"torn":            `{"at":1,"m":"owner","in":"Ti`,
		"unknown machine": `{"at":1,"m":"cook","in":"Tick"}`,
		"unknown event":   `{"at":1,"m":"owner","in":"Sing"}`,
		"pool's event":    `{"at":1,"m":"owner","in":"Begun"}`,
		"unknown field":   `{"at":1,"m":"owner","in":"Tick","x":1}`,
		"wrong type":      `{"at":1,"m":"owner","in":"NodeUp","ev":{"Node":5}}`,
		"two values":      `{"at":1,"m":"owner","in":"Tick"} {}`,
	} {
		if _, err := record.Parse([]byte(in)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"at":1,"m":"owner","in":"NodeUp","ev":{"Node":"box1"}}`))
	f.Add([]byte(`{"at":1,"m":"pool a","in":"Begun","ev":{"Call":"x"},"out":["a"]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := record.Parse(b)
		if err != nil {
			return
		}
		again, err := record.Append(nil, &r)
		if err != nil {
			t.Fatalf("accepted %q, but: %v", b, err)
		}
		if _, err := record.Parse(again); err != nil {
			t.Fatalf("own line %q: %v", again, err)
		}
	})
}
