// Package mesh is the contract between the node and its network.
//
// A Mesh gives authenticated streams to member peers, gossip topics, a
// directory of capabilities (the DHT) and the list of members with their
// state. Strangers never reach a Handler: membership is checked below this
// contract, before a stream is handed over.
//
// The only implementation that talks to a network is mesh/libp2p; meshtest
// holds an in-memory one and the suite both must pass. All methods of all
// interfaces here are safe for concurrent use.
package mesh

import (
	"context"
	"errors"
	"io"
	"time"
)

// PeerID is the text form of a peer's network identity (its public key's hash).
// It is the node id everywhere: adverts, leases, task ids.
type PeerID string

// Errors that a caller branches on.
var (
	ErrNotMember   = errors.New("peer is not a member of this mesh")
	ErrUnreachable = errors.New("peer is unreachable")
	ErrClosed      = errors.New("mesh is closed")
	// ErrDisabled answers for a part switched off in this node's config
	// (gossip or the directory).
	ErrDisabled = errors.New("switched off on this node")
	// ErrNotServed answers the first read of a stream whose protocol the peer
	// has no handler for.
	ErrNotServed = errors.New("peer does not serve this protocol")
	// ErrTooLarge answers a gossip message above MaxGossip.
	ErrTooLarge = errors.New("message is too large")
)

// Bounds of the contract, the same for every implementation.
const (
	MaxGossip       = 1 << 10   // bytes of one gossip message
	MaxHelloPayload = 256 << 10 // bytes the Hello hook may give
	MaxKey          = 256       // bytes of a directory key
)

// Stream is one ordered, flow-controlled byte pipe to an authenticated member.
type Stream interface {
	io.ReadWriteCloser
	// CloseWrite half-closes: the peer reads EOF, we can still read.
	CloseWrite() error
	// Reset aborts both directions; the peer's reads and writes fail.
	Reset() error
	// Peer is the remote end, proven by the transport's handshake.
	Peer() PeerID
	SetDeadline(t time.Time) error
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
}

// Handler serves one incoming stream in its own goroutine and closes it. ctx
// ends when the mesh closes.
type Handler func(ctx context.Context, s Stream)

// Dialer opens and accepts streams. A protocol is named "<name>/<version>",
// for example "ask/1"; the mesh prefixes it with its own id.
type Dialer interface {
	// Open dials if needed. Errors wrap ErrNotMember or ErrUnreachable.
	Open(ctx context.Context, to PeerID, protocol string) (Stream, error)
	// OpenBulk is Open for large transfers: it prefers a TCP+TLS connection
	// (a third of QUIC's CPU per byte) and falls back to what there is.
	OpenBulk(ctx context.Context, to PeerID, protocol string) (Stream, error)
	// Handle must be called before the mesh starts; one handler per protocol.
	Handle(protocol string, h Handler)
}

// Gossip publishes small messages to all subscribed members. Delivery is
// neither reliable nor ordered: everything sent must expire or be repeated.
type Gossip interface {
	// Publish sends data (<= 1 KiB) on topic. Own subscriptions do not see it.
	Publish(ctx context.Context, topic string, data []byte) error
	// Subscribe calls fn for every message, from one goroutine per
	// subscription, until cancel. from is the message's proven author.
	Subscribe(topic string, fn func(from PeerID, data []byte)) (cancel func(), err error)
}

// Directory finds members by capability key ("gpu/H100", "role/gateway").
type Directory interface {
	// Provide announces key for this node, and again every few minutes until
	// Withdraw. It returns once the first announcement was stored.
	Provide(ctx context.Context, key string) error
	Withdraw(key string)
	// Find gives up to limit members that announced key, each verified by a
	// dial. An empty answer is not an error.
	Find(ctx context.Context, key string, limit int) ([]PeerID, error)
}

// Path says how a member is reached.
type Path string

const (
	PathSelf    Path = "self"
	PathDirect  Path = "direct"
	PathRelayed Path = "relayed"
	PathNone    Path = "none" // known, not connected
)

// Member is what this node knows of one machine of the mesh.
type Member struct {
	ID        PeerID
	Name      string // host name given at join; not unique
	Tier      string // own, invited, public
	Connected bool
	Path      Path
	Addrs     []string      // multiaddrs in use or last seen
	RTT       time.Duration // 0 = not measured
	ClockSkew time.Duration // theirs minus ours, at hello
	Version   string        // product version
	Features  []string
	BootID    string    // random per process start
	LastSeen  time.Time // local clock
	Via       Via       // how it was found first, in this life
}

// Via says how a member was found.
type Via string

// The ways to find a member.
const (
	ViaUnknown   Via = ""          // it came by itself, or was known before the start
	ViaTicket    Via = "ticket"    // of which one redeemed the other's
	ViaMember    Via = "member"    // another member named it
	ViaMDNS      Via = "mdns"      // seen on the local network
	ViaDirectory Via = "directory" // the directory's routing led to it
	ViaLookup    Via = "lookup"    // the directory named it for a key
)

// EventType tells what happened to a member.
type EventType int

const (
	MemberUp      EventType = iota + 1 // hello done, streams can be opened
	MemberDown                         // connection broke and a re-dial failed, or its pings went unanswered
	MemberRefused                      // a known peer came with a reason to refuse it
)

// Event is a change of the member list.
type Event struct {
	Type   EventType
	Member Member
	Reason string // for Down and Refused, for people
	Hint   string // for Refused, when the peer refused us: what to do here
	Left   bool   // for Down: it said that it leaves for good, and is no member any more
}

// Members is the live member list.
type Members interface {
	Self() Member
	Members() []Member // sorted by id, self included
	// Watch calls fn for each change, in order, from one goroutine, starting
	// with an Up for every connected member. cancel may be called twice.
	Watch(fn func(Event)) (cancel func())
}

// Signer signs for this peer and checks what other peers signed.
type Signer interface {
	Sign(data []byte) ([]byte, error)
	// Verify checks sig over data by peer; it needs no connection to peer.
	Verify(by PeerID, data, sig []byte) error
}

// Hello lets the node put its own payload (adverts) into the handshake that
// both sides run when a member connects. Lost gossip right after a connect
// is why this exists.
type Hello interface {
	// Local gives the payload (<= 256 KiB) we send.
	Local(to PeerID) []byte
	// Remote takes the payload the peer sent. It runs before MemberUp. via is
	// how the peer was found.
	Remote(from PeerID, via Via, payload []byte)
}

// Mesh is everything at once.
type Mesh interface {
	Dialer
	Gossip
	Directory
	Members
	Signer
	// ID is the mesh's id: 10 hex digits of the root key's hash.
	ID() string
	Close() error
}
