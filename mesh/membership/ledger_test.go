package membership

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/proto/fault"
)

// disk is a save that a test can make fail.
type disk struct {
	bytes []byte
	fail  error
}

func (d *disk) save(b []byte) error {
	if d.fail == nil {
		d.bytes = bytes.Clone(b)
	}
	return d.fail
}

func (d *disk) open(t *testing.T) *Ledger {
	t.Helper()
	l, err := NewLedger(d.bytes, d.save)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func code(err error) fault.Code { return fault.CodeOf(err) }

func TestLedgerRedeem(t *testing.T) {
	var d disk
	l := d.open(t)
	secret, expires, err := l.Issue(Invited, []string{"worker"}, time.Hour, t0)
	if err != nil || !expires.Equal(t0.Add(time.Hour)) {
		t.Fatal(expires, err)
	}
	if bytes.Contains(d.bytes, secret) {
		t.Error("the secret itself is on disk")
	}
	const a, b = mesh.PeerID("a"), mesh.PeerID("b")
	row, err := l.Redeem(secret, a, t0)
	if err != nil || row.Tier != Invited || row.Roles[0] != "worker" {
		t.Fatal(row, err)
	}
	// Killed right after the answer: what save took is what the next start reads.
	l = d.open(t)
	if _, err := l.Redeem(secret, b, t0); code(err) != fault.Conflict {
		t.Errorf("another machine: got %v", err)
	}
	if _, err := l.Redeem(secret, a, t0); err != nil {
		t.Errorf("the same machine again: %v", err)
	}
	if _, err := l.Redeem([]byte("unknown"), b, t0); code(err) != fault.Unauthorized {
		t.Errorf("unknown: got %v", err)
	}
	late, _, _ := l.Issue(Own, nil, time.Hour, t0)
	if _, err := l.Redeem(late, b, t0.Add(time.Hour+Leeway+time.Second)); code(err) != fault.Expired {
		t.Errorf("expired: got %v", err)
	}
	if _, err := l.Redeem(late, b, t0.Add(time.Hour+Leeway-time.Second)); err != nil {
		t.Errorf("within the leeway: %v", err)
	}
}

// A secret that could not be stored as used is not used, and grants nothing.
func TestLedgerSaveFails(t *testing.T) {
	var d disk
	l := d.open(t)
	secret, _, err := l.Issue(Own, nil, time.Hour, t0)
	if err != nil {
		t.Fatal(err)
	}
	d.fail = errors.New("disk full")
	if _, err := l.Redeem(secret, "a", t0); !errors.Is(err, d.fail) {
		t.Fatalf("got %v", err)
	}
	if _, _, err := l.Issue(Own, nil, time.Hour, t0); !errors.Is(err, d.fail) {
		t.Fatalf("got %v", err)
	}
	if l.Len() != 1 {
		t.Errorf("%d tickets after failed saves, want 1", l.Len())
	}
	d.fail = nil
	if _, err := l.Redeem(secret, "b", t0); err != nil {
		t.Errorf("after the disk is back: %v", err)
	}
}

func TestLedgerBounds(t *testing.T) {
	l, _ := NewLedger(nil, func([]byte) error { return nil })
	for range MaxTickets {
		if _, _, err := l.Issue(Own, nil, time.Hour, t0); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := l.Issue(Own, nil, time.Hour, t0); code(err) != fault.TooLarge {
		t.Fatalf("got %v", err)
	}
	// Expired ones make room, and are forgotten in the end.
	if _, _, err := l.Issue(Own, nil, time.Hour, t0.Add(2*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.Issue(Own, nil, time.Hour, t0.Add(keepClosed+3*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if l.Len() != 2 {
		t.Errorf("%d rows kept, want the 2 recent ones", l.Len())
	}
	for name, err := range map[string]error{
		"tier": issueErr(l, "root", nil, time.Hour), "life": issueErr(l, Own, nil, MaxTicketLife+1), "no life": issueErr(l, Own, nil, 0),
		"roles": issueErr(l, Own, make([]string, MaxRoles+1), time.Hour), "empty role": issueErr(l, Own, []string{""}, time.Hour),
	} {
		if code(err) != fault.Invalid {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func issueErr(l *Ledger, tier string, roles []string, life time.Duration) error {
	_, _, err := l.Issue(tier, roles, life, t0)
	return err
}

func TestLedgerDamaged(t *testing.T) {
	if _, err := NewLedger([]byte(`[{"hash":`), nil); err == nil {
		t.Error("half a file was read as a ledger: a used ticket might be new again")
	}
}
