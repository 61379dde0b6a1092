package replicas

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestNoCallLostOrAcceptedTwice drives a pool through random loads, container
// losses, drains, cancels and failed starts: every call finishes exactly once,
// containers stay within Max, and in the end nothing is left over.
func TestNoCallLostOrAcceptedTwice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := Config{
			Max:         rapid.IntRange(1, 6).Draw(t, "max"),
			Min:         rapid.IntRange(0, 2).Draw(t, "min"),
			Concurrency: rapid.IntRange(1, 3).Draw(t, "concurrency"),
			Window:      rapid.IntRange(-1, 4).Draw(t, "window"),
			KeepWarm:    time.Duration(rapid.IntRange(-1, 20).Draw(t, "keep warm")) * time.Second,
			// Losses must not end calls here: the law is that each gets its result.
			MaxNodeLosses: 1 << 20,
			CancelWait:    time.Second,
		}
		w := newWorld(t, cfg)
		w.start = time.Duration(rapid.IntRange(1, 2000).Draw(t, "start")) * time.Millisecond
		w.length = func(id CallID) time.Duration {
			return time.Duration(1+len(id)*7919%400) * time.Millisecond
		}
		w.speed = func(node string) int64 { return map[string]int64{"box1": 100, "box2": 20, "box3": 60}[node] }
		submitted, cancelled := 0, map[CallID]bool{}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			switch rapid.IntRange(0, 7).Draw(t, "op") {
			case 0, 1, 2:
				for range rapid.IntRange(1, 30).Draw(t, "calls") {
					submitted++
					w.step(Submit{Call{ID: CallID(fmt.Sprintf("%0*d", 1+submitted%13, submitted))}})
				}
			case 3:
				if n := len(w.p.order); n > 0 {
					r := w.p.order[rapid.IntRange(0, n-1).Draw(t, "which")]
					w.lose(r.id, true)
				}
			case 4:
				if n := len(w.p.order); n > 0 {
					w.step(ReplicaDraining{w.p.order[rapid.IntRange(0, n-1).Draw(t, "which")].id})
				}
			case 5:
				if submitted > 0 {
					n := rapid.IntRange(1, submitted).Draw(t, "cancel")
					id := CallID(fmt.Sprintf("%0*d", 1+n%13, n))
					if _, over := w.finished[id]; !over {
						cancelled[id] = true
					}
					w.step(Cancel{id, "user"})
				}
			default:
				w.run(time.Duration(rapid.IntRange(1, 3000).Draw(t, "ms")) * time.Millisecond)
			}
		}
		w.run(10 * time.Minute)
		if len(w.finished) != submitted {
			t.Fatalf("%d submitted, %d finished: %+v", submitted, len(w.finished), w.p.Stats())
		}
		for id, f := range w.finished {
			switch {
			case cancelled[id]:
				if f.Failure == nil || f.Failure.Kind != FailCancelled {
					t.Fatalf("cancelled %s: %+v", id, f)
				}
			case f.Failure != nil:
				t.Fatalf("%s: %+v", id, f.Failure)
			}
		}
		if w.peak > cfg.Max {
			t.Fatalf("%d containers at most, Max is %d", w.peak, cfg.Max)
		}
		s := w.p.Stats()
		if s.Queued != 0 || s.Sent != 0 || s.Running != 0 || w.p.sent != 0 || w.p.begun != 0 {
			t.Fatalf("left over: %+v, sent %d, begun %d", s, w.p.sent, w.p.begun)
		}
		if cfg.KeepWarm >= 0 && s.Replicas != min(cfg.Min, cfg.Max) {
			t.Fatalf("%d containers are kept, Min is %d", s.Replicas, cfg.Min)
		}
	})
}

// TestArbitraryEvents feeds events that no sane shell would send: nothing may
// panic, and no call may finish twice.
func TestArbitraryEvents(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := New(Config{Max: 3, MaxQueue: 8, KeepWarm: time.Second})
		now := time.Duration(0)
		alive := map[CallID]bool{}
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			c := CallID(fmt.Sprint(rapid.IntRange(0, 5).Draw(t, "call")))
			r := ReplicaID(fmt.Sprint(rapid.IntRange(0, 3).Draw(t, "replica")))
			n := rapid.IntRange(0, 3).Draw(t, "n")
			var ev Event
			switch rapid.IntRange(0, 10).Draw(t, "event") {
			case 0, 1:
				ev = Submit{Call{ID: c, Retries: n, Timeout: time.Duration(n) * time.Second, Deadline: now + time.Duration(n)*time.Second}}
				if _, known := p.calls[c]; !known {
					alive[c] = true
				}
			case 2:
				ev = Cancel{Call: c}
			case 3:
				ev = ReplicaReady{Replica: r}
			case 4:
				ev = AcquireFailed{N: n, Final: n == 1}
			case 5:
				ev = ReplicaLost{Replica: r, NodeLost: n > 1}
			case 6:
				ev = ReplicaDraining{r}
			case 7:
				ev = Begun{r, c, n}
			case 8:
				ev = Recalled{r, c, n, n > 1}
			case 9:
				res := Result{Replica: r, Call: c, Attempt: n}
				if n > 1 {
					res.Failure = &Failure{Kind: FailException}
				}
				ev = res
			default:
				ev = Tick{}
				now += time.Duration(rapid.IntRange(0, 3000).Draw(t, "ms")) * time.Millisecond
			}
			for _, a := range p.Step(now, ev) {
				if f, ok := a.(Finished); ok {
					if !alive[f.Call] {
						t.Fatalf("%s finished without being submitted", f.Call)
					}
					delete(alive, f.Call)
				}
			}
			if len(alive) != len(p.calls) {
				t.Fatalf("%d calls alive, the pool has %d", len(alive), len(p.calls))
			}
		}
	})
}
