package membership

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/beammesh/beammesh/proto/fault"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// key makes the same key for the same letter.
func key(letter string) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte(letter), ed25519.SeedSize)[:ed25519.SeedSize])
}

func pub(letter string) ed25519.PublicKey { return key(letter).Public().(ed25519.PublicKey) }

func sampleTicket() Ticket {
	return Ticket{Root: pub("r"), Issuer: PeerOf(pub("i")), Addrs: []string{"/ip4/10.0.0.1/udp/7946/quic-v1", "/ip4/10.0.0.1/tcp/7946"},
		Secret: bytes.Repeat([]byte{7}, SecretBytes), Tier: Own, Roles: []string{"worker"}, Expires: t0.Add(time.Hour)}
}

func TestTicketRoundTrip(t *testing.T) {
	in := sampleTicket()
	s, err := in.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if len(s) > 300 {
		t.Errorf("ticket has %d characters, want at most 300: people paste it", len(s))
	}
	for name, text := range map[string]string{
		"as printed": s, "upper case": strings.ToUpper(s), "wrapped": s[:40] + "\n  " + s[40:], "spaces around": "  " + s + " \n",
	} {
		out, err := Decode(text, t0)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !out.Root.Equal(in.Root) || out.Issuer != in.Issuer || !slices.Equal(out.Addrs, in.Addrs) || !bytes.Equal(out.Secret, in.Secret) ||
			out.Tier != in.Tier || !slices.Equal(out.Roles, in.Roles) || !out.Expires.Equal(in.Expires) {
			t.Errorf("%s: got %+v, want %+v", name, out, in)
		}
	}
}

func TestTicketErrors(t *testing.T) {
	s := sampleTicket().String()
	swapped := []byte(s)
	swapped[60], swapped[61] = swapped[61]^1, swapped[60]
	if swapped[60] == s[60] && swapped[61] == s[61] {
		t.Fatal("the test changed nothing")
	}
	for _, c := range []struct {
		name, in, says string
		code           fault.Code
		now            time.Time
	}{
		{"empty", " ", "empty", fault.Invalid, t0},
		{"something else", "lab-7f3k", "not a ticket", fault.Invalid, t0},
		{"only the start", "beam1", "cut off", fault.Invalid, t0},
		{"one letter short", s[:len(s)-1], "cut off", fault.Invalid, t0},
		{"half", s[:len(s)/2], "cut off", fault.Invalid, t0},
		{"a letter too many", s + "a", "extra characters", fault.Invalid, t0},
		{"pasted twice", s + s, "", fault.Invalid, t0},
		{"letters swapped", string(swapped), "damaged", fault.Invalid, t0},
		{"no ticket letter", s[:50] + "1" + s[51:], "damaged", fault.Invalid, t0},
		{"length damaged", "beam1-z" + s[7:], "damaged", fault.Invalid, t0},
		{"endless", s + strings.Repeat("a", 1<<20), "longer", fault.Invalid, t0},
		{"expired", s, "expired at 2026-01-02T04:04:05Z", fault.Expired, t0.Add(time.Hour + Leeway + time.Second)},
	} {
		_, err := Decode(c.in, c.now)
		var f *fault.Error
		if !errors.As(err, &f) {
			t.Errorf("%s: got %v, want a fault", c.name, err)
			continue
		}
		if f.Code != c.code || !strings.Contains(f.Message, c.says) || f.Hint == "" {
			t.Errorf("%s: got %s %q (hint %q), want %s with %q", c.name, f.Code, f.Message, f.Hint, c.code, c.says)
		}
	}
	if _, err := Decode(s, t0.Add(time.Hour+Leeway-time.Second)); err != nil {
		t.Errorf("within the leeway: %v", err)
	}
}

// Every cut of a ticket is told apart from a mistyped one.
func TestTicketCutAnywhere(t *testing.T) {
	s := sampleTicket().String()
	for n := 1; n < len(s); n++ {
		_, err := Decode(s[:n], t0)
		if err == nil || !strings.Contains(err.Error(), "cut off") {
			t.Fatalf("first %d of %d characters: got %v, want cut off", n, len(s), err)
		}
	}
}

func TestTicketEncodeRefuses(t *testing.T) {
	for name, change := range map[string]func(*Ticket){
		"no address":         func(k *Ticket) { k.Addrs = nil },
		"too many addresses": func(k *Ticket) { k.Addrs = slices.Repeat([]string{"/ip4/1.2.3.4/tcp/1"}, MaxTicketAddrs+1) },
		"bad address":        func(k *Ticket) { k.Addrs = []string{"10.0.0.1:80"} },
		"unknown tier":       func(k *Ticket) { k.Tier = "root" },
		"short secret":       func(k *Ticket) { k.Secret = k.Secret[1:] },
		"bad issuer":         func(k *Ticket) { k.Issuer = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N" },
	} {
		k := sampleTicket()
		change(&k)
		if s, err := k.Encode(); err == nil {
			t.Errorf("%s: encoded as %s", name, s)
		}
	}
}

func FuzzDecode(f *testing.F) {
	s := sampleTicket().String()
	f.Add(s)
	f.Add(s[:70])
	f.Add("beam1-")
	f.Fuzz(func(t *testing.T, in string) {
		k, err := Decode(in, t0)
		if err != nil {
			if fault.CodeOf(err) != fault.Invalid && fault.CodeOf(err) != fault.Expired {
				t.Fatalf("code %s for %q", fault.CodeOf(err), in)
			}
			return
		}
		again, err := k.Encode()
		if err != nil {
			t.Fatalf("decoded ticket does not encode: %v", err)
		}
		if b, err := Decode(again, t0); err != nil || b.Issuer != k.Issuer {
			t.Fatalf("encoded ticket does not decode: %v", err)
		}
	})
}
