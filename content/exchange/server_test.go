package exchange

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/beammesh/beammesh/content"
	"github.com/beammesh/beammesh/content/blockstest"
)

// asker speaks the protocol by hand.
type asker struct {
	t    *testing.T
	c    net.Conn
	r    *bufio.Reader
	done chan error // what Serve returned
}

func dial(t *testing.T, s *Server, peer string) *asker {
	t.Helper()
	here, there := net.Pipe()
	a := &asker{t: t, c: here, r: bufio.NewReader(here), done: make(chan error, 1)}
	here.SetDeadline(time.Now().Add(time.Minute))
	go func() { a.done <- s.Serve(context.Background(), peer, there) }()
	t.Cleanup(func() { here.Close() })
	return a
}

func (a *asker) send(frames ...[]byte) {
	a.t.Helper()
	for _, f := range frames {
		if _, err := a.c.Write(f); err != nil {
			a.t.Fatalf("send: %v", err)
		}
	}
}

func (a *asker) next() (kind byte, body []byte) {
	a.t.Helper()
	kind, n, err := readHeader(a.r)
	if err == nil {
		body, err = readBody(a.r, n, nil)
	}
	if err != nil {
		a.t.Fatalf("receive: %v", err)
	}
	return kind, body
}

func (a *asker) ended() error {
	a.t.Helper()
	select {
	case err := <-a.done:
		return err
	case <-time.After(time.Minute):
		a.t.Fatal("Serve does not return")
		return nil
	}
}

func stocked(t *testing.T, n, size int) (*blockstest.Memory, []content.Digest) {
	t.Helper()
	m := &blockstest.Memory{}
	var list []content.Digest
	for i := range n {
		data := make([]byte, size)
		copy(data, fmt.Sprint(i))
		if err := m.Put(context.Background(), content.NewBlock(data)); err != nil {
			t.Fatal(err)
		}
		list = append(list, content.DigestOf(data))
	}
	return m, list
}

func open(window uint32) []byte { return appendNumber(nil, frameOpen, window) }

func wantOf(id uint32, priority uint8, list ...content.Digest) []byte {
	return appendWant(nil, want{id: id, priority: priority, digests: list})
}

func TestServerAnswersEachDigestOnce(t *testing.T) {
	m, list := stocked(t, 3, 100)
	s := NewServer(m, ServerOptions{})
	a := dial(t, s, "p")
	missing := content.DigestOf([]byte("not here"))
	a.send(open(minWindow), wantOf(1, 0, list[0], missing, list[1]), wantOf(2, 0, list[2]))
	got := map[string]bool{}
	for range 4 {
		kind, body := a.next()
		id, index, data := decodeAnswer(body)
		if kind == frameBlock {
			want := list[2]
			if id == 1 {
				want = list[index/2]
			}
			if content.DigestOf(data) != want {
				t.Errorf("answer %d/%d is another block", id, index)
			}
		}
		got[fmt.Sprint(kind, id, index)] = true
	}
	for _, want := range []string{"4 1 0", "5 1 1", "4 1 2", "4 2 0"} {
		if !got[want] {
			t.Errorf("no answer %q in %v", want, got)
		}
	}
	a.c.Close()
	if err := a.ended(); err != nil {
		t.Errorf("serve: %v", err)
	}
	if c := s.Metrics().Peers["p"]; c.BlocksOut != 3 || c.BytesOut != 300 || c.Lacked != 1 {
		t.Errorf("counters = %+v", c)
	}
}

// Without credit the holder stops at the window; the urgent want comes first
// when there is credit again.
func TestServerKeepsTheWindowAndPriority(t *testing.T) {
	m, list := stocked(t, 8, content.MaxBlock/2)
	a := dial(t, NewServer(m, ServerOptions{}), "p")
	a.send(open(minWindow), wantOf(1, 0, list[:6]...))
	for range 2 {
		a.next()
	}
	// The third may be chosen already; the urgent one overtakes the rest.
	a.send(wantOf(2, 9, list[6]))
	a.c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := a.r.ReadByte(); err == nil {
		t.Fatal("more than the window came")
	}
	a.c.SetReadDeadline(time.Now().Add(time.Minute))
	a.send(appendNumber(nil, frameCredit, content.MaxBlock))
	var ids []uint32
	for range 2 {
		_, body := a.next()
		id, _, _ := decodeAnswer(body)
		ids = append(ids, id)
	}
	if !slices.Contains(ids, 2) {
		t.Errorf("the urgent want waits: answers came for wants %v", ids)
	}
}

func TestServerEndsTheStreamOfWhoBreaksARule(t *testing.T) {
	m, list := stocked(t, 1, 10)
	many := make([]content.Digest, maxWant)
	cases := map[string][][]byte{
		"want before open":    {wantOf(1, 0, list[0])},
		"open twice":          {open(minWindow), open(minWindow)},
		"tiny window":         {open(100)},
		"credit for nothing":  {open(minWindow), appendNumber(nil, frameCredit, 1)},
		"a holder's frame":    {open(minWindow), appendAnswer(nil, frameLack, 1, 1, 0)},
		"unknown frame":       {{99, 0, 0, 0, 0}},
		"too many at once":    {open(minWindow), wantOf(1, 0, many...), wantOf(2, 0, many...), wantOf(3, 0, many...), wantOf(4, 0, many...), wantOf(5, 0, many...), wantOf(6, 0, many...)},
		"frame above a limit": {{frameWant, 1, 0, 0, 0}},
	}
	for name, frames := range cases {
		t.Run(name, func(t *testing.T) {
			// A store that never answers keeps the queue as long as it gets.
			a := dial(t, NewServer(stuck{m}, ServerOptions{}), "p")
			for _, f := range frames {
				if _, err := a.c.Write(f); err != nil {
					break // it has hung up already
				}
			}
			if err := a.ended(); !errors.Is(err, errProtocol) {
				t.Errorf("serve: %v", err)
			}
		})
	}
}

type stuck struct{ *blockstest.Memory }

func (stuck) ReadBlock(ctx context.Context, _ content.Root, _ []byte) ([]byte, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestServerLimitsStreams(t *testing.T) {
	m, list := stocked(t, 1, 10)
	s := NewServer(m, ServerOptions{StreamsPerPeer: 1, Streams: 2})
	works := func(a *asker) {
		t.Helper()
		a.send(open(minWindow), wantOf(1, 0, list[0]))
		if kind, _ := a.next(); kind != frameBlock {
			t.Fatalf("frame %d", kind)
		}
	}
	refused := func(a *asker) {
		t.Helper()
		if kind, body := a.next(); kind != frameRefuse || !strings.Contains(string(body), "busy") {
			t.Fatalf("frame %d %q", kind, body)
		}
		if err := a.ended(); err == nil {
			t.Error("serve gave no error")
		}
	}
	one := dial(t, s, "p")
	works(one)
	refused(dial(t, s, "p"))
	works(dial(t, s, "q"))
	refused(dial(t, s, "r"))
	one.c.Close()
	if err := one.ended(); err != nil {
		t.Error(err)
	}
	works(dial(t, s, "p"))
	if n := s.Metrics().Total.Refused; n != 2 {
		t.Errorf("refused = %d", n)
	}
}

func TestServerEndsIdleStreams(t *testing.T) {
	m, list := stocked(t, 4, content.MaxBlock)
	for name, frames := range map[string][][]byte{
		"nothing is asked":     nil,
		"no credit comes":      {open(minWindow), wantOf(1, 0, list...)},
		"answers are not read": {open(2 * minWindow), wantOf(1, 0, list...)},
	} {
		t.Run(name, func(t *testing.T) {
			a := dial(t, NewServer(m, ServerOptions{IdleTimeout: 50 * time.Millisecond}), "p")
			for _, f := range frames {
				if _, err := a.c.Write(f); err != nil {
					break
				}
			}
			if name == "no credit comes" {
				a.next()
			}
			if err := a.ended(); err == nil || !strings.Contains(err.Error(), "nothing moved") {
				t.Errorf("serve: %v", err)
			}
		})
	}
}

func TestServerAllow(t *testing.T) {
	m, list := stocked(t, 1, 10)
	secret := content.DigestOf([]byte("secret root"))
	s := NewServer(m, ServerOptions{Allow: func(peer string, root content.Root) error {
		if root == secret.CID() && peer != "friend" {
			return errors.New("not yours")
		}
		return nil
	}})
	for peer, want := range map[string]byte{"friend": frameBlock, "stranger": frameLack} {
		a := dial(t, s, peer)
		a.send(open(minWindow), appendWant(nil, want1(secret, list[0])))
		if kind, _ := a.next(); kind != want {
			t.Errorf("%s got frame %d", peer, kind)
		}
	}
}

func want1(root, d content.Digest) want {
	return want{id: 1, root: root, digests: []content.Digest{d}}
}

func TestServeEndsWithItsContext(t *testing.T) {
	m, _ := stocked(t, 0, 0)
	here, there := net.Pipe()
	defer here.Close()
	ctx, cancel := context.WithCancelCause(context.Background())
	why := errors.New("node stops")
	done := make(chan error, 1)
	go func() { done <- NewServer(m, ServerOptions{}).Serve(ctx, "p", there) }()
	cancel(why)
	if err := <-done; !errors.Is(err, why) {
		t.Errorf("serve: %v", err)
	}
}

func TestCountersAreBounded(t *testing.T) {
	var c counters
	for i := range 2 * maxPeers {
		c.add(fmt.Sprint(i), PeerCounters{BytesIn: 1})
	}
	m := c.metrics()
	if len(m.Peers) > maxPeers+1 || m.Total.BytesIn != 2*maxPeers || m.Peers[otherPeers].BytesIn != maxPeers {
		t.Errorf("%d peers, other %+v, total %+v", len(m.Peers), m.Peers[otherPeers], m.Total)
	}
}

// A source that answers what was not asked is given up.
func TestFetcherRefusesUnaskedAnswers(t *testing.T) {
	for name, answer := range map[string][]byte{
		"unknown id":      appendAnswer(nil, frameLack, 77, 0, 0),
		"index too high":  appendAnswer(nil, frameLack, 1, 500, 0),
		"an asker's type": open(minWindow),
		"refusal":         appendRefuse(nil, "no time"),
		"twice":           append(appendAnswer(nil, frameLack, 1, 0, 0), appendAnswer(nil, frameLack, 1, 0, 0)...),
	} {
		t.Run(name, func(t *testing.T) {
			f := NewFetcher(&blockstest.Memory{}, opener(func() io.ReadWriteCloser {
				here, there := net.Pipe()
				go func() {
					defer there.Close()
					r := bufio.NewReader(there)
					for range 2 { // open, want
						if _, n, err := readHeader(r); err == nil {
							readBody(r, n, nil)
						}
					}
					there.Write(answer)
					io.Copy(io.Discard, r)
				}()
				return here
			}), FetcherOptions{})
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			_, err := f.Fetch(ctx, content.DigestOf([]byte("root")).CID(), []string{"odd"}, nil)
			if !errors.Is(err, content.ErrNotFound) {
				t.Errorf("fetch: %v", err)
			}
		})
	}
}

type opener func() io.ReadWriteCloser

func (o opener) OpenBlocks(context.Context, string) (io.ReadWriteCloser, error) { return o(), nil }
