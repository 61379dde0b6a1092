package libp2p

import (
	"bufio"
	"bytes"
	"testing"
	"time"

	"github.com/beammesh/beammesh/mesh"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
)

func FuzzReadFrame(f *testing.F) {
	var b bytes.Buffer
	writeFrame(&b, refusal("x", "y", "z"), maxHelloFrame)
	f.Add(b.Bytes())
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := func() *bufio.Reader { return bufio.NewReader(bytes.NewReader(in)) }
		var hello peerv1.Hello
		if readFrame(r(), &hello, maxHelloFrame) == nil {
			decodeAddrs(hello.Addrs)
		}
		var greeting peerv1.Greeting
		m := &Mesh{table: newTable(mesh.Member{}), cfg: Config{Clock: time.Now}}
		if readFrame(r(), &greeting, maxGreetingFrame) == nil && m.take(&greeting) == nil {
			m.learn(greeting.Members)
			if n := len(m.table.all()); n > maxRecords {
				t.Fatalf("%d rows from one greeting", n)
			}
		}
		readFrame(r(), new(peerv1.JoinRequest), maxJoinFrame)
		readFrame(r(), new(peerv1.JoinResponse), maxJoinFrame)
	})
}

func TestFrameBounds(t *testing.T) {
	if err := readFrame(bufio.NewReader(bytes.NewReader([]byte{0xff, 0xff, 0xff, 0x7f, 1})), new(peerv1.Hello), maxHelloFrame); err == nil {
		t.Error("an endless frame was accepted")
	}
	if err := readFrame(bufio.NewReader(bytes.NewReader([]byte{10, 1})), new(peerv1.Hello), maxHelloFrame); err == nil {
		t.Error("half a frame was accepted")
	}
	if err := writeFrame(&bytes.Buffer{}, &peerv1.Greeting{Payload: make([]byte, 100)}, 50); err == nil {
		t.Error("a frame above its limit was sent")
	}
}
