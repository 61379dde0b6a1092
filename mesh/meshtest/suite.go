package meshtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/beammesh/beammesh/mesh"
)

// Patience is how long the suite waits for what must happen. It is long because
// a loaded machine is no failure; nothing waits when things go well.
const Patience = 60 * time.Second

// Setup is what the suite wants of one node before it starts.
type Setup struct {
	Handlers map[string]mesh.Handler
	Hello    mesh.Hello
}

// Cluster makes and starts len(nodes) members of one mesh, in that order, and
// closes them when the test ends. It need not wait for them to connect.
type Cluster func(t *testing.T, nodes []Setup) []mesh.Mesh

// TestMesh runs the suite. Each part asks for its own cluster.
func TestMesh(t *testing.T, cluster Cluster) {
	for name, part := range map[string]func(*testing.T, Cluster){
		"streams": testStreams, "manyStreams": testManyStreams, "gossip": testGossip, "directory": testDirectory,
		"members": testMembers, "signatures": testSignatures, "closed": testClosed,
	} {
		t.Run(name, func(t *testing.T) { part(t, cluster) })
	}
}

// Echo sends back what it gets until EOF.
func Echo(_ context.Context, s mesh.Stream) {
	defer s.Close()
	if _, err := io.Copy(s, s); err == nil {
		s.CloseWrite()
	}
}

// Started makes a cluster and waits until all nodes see each other.
func Started(t *testing.T, cluster Cluster, nodes ...Setup) []mesh.Mesh {
	t.Helper()
	ms := cluster(t, nodes)
	for _, a := range ms {
		for _, b := range ms {
			if a.Self().ID != b.Self().ID {
				AwaitUp(t, a, b.Self().ID)
			}
		}
	}
	return ms
}

// Log collects a node's events from the moment it is made.
type Log struct {
	self mesh.PeerID

	mu    sync.Mutex
	seen  []mesh.Event
	moved chan struct{} // closed and replaced at each event
}

// NewLog watches m until the test ends.
func NewLog(t *testing.T, m mesh.Members) *Log {
	t.Helper()
	l := &Log{self: m.Self().ID, moved: make(chan struct{})}
	t.Cleanup(m.Watch(func(e mesh.Event) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.seen = append(l.seen, e)
		close(l.moved)
		l.moved = make(chan struct{})
	}))
	return l
}

// Await gives the first event, past or coming, that ok accepts.
func (l *Log) Await(t *testing.T, what string, ok func(mesh.Event) bool) mesh.Event {
	t.Helper()
	late := time.After(Patience)
	for {
		l.mu.Lock()
		i := slices.IndexFunc(l.seen, ok)
		seen, moved := l.seen, l.moved
		l.mu.Unlock()
		if i >= 0 {
			return seen[i]
		}
		select {
		case <-moved:
		case <-late:
			for _, e := range seen {
				t.Logf("%s saw: type %d of %s %q %s", l.self, e.Type, e.Member.ID, e.Member.Name, e.Reason)
			}
			t.Fatalf("no %s at %s", what, l.self)
		}
	}
}

// Await is NewLog and its Await: it sees members that are up, and what comes.
func Await(t *testing.T, m mesh.Members, what string, ok func(mesh.Event) bool) mesh.Event {
	t.Helper()
	return NewLog(t, m).Await(t, what, ok)
}

// AwaitUp waits until m sees id connected.
func AwaitUp(t *testing.T, m mesh.Members, id mesh.PeerID) mesh.Member {
	t.Helper()
	return Await(t, m, "MemberUp of "+string(id), func(e mesh.Event) bool { return e.Type == mesh.MemberUp && e.Member.ID == id }).Member
}

func ctx(t *testing.T) context.Context {
	t.Helper()
	c, cancel := context.WithTimeout(context.Background(), Patience)
	t.Cleanup(cancel)
	return c
}

func mustOpen(t *testing.T, m mesh.Dialer, to mesh.PeerID, protocol string) mesh.Stream {
	t.Helper()
	s, err := m.Open(ctx(t), to, protocol)
	if err != nil {
		t.Fatal(err)
	}
	s.SetDeadline(time.Now().Add(Patience))
	t.Cleanup(func() { s.Reset() })
	return s
}

func testStreams(t *testing.T, cluster Cluster) {
	from, arrived := make(chan mesh.PeerID, 8), make(chan mesh.PeerID, 1)
	ended := make(chan error, 1)
	ms := Started(t, cluster, Setup{}, Setup{Handlers: map[string]mesh.Handler{
		"echo/1": func(ctx context.Context, s mesh.Stream) { from <- s.Peer(); Echo(ctx, s) },
		"wait/1": func(_ context.Context, s mesh.Stream) {
			_, err := s.Read(make([]byte, 1))
			for arrived <- s.Peer(); err == nil; {
				_, err = s.Read(make([]byte, 64))
			}
			ended <- err
			s.Reset()
		},
	}})
	a, b := ms[0], ms[1].Self().ID
	data := make([]byte, 3<<20)
	sum := sha256.New()
	for i := range data {
		data[i] = byte(i * i >> 7)
	}
	sum.Write(data)

	for _, open := range []func(context.Context, mesh.PeerID, string) (mesh.Stream, error){a.Open, a.OpenBulk} {
		s, err := open(ctx(t), b, "echo/1")
		if err != nil {
			t.Fatal(err)
		}
		if s.Peer() != b {
			t.Errorf("peer %s, want %s", s.Peer(), b)
		}
		s.SetDeadline(time.Now().Add(Patience))
		go func() { s.Write(data); s.CloseWrite() }()
		back := sha256.New()
		if n, err := io.Copy(back, s); err != nil || n != int64(len(data)) || !bytes.Equal(back.Sum(nil), sum.Sum(nil)) {
			t.Errorf("echo of %d bytes: %d came back, %v", len(data), n, err)
		}
		if err := s.Close(); err != nil {
			t.Error("close:", err)
		}
		if got := <-from; got != a.Self().ID {
			t.Errorf("the handler saw %s, want %s", got, a.Self().ID)
		}
	}

	// A read past its deadline ends with a timeout and leaves the stream usable.
	s := mustOpen(t, a, b, "echo/1")
	s.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	var ne net.Error
	if _, err := s.Read(make([]byte, 1)); !errors.As(err, &ne) || !ne.Timeout() {
		t.Errorf("read past the deadline: got %v, want a timeout", err)
	}
	s.SetReadDeadline(time.Now().Add(Patience))
	one := make([]byte, 1)
	if _, err := s.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(s, one); err != nil || one[0] != 'x' {
		t.Errorf("after the deadline was moved: %q, %v", one, err)
	}

	// Reset reaches the other side as an error, not as a clean end.
	s = mustOpen(t, a, b, "wait/1")
	if _, err := s.Write([]byte("half of a mess")); err != nil {
		t.Fatal(err)
	}
	<-arrived // an early reset may overtake the stream itself
	s.Reset()
	select {
	case err := <-ended:
		if errors.Is(err, io.EOF) {
			t.Error("the peer of a reset stream read a clean EOF")
		}
	case <-time.After(Patience):
		t.Error("the peer of a reset stream did not notice")
	}

	// A protocol nobody serves, and peers nobody knows.
	if s, err := a.Open(ctx(t), b, "nothing/1"); err == nil {
		s.SetDeadline(time.Now().Add(Patience))
		s.Write([]byte("x"))
		if _, err := s.Read(one); !errors.Is(err, mesh.ErrNotServed) {
			t.Errorf("unknown protocol: got %v, want ErrNotServed", err)
		}
		s.Reset()
	} else if !errors.Is(err, mesh.ErrNotServed) {
		t.Errorf("unknown protocol: got %v, want ErrNotServed", err)
	}
	short, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	for _, p := range []mesh.PeerID{"12D3KooWKnDdG3iXw9eTFijk3EWSunZcFi54Zka4wmtqtt6rPxc8", "nonsense", ""} {
		if _, err := a.Open(short, p, "echo/1"); !errors.Is(err, mesh.ErrUnreachable) {
			t.Errorf("open to %q: got %v, want ErrUnreachable", p, err)
		}
	}
}

// testManyStreams holds more streams open to one peer than QUIC or the usual
// resource limits allow.
func testManyStreams(t *testing.T, cluster Cluster) {
	const streams = 600
	ms := Started(t, cluster, Setup{}, Setup{Handlers: map[string]mesh.Handler{"echo/1": Echo}})
	var open []mesh.Stream
	for i := range streams {
		s, err := ms[0].Open(ctx(t), ms[1].Self().ID, "echo/1")
		if err != nil {
			t.Fatalf("stream %d: %v", i, err)
		}
		defer s.Reset()
		s.SetDeadline(time.Now().Add(Patience))
		if _, err := s.Write([]byte{byte(i)}); err != nil {
			t.Fatalf("stream %d: %v", i, err)
		}
		open = append(open, s)
	}
	for i, s := range open {
		b := make([]byte, 1)
		if _, err := io.ReadFull(s, b); err != nil || b[0] != byte(i) {
			t.Fatalf("stream %d: read %v, %v", i, b, err)
		}
	}
}

func testGossip(t *testing.T, cluster Cluster) {
	ms := Started(t, cluster, Setup{}, Setup{}, Setup{})
	type message struct {
		at   int
		from mesh.PeerID
		data string
	}
	got := make(chan message, 1024)
	for i, m := range ms {
		cancel, err := m.Subscribe("offers", func(from mesh.PeerID, data []byte) {
			select {
			case got <- message{i, from, string(data)}:
			default:
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		defer cancel()
	}
	// Delivery is not promised: publish until both others have it.
	missing := map[int]bool{1: true, 2: true}
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	deadline := time.After(Patience)
	for n := 0; len(missing) > 0; {
		select {
		case m := <-got:
			if m.at == 0 {
				t.Error("the publisher's own subscription saw its message")
			}
			if m.from != ms[0].Self().ID || !strings.HasPrefix(m.data, "h100 free ") {
				t.Errorf("got %q from %s", m.data, m.from)
			}
			delete(missing, m.at)
		case <-again.C:
			n++
			if err := ms[0].Publish(ctx(t), "offers", fmt.Appendf(nil, "h100 free %d", n)); err != nil {
				t.Fatal(err)
			}
		case <-deadline:
			t.Fatalf("no message at nodes %v after %d tries", missing, n)
		}
	}
	if err := ms[0].Publish(ctx(t), "offers", make([]byte, mesh.MaxGossip)); err != nil {
		t.Errorf("largest message: %v", err)
	}
	if err := ms[0].Publish(ctx(t), "offers", make([]byte, mesh.MaxGossip+1)); !errors.Is(err, mesh.ErrTooLarge) {
		t.Errorf("too large: got %v", err)
	}
}

func testDirectory(t *testing.T, cluster Cluster) {
	ms := Started(t, cluster, Setup{}, Setup{}, Setup{}, Setup{})
	for _, i := range []int{2, 3} {
		if err := ms[i].Provide(ctx(t), "gpu/H100"); err != nil {
			t.Fatal(err)
		}
	}
	if err := ms[2].Provide(ctx(t), "gpu/H100"); err != nil {
		t.Errorf("providing twice: %v", err)
	}
	find := func(m mesh.Directory, key string, limit int) []mesh.PeerID {
		t.Helper()
		found, err := m.Find(ctx(t), key, limit)
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(found)
		return found
	}
	both := []mesh.PeerID{ms[2].Self().ID, ms[3].Self().ID}
	slices.Sort(both)
	for i, m := range ms {
		if got := find(m, "gpu/H100", 10); !slices.Equal(got, both) {
			t.Errorf("node %d found %v, want %v", i, got, both)
		}
	}
	if got := find(ms[0], "gpu/H100", 1); len(got) != 1 || !slices.Contains(both, got[0]) {
		t.Errorf("limit 1: found %v", got)
	}
	if got := find(ms[0], "gpu/A100", 10); len(got) != 0 {
		t.Errorf("a key nobody has: found %v", got)
	}
	ms[2].Withdraw("gpu/H100")
	ms[2].Withdraw("gpu/H100")
	if got := find(ms[0], "gpu/H100", 10); !slices.Equal(got, []mesh.PeerID{ms[3].Self().ID}) {
		t.Errorf("after a withdraw: found %v", got)
	}
	if err := ms[0].Provide(ctx(t), strings.Repeat("k", mesh.MaxKey+1)); err == nil {
		t.Error("an endless key was accepted")
	}
	ms[3].Close()
	if got := find(ms[0], "gpu/H100", 10); len(got) != 0 {
		t.Errorf("after the provider closed: found %v", got)
	}
}

// noteHello gives a fixed payload and notes what came, and when.
type noteHello struct {
	local []byte
	mu    sync.Mutex
	got   map[mesh.PeerID][]byte
}

func (h *noteHello) Local(mesh.PeerID) []byte { return h.local }
func (h *noteHello) Remote(from mesh.PeerID, _ mesh.Via, payload []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.got[from] = payload
}
func (h *noteHello) of(p mesh.PeerID) []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.got[p]
}

func testMembers(t *testing.T, cluster Cluster) {
	hellos := make([]*noteHello, 3)
	setups := make([]Setup, 3)
	for i := range hellos {
		size := 10
		if i == 1 {
			size = mesh.MaxHelloPayload
		}
		hellos[i] = &noteHello{local: bytes.Repeat([]byte{byte('a' + i)}, size), got: map[mesh.PeerID][]byte{}}
		setups[i].Hello = hellos[i]
	}
	ms := cluster(t, setups)
	ids := make([]mesh.PeerID, len(ms))
	for i, m := range ms {
		ids[i] = m.Self().ID
	}
	for i, m := range ms {
		for j, id := range ids {
			if i == j {
				continue
			}
			AwaitUp(t, m, id)
			if got := hellos[i].of(id); !bytes.Equal(got, hellos[j].local) {
				t.Errorf("node %d has %d bytes of node %d's payload when it is up, want %d", i, len(got), j, len(hellos[j].local))
			}
		}
	}
	for i, m := range ms {
		list := m.Members()
		if len(list) != len(ms) || !slices.IsSortedFunc(list, func(a, b mesh.Member) int { return strings.Compare(string(a.ID), string(b.ID)) }) {
			t.Errorf("node %d lists %d members, or unsorted", i, len(list))
		}
		for _, k := range list {
			switch {
			case k.ID == ids[i] && k.Path != mesh.PathSelf, k.ID != ids[i] && k.Path != mesh.PathDirect:
				t.Errorf("node %d: path of %s is %s", i, k.ID, k.Path)
			case !k.Connected || k.BootID == "" || k.Tier == "" || k.Name == "":
				t.Errorf("node %d: incomplete member %+v", i, k)
			case k.ClockSkew.Abs() > 5*time.Second:
				t.Errorf("node %d: skew of %s is %v, on one machine", i, k.ID, k.ClockSkew)
			}
		}
	}
	cancel := ms[0].Watch(func(mesh.Event) {})
	cancel()
	cancel()
	events := NewLog(t, ms[0])
	ms[2].Close()
	e := events.Await(t, "MemberDown", func(e mesh.Event) bool { return e.Type == mesh.MemberDown && e.Member.ID == ids[2] })
	if e.Reason == "" || e.Member.Connected || e.Member.Path != mesh.PathNone {
		t.Errorf("down event: %+v", e)
	}
	if list := ms[0].Members(); len(list) != 3 {
		t.Errorf("%d members after one went down, want it to stay known", len(list))
	}
}

func testSignatures(t *testing.T, cluster Cluster) {
	ms := Started(t, cluster, Setup{}, Setup{})
	data := []byte("an advert")
	sig, err := ms[0].Sign(data)
	if err != nil {
		t.Fatal(err)
	}
	if err := ms[1].Verify(ms[0].Self().ID, data, sig); err != nil {
		t.Error(err)
	}
	if err := ms[1].Verify(ms[1].Self().ID, data, sig); err == nil {
		t.Error("a signature counted for another peer")
	}
	if err := ms[1].Verify(ms[0].Self().ID, []byte("an Advert"), sig); err == nil {
		t.Error("a signature counted for other data")
	}
	if err := ms[1].Verify("nonsense", data, sig); err == nil {
		t.Error("a signature counted for nobody")
	}
	if ms[0].ID() != ms[1].ID() || len(ms[0].ID()) != 10 {
		t.Errorf("mesh ids %q and %q", ms[0].ID(), ms[1].ID())
	}
}

func testClosed(t *testing.T, cluster Cluster) {
	running := make(chan struct{})
	ended := make(chan struct{})
	ms := Started(t, cluster, Setup{}, Setup{Handlers: map[string]mesh.Handler{"wait/1": func(ctx context.Context, s mesh.Stream) {
		close(running)
		<-ctx.Done()
		close(ended)
	}}})
	s := mustOpen(t, ms[0], ms[1].Self().ID, "wait/1")
	if _, err := s.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	<-running
	if err := ms[1].Close(); err != nil {
		t.Error("close:", err)
	}
	if err := ms[1].Close(); err != nil {
		t.Error("close again:", err)
	}
	select {
	case <-ended:
	default:
		t.Error("Close came back before the handler's context ended")
	}
	if _, err := s.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("read from a closed peer: %v, want an error that is no clean end", err)
	}
	if _, err := ms[1].Open(ctx(t), ms[0].Self().ID, "x/1"); !errors.Is(err, mesh.ErrClosed) {
		t.Errorf("open after close: %v", err)
	}
	if err := ms[1].Publish(ctx(t), "t", nil); !errors.Is(err, mesh.ErrClosed) {
		t.Errorf("publish after close: %v", err)
	}
	if _, err := ms[1].Find(ctx(t), "k", 1); !errors.Is(err, mesh.ErrClosed) {
		t.Errorf("find after close: %v", err)
	}
	if err := ms[1].Provide(ctx(t), "k"); !errors.Is(err, mesh.ErrClosed) {
		t.Errorf("provide after close: %v", err)
	}
}
