package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/node/token"
	"github.com/beammesh/beammesh/node/wire"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
)

// protoRevoked brings the revocations to a node that a greeting had no room for:
// one RevocationsWanted with what it has, then Revocations until the stream ends.
const protoRevoked = "revoked/1"

const (
	// revokedLimit bounds one exchange: token.MaxDenied are some 6 MiB.
	revokedLimit = time.Minute
	revokedPage  = 64 // in one message, some 50 KiB
	// revokedServed exchanges are served at a time; others try again when they
	// next hear a digest.
	revokedServed = 4
	// revokedQueue bounds the peers that wait to be asked.
	revokedQueue = 64
	// digestPrefix begins the message on topicRevocations that is no revocation.
	digestPrefix = "digest:"
)

// behind is a peer that knows other revocations than this node.
type behind struct {
	peer   mesh.PeerID
	digest string
}

// differs takes the digest of a peer's revocations. It does not block.
func (t *tokens) differs(from mesh.PeerID, digest string) {
	if digest == "" || from == t.self || digest == t.deny.Digest() {
		return
	}
	select {
	case t.behind <- behind{from, digest}:
	default:
	}
}

// catchUp asks peers whose digest differs for what is missing here, one after
// the other, until ctx ends. News are said on, as a digest: who is behind asks.
func (t *tokens) catchUp(ctx context.Context, dialer mesh.Dialer) {
	for {
		var b behind
		select {
		case b = <-t.behind:
		case <-ctx.Done():
			return
		}
		if b.digest == t.deny.Digest() {
			continue // another peer had them too
		}
		news, err := t.askRevoked(ctx, dialer, b.peer)
		if err != nil && ctx.Err() == nil {
			t.log.Debug("ask for revocations", "peer", b.peer, "err", err)
		}
		if news > 0 {
			t.log.Info("took revocations over", "peer", b.peer, "number", news)
			t.spread(digestPrefix + t.deny.Digest())
		}
	}
}

func (t *tokens) askRevoked(ctx context.Context, dialer mesh.Dialer, peer mesh.PeerID) (news int, err error) {
	ctx, cancel := context.WithTimeout(ctx, revokedLimit)
	defer cancel()
	s, err := dialer.Open(ctx, peer, protoRevoked)
	if err != nil {
		return 0, err
	}
	defer s.Close()
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	defer stop()
	c := wire.New(s)
	if err := c.Write(&peerv1.RevocationsWanted{Have: t.deny.Marks()}); err != nil {
		return 0, err
	}
	if err := s.CloseWrite(); err != nil {
		return 0, err
	}
	for left := token.MaxDenied; ; {
		page := new(peerv1.Revocations)
		if err := c.Read(page); errors.Is(err, io.EOF) {
			return news, nil
		} else if err != nil {
			return news, err
		}
		if left -= max(len(page.Revocations), 1); left < 0 {
			_ = s.Reset()
			return news, fmt.Errorf("more than %d revocations", token.MaxDenied)
		}
		n, err := t.deny.AddAll(page.Revocations)
		news += n
		if err != nil {
			t.log.Debug("revocation refused", "peer", peer, "err", err)
		}
	}
}

// serveRevoked answers protoRevoked.
func (t *tokens) serveRevoked(_ context.Context, s mesh.Stream) {
	select {
	case t.serving <- struct{}{}:
	default:
		_ = s.Reset()
		return
	}
	defer func() { <-t.serving }()
	defer s.Close()
	_ = s.SetDeadline(time.Now().Add(revokedLimit))
	c := wire.New(s)
	want := new(peerv1.RevocationsWanted)
	if err := c.Read(want); err != nil || len(want.Have) > 8*token.MaxDenied {
		_ = s.Reset()
		return
	}
	for page := range slices.Chunk(t.deny.Missing(want.Have), revokedPage) {
		if err := c.Write(&peerv1.Revocations{Revocations: page}); err != nil {
			_ = s.Reset()
			return
		}
	}
}

// heard takes a revocation, or a digest of them, from gossip.
func (t *tokens) heard(from mesh.PeerID, data []byte) {
	if digest, ok := strings.CutPrefix(string(data), digestPrefix); ok {
		t.differs(from, digest)
		return
	}
	if _, err := t.deny.Add(string(data)); err != nil {
		t.log.Debug("revocation refused", "err", err)
	}
}
