// Package token makes and checks the bearer tokens of the API: signed
// capabilities that every node verifies offline.
//
// A token is a PASETO v4.public message. Its footer carries the issuer's public
// key in a Delegation that the mesh's root key signed, so a node needs only the
// root's public key (it is in every ticket) to check any token of the mesh:
//
//	root ──signs──▶ Delegation{mesh, issuer key, validity} ──key signs──▶ token
//
//	issuer, err := token.NewIssuer(key, delegation)
//	bearer, err := issuer.Issue(token.Claims{ID: token.NewID(), Workspace: ws, Scopes: []token.Scope{token.Admin}})
//
//	v := token.NewVerifier(meshID, rootPublic, deny)
//	claims, err := v.Verify(bearer)            // signature, mesh, time, revocation
//	err = claims.Require(token.Invoke)         // rights
//
// A token for one attempt of a task (for code in a container, and as the work
// order to a worker) also names Audience, Task and Attempt; check it with
// VerifyAttempt, and never take one where an API token is due: Verify refuses it.
//
// Revocations are signed by any delegated issuer, spread by gossip and kept in a
// DenySet: deny spreads freely, allow only by signature.
//
// Times in tokens are absolute and compared with a leeway of 15 minutes. All
// types are safe for concurrent use. Errors are *fault.Error with a hint:
// Unauthorized (missing, malformed, other mesh, revoked), Expired, Forbidden.
package token

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"slices"
	"time"

	"aidanwoods.dev/go-paseto"

	"github.com/beammesh/beammesh/proto/fault"
)

// Leeway is how far two clocks of a mesh may differ.
const Leeway = 15 * time.Minute

// Bounds of a token.
const (
	MaxBytes  = 4096 // fits any HTTP header
	maxScopes = 64
	maxText   = 256 // bytes of each id and scope
)

// Scope is a right in a workspace. API scopes include the weaker ones; an
// attempt's verbs are free text and match exactly.
type Scope string

// The API's scopes, strongest first.
const (
	Admin  Scope = "admin"  // everything, tokens and nodes included
	Deploy Scope = "deploy" // deployments, images, secrets; Invoke
	Invoke Scope = "invoke" // run functions, stop own tasks; Read
	Read   Scope = "read"   // list, logs, results
)

var ladder = []Scope{Admin, Deploy, Invoke, Read}

// includes tells whether having s is enough for want.
func (s Scope) includes(want Scope) bool {
	if s == want {
		return true
	}
	have, need := slices.Index(ladder, s), slices.Index(ladder, want)
	return have >= 0 && need >= 0 && have <= need
}

// Claims is what a token says.
type Claims struct {
	ID        string    `json:"jti"`
	Workspace string    `json:"ws"`
	Scopes    []Scope   `json:"scp,omitempty"`
	Issued    time.Time `json:"iat"`
	Expires   time.Time `json:"exp,omitzero"` // zero = never
	// The rest is set in attempt tokens only.
	Audience string `json:"aud,omitempty"` // peer id of the worker
	Task     string `json:"task,omitempty"`
	Attempt  uint64 `json:"att,omitempty"`

	// IssuerKey is the id of the key that signed; Verify fills it in.
	IssuerKey string `json:"-"`
}

// IsAttempt tells an attempt's token from an API token.
func (c Claims) IsAttempt() bool { return c.Audience != "" || c.Task != "" || c.Attempt != 0 }

// Has tells whether the token carries the right.
func (c Claims) Has(want Scope) bool {
	return slices.ContainsFunc(c.Scopes, func(s Scope) bool { return s.includes(want) })
}

// Require is Has as an error for the user.
func (c Claims) Require(want Scope) error {
	if c.Has(want) {
		return nil
	}
	return fault.New(fault.Forbidden, "token "+c.ID+" has no right to "+string(want),
		"make one with 'beam token create --scope "+string(want)+"' as an admin of workspace "+c.Workspace)
}

// NewID makes an id for a token: 128 random bits.
func NewID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

func (c Claims) check() error {
	if c.ID == "" || c.Workspace == "" {
		return fault.New(fault.Invalid, "a token needs an id and a workspace", "")
	}
	if len(c.Scopes) > maxScopes {
		return fault.Newf(fault.TooLarge, "a token has at most %d scopes", maxScopes)
	}
	for _, s := range append([]string{c.ID, c.Workspace, c.Audience, c.Task}, scopeTexts(c.Scopes)...) {
		if len(s) > maxText {
			return fault.Newf(fault.TooLarge, "an id or scope in a token is at most %d bytes", maxText)
		}
	}
	if c.IsAttempt() && (c.Audience == "" || c.Task == "" || c.Expires.IsZero()) {
		return fault.New(fault.Invalid, "an attempt's token needs audience, task and expiry", "")
	}
	return nil
}

func scopeTexts(s []Scope) []string {
	out := make([]string, len(s))
	for i := range s {
		out[i] = string(s[i])
	}
	return out
}

// Purposes keep a signature made for one thing from being used as another
// (PASETO's implicit assertion, with the mesh id behind it).
const (
	purposeToken  = "beammesh token 1 "
	purposeRevoke = "beammesh revocation 1 "
)

// sign makes the message of any purpose.
func sign(key ed25519.PrivateKey, footer []byte, purpose, mesh string, payload any) (string, error) {
	raw, err := json.Marshal(payload)
	if err != nil {
		return "", fault.Wrap(fault.Internal, err, "encode token", "")
	}
	t, err := paseto.NewTokenFromClaimsJSON(raw, footer)
	if err != nil {
		return "", fault.Wrap(fault.Internal, err, "encode token", "")
	}
	k, err := paseto.NewV4AsymmetricSecretKeyFromEd25519(key)
	if err != nil {
		return "", fault.Wrap(fault.Internal, err, "issuer key", "")
	}
	s := t.V4Sign(k, []byte(purpose+mesh))
	if len(s) > MaxBytes {
		return "", fault.Newf(fault.TooLarge, "token is %d bytes, at most %d are allowed", len(s), MaxBytes)
	}
	return s, nil
}
