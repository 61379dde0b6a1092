package worker_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/beammesh/beammesh/node/worker/workertest"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/runtime"
	"github.com/beammesh/beammesh/scheduler/market"
)

func TestCallsOfOneContainer(t *testing.T) {
	b := newBench(t, workertest.Options{})
	s := b.attach(b.grant(workertest.Order("ok:f"), false), 1)
	var phases []string
	_, before := s.until("ready", func(u *peerv1.LeaseUp) bool { return u.GetReady() != nil })
	for _, u := range before {
		phases = append(phases, u.GetPhase().GetName())
	}
	if got := strings.Join(phases, " "); got != "pull start import" {
		t.Errorf("phases are %q", got)
	}
	for _, c := range []struct {
		name, args string
		want       *peerv1.CallEnded
	}{
		{"value", "echo hello", &peerv1.CallEnded{Kind: peerv1.CallEnded_OK, Payload: []byte("hello")}},
		{"exception", "fail no", &peerv1.CallEnded{Kind: peerv1.CallEnded_ERROR, Payload: []byte("pickled no"),
			Error: &peerv1.UserError{Type: "ValueError", Message: "no", Traceback: "Traceback: no"}}},
		{"exception to retry", "retry later", &peerv1.CallEnded{Kind: peerv1.CallEnded_RETRY, Payload: []byte("pickled later"),
			Error: &peerv1.UserError{Type: "ValueError", Message: "later", Traceback: "Traceback: later"}}},
		{"exit", "exit 3", &peerv1.CallEnded{Kind: peerv1.CallEnded_CRASHED, ExitCode: 3}},
		{"exit without a code", "exit 0", &peerv1.CallEnded{Kind: peerv1.CallEnded_CRASHED}},
		{"result and exit", "last word", &peerv1.CallEnded{Kind: peerv1.CallEnded_OK, Payload: []byte("word")}},
		{"closed channel", "hangup", &peerv1.CallEnded{Kind: peerv1.CallEnded_TIMEOUT}},
		{"result of another attempt", "stale", &peerv1.CallEnded{Kind: peerv1.CallEnded_OK, Payload: []byte("fresh")}},
		{"result at the bound", "big " + strconv.Itoa(16<<20), &peerv1.CallEnded{Kind: peerv1.CallEnded_OK, Payload: make([]byte, 16<<20)}},
		{"result above the bound", "big " + strconv.Itoa(16<<20+1), &peerv1.CallEnded{Kind: peerv1.CallEnded_ERROR,
			Error: &peerv1.UserError{Type: "ValueError", Message: "the result weighs 16.0 MiB, the limit is 16 MiB"}}},
		{"after all that", "echo again", &peerv1.CallEnded{Kind: peerv1.CallEnded_OK, Payload: []byte("again")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			limit := time.Duration(0)
			if c.want.Kind == peerv1.CallEnded_TIMEOUT {
				limit = 100 * time.Millisecond
			}
			task := strings.ReplaceAll(c.name, " ", "-")
			s.callFor(task, 2, c.args, limit)
			got := s.ended(task)
			if got.Kind != c.want.Kind || got.Attempt != 2 || string(got.Payload) != string(c.want.Payload) || got.ExitCode != c.want.ExitCode ||
				got.Error.GetType() != c.want.Error.GetType() || got.Error.GetMessage() != c.want.Error.GetMessage() ||
				got.Error.GetTraceback() != c.want.Error.GetTraceback() {
				t.Errorf("%q ended as %.300v\nwant %.300v", c.args, got, c.want)
			}
		})
	}
}

func TestOutputComesBeforeTheResult(t *testing.T) {
	b := newBench(t, workertest.Options{})
	s := b.attach(b.grant(workertest.Order("ok:f"), false), 1)
	for i := range 20 {
		task := fmt.Sprint("t", i)
		s.call(task, 1, "print 200")
		_, before := s.endedAfter(task)
		if got := strings.Count(output(before), "\n"); got != 200 {
			t.Fatalf("call %d: %d lines came before the result, want 200", i, got)
		}
		for _, u := range before {
			if o := u.GetOutput(); o != nil && (o.TaskId != task || o.Attempt != 1) {
				t.Fatalf("output of %s is filed under %s attempt %d", task, o.TaskId, o.Attempt)
			}
		}
		s.ack(1 << 40)
	}
}

func TestOutputWhileLoadingBelongsToWhoWaits(t *testing.T) {
	b := newBench(t, workertest.Options{})
	s := b.attach(b.grant(workertest.Order("chatty:f"), false), 1)
	s.call("first", 1, "both")
	_, before := s.endedAfter("first")
	if got := output(before); !strings.Contains(got, "loading\n") || !strings.Contains(got, "out\n") || !strings.Contains(got, "err\n") {
		t.Errorf("output is %q", got)
	}
}

func TestTimeoutKillsTheGroup(t *testing.T) {
	b := newBench(t, workertest.Options{})
	s := b.attach(b.grant(workertest.Order("ok:f"), false), 1)
	s.ready()
	s.callFor("slow", 1, "stubborn", 300*time.Millisecond)
	var pids []int
	for _, f := range strings.Fields(s.printed("holding"))[1:] {
		n, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, n)
	}
	if e := s.ended("slow"); e.Kind != peerv1.CallEnded_TIMEOUT {
		t.Fatalf("ended as %v", e)
	}
	for _, p := range pids {
		if !workertest.Gone(p) {
			t.Errorf("process %d of %v survived the timeout", p, pids)
		}
	}
	// The next call has a process of its own.
	s.call("next", 1, "pid")
	if e := s.ended("next"); e.Kind != peerv1.CallEnded_OK || string(e.Payload) == strconv.Itoa(pids[0]) {
		t.Errorf("the next call ended as %v", e)
	}
}

func TestCancel(t *testing.T) {
	b := newBench(t, workertest.Options{})
	s := b.attach(b.grant(workertest.Order("ok:f"), false), 1)
	cancel := func(task string, kill bool) {
		s.say(&peerv1.LeaseDown{What: &peerv1.LeaseDown_Cancel{Cancel: &peerv1.Cancel{TaskId: task, Attempt: 1, Kill: kill}}})
	}
	s.call("runs", 1, "hold")
	s.printed("holding")
	s.call("waits", 1, "echo 1")
	s.call("stays", 1, "pid")
	cancel("waits", false)
	if e := s.ended("waits"); e.Kind != peerv1.CallEnded_CANCELLED {
		t.Errorf("a waiting call ended as %v", e)
	}
	cancel("nobody", false)
	cancel("runs", false)
	if e := s.ended("runs"); e.Kind != peerv1.CallEnded_CANCELLED {
		t.Errorf("the running call ended as %v", e)
	}
	if e := s.ended("stays"); e.Kind != peerv1.CallEnded_OK {
		t.Errorf("the call behind ended as %v", e)
	}
	// A stubborn program, without grace.
	s.call("stubborn", 1, "stubborn")
	s.printed("holding")
	start := time.Now()
	cancel("stubborn", true)
	if e := s.ended("stubborn"); e.Kind != peerv1.CallEnded_CANCELLED {
		t.Errorf("ended as %v", e)
	}
	if d := time.Since(start); d > 4500*time.Millisecond {
		t.Logf("ending at once took %s", d) // the grace is 5 s; a loaded machine may be as slow
	}
}

func TestRecall(t *testing.T) {
	b := newBench(t, workertest.Options{})
	s := b.attach(b.grant(workertest.Order("ok:f"), false), 1)
	g := workertest.NewGate(t)
	s.call("runs", 1, string(g.Args()))
	s.printed("at the gate")
	s.call("waits", 1, "echo 1")
	recall := func(task string) {
		s.say(&peerv1.LeaseDown{What: &peerv1.LeaseDown_Recall{Recall: &peerv1.Recall{TaskId: task, Attempt: 1}}})
	}
	recall("runs") // too late: its own end answers
	recall("waits")
	if e := s.ended("waits"); e.Kind != peerv1.CallEnded_RECALLED {
		t.Errorf("recalled call ended as %v", e)
	}
	// The same attempt may come again after it was given back.
	s.call("waits", 1, "echo 2")
	g.Open(t, "through")
	if e := s.ended("runs"); e.Kind != peerv1.CallEnded_OK || string(e.Payload) != "through" {
		t.Errorf("running call ended as %v", e)
	}
	if e := s.ended("waits"); e.Kind != peerv1.CallEnded_OK || string(e.Payload) != "2" {
		t.Errorf("the call that came again ended as %v", e)
	}
}

func TestProgramThatCannotLoad(t *testing.T) {
	for _, c := range []struct {
		handler string
		want    *peerv1.LeaseGone
		user    string
	}{
		{"syntax:f", &peerv1.LeaseGone{Reason: "failed", Code: string(fault.Failed), Message: "app.py line 3: invalid syntax", Hint: "mend it"}, "SyntaxError"},
		{"mismatch:f", &peerv1.LeaseGone{Reason: "failed", Code: string(fault.PythonMismatch), Message: "3.9 is not 3.11"}, ""},
		{"die:3", &peerv1.LeaseGone{Reason: "failed", Code: string(fault.Failed), Message: "the program ended with exit code 3 before it was loaded"}, ""},
		{"die:127", &peerv1.LeaseGone{Reason: "failed", Code: string(fault.Failed), Message: "the image has no "}, ""},
		{"nonsense:f", &peerv1.LeaseGone{Reason: "failed", Code: string(fault.Internal), Message: "the runner answered hello before it was ready"}, ""},
	} {
		t.Run(c.handler, func(t *testing.T) {
			b := newBench(t, workertest.Options{})
			lease := b.grant(workertest.Order(c.handler), false)
			s := b.attach(lease, 1)
			s.call("t", 1, "echo 1")
			if e := s.ended("t"); e.Kind != peerv1.CallEnded_RECALLED {
				t.Errorf("the waiting call ended as %v", e)
			}
			g := s.gone()
			if g.Reason != c.want.Reason || g.Code != c.want.Code || !strings.HasPrefix(g.Message, c.want.Message) ||
				!strings.Contains(g.Hint, c.want.Hint) || g.Error.GetType() != c.user {
				t.Errorf("gone is %v\nwant %v", g, c.want)
			}
			if e := await[market.Ended](b); string(e.Lease) != lease || e.Reason != market.EndFailed {
				t.Errorf("the market was told %+v", e)
			}
			if l := b.Engine.List(); len(l) != 0 {
				t.Errorf("containers %v are left", l)
			}
		})
	}
}

func TestProgramThatWillNotStay(t *testing.T) {
	b := newBench(t, workertest.Options{})
	s := b.attach(b.grant(workertest.Order("restless:4"), false), 1)
	g := s.gone()
	if g.Reason != "exited" || !strings.Contains(g.Message, "exit code 4") {
		t.Errorf("gone is %v", g)
	}
}

func TestContainerEnds(t *testing.T) {
	for _, c := range []struct {
		reason runtime.EndReason
		want   peerv1.CallEnded_Kind
	}{
		{runtime.EndOOM, peerv1.CallEnded_OOM},
		{runtime.EndExited, peerv1.CallEnded_CRASHED},
		{runtime.EndLost, peerv1.CallEnded_CRASHED},
	} {
		t.Run(string(c.reason), func(t *testing.T) {
			b := newBench(t, workertest.Options{})
			lease := b.grant(workertest.Order("ok:f"), false)
			s := b.attach(lease, 1)
			s.call("runs", 1, "hold")
			s.printed("holding")
			s.call("waits", 1, "echo 1")
			if err := b.Container(t, lease).Crash(c.reason); err != nil {
				t.Fatal(err)
			}
			if e := s.ended("runs"); e.Kind != c.want && e.Kind != peerv1.CallEnded_CRASHED {
				t.Errorf("the call ended as %v", e)
			}
			if e := s.ended("waits"); e.Kind != peerv1.CallEnded_RECALLED {
				t.Errorf("the waiting call ended as %v", e)
			}
			if g := s.gone(); g.Reason != string(c.reason) || g.Code != "" {
				t.Errorf("gone is %v", g)
			}
		})
	}
}

func TestCannotPullOrStart(t *testing.T) {
	b := newBench(t, workertest.Options{Pull: nil})
	o := workertest.Order("ok:f")
	o.AllowList = []string{"not a network"}
	s := b.attach(b.grant(o, false), 1)
	if g := s.gone(); g.Reason != "failed" || !strings.Contains(g.Message, "start on box") || !strings.Contains(g.Hint, "10.0.0.0/8") {
		t.Errorf("gone is %v", g)
	}
	o = workertest.Order("ok:f")
	o.Python = "/nowhere/python3"
	s = b.attach(b.grant(o, false), 1)
	if g := s.gone(); g.Reason != "failed" || !strings.Contains(g.Message, "/nowhere/python3") {
		t.Errorf("gone is %v", g)
	}
	// What cannot be read at all: no lease begins, the market hears that it failed.
	b.Step(market.Award{Owner: b.ownerID(), Offer: "bad", Lease: "bad-1", Fence: market.Fence{Epoch: 1, Attempt: 1},
		LeaseFor: time.Second}, []byte{0xff})
	e := await[market.Ended](b)
	for e.Lease != "bad-1" { // those before it
		e = await[market.Ended](b)
	}
	if e.Reason != market.EndFailed {
		t.Errorf("the market was told %+v", e)
	}
	if _, err := os.Stat(b.LogDir); err != nil {
		t.Error(err)
	}
}

// A container with little CPU starts with a whole core and has what was asked
// for when its calls begin.
func TestStartIsBoosted(t *testing.T) {
	b := newBench(t, workertest.Options{})
	lease := b.grant(workertest.Order("ok:f"), false) // grants 100 thousandths
	s := b.attach(lease, 1)
	s.until("ready", func(u *peerv1.LeaseUp) bool { return u.GetReady() != nil })
	if got := b.Container(t, lease).Limits(); got.CPUMillis != 100 || got.MemoryBytes != 64<<20 {
		t.Errorf("limits when ready: %+v", got)
	}
	lease = b.grant(workertest.Order("deaf:f"), false)
	s = b.attach(lease, 1)
	s.until("start", func(u *peerv1.LeaseUp) bool { return u.GetPhase().GetName() == "start" })
	if got := b.Container(t, lease).Limits(); got.CPUMillis != 1000 || got.MemoryBytes != 64<<20 {
		t.Errorf("limits while loading: %+v", got)
	}
}
