package node

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/beammesh/beammesh/content"
	"github.com/beammesh/beammesh/content/blocks"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/ipfs/go-cid"
)

// Faults are ways to be broken that tests ask a node for. The zero value is a
// sound node; each fault that is on is logged as a warning.
type Faults struct {
	// ClockOffset is added to the clock that the mesh sees.
	ClockOffset time.Duration
	// CorruptEvery flips a bit in every n-th block that is sent to peers, past
	// the store's own check. 0 = never.
	CorruptEvery int64
	// KnownOnly dials no peer that only the directory's routing led to, as if
	// the mesh were too large to meet everybody.
	KnownOnly bool
}

// ParseFaults reads BEAM_TEST_CLOCK_OFFSET (a duration), BEAM_TEST_CORRUPT_BLOCKS
// (a number) and BEAM_TEST_KNOWN_ONLY (1); all are empty outside of tests.
func ParseFaults(offset, corrupt, knownOnly string) (f Faults, err error) {
	switch knownOnly {
	case "":
	case "1":
		f.KnownOnly = true
	default:
		return f, fault.New(fault.Invalid, fmt.Sprintf("BEAM_TEST_KNOWN_ONLY=%q is not 1", knownOnly), "unset it: it is for tests")
	}
	if offset != "" {
		if f.ClockOffset, err = time.ParseDuration(offset); err != nil {
			return f, fault.Wrap(fault.Invalid, err, "BEAM_TEST_CLOCK_OFFSET", "unset it: it is for tests")
		}
	}
	if corrupt != "" {
		if f.CorruptEvery, err = strconv.ParseInt(corrupt, 10, 64); err != nil || f.CorruptEvery < 1 {
			return f, fault.New(fault.Invalid, fmt.Sprintf("BEAM_TEST_CORRUPT_BLOCKS=%q is no number from 1 on", corrupt), "unset it: it is for tests")
		}
	}
	return f, nil
}

// clock is nil, for the real one, unless it is off.
func (f Faults) clock() func() time.Time {
	if f.ClockOffset == 0 {
		return nil
	}
	return func() time.Time { return time.Now().Add(f.ClockOffset) }
}

// blocks is what peers are served from.
func (f Faults) blocks(s *blocks.Store, log *slog.Logger) content.Blocks {
	if f.CorruptEvery == 0 {
		return s
	}
	log.Warn("this node sends corrupt blocks on purpose, for a test", "every", f.CorruptEvery)
	return &corrupting{Store: s, every: f.CorruptEvery}
}

// corrupting spoils blocks as they leave for a peer.
type corrupting struct {
	*blocks.Store
	every int64
	sent  atomic.Int64
}

// ReadBlock implements content.Reader.
func (c *corrupting) ReadBlock(ctx context.Context, id cid.Cid, buf []byte) ([]byte, error) {
	b, err := c.Store.ReadBlock(ctx, id, buf)
	if err == nil && len(b) > 0 && c.sent.Add(1)%c.every == 0 {
		b[len(b)/2] ^= 1
	}
	return b, err
}
