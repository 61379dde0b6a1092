package token

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"time"

	"github.com/beammesh/beammesh/proto/fault"
)

// Delegation is the root's statement that a key may issue tokens of a mesh.
// NotBefore and NotAfter bound when tokens may be issued, not how long those
// tokens live: a CI token outlasts the weekly renewal of its issuer. A stolen
// issuer key is stopped by revoking its KeyID.
type Delegation struct {
	Mesh      string    `json:"mesh"`
	Key       []byte    `json:"key"`  // ed25519, 32 bytes
	Name      string    `json:"name"` // peer id of the issuing node
	NotBefore time.Time `json:"nbf"`
	NotAfter  time.Time `json:"naf"`
	Signature []byte    `json:"sig"` // root's, over signingBytes
}

func (d Delegation) signingBytes() ([]byte, error) {
	d.Signature = nil
	b, err := json.Marshal(d)
	return append([]byte("beammesh issuer 1\n"), b...), err
}

// KeyID names an issuer's key in listings and revocations.
func (d Delegation) KeyID() string { return keyID(d.Key) }

func keyID(key []byte) string {
	sum := sha256.Sum256(key)
	return "k" + hex.EncodeToString(sum[:8])
}

// Delegate signs d with the mesh's root key, an ed25519 key.
func Delegate(root crypto.Signer, d Delegation) (Delegation, error) {
	if _, ok := root.Public().(ed25519.PublicKey); !ok {
		return Delegation{}, fault.New(fault.Invalid, "the mesh's root key is not ed25519", "")
	}
	if len(d.Key) != ed25519.PublicKeySize || d.Mesh == "" || len(d.Name) > maxText || !d.NotAfter.After(d.NotBefore) {
		return Delegation{}, fault.New(fault.Invalid, "issuer needs a mesh, an ed25519 key and a validity", "")
	}
	d.NotBefore, d.NotAfter = seconds(d.NotBefore), seconds(d.NotAfter)
	b, err := d.signingBytes()
	if err != nil {
		return Delegation{}, fault.Wrap(fault.Internal, err, "encode issuer", "")
	}
	if d.Signature, err = root.Sign(rand.Reader, b, crypto.Hash(0)); err != nil {
		return Delegation{}, fault.Wrap(fault.Internal, err, "sign issuer", "")
	}
	return d, nil
}

// verify checks d against the root; it does not look at the time.
func (d Delegation) verify(mesh string, root ed25519.PublicKey) error {
	b, err := d.signingBytes()
	if err != nil || len(d.Key) != ed25519.PublicKeySize {
		return errMalformed(err)
	}
	if d.Mesh != mesh {
		return errOtherMesh(d.Mesh, mesh)
	}
	if len(d.Signature) != ed25519.SignatureSize || !ed25519.Verify(root, b, d.Signature) {
		return fault.New(fault.Unauthorized, "token's issuer was not appointed by this mesh",
			"the mesh may have been made anew: get a token with 'beam token create'")
	}
	return nil
}

// Issuer issues and revokes tokens.
type Issuer struct {
	key    ed25519.PrivateKey
	del    Delegation
	footer []byte
	now    func() time.Time
}

// NewIssuer joins a key to the root's delegation of it.
func NewIssuer(key ed25519.PrivateKey, d Delegation) (*Issuer, error) {
	pub, ok := key.Public().(ed25519.PublicKey)
	if !ok || !pub.Equal(ed25519.PublicKey(d.Key)) {
		return nil, fault.New(fault.Invalid, "issuer key and its delegation do not belong together", "")
	}
	footer, err := json.Marshal(d)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "encode issuer", "")
	}
	return &Issuer{key: key, del: d, footer: footer, now: time.Now}, nil
}

// KeyID is the id of the issuer's key.
func (i *Issuer) KeyID() string { return i.del.KeyID() }

// Issue signs c. Issued is set to now when it is zero.
func (i *Issuer) Issue(c Claims) (string, error) {
	if c.Issued.IsZero() {
		c.Issued = i.now()
	}
	c.Issued, c.Expires = seconds(c.Issued), seconds(c.Expires)
	if err := c.check(); err != nil {
		return "", err
	}
	if outside(c.Issued, i.del.NotBefore, i.del.NotAfter) {
		return "", fault.New(fault.Expired, "this node's right to issue tokens has ended",
			"it is renewed when a node with the mesh's root key is reachable, see 'beam node status'")
	}
	return sign(i.key, i.footer, purposeToken, i.del.Mesh, c)
}

// Revoke signs that a token, or every token of an issuer's key (by KeyID), is
// void. until is when it would have expired anyway; zero = never.
func (i *Issuer) Revoke(id string, until time.Time) (string, error) {
	if id == "" || len(id) > maxText {
		return "", fault.New(fault.Invalid, "a revocation needs a token id", "")
	}
	return sign(i.key, i.footer, purposeRevoke, i.del.Mesh, revocation{ID: id, Until: seconds(until), At: seconds(i.now())})
}

// revocation is the payload of a revocation.
type revocation struct {
	ID    string    `json:"jti"`
	Until time.Time `json:"exp,omitzero"`
	At    time.Time `json:"iat"`
}

func seconds(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return time.Unix(t.Unix(), 0).UTC()
}

// outside tells whether t is before from or after to by more than the leeway.
func outside(t, from, to time.Time) bool {
	return t.Before(from.Add(-Leeway)) || t.After(to.Add(Leeway))
}
