package membership

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/proto/fault"
)

// Bounds of a Ledger.
const (
	// MaxTickets is how many tickets one issuer can have open.
	MaxTickets = 1024
	// MaxTicketLife bounds how long a ticket can be redeemed.
	MaxTicketLife = 30 * 24 * time.Hour
	// keepClosed is how long a used or expired ticket is remembered, so that
	// its second use gets "used" and not "unknown".
	keepClosed = 30 * 24 * time.Hour
	maxRows    = 4 * MaxTickets
)

// Issued is one ticket in the issuer's record. The secret itself is not kept,
// only its hash.
type Issued struct {
	Hash    string      `json:"hash"` // hex SHA-256 of the secret
	Tier    string      `json:"tier"`
	Roles   []string    `json:"roles,omitempty"`
	Expires time.Time   `json:"expires"`
	UsedBy  mesh.PeerID `json:"used_by,omitempty"`
	UsedAt  time.Time   `json:"used_at,omitzero"`
}

// Ledger is the issuer's record of the tickets it made. Every change is handed
// to save before it counts; save returns only when the bytes are on disk. Safe
// for concurrent use.
type Ledger struct {
	save func([]byte) error

	mu   sync.Mutex
	rows map[string]Issued // by Hash
}

// NewLedger reads what save stored last (nil for a new one).
func NewLedger(stored []byte, save func([]byte) error) (*Ledger, error) {
	l := &Ledger{save: save, rows: map[string]Issued{}}
	if len(stored) == 0 {
		return l, nil
	}
	var rows []Issued
	if err := json.Unmarshal(stored, &rows); err != nil {
		return nil, fmt.Errorf("read issued tickets: %w", err)
	}
	for _, r := range rows {
		l.rows[r.Hash] = r
	}
	return l, nil
}

// Issue makes a fresh secret for a ticket of tier and roles.
func (l *Ledger) Issue(tier string, roles []string, life time.Duration, now time.Time) (secret []byte, expires time.Time, err error) {
	if !ValidTier(tier) {
		return nil, time.Time{}, fault.New(fault.Invalid, fmt.Sprintf("unknown tier %q", tier), "use own, invited or public")
	}
	if life <= 0 || life > MaxTicketLife {
		return nil, time.Time{}, fault.New(fault.Invalid, fmt.Sprintf("a ticket cannot live %v", life), "use at most 30 days")
	}
	if len(roles) > MaxRoles {
		return nil, time.Time{}, fault.New(fault.Invalid, fmt.Sprintf("%d roles on one ticket", len(roles)), fmt.Sprintf("use at most %d", MaxRoles))
	}
	for _, r := range roles {
		if len(r) == 0 || len(r) > maxRole {
			return nil, time.Time{}, fault.New(fault.Invalid, fmt.Sprintf("role %q", r), "a role has 1 to 64 characters")
		}
	}
	secret = make([]byte, SecretBytes)
	rand.Read(secret)
	row := Issued{Hash: hashSecret(secret), Tier: tier, Roles: roles, Expires: now.Add(life).Truncate(time.Second)}

	l.mu.Lock()
	defer l.mu.Unlock()
	next := l.prunedLocked(now)
	open := 0
	for _, r := range next {
		if r.UsedBy == "" && now.Before(r.Expires) {
			open++
		}
	}
	if open >= MaxTickets || len(next) >= maxRows {
		return nil, time.Time{}, fault.New(fault.TooLarge, fmt.Sprintf("%d tickets are open already", open), "wait for some to expire, or use shorter lives")
	}
	next[row.Hash] = row
	if err := l.commitLocked(next); err != nil {
		return nil, time.Time{}, err
	}
	return secret, row.Expires, nil
}

// Redeem uses up a secret for peer and says what it grants. The same peer may
// redeem it again, in case our answer was lost; for any other peer it is used.
func (l *Ledger) Redeem(secret []byte, peer mesh.PeerID, now time.Time) (Issued, error) {
	h := hashSecret(secret)
	l.mu.Lock()
	defer l.mu.Unlock()
	row, ok := l.rows[h]
	switch {
	case !ok:
		return Issued{}, fault.New(fault.Unauthorized, "this node did not make the ticket, or forgot it",
			"make a new one with 'beam node invite'")
	case row.UsedBy != "" && row.UsedBy != peer:
		return Issued{}, fault.New(fault.Conflict, "the ticket was used already, at "+row.UsedAt.UTC().Format(time.RFC3339),
			"a ticket lets one machine join: make another with 'beam node invite'")
	case now.Add(-Leeway).After(row.Expires):
		return Issued{}, ExpiredTicket(row.Expires)
	case row.UsedBy == peer:
		return row, nil
	}
	row.UsedBy, row.UsedAt = peer, now.UTC()
	next := l.prunedLocked(now)
	next[h] = row
	if err := l.commitLocked(next); err != nil {
		return Issued{}, err
	}
	return row, nil
}

// Len is the number of tickets remembered.
func (l *Ledger) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.rows)
}

// prunedLocked copies the rows without those closed long ago.
func (l *Ledger) prunedLocked(now time.Time) map[string]Issued {
	next := make(map[string]Issued, len(l.rows)+1)
	for h, r := range l.rows {
		if now.Sub(r.Expires) <= keepClosed {
			next[h] = r
		}
	}
	return next
}

// commitLocked stores next, then makes it current: after a failed save nothing
// has changed.
func (l *Ledger) commitLocked(next map[string]Issued) error {
	rows := make([]Issued, 0, len(next))
	for _, r := range next {
		rows = append(rows, r)
	}
	b, err := json.Marshal(rows)
	if err != nil {
		return fmt.Errorf("store issued tickets: %w", err)
	}
	if err := l.save(b); err != nil {
		return fmt.Errorf("store issued tickets: %w", err)
	}
	l.rows = next
	return nil
}

func hashSecret(secret []byte) string {
	h := sha256.Sum256(secret)
	return hex.EncodeToString(h[:])
}
