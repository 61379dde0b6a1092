package replicas

import (
	"fmt"
	"testing"
	"time"
)

func TestResume(t *testing.T) {
	p := New(Config{Max: 4, KeepWarm: time.Minute})
	now := time.Duration(0)
	step := func(ev Event) string {
		now += time.Millisecond
		return fmt.Sprint(p.Step(now, ev))
	}
	for _, c := range []struct {
		name string
		ev   Event
		want string
	}{
		{"a runs on r1", Resume{Call: Call{ID: "a"}, Attempt: 3, Replica: "r1"}, "[]"},
		{"b runs on r2", Resume{Call: Call{ID: "b"}, Attempt: 1, Replica: "r2"}, "[]"},
		{"c waits on r2", Resume{Call: Call{ID: "c"}, Attempt: 2, Replica: "r2"}, "[]"},
		{"twice is once", Resume{Call: Call{ID: "a"}, Attempt: 9, Replica: "r2"}, "[]"},
		{"nobody else's result counts", Result{Replica: "r2", Call: "a", Attempt: 3}, "[]"},
		{"a ends", Result{Replica: "r1", Call: "a", Attempt: 3}, "[{a 3 r1 <nil>}]"},
		{"b ends", Result{Replica: "r2", Call: "b", Attempt: 1}, "[{b 1 r2 <nil>}]"},
		{"r2 is lost, c goes to r1 as the next attempt", ReplicaLost{Replica: "r2", NodeLost: true}, "[{r1 c 3}]"},
		{"c ends", Result{Replica: "r1", Call: "c", Attempt: 3}, "[{c 3 r1 <nil>}]"},
		{"a new call gets the warm container", Submit{Call{ID: "d"}}, "[{r1 d 1}]"},
	} {
		if got := step(c.ev); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	if s := p.Stats(); s.Replicas != 1 || s.Queued != 0 {
		t.Errorf("stats %+v", s)
	}
}
