package membership

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mr-tron/base58"

	"github.com/beammesh/beammesh/mesh"
)

// Tiers of trust, from most to least.
const (
	Own     = "own"     // same owner: may issue tickets, keep state
	Invited = "invited" // a friend's machine
	Public  = "public"  // anybody
)

// ValidTier says whether t is one of the tiers.
func ValidTier(t string) bool { return t == Own || t == Invited || t == Public }

// Leeway is how far clocks may differ when an absolute time is judged: design
// 4.3 promises 10 minutes between two machines, the rest is for slow steps.
const Leeway = 15 * time.Minute

// Lifetimes. A member renews when a third of its certificate's life is over, so
// a month lets a machine stay off for weeks; issuers need the root key's holder,
// which may be gone for longer.
const (
	MemberLife = 30 * 24 * time.Hour
	IssuerLife = 365 * 24 * time.Hour
)

// MeshID is the mesh's id: 10 hex digits of the root key's hash.
func MeshID(root ed25519.PublicKey) string {
	h := sha256.Sum256(root)
	return hex.EncodeToString(h[:5])
}

// peerPrefix starts the binary form of every Ed25519 peer id: an identity
// multihash (0x00, 36 bytes) of a protobuf public key (type 1, 32 bytes of data).
var peerPrefix = []byte{0x00, 0x24, 0x08, 0x01, 0x12, 0x20}

// PeerOf gives the peer id that belongs to an identity key.
func PeerOf(key ed25519.PublicKey) mesh.PeerID {
	return mesh.PeerID(base58.Encode(append(slices.Clone(peerPrefix), key...)))
}

// KeyOf gives the identity key inside a peer id. Only Ed25519 identities exist
// in a mesh: other key types cannot be checked without a connection.
func KeyOf(p mesh.PeerID) (ed25519.PublicKey, error) {
	if len(p) > 64 {
		return nil, errors.New("peer id is too long")
	}
	b, err := base58.Decode(string(p))
	if err != nil {
		return nil, fmt.Errorf("peer id %q: %w", p, err)
	}
	if len(b) != len(peerPrefix)+ed25519.PublicKeySize || !slices.Equal(b[:len(peerPrefix)], peerPrefix) {
		return nil, fmt.Errorf("peer id %q: not an ed25519 identity", p)
	}
	return b[len(peerPrefix):], nil
}

// Signing domains. A key that signs in one can never be tricked into a
// signature that counts in another.
const (
	domainCertificate = "beammesh certificate 1"
	domainData        = "beammesh data 1"
)

func message(domain string, body []byte) []byte {
	m := make([]byte, 0, len(domain)+1+len(body))
	m = append(m, domain...)
	m = append(m, 0)
	return append(m, body...)
}

// SignData is mesh.Signer's Sign for the holder of key.
func SignData(key ed25519.PrivateKey, data []byte) []byte {
	return ed25519.Sign(key, message(domainData, data))
}

// VerifyData is mesh.Signer's Verify.
func VerifyData(by mesh.PeerID, data, sig []byte) error {
	key, err := KeyOf(by)
	if err != nil {
		return err
	}
	if !ed25519.Verify(key, message(domainData, data), sig) {
		return fmt.Errorf("signature by %s is not valid", by)
	}
	return nil
}
