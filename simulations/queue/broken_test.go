package queue

import (
	"errors"
	"strings"
	"testing"

	"github.com/beammesh/beammesh/simulations"
)

// bad is a policy that works until it does what the test wants.
type bad struct {
	Policy
	submit func(job Job)
	ended  func(worker, task int32)
}

func (p *bad) Submit(job Job) {
	if p.submit != nil && job.First >= 50 {
		p.submit(job)
		return
	}
	p.Policy.Submit(job)
}

func (p *bad) Ended(worker, task int32) {
	if p.ended != nil && task >= 50 {
		p.ended(worker, task)
	}
	p.Policy.Ended(worker, task)
}

func TestBrokenPolicyStopsTheRun(t *testing.T) {
	cases := []struct {
		name  string
		spoil func(w *World, p *bad)
		want  string
	}{
		{"panics", func(_ *World, p *bad) { p.submit = func(Job) { panic("oh") } }, "panic: oh (queue/broken_test.go:"},
		{"forgets a job", func(_ *World, p *bad) { p.submit = func(Job) {} }, "tasks are lost: nothing is left to happen, and of task 50 it waits at its owner"},
		{"sends a task twice", func(w *World, p *bad) {
			p.submit = func(job Job) {
				w.SendTask(Task, job.Owner, job.First, 0)
				w.SendTask(Task, job.Owner, job.First, 1)
			}
		}, "sends task 50, which it does not have (another peer holds it)"},
		{"sends to nobody", func(w *World, p *bad) {
			p.submit = func(job Job) { w.SendTask(Task, job.Owner, job.First, 100) }
		}, "task 50 is sent to 100, which is no worker"},
		{"starts a task again", func(w *World, p *bad) {
			p.ended = func(worker, task int32) { w.Start(worker, task) }
		}, "which it does not have (it is done)"},
		{"starts a task that is elsewhere", func(w *World, p *bad) {
			p.submit = func(job Job) {
				w.SendTask(Task, job.Owner, job.First, 0)
				w.Start(1, job.First)
			}
		}, "worker 1 starts task 50, which it does not have"},
		{"fills a slot twice", func(w *World, p *bad) {
			p.submit = func(job Job) {
				for task := job.First; task < job.First+job.Tasks; task++ {
					w.Bind(job.Owner, task, 0)
					w.Start(0, task)
				}
			}
		}, "with no free slot"},
		{"never stops sending", func(w *World, p *bad) {
			p.submit = func(job Job) {
				for {
					w.Send(Task, job.Owner, 0, 0, 0)
				}
			}
		}, "more than 1000 messages per task"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := run(t.Context(), set(5, "", "workers=100 jobs=20 tasks=5 owners=3"), func(w *World) Policy {
				p := &bad{Policy: newEarly(w, 1, 0)}
				c.spoil(w, p)
				return p
			})
			var b *simulations.BrokenError
			if !errors.As(err, &b) {
				t.Fatalf("got %v", err)
			}
			if b.Seed != 5 || b.Event == 0 || b.At == "0s" || !strings.Contains(b.What, c.want) {
				t.Errorf("got %+v, want %q", b, c.want)
			}
		})
	}
}

func TestPolicyThatCannotBeMade(t *testing.T) {
	_, err := run(t.Context(), set(5, "", ""), func(*World) Policy { panic("no") })
	var b *simulations.BrokenError
	if !errors.As(err, &b) {
		t.Errorf("got %v", err)
	}
}
