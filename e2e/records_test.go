package e2e

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/beammesh/beammesh/cli/dev"
)

// What `beam … --json` prints, as far as these tests look at it.
type (
	taskJSON struct {
		ID        string     `json:"id"`
		Status    string     `json:"status"`
		Name      string     `json:"name"`
		Node      string     `json:"node"`
		Container string     `json:"container_id"`
		Attempt   int        `json:"attempt"`
		Accepted  int        `json:"accepted"`
		Waiting   string     `json:"waiting"`
		Created   *time.Time `json:"created_at"`
		Started   *time.Time `json:"started_at"`
		Ended     *time.Time `json:"ended_at"`
		Error     *struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"error"`
	}
	explainJSON struct {
		Task     taskJSON      `json:"task"`
		Phases   []phaseJSON   `json:"phases"`
		Attempts []attemptJSON `json:"attempts"`
	}
	attemptJSON struct {
		Attempt    int             `json:"attempt"`
		Node       string          `json:"node"`
		How        string          `json:"how"`
		End        string          `json:"end"`
		Candidates []candidateJSON `json:"candidates"`
		Notes      []string        `json:"notes"`
	}
	phaseJSON struct {
		Name   string `json:"name"`
		Detail string `json:"detail"`
	}
	candidateJSON struct {
		Node    string   `json:"node"`
		Verdict string   `json:"verdict"`
		Source  string   `json:"source"`
		Reasons []string `json:"reasons"`
	}
	nodeJSON struct {
		ID     string `json:"id"`
		Name   string `json:"name"`
		State  string `json:"state"`
		Reason string `json:"reason"`
	}
)

func (a attemptJSON) notes() string { return strings.Join(a.Notes, "\n") }

// task waits until node i lists a task whose name ends with fn and that ok
// likes; the newest counts.
func (m *mesh) task(i int, fn string, ok func(taskJSON) bool) taskJSON {
	m.t.Helper()
	var last taskJSON
	eventually(m.t, patience, func() string {
		for _, t := range m.tasks(i) {
			if strings.HasSuffix(t.Name, fn) {
				if last = t; ok(t) {
					return ""
				}
				return "task of " + fn + " is " + t.Status + " on " + t.Node + ", waits for " + t.Waiting
			}
		}
		return "no task of " + fn
	})
	return last
}

func (m *mesh) tasks(i int) []taskJSON {
	m.t.Helper()
	var all []taskJSON
	m.beamJSON(i, &all, "task", "list", "--limit", "1000")
	return all
}

func (m *mesh) explain(i int, task string) explainJSON {
	m.t.Helper()
	var e explainJSON
	m.beamJSON(i, &e, "explain", task)
	return e
}

// node waits until node i says that the named node is in this state.
func (m *mesh) node(i int, name, state string) {
	m.t.Helper()
	eventually(m.t, patience, func() string {
		var all []nodeJSON
		m.beamJSON(i, &all, "node", "ls")
		for _, n := range all {
			if n.Name == name {
				if n.State == state {
					return ""
				}
				return name + " is " + n.State + " for node " + string(rune('0'+i)) + ", want " + state
			}
		}
		return name + " is not listed"
	})
}

// nodeID is the id of a node by its name, as node i knows it.
func (m *mesh) nodeID(i int, name string) string {
	m.t.Helper()
	var all []nodeJSON
	m.beamJSON(i, &all, "node", "ls")
	for _, n := range all {
		if n.Name == name {
			return n.ID
		}
	}
	m.t.Fatalf("%s is not listed", name)
	return ""
}

// downAt waits until node i has written into its log that a member is down, and
// gives the time that is written there; what it wrote before since is another story.
func (m *mesh) downAt(i int, id string, since time.Time) (at time.Time) {
	m.t.Helper()
	eventually(m.t, patience, func() string {
		b, err := os.ReadFile(m.dev.Nodes[i-1].Log)
		if err != nil {
			m.t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			if !strings.Contains(line, `msg="member is down"`) || !strings.Contains(line, " peer="+id+" ") {
				continue
			}
			stamp, _, _ := strings.Cut(strings.TrimPrefix(line, "time="), " ")
			if at, err = time.Parse(time.RFC3339Nano, stamp); err != nil {
				m.t.Fatal(err)
			}
			if !at.Before(since.Truncate(time.Millisecond)) {
				return ""
			}
		}
		return id + " is not down for node " + string(rune('0'+i))
	})
	return at
}

func running(t taskJSON) bool { return t.Status == "RUNNING" }
func waiting(t taskJSON) bool { return t.Status == "PENDING" && t.Waiting != "" }
func over(t taskJSON) bool    { return t.Ended != nil }

// do runs one of dev's controls that must work.
func do(t testing.TB, what func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := what(ctx); err != nil {
		t.Fatal(err)
	}
}

func (m *mesh) kill(i int) {
	m.t.Helper()
	do(m.t, func(ctx context.Context) error { return dev.Kill(ctx, m.root, i) })
}

func (m *mesh) restart(i int) {
	m.t.Helper()
	do(m.t, func(ctx context.Context) error { return dev.Start(ctx, m.root, i) })
}

// index is the number in a node's name.
func index(t testing.TB, name string) int {
	t.Helper()
	n, ok := strings.CutPrefix(name, "node")
	if !ok || len(n) != 1 {
		t.Fatalf("%q is no node of a dev mesh", name)
	}
	return int(n[0] - '0')
}
