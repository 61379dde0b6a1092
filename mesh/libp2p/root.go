package libp2p

import (
	"crypto"
	"crypto/ed25519"
)

// Root is the mesh's root key: its public half on every member, and the signer
// on the node that holds it (the founder), else nil. It is empty before Found
// or Join.
func (m *Mesh) Root() (ed25519.PublicKey, crypto.Signer) {
	c := m.credentials()
	if c == nil {
		return nil, nil
	}
	if c.secret == nil {
		return c.root, nil
	}
	return c.root, c.secret
}
