package membership

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"strings"
	"time"
	"unicode"

	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"

	"github.com/beammesh/beammesh/mesh"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	"github.com/beammesh/beammesh/proto/fault"
)

// A ticket string is "beam1-" and base32 (lower case, no padding) of
//
//	length   2 bytes, big endian: bytes of the payload
//	payload  protobuf Ticket
//	check    4 bytes: start of SHA-256 of length and payload
//
// The length comes first so that a string cut off by a narrow terminal is told
// apart from a mistyped one. Case and white space do not matter.
const (
	ticketPrefix = "beam1-"
	checkBytes   = 4
	// SecretBytes is the size of a ticket's one-time secret.
	SecretBytes = 16
	// MaxTicketAddrs bounds the addresses in a ticket.
	MaxTicketAddrs = 8
	maxTicket      = 2 << 10 // bytes of payload
)

var ticketCoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Ticket lets one machine join a mesh.
type Ticket struct {
	Root    ed25519.PublicKey
	Issuer  mesh.PeerID
	Addrs   []string // multiaddrs of the issuer
	Secret  []byte
	Tier    string
	Roles   []string
	Expires time.Time
}

// MeshID is the mesh the ticket leads to.
func (t Ticket) MeshID() string { return MeshID(t.Root) }

// String encodes t. It panics on a ticket that Encode refuses; use it on
// tickets that were decoded or made by Encode's caller.
func (t Ticket) String() string {
	s, err := t.Encode()
	if err != nil {
		panic("membership: " + err.Error())
	}
	return s
}

// Encode gives the string form.
func (t Ticket) Encode() (string, error) {
	issuer, err := KeyOf(t.Issuer)
	if err != nil {
		return "", fmt.Errorf("encode ticket: %w", err)
	}
	p := &peerv1.Ticket{RootKey: t.Root, IssuerKey: issuer, Secret: t.Secret, Tier: t.Tier, Roles: t.Roles, ExpiresUnix: t.Expires.Unix()}
	for _, a := range t.Addrs {
		m, err := ma.NewMultiaddr(a)
		if err != nil {
			return "", fmt.Errorf("encode ticket: %w", err)
		}
		p.Addrs = append(p.Addrs, m.Bytes())
	}
	if err := checkTicket(p); err != nil {
		return "", fmt.Errorf("encode ticket: %w", err)
	}
	body, err := proto.Marshal(p)
	if err != nil {
		return "", fmt.Errorf("encode ticket: %w", err)
	}
	if len(body) > maxTicket {
		return "", fmt.Errorf("encode ticket: %d bytes, at most %d", len(body), maxTicket)
	}
	b := binary.BigEndian.AppendUint16(nil, uint16(len(body)))
	b = append(b, body...)
	sum := sha256.Sum256(b)
	return ticketPrefix + ticketCoding.EncodeToString(append(b, sum[:checkBytes]...)), nil
}

// Decode reads a ticket typed or pasted by a person. now decides whether it has
// expired; errors are *fault.Error with a hint.
func Decode(s string, now time.Time) (Ticket, error) {
	s = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return -1
		}
		return unicode.ToLower(r)
	}, s)
	switch {
	case s == "":
		return Ticket{}, fault.New(fault.Invalid, "the ticket is empty", hintNew)
	case strings.HasPrefix(ticketPrefix, s):
		return Ticket{}, fault.New(fault.Invalid, "the ticket is cut off after its first letters", hintWhole)
	case !strings.HasPrefix(s, ticketPrefix):
		return Ticket{}, fault.New(fault.Invalid, "this is not a ticket: tickets start with "+ticketPrefix, hintNew)
	}
	text := s[len(ticketPrefix):]
	if len(text) > ticketCoding.EncodedLen(2+maxTicket+checkBytes) {
		return Ticket{}, fault.New(fault.Invalid, "the ticket is longer than any ticket can be", hintNew)
	}
	// A cut can leave a length that base32 never makes; drop the broken tail so
	// that the length field can still say "cut off".
	whole := text
	for n := len(text) % 8; n == 1 || n == 3 || n == 6; n = len(whole) % 8 {
		whole = whole[:len(whole)-1]
	}
	b, err := ticketCoding.DecodeString(whole)
	if err != nil {
		return Ticket{}, fault.New(fault.Invalid, "the ticket is damaged: it has characters no ticket has", hintWhole)
	}
	if len(b) < 2 {
		return Ticket{}, fault.New(fault.Invalid, "the ticket is cut off after its first letters", hintWhole)
	}
	want := 2 + int(binary.BigEndian.Uint16(b)) + checkBytes
	if want > 2+maxTicket+checkBytes {
		return Ticket{}, fault.New(fault.Invalid, "the ticket is damaged: it names a length no ticket has", hintWhole)
	}
	if len(b) < want {
		return Ticket{}, fault.New(fault.Invalid, fmt.Sprintf("the ticket is cut off: %d of %d characters",
			len(s), len(ticketPrefix)+ticketCoding.EncodedLen(want)), hintWhole)
	}
	if len(b) > want || len(whole) != len(text) {
		return Ticket{}, fault.New(fault.Invalid, "the ticket has extra characters at its end", hintWhole)
	}
	body, check := b[:want-checkBytes], b[want-checkBytes:]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:checkBytes], check) {
		return Ticket{}, fault.New(fault.Invalid, "the ticket is damaged: its checksum does not match", hintWhole)
	}
	var p peerv1.Ticket
	if err := proto.Unmarshal(body[2:], &p); err != nil {
		return Ticket{}, fault.Wrap(fault.Invalid, err, "the ticket cannot be read", hintVersion)
	}
	if err := checkTicket(&p); err != nil {
		return Ticket{}, fault.Wrap(fault.Invalid, err, "the ticket cannot be read", hintVersion)
	}
	t := Ticket{Root: p.RootKey, Issuer: PeerOf(p.IssuerKey), Secret: p.Secret, Tier: p.Tier, Roles: p.Roles, Expires: time.Unix(p.ExpiresUnix, 0)}
	for _, a := range p.Addrs {
		m, err := ma.NewMultiaddrBytes(a)
		if err != nil {
			return Ticket{}, fault.Wrap(fault.Invalid, err, "the ticket cannot be read", hintVersion)
		}
		t.Addrs = append(t.Addrs, m.String())
	}
	if now.Add(-Leeway).After(t.Expires) {
		return Ticket{}, ExpiredTicket(t.Expires)
	}
	return t, nil
}

const (
	hintNew     = "make one with 'beam node invite' on a machine of the mesh"
	hintWhole   = "copy the whole line that 'beam node invite' printed, or make a new ticket"
	hintVersion = "it may come from a newer version: update this machine, or make a new ticket with 'beam node invite'"
)

// ExpiredTicket is the error for a ticket past its time, at either end.
func ExpiredTicket(at time.Time) *fault.Error {
	return fault.New(fault.Expired, "the ticket expired at "+at.UTC().Format(time.RFC3339),
		"make a new one with 'beam node invite'; if it is fresh, check this machine's clock")
}

func checkTicket(p *peerv1.Ticket) error {
	switch {
	case len(p.RootKey) != ed25519.PublicKeySize || len(p.IssuerKey) != ed25519.PublicKeySize:
		return fmt.Errorf("key sizes %d and %d", len(p.RootKey), len(p.IssuerKey))
	case len(p.Secret) != SecretBytes:
		return fmt.Errorf("secret of %d bytes", len(p.Secret))
	case len(p.Addrs) == 0 || len(p.Addrs) > MaxTicketAddrs:
		return fmt.Errorf("%d addresses, want 1 to %d", len(p.Addrs), MaxTicketAddrs)
	case !ValidTier(p.Tier):
		return fmt.Errorf("tier %q", p.Tier)
	case len(p.Roles) > MaxRoles:
		return fmt.Errorf("%d roles", len(p.Roles))
	}
	return nil
}
