package function

import (
	"context"
	"unicode/utf8"

	beamv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/client/functionpb"
)

// stream hands one task's events to its FunctionInvoke. It implements
// owner.Notify; a client that reads slowly slows the program down.
type stream struct {
	lines chan line
	done  chan *beamv1.Outcome
	left  chan struct{} // closed when the client is gone
	rest  [3][]byte     // an unfinished character per descriptor
}

type line struct {
	fd   int
	text string
}

func newStream() *stream {
	return &stream{lines: make(chan line, 64), done: make(chan *beamv1.Outcome, 1), left: make(chan struct{})}
}

// Log implements owner.Notify.
func (s *stream) Log(ctx context.Context, _ string, fd int, data []byte) {
	text := s.text(fd, data)
	if text == "" {
		return
	}
	select {
	case s.lines <- line{fd, text}:
	case <-s.left:
	case <-ctx.Done():
	}
}

// Done implements owner.Notify.
func (s *stream) Done(_ string, o *beamv1.Outcome) { s.done <- o }

// text makes valid UTF-8 of a piece of output: characters that were cut between
// two pieces are put together, broken bytes become U+FFFD.
func (s *stream) text(fd int, data []byte) string {
	if fd < 0 || fd >= len(s.rest) {
		fd = 1
	}
	b := append(s.rest[fd], data...)
	s.rest[fd] = nil
	// At most the last three bytes can be the begin of a character.
	for i := max(0, len(b)-utf8.UTFMax+1); i < len(b); i++ {
		if utf8.RuneStart(b[i]) && !utf8.FullRune(b[i:]) {
			s.rest[fd] = append([]byte(nil), b[i:]...)
			b = b[:i]
			break
		}
	}
	return string([]rune(string(b)))
}

// unfinished gives what is left of characters that were never completed; it is
// called after Done.
func (s *stream) unfinished() map[int]string {
	out := map[int]string{}
	for fd, r := range s.rest {
		if len(r) > 0 {
			out[fd] = string(utf8.RuneError)
		}
	}
	return out
}

func (l line) message(task string) *functionpb.FunctionInvokeResponse {
	return &functionpb.FunctionInvokeResponse{TaskId: task, Output: l.text, Fd: uint32(l.fd)}
}
