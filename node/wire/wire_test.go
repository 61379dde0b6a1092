package wire

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"

	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	"google.golang.org/protobuf/proto"
)

func TestManyWritersOneReader(t *testing.T) {
	a, b := net.Pipe()
	ca, cb := New(a), New(b)
	const writers, n = 8, 200
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range n {
				m := &peerv1.Call{TaskId: "t", Attempt: uint32(w*n + i), Args: bytes.Repeat([]byte{byte(w)}, i*100)}
				if err := ca.Write(m, m); err != nil {
					t.Error(err)
				}
			}
		})
	}
	go func() { wg.Wait(); _ = a.Close() }()
	seen := map[uint32]int{}
	for {
		m := new(peerv1.Call)
		err := cb.Read(m)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(m.Args) != int(m.Attempt)%n*100 {
			t.Fatalf("message %d has %d bytes", m.Attempt, len(m.Args))
		}
		seen[m.Attempt]++
	}
	if len(seen) != writers*n {
		t.Errorf("%d messages came", len(seen))
	}
	for k, c := range seen {
		if c != 2 {
			t.Errorf("message %d came %d times", k, c)
		}
	}
}

type buffer struct{ bytes.Buffer }

func TestBounds(t *testing.T) {
	b := new(buffer)
	c := New(b)
	if err := c.Write(&peerv1.Call{Args: make([]byte, Max)}); err == nil {
		t.Error("a message above the bound was written")
	}
	// 16 MiB of a result and what stands around it must pass.
	big := &peerv1.LeaseUp{Event: 1 << 40, What: &peerv1.LeaseUp_Ended{Ended: &peerv1.CallEnded{TaskId: "t", Payload: make([]byte, 16<<20),
		Error: &peerv1.UserError{Traceback: string(make([]byte, 64<<10))}}}}
	b.Reset()
	c = New(b)
	if err := c.Write(big); err != nil {
		t.Fatal(err)
	}
	got := new(peerv1.LeaseUp)
	if err := c.Read(got); err != nil || !proto.Equal(got, big) {
		t.Errorf("read: %v", err)
	}
	for name, in := range map[string][]byte{
		"length above the bound": {0xff, 0xff, 0xff, 0x7f}, "cut": {0x05, 1, 2}, "no message": {0x02, 0xff, 0xff}, "endless length": bytes.Repeat([]byte{0xff}, 20),
	} {
		if err := New(&buffer{*bytes.NewBuffer(in)}).Read(new(peerv1.Call)); err == nil || err == io.EOF {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := New(new(buffer)).Read(new(peerv1.Call)); err != io.EOF {
		t.Errorf("a clean end: %v", err)
	}
}
