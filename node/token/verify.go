package token

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	"aidanwoods.dev/go-paseto"

	"github.com/beammesh/beammesh/proto/fault"
)

// maxRemembered bounds the tokens whose signatures need no second check; about
// 300 bytes each. Two signature checks cost as much as the rest of a warm call.
const maxRemembered = 2048

// Verifier checks tokens of one mesh.
type Verifier struct {
	mesh string
	root ed25519.PublicKey
	deny *DenySet
	now  func() time.Time

	mu    sync.Mutex
	known map[[32]byte]Claims // by hash of the bearer; signature and mesh are good
}

// NewVerifier makes a verifier. deny may be shared; nil = nothing is revoked.
func NewVerifier(mesh string, root ed25519.PublicKey, deny *DenySet) *Verifier {
	return &Verifier{mesh: mesh, root: root, deny: deny, now: time.Now, known: map[[32]byte]Claims{}}
}

// Verify checks an API token. bearer may carry the "Bearer " of the header.
func (v *Verifier) Verify(bearer string) (Claims, error) {
	c, err := v.verify(bearer)
	if err != nil {
		return Claims{}, err
	}
	if c.IsAttempt() {
		return Claims{}, fault.New(fault.Forbidden, "this token is for one attempt of a task only",
			"use a token from 'beam token create'")
	}
	return c, nil
}

// VerifyAttempt checks an attempt's token for use at the peer audience.
func (v *Verifier) VerifyAttempt(bearer, audience string) (Claims, error) {
	c, err := v.verify(bearer)
	if err != nil {
		return Claims{}, err
	}
	if !c.IsAttempt() || c.Audience != audience {
		return Claims{}, fault.New(fault.Forbidden, "this token is not for an attempt on this node", "")
	}
	return c, nil
}

func (v *Verifier) verify(bearer string) (Claims, error) {
	bearer = strings.TrimSpace(bearer)
	if n := len("bearer"); len(bearer) >= n && strings.EqualFold(bearer[:n], "bearer") &&
		(len(bearer) == n || bearer[n] == ' ') {
		bearer = strings.TrimSpace(bearer[n:])
	}
	if bearer == "" {
		return Claims{}, fault.New(fault.Unauthorized, "no token was given",
			"set BEAM_TOKEN (see 'beam dev env' or 'beam token create') or the token of your context")
	}
	if len(bearer) > MaxBytes {
		return Claims{}, errMalformed(nil)
	}
	sum := sha256.Sum256([]byte(bearer))
	v.mu.Lock()
	c, ok := v.known[sum]
	v.mu.Unlock()
	if !ok {
		var err error
		if c, err = v.open(bearer); err != nil {
			return Claims{}, err
		}
	}
	if err := v.current(c); err != nil {
		return Claims{}, err
	}
	if !ok {
		v.remember(sum, c)
	}
	return c, nil
}

// open checks signatures and form, nothing that changes with time.
func (v *Verifier) open(bearer string) (Claims, error) {
	var c Claims
	del, err := unseal(v.mesh, v.root, bearer, purposeToken, &c)
	if err != nil {
		return Claims{}, err
	}
	if err := c.check(); err != nil {
		return Claims{}, errMalformed(err)
	}
	if outside(c.Issued, del.NotBefore, del.NotAfter) {
		return Claims{}, fault.New(fault.Unauthorized, "token was issued when its issuer had no right to",
			"get a new one with 'beam token create'")
	}
	c.IssuerKey = del.KeyID()
	return c, nil
}

// current checks what changes with time.
func (v *Verifier) current(c Claims) error {
	now := v.now()
	if !c.Expires.IsZero() && now.After(c.Expires.Add(Leeway)) {
		return fault.New(fault.Expired, "token "+c.ID+" expired at "+c.Expires.Format(time.RFC3339),
			"get a new one with 'beam token create'; if that is in the future, check this machine's clock")
	}
	if c.Issued.After(now.Add(Leeway)) {
		return fault.New(fault.Unauthorized, "token "+c.ID+" was issued in the future, at "+c.Issued.Format(time.RFC3339),
			"clocks differ by more than 15 minutes: 'beam node doctor' shows by how much")
	}
	if v.deny.Denied(c.ID) || v.deny.Denied(c.IssuerKey) {
		return fault.New(fault.Unauthorized, "token "+c.ID+" was revoked", "get a new one with 'beam token create'")
	}
	return nil
}

func (v *Verifier) remember(sum [32]byte, c Claims) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.known) >= maxRemembered {
		for k := range v.known { // any one: forgetting costs a signature check
			delete(v.known, k)
			break
		}
	}
	v.known[sum] = c
}

// unseal checks a message against the root and decodes its payload.
func unseal(mesh string, root ed25519.PublicKey, raw, purpose string, payload any) (Delegation, error) {
	p := paseto.MakeParser(nil)
	footer, err := p.UnsafeParseFooter(paseto.V4Public, raw)
	if err != nil {
		return Delegation{}, errMalformed(err)
	}
	var del Delegation
	if err := json.Unmarshal(footer, &del); err != nil {
		return Delegation{}, errMalformed(err)
	}
	if err := del.verify(mesh, root); err != nil {
		return Delegation{}, err
	}
	key, err := paseto.NewV4AsymmetricPublicKeyFromBytes(del.Key)
	if err != nil {
		return Delegation{}, errMalformed(err)
	}
	t, err := p.ParseV4Public(key, raw, []byte(purpose+mesh))
	if err != nil {
		return Delegation{}, errMalformed(err)
	}
	if err := json.Unmarshal(t.ClaimsJSON(), payload); err != nil {
		return Delegation{}, errMalformed(err)
	}
	return del, nil
}

func errMalformed(err error) error {
	return fault.Wrap(fault.Unauthorized, err, "token is malformed or altered",
		"copy it whole, in one line; 'beam token create' makes a new one")
}

func errOtherMesh(theirs, ours string) error {
	if len(theirs) > 64 {
		theirs = theirs[:64]
	}
	return fault.New(fault.Unauthorized, fmt.Sprintf("token belongs to mesh %q, this is mesh %q", theirs, ours),
		"select the context of this mesh ('beam config select') or make a token here")
}
