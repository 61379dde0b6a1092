package ledger

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/beammesh/beammesh/proto/fault"
)

// Body is the content of a record: exactly one of the types in this file.
type Body interface {
	Kind() Kind
	// check says what is wrong with it, as the user's mistake.
	check() error
}

// Workspace is the unit of ownership and isolation. Its record is kept in the
// workspace itself.
type Workspace struct {
	Name string `json:"name"`
}

// Token is an issued API token. The bearer string itself is never stored: a
// token is verified by signature; this record lists and revokes it.
type Token struct {
	Name    string    `json:"name,omitempty"`
	Scopes  []string  `json:"scopes,omitempty"`
	Issuer  string    `json:"issuer,omitempty"` // key id of the issuer that signed it
	Expires time.Time `json:"expires,omitzero"` // zero = never
	Active  bool      `json:"active"`
}

// Stub is what users call a function: configuration under an id that is the
// hash of workspace and configuration, so every node derives the same one.
// It never changes.
type Stub struct {
	Name   string `json:"name"`
	Type   string `json:"type"`   // "function", "endpoint/deployment", …
	Config []byte `json:"config"` // canonical bytes, opaque here
}

// Object is an alias: the hash of an uploaded archive → its tree of code. It
// never changes.
type Object struct {
	Root string `json:"root"` // CID text
	Size int64  `json:"size,omitempty"`
}

// Image is a built image. Two nodes that built the same id at once may have
// different roots: the lowest list of roots wins everywhere.
type Image struct {
	Roots     []string `json:"roots"`  // CIDs of the layers, lowest first
	Config    []byte   `json:"config"` // opaque here
	Python    string   `json:"python,omitempty"`
	Builder   string   `json:"builder,omitempty"`   // peer that signed
	Signature []byte   `json:"signature,omitempty"` // over SigningBytes
}

func (Workspace) Kind() Kind { return KindWorkspace }
func (Token) Kind() Kind     { return KindToken }
func (Stub) Kind() Kind      { return KindStub }
func (Object) Kind() Kind    { return KindObject }
func (Image) Kind() Kind     { return KindImage }

func (w Workspace) check() error { return checkText("workspace name", w.Name, MaxNameBytes, false) }

func (t Token) check() error {
	if len(t.Scopes) > MaxScopes {
		return fault.Newf(fault.TooLarge, "token has %d scopes, at most %d are kept", len(t.Scopes), MaxScopes)
	}
	for _, s := range t.Scopes {
		if err := checkText("token scope", s, MaxNameBytes, true); err != nil {
			return err
		}
	}
	if err := checkText("token issuer", t.Issuer, MaxNameBytes, false); err != nil {
		return err
	}
	return checkText("token name", t.Name, MaxNameBytes, false)
}

func (s Stub) check() error {
	if len(s.Config) > MaxConfigBytes {
		return fault.Newf(fault.TooLarge, "stub configuration is %d bytes, at most %d are kept", len(s.Config), MaxConfigBytes)
	}
	if err := checkText("stub type", s.Type, MaxNameBytes, true); err != nil {
		return err
	}
	return checkText("stub name", s.Name, MaxNameBytes, false)
}

func (o Object) check() error { return checkText("object root", o.Root, MaxIDBytes, true) }

func (i Image) check() error {
	if len(i.Roots) == 0 || len(i.Roots) > MaxRoots {
		return fault.Newf(fault.Invalid, "image has %d layers, between 1 and %d are kept", len(i.Roots), MaxRoots)
	}
	for _, r := range i.Roots {
		if err := checkText("image root", r, MaxIDBytes, true); err != nil {
			return err
		}
	}
	if len(i.Config) > MaxConfigBytes {
		return fault.Newf(fault.TooLarge, "image configuration is %d bytes, at most %d are kept", len(i.Config), MaxConfigBytes)
	}
	if len(i.Signature) > 1024 {
		return fault.Newf(fault.TooLarge, "image signature is %d bytes", len(i.Signature))
	}
	if err := checkText("image builder", i.Builder, MaxIDBytes, false); err != nil {
		return err
	}
	return checkText("image python version", i.Python, 32, false)
}

// SigningBytes is what the builder of image id signs: everything but the
// signature, length-prefixed so that no two images share it.
func (i Image) SigningBytes(workspace, id string) []byte {
	b := []byte("beammesh image record 1\n")
	put := func(p []byte) {
		b = binary.BigEndian.AppendUint32(b, uint32(len(p)))
		b = append(b, p...)
	}
	put([]byte(workspace))
	put([]byte(id))
	put([]byte(strings.Join(i.Roots, "\n")))
	put(i.Config)
	put([]byte(i.Python))
	put([]byte(i.Builder))
	return b
}

// beats tells whether i wins over old under the same id.
func (i Image) beats(old Image) bool { return slices.Compare(i.Roots, old.Roots) < 0 }

// immutable records are served from a copy at any age.
func (k Kind) immutable() bool { return k == KindStub || k == KindObject }

// Immutable tells whether records of kind k never change once they exist.
func (k Kind) Immutable() bool { return k.immutable() }

// tokenKept is how long the record of an expired token stays visible, so that
// a person can see why it stopped working.
const tokenKept = 24 * time.Hour

// RemoveAt is when the record falls out of the ledger; zero = never.
func (r Record) RemoveAt() time.Time {
	if t, ok := r.Body.(Token); ok && !t.Expires.IsZero() {
		return t.Expires.Add(tokenKept)
	}
	return time.Time{}
}

// StubID is the id of a stub: a UUIDv8 made of the hash of the workspace and
// the canonical configuration.
func StubID(workspace string, config []byte) string {
	h := sha256.New()
	h.Write([]byte("beammesh stub 1\n"))
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(workspace)))
	h.Write(n[:])
	h.Write([]byte(workspace))
	h.Write(config)
	sum := h.Sum(nil)
	sum[6] = sum[6]&0x0f | 0x80 // version 8: made as its issuer likes
	sum[8] = sum[8]&0x3f | 0x80
	x := hex.EncodeToString(sum[:16])
	return x[:8] + "-" + x[8:12] + "-" + x[12:16] + "-" + x[16:20] + "-" + x[20:]
}

// CheckKey refuses keys that cannot be stored.
func CheckKey(k Key) error {
	if !k.Kind.known() {
		return fault.Newf(fault.Invalid, "record kind %q is not known", string(k.Kind))
	}
	if err := checkText("workspace id", k.Workspace, MaxIDBytes, true); err != nil {
		return err
	}
	if k.Workspace == AllWorkspaces {
		return fault.New(fault.Invalid, "one workspace must be named", "")
	}
	return checkText(string(k.Kind)+" id", k.ID, MaxIDBytes, true)
}

func (k Kind) known() bool {
	switch k {
	case KindWorkspace, KindToken, KindStub, KindObject, KindImage:
		return true
	}
	return false
}

// checkText bounds a string and keeps out bytes that would break keys or
// terminals: only printable, no NUL, no slash games needed.
func checkText(what, s string, max int, required bool) error {
	if required && s == "" {
		return fault.New(fault.Invalid, what+" is empty", "")
	}
	if len(s) > max {
		return fault.Newf(fault.TooLarge, "%s is %d bytes, at most %d are allowed", what, len(s), max)
	}
	for _, r := range s {
		if r < 0x20 || r == 0x7f || r == '\uFFFD' {
			return fault.New(fault.Invalid, fmt.Sprintf("%s holds a control or broken character", what), "")
		}
	}
	return nil
}
