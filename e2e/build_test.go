package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/beammesh/beammesh/cli/dev"
)

// A package of the machine's package index goes into an image on the node that
// is asked, and a function on another node imports it.
func TestPipPackage(t *testing.T) {
	m := sharedMesh(t)
	const program = `
from beam import Image, function

image = Image(python_packages=["six"])

@function(gpu="RTX4090", cpu=0.2, memory=128, image=image)
def uses():
    import six
    return six.ensure_str(b"from pip"), six.__file__.startswith("/mnt/code")

if __name__ == "__main__":
    print(*uses.remote())
`
	out, errs, code := m.python(1, program)
	if code != 0 || strings.TrimSpace(out) != "from pip False" || !strings.Contains(errs, "Successfully installed six") {
		t.Fatalf("exit %d\n%s%s", code, out, errs)
	}
	if task := m.task(1, "uses", over); task.Node != "node3" {
		t.Errorf("it ran on %s, the GPU is at node3", task.Node)
	}
	// Known by now, at any node.
	out, errs, code = m.python(2, program)
	if code != 0 || strings.TrimSpace(out) != "from pip False" || !strings.Contains(errs, "Using cached image") {
		t.Errorf("the second time: exit %d\n%s%s", code, out, errs)
	}
}

const longBuild = `
from beam import Image, function

# Not as it stands here: the line of the step is printed too.
image = Image(commands=["echo the build has b''egun; exec sleep 600"])

@function(cpu=0.2, memory=128, image=image)
def f():
    return 1
`

const shortBuild = `
from beam import Image, function

image = Image(commands=["echo done > /built"])

@function(cpu=0.2, memory=128, image=image)
def f():
    return open("/built").read().strip()

if __name__ == "__main__":
    print(f.remote())
`

// The node that builds an image is killed: the client is told at once what
// happened and what to do, other nodes build, and once the node is back nothing
// of the build is left.
func TestBuilderDies(t *testing.T) {
	m := ownMesh(t, dev.Options{Nodes: 2})
	// The base image is there, on both nodes: the build below is in its step.
	m.mustPython(1, square)
	m.mustPython(2, square)
	dir := t.TempDir()
	write(t, dir, "app.py", longBuild)
	rest := m.atRest(2)
	p := m.start(dir, append(m.env(2), "BEAM_PYTHON="+python()), binary(), "run", "app.py:f")
	eventually(t, patience, func() string {
		select {
		case <-p.done:
			t.Fatalf("the build ended:\n%s", p.err)
		default:
		}
		if !strings.Contains(p.err.String(), "the build has begun") {
			return "the build does not begin:\n" + p.err.String()
		}
		return ""
	})
	if !remainsOf(t, m.dev.Nodes[1]).starts() {
		t.Error("no container builds")
	}
	m.kill(2)
	out, errs, code := p.wait()
	if code != 8 || out != "" || !strings.Contains(errs, "error: the connection to the node at "+m.dev.Nodes[1].Addr.String()) || !strings.Contains(errs, "hint: is the node still up?") {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
	if out := m.mustPython(1, shortBuild); strings.TrimSpace(out) != "done" {
		t.Errorf("the other node built %q", out)
	}
	m.restart(2)
	eventually(t, patience, func() string {
		// The layers of the base image stay: they are complete.
		if r := remainsOf(t, m.dev.Nodes[1]); !r.none(rest, r.Snapshots) {
			return fmt.Sprintf("node2 is back and has %+v, at rest it had %+v", r, rest)
		}
		return ""
	})
	if out := m.mustPython(2, shortBuild); strings.TrimSpace(out) != "done" {
		t.Errorf("the restarted node gave %q", out)
	}
	if err := down(); err != nil {
		t.Fatal(err)
	}
	if left := traces(t, m.dev.Nodes); len(left) > 0 {
		t.Errorf("left on this machine:\n%s", strings.Join(left, "\n"))
	}
}
