package node

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/node/auth"
	"github.com/beammesh/beammesh/node/ledger"
	"github.com/beammesh/beammesh/node/token"
	"github.com/beammesh/beammesh/proto/fault"
)

// protoDelegate lets a node of tier own get the root's signature for its token
// key: one JSON delegateRequest, one JSON delegateReply.
const protoDelegate = "delegate/1"

// DefaultWorkspace is the one that every mesh begins with.
const DefaultWorkspace = "default"

const (
	delegationLife = 365 * 24 * time.Hour
	// delegateLimit bounds the exchange and the JSON of either side.
	delegateLimit = 10 * time.Second
	delegateBytes = 64 << 10
	// attemptLife bounds a container's token; containers that live longer are
	// those that their owner keeps warm, and nested calls then need a new one.
	attemptLife = 7 * 24 * time.Hour
)

// tokens issues and checks the API's bearer tokens at this node.
type tokens struct {
	meshID   string
	self     mesh.PeerID
	dir      string
	rootPub  ed25519.PublicKey
	root     crypto.Signer // nil on nodes that do not hold the root key
	key      ed25519.PrivateKey
	verifier *token.Verifier
	deny     *token.DenySet
	ledger   ledger.Ledger
	log      *slog.Logger
	spread   func(revocation string) // gossips it, or a digest of all
	behind   chan behind             // peers to ask, see catchUp
	serving  chan struct{}           // exchanges that are served

	mu     sync.Mutex
	issuer *token.Issuer // nil until delegated
}

func openTokens(dir, meshID string, self mesh.PeerID, rootPub ed25519.PublicKey, root crypto.Signer, log *slog.Logger) (*tokens, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make token folder: %w", err)
	}
	t := &tokens{meshID: meshID, self: self, dir: dir, rootPub: rootPub, root: root, log: log,
		behind: make(chan behind, revokedQueue), serving: make(chan struct{}, revokedServed)}
	var err error
	if t.key, err = loadKey(filepath.Join(dir, "key")); err != nil {
		return nil, err
	}
	if t.deny, err = token.OpenDenySet(filepath.Join(dir, "revoked"), meshID, rootPub); err != nil {
		return nil, err
	}
	t.verifier = token.NewVerifier(meshID, rootPub, t.deny)
	if b, err := os.ReadFile(filepath.Join(dir, "delegation.json")); err == nil {
		var d token.Delegation
		if json.Unmarshal(b, &d) == nil && time.Until(d.NotAfter) > delegationLife/4 {
			t.issuer, _ = token.NewIssuer(t.key, d) // of another mesh or key: asked for anew
		}
	}
	if t.issuer == nil && root != nil {
		d, err := t.delegate(t.key.Public().(ed25519.PublicKey))
		if err == nil {
			err = t.accept(d)
		}
		if err != nil {
			return nil, err
		}
	}
	return t, nil
}

func loadKey(path string) (ed25519.PrivateKey, error) {
	b, err := os.ReadFile(path)
	if err == nil && len(b) == ed25519.SeedSize {
		return ed25519.NewKeyFromSeed(b), nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read token key: %w", err)
	}
	seed := make([]byte, ed25519.SeedSize)
	if _, err := rand.Read(seed); err != nil {
		return nil, err
	}
	if err := writeDurably(path, seed, 0o600); err != nil {
		return nil, fmt.Errorf("write token key: %w", err)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

func (t *tokens) delegate(key ed25519.PublicKey) (token.Delegation, error) {
	now := time.Now()
	return token.Delegate(t.root, token.Delegation{Mesh: t.meshID, Key: key, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(delegationLife)})
}

func (t *tokens) accept(d token.Delegation) error {
	i, err := token.NewIssuer(t.key, d)
	if err != nil {
		return err
	}
	b, err := json.Marshal(d)
	if err != nil {
		return err
	}
	if err := writeDurably(filepath.Join(t.dir, "delegation.json"), b, 0o600); err != nil {
		return fmt.Errorf("write delegation: %w", err)
	}
	t.mu.Lock()
	t.issuer = i
	t.mu.Unlock()
	return nil
}

type delegateRequest struct {
	Key []byte `json:"key"`
}

type delegateReply struct {
	Delegation *token.Delegation `json:"delegation,omitempty"`
	Error      string            `json:"error,omitempty"`
}

// serve signs for a node of tier own, if this node holds the root key.
func (t *tokens) serve(tierOf func(mesh.PeerID) string) mesh.Handler {
	return func(_ context.Context, s mesh.Stream) {
		defer s.Close()
		_ = s.SetDeadline(time.Now().Add(delegateLimit))
		var req delegateRequest
		var rep delegateReply
		err := json.NewDecoder(io.LimitReader(s, delegateBytes)).Decode(&req)
		switch {
		case err != nil:
			rep.Error = "the request cannot be read"
		case t.root == nil:
			rep.Error = "this node does not hold the root key"
		case tierOf(s.Peer()) != "own":
			rep.Error = "only nodes of tier own may issue tokens"
		case len(req.Key) != ed25519.PublicKeySize:
			rep.Error = "the key is not an ed25519 key"
		default:
			d, err := t.delegate(req.Key)
			if err != nil {
				rep.Error = err.Error()
			} else {
				rep.Delegation = &d
			}
		}
		_ = json.NewEncoder(s).Encode(rep)
	}
}

// fetch asks the founder for this node's delegation.
func (t *tokens) fetch(ctx context.Context, dialer mesh.Dialer, founder mesh.PeerID) error {
	ctx, cancel := context.WithTimeout(ctx, delegateLimit)
	defer cancel()
	s, err := dialer.Open(ctx, founder, protoDelegate)
	if err != nil {
		return fmt.Errorf("ask the founder for the right to issue tokens: %w", err)
	}
	defer s.Close()
	_ = s.SetDeadline(time.Now().Add(delegateLimit))
	if err := json.NewEncoder(s).Encode(delegateRequest{Key: t.key.Public().(ed25519.PublicKey)}); err != nil {
		return fmt.Errorf("ask the founder for the right to issue tokens: %w", err)
	}
	var rep delegateReply
	if err := json.NewDecoder(io.LimitReader(s, delegateBytes)).Decode(&rep); err != nil {
		return fmt.Errorf("ask the founder for the right to issue tokens: %w", err)
	}
	if rep.Delegation == nil {
		return fault.New(fault.Forbidden, rep.Error, "")
	}
	return t.accept(*rep.Delegation)
}

func (t *tokens) current() (*token.Issuer, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.issuer == nil {
		return nil, fault.New(fault.Unreachable, "this node has no right to issue tokens yet", "it gets it from the founding node: start that one, or use a token made there")
	}
	return t.issuer, nil
}

// Issue makes an API token and lists it in the ledger. life 0 = for ever.
func (t *tokens) Issue(ctx context.Context, workspace, name string, scopes []token.Scope, life time.Duration) (id, bearer string, err error) {
	i, err := t.current()
	if err != nil {
		return "", "", err
	}
	c := token.Claims{ID: token.NewID(), Workspace: workspace, Scopes: scopes}
	if life > 0 {
		c.Expires = time.Now().Add(life)
	}
	if bearer, err = i.Issue(c); err != nil {
		return "", "", err
	}
	texts := make([]string, len(scopes))
	for k, s := range scopes {
		texts[k] = string(s)
	}
	_, err = t.ledger.Propose(ctx, ledger.PutToken{Workspace: workspace, ID: c.ID, Token: ledger.Token{
		Name: name, Scopes: texts, Issuer: i.KeyID(), Expires: c.Expires, Active: true}})
	return c.ID, bearer, err
}

// attempt makes the token for the code in a container at a worker; "" when this
// node may not issue: the code then cannot call back into the mesh.
func (t *tokens) attempt(workspace, worker, lease string) string {
	i, err := t.current()
	if err != nil {
		return ""
	}
	bearer, err := i.Issue(token.Claims{ID: token.NewID(), Workspace: workspace, Scopes: []token.Scope{token.Invoke},
		Expires: time.Now().Add(attemptLife), Audience: worker, Task: lease})
	if err != nil {
		t.log.Error("issue attempt token", "err", err)
	}
	return bearer
}

// api is the verifier of the TCP ports.
func (t *tokens) api() auth.Verifier {
	return auth.VerifierFunc(func(_ context.Context, bearer string) (auth.Identity, error) { return t.verifier.Verify(bearer) })
}

// inside is the verifier of the sockets in containers: it also takes the token
// of the container, which is good at this worker only.
func (t *tokens) inside() auth.Verifier {
	return auth.VerifierFunc(func(_ context.Context, bearer string) (auth.Identity, error) {
		c, err := t.verifier.VerifyAttempt(bearer, string(t.self))
		if err == nil {
			return c, nil
		}
		if api, apiErr := t.verifier.Verify(bearer); apiErr == nil {
			return api, nil
		}
		return c, err
	})
}

// writeDurably replaces a file so that a crash leaves the old or the new one.
func writeDurably(path string, b []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// SetActive switches a token off or on. Off spreads as a signed revocation,
// which cannot be taken back: only the founder's list knows that it is on again.
func (t *tokens) SetActive(ctx context.Context, workspace, id string, active bool) error {
	if active {
		return fault.New(fault.Unsupported, "a revoked token cannot be used again", "make a new one with 'beam token create'")
	}
	return t.revoke(ctx, workspace, id, ledger.SetTokenActive{Workspace: workspace, ID: id})
}

// Delete revokes a token and takes it off the list.
func (t *tokens) Delete(ctx context.Context, workspace, id string) error {
	return t.revoke(ctx, workspace, id, ledger.Delete{Key: ledger.Key{Kind: ledger.KindToken, Workspace: workspace, ID: id}})
}

func (t *tokens) revoke(ctx context.Context, workspace, id string, then ledger.Command) error {
	i, err := t.current()
	if err != nil {
		return err
	}
	rec, _, err := ledger.Get[ledger.Token](ctx, t.ledger, workspace, id, 0)
	if err != nil {
		return err
	}
	raw, err := i.Revoke(id, rec.Expires)
	if err != nil {
		return err
	}
	if _, err := t.deny.Add(raw); err != nil {
		return err
	}
	t.spread(raw)
	_, err = t.ledger.Propose(ctx, then)
	return err
}
