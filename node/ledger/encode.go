package ledger

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	"github.com/beammesh/beammesh/proto/fault"
)

// wireRecord is Record on disk and wire. Times are Unix milliseconds.
type wireRecord struct {
	Key
	Revision uint64          `json:"rev"`
	Created  int64           `json:"created"`
	Changed  int64           `json:"changed"`
	Body     json.RawMessage `json:"body,omitempty"`
}

// MarshalJSON is deterministic: equal records give equal bytes.
func (r Record) MarshalJSON() ([]byte, error) {
	w := wireRecord{Key: r.Key, Revision: r.Revision, Created: millis(r.Created), Changed: millis(r.Changed)}
	if r.Body != nil {
		b, err := json.Marshal(r.Body)
		if err != nil {
			return nil, err
		}
		w.Body = b
	}
	return json.Marshal(w)
}

// UnmarshalJSON leaves Body nil for a kind that this version does not know: a
// newer voter may send one to a watch of everything.
func (r *Record) UnmarshalJSON(b []byte) error {
	var w wireRecord
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	*r = Record{Key: w.Key, Revision: w.Revision, Created: fromMillis(w.Created), Changed: fromMillis(w.Changed)}
	if len(w.Body) == 0 || !w.Kind.known() {
		return nil
	}
	var err error
	r.Body, err = decodeBody(w.Kind, w.Body)
	return err
}

func decodeBody(k Kind, raw []byte) (Body, error) {
	switch k {
	case KindWorkspace:
		return as[Workspace](raw)
	case KindToken:
		return as[Token](raw)
	case KindStub:
		return as[Stub](raw)
	case KindObject:
		return as[Object](raw)
	case KindImage:
		return as[Image](raw)
	}
	return nil, fmt.Errorf("record kind %q is not known", string(k))
}

func as[T Body](raw []byte) (Body, error) {
	var t T
	if err := json.Unmarshal(raw, &t); err != nil {
		return nil, fmt.Errorf("decode %s record: %w", t.Kind(), err)
	}
	return t, nil
}

// wireCommand names the command beside its arguments. Names are never reused.
type wireCommand struct {
	Op   string          `json:"op"`
	Args json.RawMessage `json:"args"`
}

// EncodeCommand gives the bytes that the log and the wire carry.
func EncodeCommand(c Command) ([]byte, error) {
	op := ""
	switch c.(type) {
	case PutWorkspace:
		op = "put_workspace"
	case PutToken:
		op = "put_token"
	case SetTokenActive:
		op = "set_token_active"
	case PutStub:
		op = "put_stub"
	case PutObject:
		op = "put_object"
	case PutImage:
		op = "put_image"
	case Delete:
		op = "delete"
	case Expire:
		op = "expire"
	default:
		return nil, fault.Newf(fault.Invalid, "command %T is not known", c)
	}
	args, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode command %s: %w", op, err)
	}
	b, err := json.Marshal(wireCommand{Op: op, Args: args})
	if err != nil {
		return nil, fmt.Errorf("encode command %s: %w", op, err)
	}
	if len(b) > MaxCommandBytes {
		return nil, fault.Newf(fault.TooLarge, "command %s is %d bytes, at most %d are taken", op, len(b), MaxCommandBytes)
	}
	return b, nil
}

// DecodeCommand is the inverse. Bytes may come from any member: every mistake
// is an ordinary error.
func DecodeCommand(b []byte) (Command, error) {
	if len(b) > MaxCommandBytes {
		return nil, fault.Newf(fault.TooLarge, "command is %d bytes, at most %d are taken", len(b), MaxCommandBytes)
	}
	var w wireCommand
	if err := json.Unmarshal(b, &w); err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "command is malformed", "")
	}
	switch w.Op {
	case "put_workspace":
		return decodeArgs[PutWorkspace](w)
	case "put_token":
		return decodeArgs[PutToken](w)
	case "set_token_active":
		return decodeArgs[SetTokenActive](w)
	case "put_stub":
		return decodeArgs[PutStub](w)
	case "put_object":
		return decodeArgs[PutObject](w)
	case "put_image":
		return decodeArgs[PutImage](w)
	case "delete":
		return decodeArgs[Delete](w)
	case "expire":
		return decodeArgs[Expire](w)
	}
	return nil, fault.New(fault.Unsupported, fmt.Sprintf("ledger command %q is not known here", w.Op),
		"the nodes run different versions: update the older one")
}

// decodeArgs is strict: a field this version does not know could change the
// meaning of a write.
func decodeArgs[T Command](w wireCommand) (Command, error) {
	var t T
	d := json.NewDecoder(bytes.NewReader(w.Args))
	d.DisallowUnknownFields()
	if err := d.Decode(&t); err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "arguments of "+w.Op+" are malformed", "")
	}
	return t, nil
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
