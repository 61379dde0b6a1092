package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/beammesh/beammesh/cli/dev"
)

// images waits until the status of node i says this of its images.
func (m *mesh) images(i int, text string) {
	m.t.Helper()
	eventually(m.t, patience, func() string {
		if s := m.status(i); !strings.Contains(s.Images, text) {
			return fmt.Sprintf("node%d says %q and %v of its images, want %q", i, s.Images, s.Troubles, text)
		}
		return ""
	})
}

// startsFromAhead runs a function on the node with this GPU for the first time,
// and wants that its image was there.
func (m *mesh) startsFromAhead(gpu string) {
	m.t.Helper()
	m.mustPython(1, fmt.Sprintf(onGPU, gpu))
	e := m.explain(1, m.task(1, "where", over).ID)
	for _, p := range e.Phases {
		if p.Name == "pull" {
			// The code comes with the task: a few kilobytes.
			if p.Detail != "already here" && !strings.HasPrefix(p.Detail, "0.0 MiB") {
				m.t.Errorf("the first task on %s pulled %s, want its image to be there", e.Task.Node, p.Detail)
			}
			return
		}
	}
	m.t.Errorf("no pull among the phases %+v", e.Phases)
}

// A program on node 1 has the base image made; nobody asks nodes 2 and 3 for
// anything. Node 3 is killed while it fetches.
func TestImagesAreReadyAhead(t *testing.T) {
	m := ownMesh(t, dev.Options{Nodes: 3, GPUs: "H100:1,RTX4090:1"})
	if err := dev.Throttle(m.root, 3, 0.1); err != nil {
		t.Fatal(err)
	}
	m.startPython(1, strings.Replace(fmt.Sprintf(onGPU, ""), `gpu="", `, "", 1))
	m.images(3, "fetching the base image")
	m.kill(3)
	if err := dev.Throttle(m.root, 3, 1); err != nil {
		t.Fatal(err)
	}

	m.images(2, "1 ready")
	m.startsFromAhead("H100")

	// It goes on where it was: a start waits for that.
	began := time.Now()
	m.restart(3)
	t.Logf("figure: node3, killed while it fetched, was ready %s after its start", time.Since(began).Round(time.Millisecond))
	m.images(3, "1 ready")
	m.startsFromAhead("RTX4090")

	// A disk with less room than the floor: nothing is fetched ahead, and it says so.
	m.restartWith(2, "--disk-floor", "900TiB")
	if s := m.status(2); !strings.Contains(s.Images, "0 ready") || !strings.Contains(fmt.Sprint(s.Troubles), "are left above the floor") {
		t.Errorf("node2 with a full disk says %q, %v", s.Images, s.Troubles)
	}
	m.restartWith(2, "--disk-floor", "64MiB", "--no-prefetch")
	if s := m.status(2); !strings.Contains(s.Images, "--no-prefetch") || len(s.Troubles) > 0 {
		t.Errorf("node2 without prefetch says %q, %v", s.Images, s.Troubles)
	}
	m.startsFromAhead("H100") // from before
}
