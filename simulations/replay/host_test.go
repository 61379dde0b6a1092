package replay

import (
	"testing"
	"time"

	"github.com/beammesh/beammesh/simulations/engine"
)

// TestTimelineUndoesSharing: what a machine made of jobs by sharing its
// processors, a timeline of the same spans takes back.
func TestTimelineUndoesSharing(t *testing.T) {
	crowd := Crowd{Processors: 3, StartLoad: 4, Power: 3}
	rng := engine.Stream(1, "jobs", 0)
	w := &world{models: Models{Crowd: crowd}}
	h := w.host("machine")
	type span struct{ from, to, work time.Duration }
	jobs := make([]span, 500)
	isStart := func(i int) bool { return i%5 == 0 }
	now := time.Duration(0)
	for i := range jobs {
		now += rng.Exp(20 * time.Millisecond)
		jobs[i] = span{from: now, work: rng.Exp(10 * time.Millisecond)}
		if isStart(i) {
			jobs[i].work = rng.Exp(300 * time.Millisecond)
		}
		w.queue.Push(now, event{kind: evSubmit, number: i})
	}
	ended := 0
	for {
		now, e, ok := w.queue.Pop()
		if !ok {
			break
		}
		switch {
		case e.kind == evSubmit:
			k := evArrive
			if isStart(e.number) {
				k = evStarted
			}
			w.after(now, h, jobs[e.number].work, event{kind: k, number: e.number})
		case e.kind == evJobs && e.number == h.version:
			done := h.finished(now)
			if len(done) == 0 {
				t.Fatalf("woken at %v with nothing done", now)
			}
			for _, d := range done {
				jobs[d.number].to = now
				ended++
			}
			w.nextJob(now, h)
		}
	}
	if ended != len(jobs) {
		t.Fatalf("%d of %d jobs ended", ended, len(jobs))
	}
	line := timeline{}
	slower := 0
	for i, j := range jobs {
		if isStart(i) {
			line.add(j.from, j.to, 1, 0)
		} else {
			line.add(j.from, j.to, 0, 1)
		}
		if j.to-j.from > 2*j.work {
			slower++
		}
	}
	line.count()
	line.share(crowd)
	for i, j := range jobs {
		startsFrom, messagesFrom := line.at(j.from)
		startsTo, messagesTo := line.at(j.to)
		got := messagesTo - messagesFrom
		if isStart(i) {
			got = startsTo - startsFrom
		}
		if d := got - j.work; d < -time.Microsecond || d > time.Microsecond {
			t.Errorf("job %d: got %v, want %v", i, got, j.work)
		}
	}
	if slower < 50 {
		t.Errorf("only %d jobs took more than twice their time: the machine is not busy enough for this test", slower)
	}
}

func TestCrowdSpeeds(t *testing.T) {
	for _, c := range []struct {
		crowd            Crowd
		messages, starts int
		want             int
	}{
		{Crowd{2, 1, 2}, 0, 0, full},
		{Crowd{2, 1, 2}, 2, 0, full},
		{Crowd{2, 1, 2}, 2, 2, full / 2},
		{Crowd{2, 3, 2}, 2, 2, full / 4},
		{Crowd{2, 3, 4}, 2, 2, full / 16},
		{Crowd{2, 3, 3}, 2, 2, full / 8},
		{Crowd{2, 8, 6}, 5000, 5000, 1}, // never nothing
	} {
		if got := c.crowd.ofMessages(c.messages, c.starts); got != c.want {
			t.Errorf("%+v, %d messages, %d starts: got %d, want %d", c.crowd, c.messages, c.starts, got, c.want)
		}
	}
	if got := (Crowd{2, 1, 2}).ofStarts(5); got != full*2/5 {
		t.Errorf("5 starts on 2 processors run at %d", got)
	}
	for _, n := range []int{0, 1, 2, 3, 4, 99, 100, 1 << 40, 1<<40 - 1, 999_999_999_999} {
		if r := root(n); r*r > n || (r+1)*(r+1) <= n {
			t.Errorf("root of %d: %d", n, r)
		}
	}
}

func TestDelayAt(t *testing.T) {
	samples := make([]time.Duration, 1000)
	for i := range samples {
		samples[i] = time.Duration(1000-i) * time.Millisecond
	}
	d := delayOf(samples)
	if len(d) != maxQuantiles || d[0] != time.Millisecond || d[len(d)-1] != time.Second {
		t.Fatalf("%d quantiles from %v to %v", len(d), d[0], d[len(d)-1])
	}
	for _, c := range []struct {
		l        luck
		from, to time.Duration
	}{{0, time.Millisecond, time.Millisecond}, {luckParts / 2, 495 * time.Millisecond, 505 * time.Millisecond}, {luckParts - 1, 999 * time.Millisecond, time.Second}} {
		if got := d.at(c.l); got < c.from || got > c.to {
			t.Errorf("at %d: got %v, want %v to %v", c.l, got, c.from, c.to)
		}
	}
	if m := d.Median(); m < 495*time.Millisecond || m > 505*time.Millisecond {
		t.Errorf("median %v", m)
	}
	if got := Always(time.Second).at(luckParts - 1); got != time.Second {
		t.Errorf("a constant is %v", got)
	}
	if got := Delay(nil).at(5); got != 0 {
		t.Errorf("no measurement gives %v", got)
	}
}
