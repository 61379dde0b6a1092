package replicas

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

func TestOneCallAndKeepWarm(t *testing.T) {
	w := newWorld(t, Config{Max: 8, KeepWarm: 10 * time.Second})
	w.submit(1, "a")
	w.run(2 * time.Second)
	if f, ok := w.finished["a0"]; !ok || f.Failure != nil || f.Attempt != 1 {
		t.Fatalf("got %+v", w.finished)
	}
	// The second call runs warm.
	from := w.now
	w.step(Submit{Call{ID: "b"}})
	w.run(100 * time.Millisecond)
	if _, ok := w.finished["b"]; !ok || w.started != 1 {
		t.Fatalf("b not finished %v after its submission, %d containers started", w.now-from, w.started)
	}
	w.run(9 * time.Second)
	if len(w.boxes) != 1 {
		t.Fatal("released before the keep-warm time")
	}
	w.run(2 * time.Second)
	if len(w.boxes) != 0 || w.p.Stats().Replicas != 0 {
		t.Fatal("not released after the keep-warm time")
	}
	if at, ok := w.p.NextWake(); ok {
		t.Fatalf("an empty pool wants to be woken at %v", at)
	}
}

func TestMinIsKept(t *testing.T) {
	w := newWorld(t, Config{Min: 2, Max: 4, KeepWarm: time.Second})
	w.step(Tick{})
	w.run(time.Minute)
	if len(w.boxes) != 2 {
		t.Fatalf("%d containers, want 2", len(w.boxes))
	}
	w.step(SetLimits{Min: 0, Max: 1, KeepWarm: time.Second})
	w.run(time.Minute)
	if len(w.boxes) != 0 {
		t.Fatalf("%d containers after Min became 0", len(w.boxes))
	}
}

// Work that the present containers finish sooner than another starts starts none.
func TestNoContainerForShortWork(t *testing.T) {
	w := newWorld(t, Config{Max: 16, KeepWarm: time.Hour, CallHint: time.Millisecond})
	w.deep = true
	w.length = func(CallID) time.Duration { return time.Millisecond }
	w.submit(1, "first")
	w.run(5 * time.Second)
	w.submit(200, "a")
	w.run(5 * time.Second)
	if len(w.finished) != 201 || w.started != 1 {
		t.Fatalf("%d finished, %d containers started for 200 ms of work", len(w.finished), w.started)
	}
}

// The window follows the calls' length.
func TestWindowByLength(t *testing.T) {
	p := New(Config{Window: 2})
	for _, c := range []struct {
		mean time.Duration
		want int
	}{{0, 0}, {time.Millisecond, 8}, {5 * time.Millisecond, 2}, {249 * time.Millisecond, 2}, {250 * time.Millisecond, 0}} {
		if got := p.window(c.mean); got != c.want {
			t.Errorf("calls of %v: %d are sent ahead, want %d", c.mean, got, c.want)
		}
	}
}

// Long calls get a container each, without waiting to find out when that is known.
func TestLongCallsSpread(t *testing.T) {
	w := newWorld(t, Config{Max: 16, KeepWarm: time.Hour, CallHint: 20 * time.Second})
	w.length = func(CallID) time.Duration { return 20 * time.Second }
	w.submit(10, "a")
	w.run(25 * time.Second)
	if len(w.finished) != 10 || w.started != 10 {
		t.Fatalf("%d finished, %d containers", len(w.finished), w.started)
	}
}

// When nothing is known a few are started, and the age of the calls that run
// brings the rest.
func TestUnknownCallsSpreadByAge(t *testing.T) {
	w := newWorld(t, Config{Max: 16, KeepWarm: time.Hour, Unknown: 2})
	w.length = func(CallID) time.Duration { return time.Minute }
	w.submit(10, "a")
	if w.started != 2 {
		t.Fatalf("%d containers at first, want Unknown", w.started)
	}
	w.run(10 * time.Second)
	if w.started != 10 {
		t.Fatalf("%d containers after 10 s of silence, want one per call", w.started)
	}
}

// What still starts when the work is done is taken back.
func TestUnacquire(t *testing.T) {
	w := newWorld(t, Config{Max: 16, KeepWarm: time.Hour})
	w.noStart = true
	w.submit(3, "a")
	if w.asked != 3 {
		t.Fatalf("asked for %d containers, want 3", w.asked)
	}
	w.ready("c1", "box1")
	w.run(time.Second)
	if len(w.finished) != 3 || w.asked != 0 {
		t.Fatalf("%d finished, still %d asked for", len(w.finished), w.asked)
	}
}

// map(range(1000)) of 50 ms over three equal containers: each runs its share;
// one that is throttled to a fifth runs little and does not hold up the end.
func TestShares(t *testing.T) {
	for _, slow := range []bool{false, true} {
		w := newWorld(t, Config{Max: 3, KeepWarm: time.Hour})
		w.speed = func(node string) int64 {
			if slow && node == "box2" {
				return 20
			}
			return 100
		}
		w.submit(1000, "a")
		w.run(time.Minute)
		if len(w.finished) != 1000 {
			t.Fatalf("slow %v: %d finished", slow, len(w.finished))
		}
		for node, n := range w.share() {
			switch {
			case slow && node == "box2" && n > 120:
				t.Errorf("the throttled %s ran %d of 1000", node, n)
			case !slow && (n < 250 || n > 420):
				t.Errorf("%s ran %d of 1000", node, n)
			}
		}
	}
}

// The last calls do not stay in line behind a slow container.
func TestRecall(t *testing.T) {
	w := newWorld(t, Config{Max: 2, Min: 2, KeepWarm: time.Hour, CallHint: 50 * time.Millisecond})
	w.speed = func(node string) int64 {
		if node == "box2" {
			return 2 // a 50 ms call takes 2.5 s
		}
		return 100
	}
	w.step(Tick{})
	w.run(2 * time.Second)
	w.submit(8, "a")
	w.run(700 * time.Millisecond)
	if len(w.finished) != 7 {
		t.Fatalf("%d of 8 finished; only the one that runs on the slow container may be out\n%v", len(w.finished), w.log)
	}
	w.run(3 * time.Second)
	for id, f := range w.finished {
		if f.Failure != nil || f.Attempt != 1 || w.begins[id] != 1 {
			t.Errorf("%s: %+v, begun %d times", id, f, w.begins[id])
		}
	}
}

func TestRetries(t *testing.T) {
	boom := &Failure{Kind: FailException, Name: "pkg.ValueError", Text: "boom"}
	for _, c := range []struct {
		name     string
		call     Call
		failure  *Failure
		attempts int
	}{
		{"no retries", Call{}, boom, 1},
		{"any failure", Call{Retries: 2}, boom, 3},
		{"named", Call{Retries: 2, RetryFor: []string{"KeyError", "ValueError"}}, boom, 3},
		{"not named", Call{Retries: 2, RetryFor: []string{"KeyError"}}, boom, 1},
		{"cancelled inside", Call{Retries: 2}, &Failure{Kind: FailCancelled}, 1},
		{"out of memory", Call{Retries: 1}, &Failure{Kind: FailOOM}, 2},
		{"out of memory, names given", Call{Retries: 1, RetryFor: []string{"ValueError"}}, &Failure{Kind: FailOOM}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := New(Config{Max: 1, KeepWarm: -1})
			c.call.ID = "a"
			p.Step(0, Submit{c.call})
			r := ReplicaID("r")
			acts := p.Step(1, ReplicaReady{Replica: r})
			for n := 1; ; n++ {
				if len(acts) == 0 {
					t.Fatal("nothing was sent")
				}
				if d, ok := acts[len(acts)-1].(Dispatch); !ok || d.Attempt != n {
					t.Fatalf("attempt %d: got %v", n, acts)
				}
				p.Step(2, Begun{r, "a", n})
				// A result of the attempt before counts for nothing.
				if stale := p.Step(2, Result{r, "a", n - 1, nil}); len(stale) != 0 {
					t.Fatalf("a stale result led to %v", stale)
				}
				acts = slices.Clone(p.Step(3, Result{r, "a", n, c.failure}))
				if slices.ContainsFunc(acts, func(a Action) bool { return a == ReleaseReplica{r, "drained"} }) {
					r = ReplicaID(fmt.Sprintf("r%d", n+1)) // out of memory: in another container
					acts = append(acts, p.Step(3, ReplicaReady{Replica: r})...)
				}
				if f, ok := acts[0].(Finished); ok {
					if n != c.attempts || f.Failure == nil || f.Failure.Kind != c.failure.Kind {
						t.Fatalf("finished after %d attempts with %+v, want %d", n, f.Failure, c.attempts)
					}
					return
				}
			}
		})
	}
}

// A container that runs out of memory ends with its call, and says both. That
// uses up one attempt: nothing is sent to it in between, and what was sent ahead
// keeps its number.
func TestOutOfMemoryIsOneAttempt(t *testing.T) {
	p := New(Config{Max: 1, KeepWarm: -1, CallHint: 50 * time.Millisecond})
	p.Step(0, Submit{Call{ID: "a", Retries: 3}})
	p.Step(0, Submit{Call{ID: "b"}})
	var ended *Finished
	sent := map[CallID]int{}
	for n := 1; n < 10 && ended == nil; n++ {
		r := ReplicaID(fmt.Sprintf("r%d", n))
		take := func(acts []Action) {
			for _, a := range acts {
				switch a := a.(type) {
				case Dispatch:
					if a.Replica != r {
						t.Errorf("%+v goes to a container that is gone, %s is there", a, r)
					}
					sent[a.Call] = a.Attempt
				case Finished:
					if a.Call == "a" {
						ended = &a
					}
				}
			}
		}
		take(p.Step(time.Duration(n)*time.Minute, ReplicaReady{Replica: r}))
		if sent["a"] != n || sent["b"] != 1 {
			t.Fatalf("container %d got attempts %v, want a: %d, b: 1", n, sent, n)
		}
		take(p.Step(time.Duration(n)*time.Minute, Begun{r, "a", n}))
		take(p.Step(time.Duration(n)*time.Minute+1, Result{r, "a", n, &Failure{Kind: FailOOM}}))
		take(p.Step(time.Duration(n)*time.Minute+2, ReplicaLost{Replica: r, Failure: Failure{Kind: FailOOM}}))
	}
	if ended == nil || ended.Attempt != 4 || ended.Failure == nil || ended.Failure.Kind != FailOOM {
		t.Fatalf("retries=3 ended with %+v, want attempt 4, out of memory", ended)
	}
}

// The same where a crash takes the container along: the pool cannot know, sends
// the next attempt there, and gets it back unbegun.
func TestUnbegunInALostContainerIsNoAttempt(t *testing.T) {
	p := New(Config{Max: 1, KeepWarm: -1})
	p.Step(0, Submit{Call{ID: "a", Retries: 1}})
	p.Step(0, ReplicaReady{Replica: "r1"})
	p.Step(0, Begun{"r1", "a", 1})
	acts := slices.Clone(p.Step(1, Result{"r1", "a", 1, &Failure{Kind: FailCrash}}))
	if !slices.Contains(acts, Action(Dispatch{"r1", "a", 2})) {
		t.Fatalf("got %v", acts)
	}
	p.Step(2, ReplicaLost{Replica: "r1", Failure: Failure{Kind: FailCrash}})
	acts = p.Step(time.Minute, ReplicaReady{Replica: "r2"})
	if !slices.Contains(acts, Action(Dispatch{"r2", "a", 2})) {
		t.Fatalf("got %v, want attempt 2 again", acts)
	}
}

func TestTimeoutCountsFromBegin(t *testing.T) {
	w := newWorld(t, Config{Max: 1, KeepWarm: time.Hour})
	w.length = func(id CallID) time.Duration { return 3 * time.Second }
	w.step(Submit{Call{ID: "a"}})
	w.step(Submit{Call{ID: "b", Timeout: 2 * time.Second}})
	w.run(3500 * time.Millisecond)
	if len(w.finished) != 0 {
		t.Fatalf("b waited behind a and must not time out there: %v", w.finished)
	}
	w.run(3 * time.Second)
	if f := w.finished["b"]; f.Failure == nil || f.Failure.Kind != FailTimeout {
		t.Fatalf("got %+v", w.finished)
	}
	// The container is free again.
	w.step(Submit{Call{ID: "c"}})
	w.run(4 * time.Second)
	if f, ok := w.finished["c"]; !ok || f.Failure != nil || w.started != 1 {
		t.Fatalf("c: %+v, %d containers", f, w.started)
	}
}

// A container that does not give up a call is let go, and what waits runs elsewhere.
func TestStuckContainerIsReleased(t *testing.T) {
	p := New(Config{Max: 1, KeepWarm: time.Hour, CancelWait: 5 * time.Second})
	p.Step(0, Submit{Call{ID: "a"}})
	p.Step(0, ReplicaReady{Replica: "r"})
	p.Step(0, Begun{"r", "a", 1})
	p.Step(0, Submit{Call{ID: "b"}})
	acts := p.Step(time.Second, Cancel{"a", "user"})
	if len(acts) != 2 || acts[0] != (StopCall{"r", "a", 1, FailCancelled}) {
		t.Fatalf("got %v", acts)
	}
	at, ok := p.NextWake()
	if !ok || at > 6*time.Second {
		t.Fatalf("wakes at %v, %v", at, ok)
	}
	acts = p.Step(6*time.Second, Tick{})
	if len(acts) != 2 || acts[0].(ReleaseReplica).Replica != "r" || acts[1] != (Acquire{1}) {
		t.Fatalf("got %v", acts)
	}
}

func TestCancelAndExpireWhileQueued(t *testing.T) {
	w := newWorld(t, Config{Max: 1, MaxQueue: 2})
	w.noStart = true
	w.step(Submit{Call{ID: "a"}})
	w.step(Submit{Call{ID: "b", Deadline: 5 * time.Second}})
	w.step(Submit{Call{ID: "c"}})
	w.step(Cancel{"a", "user"})
	w.run(10 * time.Second)
	for id, kind := range map[CallID]FailureKind{"a": FailCancelled, "b": FailExpired, "c": FailRejected} {
		if f := w.finished[id]; f.Failure == nil || f.Failure.Kind != kind {
			t.Errorf("%s: %+v, want %s", id, f, kind)
		}
	}
	if w.asked != 0 {
		t.Errorf("%d containers are still asked for", w.asked)
	}
}

func TestNodeLossesHaveTheirOwnCap(t *testing.T) {
	w := newWorld(t, Config{Max: 1, MaxNodeLosses: 2, KeepWarm: time.Hour})
	w.length = func(CallID) time.Duration { return time.Hour }
	w.step(Submit{Call{ID: "a", Retries: 1}})
	for i := 1; i <= 3; i++ {
		w.run(3 * time.Second)
		if _, over := w.finished["a"]; over {
			t.Fatalf("over after %d losses", i-1)
		}
		w.lose(ReplicaID(fmt.Sprintf("c%d", i)), true)
	}
	if f := w.finished["a"]; f.Failure == nil || f.Failure.Kind != FailNodeLost || f.Attempt != 3 {
		t.Fatalf("got %+v", f)
	}
}

func TestDrainingReplica(t *testing.T) {
	w := newWorld(t, Config{Max: 1, KeepWarm: time.Hour, CallHint: 50 * time.Millisecond})
	w.length = func(CallID) time.Duration { return 2 * time.Second }
	w.submit(3, "a")
	w.run(1500 * time.Millisecond) // a0 runs on c1, a1 was sent ahead
	w.step(ReplicaDraining{"c1"})
	w.run(20 * time.Second)
	if len(w.finished) != 3 || w.started != 2 || w.begins["a0"] != 1 {
		t.Fatalf("%d finished, %d containers, a0 begun %d times", len(w.finished), w.started, w.begins["a0"])
	}
	if w.boxes["c1"] != nil {
		t.Error("the draining container was not released")
	}
}

func TestAcquireFails(t *testing.T) {
	w := newWorld(t, Config{Max: 2, AcquireBackoff: time.Second})
	w.noStart = true
	w.submit(1, "a")
	w.step(AcquireFailed{N: 1, Reason: "start failed"})
	if len(w.finished) != 0 || w.p.Stats().Starting != 0 {
		t.Fatal("a passing failure must leave the call queued and ask again later")
	}
	w.run(1500 * time.Millisecond)
	if w.p.Stats().Starting != 1 {
		t.Fatal("did not ask again after the back-off")
	}
	w.step(AcquireFailed{N: 1, Final: true, Reason: "no node has an H100"})
	if f := w.finished["a0"]; f.Failure == nil || f.Failure.Kind != FailNoPlace || f.Failure.Text != "no node has an H100" {
		t.Fatalf("got %+v", f)
	}
	// The next call tries again.
	w.step(Submit{Call{ID: "b"}})
	if w.p.Stats().Starting != 1 {
		t.Fatal("a later call did not ask")
	}
}

// Containers that die before they begin a call must not be started for ever.
func TestBadStartsGiveUp(t *testing.T) {
	p := New(Config{Max: 1, AcquireBackoff: time.Second})
	p.Step(0, Submit{Call{ID: "a"}})
	now, starts := time.Duration(0), 1
	for {
		now += time.Second
		id := ReplicaID(fmt.Sprintf("c%d", starts))
		p.Step(now, ReplicaReady{Replica: id})
		for _, a := range p.Step(now, ReplicaLost{Replica: id, Failure: Failure{Kind: FailCrash, Text: "exit status 1"}}) {
			switch a := a.(type) {
			case Acquire:
				t.Fatalf("container %d was asked for without a pause", starts+1)
			case Finished:
				if starts != maxBadStarts || a.Failure == nil || a.Failure.Kind != FailCrash {
					t.Fatalf("after %d containers: %+v", starts, a)
				}
				return
			}
		}
		at, ok := p.NextWake()
		if !ok || at <= now {
			t.Fatalf("after %d containers: wake %v %v", starts, at, ok)
		}
		now = at
		if acts := p.Step(now, Tick{}); len(acts) != 1 || acts[0] != (Acquire{1}) {
			t.Fatalf("after %d containers and the pause: %v", starts, acts)
		}
		starts++
	}
}

func TestClose(t *testing.T) {
	w := newWorld(t, Config{Max: 2, KeepWarm: time.Hour, Unknown: 2})
	w.length = func(CallID) time.Duration { return time.Hour }
	w.submit(5, "a")
	w.run(2 * time.Second)
	w.step(Close{"stub deleted"})
	w.step(Submit{Call{ID: "late"}})
	w.run(time.Minute)
	if len(w.finished) != 6 || len(w.boxes) != 0 {
		t.Fatalf("%d finished, %d containers left", len(w.finished), len(w.boxes))
	}
	for id, f := range w.finished {
		if f.Failure == nil || f.Failure.Kind != FailCancelled {
			t.Errorf("%s: %+v", id, f)
		}
	}
	if _, ok := w.p.NextWake(); ok {
		t.Error("a closed pool wants to be woken")
	}
}

func TestConcurrencyFillsLeastLoaded(t *testing.T) {
	w := newWorld(t, Config{Min: 2, Max: 2, Concurrency: 4, KeepWarm: time.Hour, Window: -1})
	w.length = func(CallID) time.Duration { return time.Second }
	w.step(Tick{})
	w.run(2 * time.Second)
	w.submit(8, "a")
	w.run(1500 * time.Millisecond)
	if len(w.finished) != 8 {
		t.Fatalf("%d of 8 finished in one round of 2 x 4", len(w.finished))
	}
	for node, n := range w.share() {
		if n != 4 {
			t.Errorf("%s ran %d, want 4", node, n)
		}
	}
}
