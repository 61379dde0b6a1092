package owner_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/beammesh/beammesh/node/owner"
	"github.com/beammesh/beammesh/node/stub"
	"github.com/beammesh/beammesh/node/worker/workertest"
	beamv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/runtime"
	"github.com/beammesh/beammesh/runtime/runtimetest"
)

func TestSubmitToResult(t *testing.T) {
	c := newCluster(t, "box")
	id, cl := c.submit("ok-stub", "echo hello")
	o := cl.wait(t)
	if o.Status != owner.Complete || string(o.Result) != "hello" || o.TaskId != id || o.NodeName != "box" || o.Attempt != 1 || o.Warm {
		t.Errorf("outcome %v", o)
	}
	var phases []string
	for _, p := range o.Phases {
		phases = append(phases, p.Name)
	}
	if got := strings.Join(phases, " "); got != "place pull start import run" {
		t.Errorf("phases %q", got)
	}
	if n, st := c.journal.endsOf(id); n != 1 || st != owner.Complete {
		t.Errorf("journal has %d ends, status %s", n, st)
	}
	// The container is warm now.
	_, cl = c.submit("ok-stub", "both")
	if o := cl.wait(t); o.Status != owner.Complete || !o.Warm {
		t.Errorf("outcome %v", o)
	}
	if got := cl.text(); !strings.Contains(got, "out\n") || !strings.Contains(got, "err\n") {
		t.Errorf("output %q", got)
	}
	if got, err := c.ended(id); err != nil || string(got.Result) != "hello" {
		t.Errorf("asked again: %v, %v", got, err)
	}
	info, err := c.owner().Get("ws", id)
	if err != nil || info.Status != owner.Complete || info.NodeName != "box" {
		t.Errorf("info %v, %v", info, err)
	}
	if _, err := c.owner().Get("another", id); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("another workspace got %v", err)
	}
}

func TestOutcomes(t *testing.T) {
	c := newCluster(t, "box")
	c.plans.set("ok-retries", stub.Config{KeepWarmSec: -1, Retries: 2})
	c.plans.set("ok-timeout", stub.Config{KeepWarmSec: -1, TimeoutSec: 1})
	for _, w := range []struct {
		name, stub, args string
		status           string
		code             fault.Code
		text             string
		attempt          uint32
	}{
		{"exception", "ok-stub", "fail no", owner.Error, fault.Failed, "ValueError: no", 1},
		{"exception to retry, without retries", "ok-stub", "retry no", owner.Error, fault.Failed, "ValueError: no", 1},
		{"crash", "ok-stub", "exit 3", owner.Error, fault.Failed, "exit code 3 on box", 1},
		{"crash is retried", "ok-retries", "crash-until 3", owner.Complete, "", "3", 3},
		{"crash, retries used up", "ok-retries", "exit 4", owner.Error, fault.Failed, "exit code 4", 3},
		{"exception is retried", "ok-retries", "fail-until 2", owner.Complete, "", "2", 2},
		{"other exception is not", "ok-retries", "fail no", owner.Error, fault.Failed, "ValueError: no", 1},
		{"timeout", "ok-timeout", "hold", owner.TimedOut, fault.JobTimeout, "longer than its timeout of 1s", 1},
	} {
		t.Run(w.name, func(t *testing.T) {
			_, cl := c.submit(w.stub, w.args)
			o := cl.wait(t)
			text := o.GetError().GetMessage()
			if w.status == owner.Complete {
				text = string(o.Result)
			}
			if o.Status != w.status || o.GetError().GetCode() != string(w.code) || !strings.Contains(text, w.text) || o.Attempt != w.attempt {
				t.Errorf("outcome %v", o)
			}
			if strings.HasPrefix(w.args, "fail ") && (o.Exception.GetType() != "ValueError" || string(o.Exception.Pickle) != "pickled no") {
				t.Errorf("exception %v", o.Exception)
			}
		})
	}
	if n := c.owner().Open(); n != 0 {
		t.Errorf("%d tasks are open", n)
	}
}

// A container that runs out of memory ends with its call, and says both: one
// attempt of the task.
func TestOutOfMemoryIsOneAttempt(t *testing.T) {
	c := newCluster(t, "box")
	c.plans.set("ok-oom", stub.Config{KeepWarmSec: -1, Retries: 2})
	id, cl := c.submit("ok-oom", "hold")
	engine := c.boxes["box"].Engine
	for n := 1; n <= 3; n++ {
		cl.printedTimes(t, "holding", n) // once by each attempt
		for _, id := range engine.List() {
			container, err := engine.Get(id)
			if err != nil {
				continue // of the attempt before, and gone by now
			}
			if err := container.(*runtimetest.FakeContainer).Crash(runtime.EndOOM); err != nil {
				t.Fatal(err)
			}
		}
	}
	if o := cl.wait(t); o.GetError().GetCode() != string(fault.OutOfMemory) || o.Attempt != 3 {
		t.Errorf("retries=2 ended with %v, want attempt 3, out of memory", o)
	}
	e, err := c.owner().Explain("ws", id, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, a := range e.Attempts {
		if a.Attempt != uint32(i+1) {
			t.Errorf("explain lists attempt %d as number %d of %d", a.Attempt, i+1, len(e.Attempts))
		}
	}
}

func TestResultIsJournalledBeforeItIsTold(t *testing.T) {
	c := newCluster(t, "box")
	release, blocked := make(chan struct{}), make(chan struct{})
	var once sync.Once
	c.journal.hook(func() {
		c.journal.ended = func(string) error {
			once.Do(func() { close(blocked) })
			<-release
			return nil
		}
	})
	id, cl := c.submit("ok-stub", "echo x", headless)
	<-blocked
	select {
	case o := <-cl.done:
		t.Errorf("told before the journal had it: %v", o)
	case <-time.After(50 * time.Millisecond):
	}
	info, err := c.owner().Get("ws", id)
	if err != nil || info.Status != owner.Running || info.Outcome != nil {
		t.Errorf("others could see %v, %v", info, err)
	}
	if r, err := c.owner().List("ws", "", "", 10); err != nil || len(r) != 1 || r[0].Status != owner.Running {
		t.Errorf("the list says %v, %v", r, err)
	}
	// The worker keeps the end until then: a second life of this owner would get it.
	c.mustBeKept(t, id, true)
	close(release)
	if o := cl.wait(t); string(o.Result) != "x" {
		t.Errorf("outcome %v", o)
	}
	c.mustBeKept(t, id, false)
}

func TestJournalError(t *testing.T) {
	c := newCluster(t, "box")
	full := fault.New(fault.DiskFull, "no space left", "free some")
	c.journal.hook(func() { c.journal.submitted = func(owner.TaskRecord) error { return full } })
	_, err := c.owner().Submit(t.Context(), owner.Request{Workspace: "ws", StubID: "ok-stub", Args: []byte("echo x")})
	if !errors.Is(err, full) {
		t.Errorf("submit: %v", err)
	}
	if n := c.owner().Open(); n != 0 {
		t.Errorf("%d tasks are open", n)
	}
	// An end that cannot be journalled is told; a headless one stays at the worker.
	c.journal.hook(func() {
		c.journal.submitted = nil
		c.journal.ended = func(string) error { return full }
	})
	id, cl := c.submit("ok-stub", "echo x", headless)
	if o := cl.wait(t); o.Status != owner.Complete {
		t.Errorf("outcome %v", o)
	}
	c.mustBeKept(t, id, true)
	c.journal.hook(func() { c.journal.ended = nil })
	c.stop()
	// The next life gets it again, and journals it once.
	if err := c.start().Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	o, err := c.ended(id)
	if err != nil || string(o.GetResult()) != "x" || o.Attempt != 1 {
		t.Errorf("after a restart: %v, %v", o, err)
	}
	if n, st := c.journal.endsOf(id); n != 1 || st != owner.Complete {
		t.Errorf("journal has %d ends, %s", n, st)
	}
}

func TestClientGone(t *testing.T) {
	c := newCluster(t, "box")
	// Attached: cancelled, wherever it is.
	id, cl := c.submit("ok-stub", "hold")
	cl.printed(t, "holding")
	c.owner().Forget(id)
	o, err := c.ended(id)
	if err != nil || o.Status != owner.Cancelled || !strings.Contains(o.Error.Message, "client went away") {
		t.Errorf("outcome %v, %v", o, err)
	}
	if len(cl.done) != 0 {
		t.Error("a client that had left was told")
	}
	// The container is free again at once: the same one takes the next call.
	_, cl = c.submit("ok-stub", "echo x")
	if o2 := cl.wait(t); o2.Status != owner.Complete || o2.ContainerId != o.ContainerId || !o2.Warm {
		t.Errorf("after a cancel: %v, before it %v", o2, o)
	}
	// Headless: it goes on.
	g := workertest.NewGate(t)
	id, cl = c.submit("ok-stub", string(g.Args()), headless)
	cl.printed(t, "at the gate")
	c.owner().Forget(id)
	g.Open(t, "through")
	if o, err := c.ended(id); err != nil || string(o.Result) != "through" {
		t.Errorf("headless: %v, %v", o, err)
	}
	c.owner().Forget(id)
	c.owner().Forget("nobody")
}

// A task that is cancelled between two attempts was cancelled; that an earlier
// attempt raised is not its end.
func TestCancelWhileRetrying(t *testing.T) {
	c := newCluster(t, "box")
	c.plans.set("ok-one", stub.Config{KeepWarmSec: -1, Retries: 1, MaxContainers: 1})
	_, first := c.submit("ok-one", "hold")
	first.printed(t, "holding")
	g := workertest.NewGate(t)
	// The second waits behind the first, which is cancelled; then it fails once
	// while a third one holds the container.
	id, _ := c.submit("ok-one", string(g.Args()))
	if err := c.owner().Cancel(id, "no longer wanted"); err != nil {
		t.Fatal(err)
	}
	o, err := c.ended(id)
	if err != nil || o.Status != owner.Cancelled || o.Error.Message != "no longer wanted" {
		t.Errorf("a waiting task: %v, %v", o, err)
	}
	if err := c.owner().Cancel("nobody", ""); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("cancel of nobody: %v", err)
	}
}

func TestNodeLost(t *testing.T) {
	c := newCluster(t, "one", "two")
	g := workertest.NewGate(t)
	id, cl := c.submit("ok-stub", string(g.Args()))
	cl.printed(t, "at the gate")
	info, err := c.owner().Get("ws", id)
	if err != nil {
		t.Fatal(err)
	}
	lost := c.boxes[info.NodeName]
	c.net.Cut(c.node, lost.Mesh)
	// The second attempt comes to the same gate; the first one stands there too.
	waitRuns(t, g, 2)
	g.OpenAll(t, "done")
	o := cl.wait(t)
	if o.Status != owner.Complete || o.Attempt != 2 || o.NodeName == info.NodeName {
		t.Errorf("outcome %v", o)
	}
	c.net.Heal(c.node, lost.Mesh)
	r, err := c.owner().Explain("ws", id, nil)
	if err != nil || len(r.Attempts) != 2 {
		t.Fatalf("explain %v, %v", r, err)
	}
	if a := r.Attempts[0]; a.NodeName != info.NodeName || !strings.Contains(a.End, "lost") {
		t.Errorf("first attempt %v", a)
	}
	if n, _ := c.journal.endsOf(id); n != 1 {
		t.Errorf("%d ends are journalled", n)
	}
	if cl.ends != 1 {
		t.Errorf("the client was told %d ends", cl.ends)
	}
}

func waitRuns(t testing.TB, g *workertest.Gate, n int) {
	t.Helper()
	deadline := time.Now().Add(workertest.Patience)
	for len(g.Runs(t)) < n {
		if time.Now().After(deadline) {
			t.Fatalf("calls ran as %q, want %d", g.Runs(t), n)
		}
		time.Sleep(time.Millisecond)
	}
}

// A broken stream is no lost node: the call goes on and its end comes.
func TestStreamBreaks(t *testing.T) {
	c := newCluster(t, "box")
	g := workertest.NewGate(t)
	id, cl := c.submit("ok-stub", string(g.Args()))
	cl.printed(t, "at the gate")
	c.breakStreams("box")
	g.Open(t, "through")
	if o := cl.wait(t); string(o.Result) != "through" || o.Attempt != 1 {
		t.Errorf("outcome %v", o)
	}
	if got := g.Runs(t); len(got) != 1 || got[0] != id+" 1" {
		t.Errorf("it ran as %q", got)
	}
}

func TestProgramThatCannotLoad(t *testing.T) {
	c := newCluster(t, "one", "two")
	var clients []*client
	for range 20 {
		_, cl := c.submit("syntax-stub", "echo x")
		clients = append(clients, cl)
	}
	for _, cl := range clients {
		o := cl.wait(t)
		if o.Status != owner.Error || o.Error.Code != string(fault.Failed) || !strings.Contains(o.Error.Message, "line 3: invalid syntax") ||
			o.Exception.GetType() != "SyntaxError" || o.Error.Hint != "mend it" {
			t.Fatalf("outcome %v", o)
		}
	}
	// A container that does not start for another reason is tried a few times.
	_, cl := c.submit("die-stub", "echo x")
	if o := cl.wait(t); o.Status != owner.Error || !strings.Contains(o.Error.Message, "exit code 3 before it was loaded") {
		t.Errorf("outcome %v", o)
	}
	if _, err := c.owner().Submit(t.Context(), owner.Request{Workspace: "ws", StubID: "gone-stub"}); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("a stub that is not known: %v", err)
	}
}

func TestInfeasible(t *testing.T) {
	c := newCluster(t, "box")
	c.plans.set("ok-gpu", stub.Config{GPU: "H100"})
	id, cl := c.submit("ok-gpu", "echo x")
	o := cl.wait(t)
	if o.Status != owner.Error || o.Error.Code != string(fault.NoCapacity) || !strings.Contains(o.Error.Message, "box: ") ||
		!strings.Contains(o.Error.Message, "H100") || o.Error.Hint == "" {
		t.Errorf("outcome %v", o)
	}
	r, err := c.owner().Explain("ws", id, nil)
	if err != nil || r.Task.Status != owner.Error {
		t.Errorf("explain %v, %v", r, err)
	}
}

// TestExplainWhatIf asks about another demand: nothing is placed by it.
func TestExplainWhatIf(t *testing.T) {
	c := newCluster(t, "one", "two")
	id, cl := c.submit("ok-stub", "echo x")
	cl.wait(t)
	for _, q := range []struct{ change, verdict string }{
		{"cpu=0.5", "would be placed on "},
		{"gpu=H100", "could never run"},
		{"memory=900GiB", "could never run"},
	} {
		r, err := c.owner().Explain("ws", id, []string{q.change})
		if err != nil || !strings.HasPrefix(r.WhatIf.GetVerdict(), q.verdict) || len(r.WhatIf.Candidates) != 2 {
			t.Errorf("%s: %v, %v", q.change, r.GetWhatIf(), err)
		}
	}
	if _, err := c.owner().Explain("ws", id, []string{"colour=green"}); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("a change that is none: %v", err)
	}
}

func TestExplain(t *testing.T) {
	c := newCluster(t, "one", "two")
	id, cl := c.submit("ok-stub", "echo x")
	o := cl.wait(t)
	r, err := c.owner().Explain("ws", id, nil)
	if err != nil || len(r.Attempts) != 1 {
		t.Fatalf("%v, %v", r, err)
	}
	a := r.Attempts[0]
	verdicts := map[string]string{}
	for _, cand := range a.Candidates {
		verdicts[cand.NodeName] = cand.Verdict
	}
	if a.How != "asked" || verdicts[o.NodeName] != "chosen" || len(verdicts) != 2 || a.NodeName != o.NodeName {
		t.Errorf("attempt %v", a)
	}
	_, cl = c.submit("ok-stub", "echo x")
	id = cl.wait(t).TaskId
	if r, err := c.owner().Explain("ws", id, nil); err != nil || r.Attempts[0].How != "warm container" {
		t.Errorf("warm: %v, %v", r, err)
	}
	// What waits says why.
	c.plans.set("ok-big", stub.Config{CPUMillis: 4000, MemoryMiB: 64, StrictCPU: true})
	var hold []*client
	for range 2 {
		_, cl := c.submit("ok-big", "hold")
		hold = append(hold, cl)
	}
	_ = hold
	id, _ = c.submit("ok-big", "echo x")
	deadline := time.Now().Add(workertest.Patience)
	for {
		r, err := c.owner().Explain("ws", id, nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Attempts) == 1 && r.Attempts[0].How == "waiting" && strings.Contains(fmt.Sprint(r.Attempts[0]), "cores") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("it does not say why it waits: %v", r)
		}
		time.Sleep(5 * time.Millisecond)
	}
	if _, err := c.owner().Explain("another", id, nil); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("another workspace got %v", err)
	}
}

func TestManyTasks(t *testing.T) {
	c := newCluster(t, "box")
	c.plans.set("ok-many", stub.Config{KeepWarmSec: -1, MaxContainers: 4, CPUMillis: 100, MemoryMiB: 64})
	const n = 10_000
	start := time.Now()
	done := make(chan *beamv1.Outcome, n)
	var wg sync.WaitGroup
	for w := range 50 {
		wg.Go(func() {
			for i := range n / 50 {
				args := fmt.Sprintf("echo %d-%d", w, i)
				if _, err := c.owner().Submit(t.Context(), owner.Request{Workspace: "ws", StubID: "ok-many", Args: []byte(args), Notify: funcNotify(func(o *beamv1.Outcome) { done <- o })}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	submitted := time.Since(start)
	if _, err := c.owner().List("ws", "", "", 100); err != nil {
		t.Error(err)
	}
	listed := time.Since(start) - submitted
	seen := map[string]bool{}
	for range n {
		select {
		case o := <-done:
			if o.Status != owner.Complete {
				t.Fatalf("outcome %v", o)
			}
			seen[string(o.Result)] = true
		case <-time.After(workertest.Patience):
			t.Fatalf("%d of %d came", len(seen), n)
		}
	}
	if len(seen) != n {
		t.Errorf("%d results of %d", len(seen), n)
	}
	t.Logf("submitted in %s, listed in %s, done in %s", submitted, listed, time.Since(start))
	if n := c.owner().Open(); n != 0 {
		t.Errorf("%d are open", n)
	}
}

type funcNotify func(*beamv1.Outcome)
