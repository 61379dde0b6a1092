package meshtest

import (
	"fmt"
	"testing"

	"github.com/beammesh/beammesh/mesh"
)

func fakeCluster(t *testing.T, setups []Setup) []mesh.Mesh {
	w := NewNetwork()
	var out []mesh.Mesh
	for i, s := range setups {
		n := w.Join(fmt.Sprint("node", i), WithHello(s.Hello))
		for p, h := range s.Handlers {
			n.Handle(p, h)
		}
		n.Start()
		t.Cleanup(func() { n.Close() })
		out = append(out, n)
	}
	return out
}

func TestFake(t *testing.T) { TestMesh(t, fakeCluster) }

func TestCutAndHeal(t *testing.T) {
	w := NewNetwork()
	a, b := w.Join("a"), w.Join("b")
	b.Handle("echo/1", Echo)
	for _, n := range []*Node{a, b} {
		n.Start()
		t.Cleanup(func() { n.Close() })
	}
	s := mustOpen(t, a, b.PeerID(), "echo/1")
	events := NewLog(t, a)
	w.Cut(a, b)
	events.Await(t, "MemberDown", func(e mesh.Event) bool { return e.Type == mesh.MemberDown })
	if _, err := s.Read(make([]byte, 1)); err == nil {
		t.Error("a stream survived the cut")
	}
	if _, err := a.Open(ctx(t), b.PeerID(), "echo/1"); err == nil {
		t.Error("opened a stream through the cut")
	}
	w.Heal(a, b)
	AwaitUp(t, a, b.PeerID())
	mustOpen(t, a, b.PeerID(), "echo/1")
}
