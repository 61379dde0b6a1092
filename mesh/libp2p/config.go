package libp2p

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"time"

	golibp2p "github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"

	"github.com/beammesh/beammesh/mesh"
)

// Config is what a Mesh is made from. Only DataDir is required.
type Config struct {
	// DataDir holds identity.key, the membership, issued tickets and the table
	// of known members. It is created 0700 and locked while the Mesh is open.
	DataDir string
	// Listen are "ip:port" pairs, each served on TCP and on UDP (QUIC). Port 0
	// picks one port free for both. Empty: "0.0.0.0:0" and "[::]:0".
	Listen []string
	// Announce are further "ip:port" pairs others can reach us at, for example
	// behind a port forward.
	Announce []string
	// Name is shown to people; it need not be unique. Empty: the host name.
	Name string
	// Version and Features are told to peers in hello.
	Version  string
	Features []string

	// NoTCP, NoQUIC, NoGossip, NoDirectory and NoMDNS switch one part off.
	NoTCP, NoQUIC, NoGossip, NoDirectory, NoMDNS bool
	// Interface says whether mDNS may use a network interface and whether its
	// addresses may be announced. The node keeps its tenant bridge out of both.
	// nil: every interface.
	Interface func(net.Interface) bool

	// Hello puts the node's own payload into the handshake; may be nil.
	Hello mesh.Hello
	// Deny refuses a peer, certificate or not, with a reason for people; may be
	// nil. It is asked on every dial and every hello: after a change call
	// Mesh.Expel for peers that are connected.
	Deny func(mesh.PeerID) (reason string, denied bool)

	// DialKnownOnly dials no peer that nobody named: the directory's routing
	// does not introduce this node to everybody, as it would not in a large
	// mesh. For tests.
	DialKnownOnly bool

	// PingEvery is the time between liveness pings of a peer (2.5 s), at most
	// maxPingEvery.
	PingEvery time.Duration
	// SilentAfter without a pong, one re-dial is made; if that fails too
	// the member is down (6 s; with RedialWait it stays under 8 s).
	SilentAfter time.Duration
	// RedialWait bounds the one re-dial before MemberDown (800 ms). A machine
	// that refuses it, because the process is gone, cuts it short.
	RedialWait time.Duration

	// Clock is the wall clock that hello reports and certificates are checked
	// against. nil: time.Now.
	Clock func() time.Time
	// Log; nil discards.
	Log *slog.Logger

	// WantConnected is how many members a node connects to by itself (256).
	// Connections that others open, and those that work needs, come on top.
	WantConnected int
	// HostOptions and GossipOptions are added to this package's own: a simulated
	// network below QUIC, a tracer. See mesh/libp2p/virtual.
	HostOptions   []golibp2p.Option
	GossipOptions []pubsub.Option
	// Simulated: the addresses of peers mean nothing to this machine's kernel.
	Simulated bool
}

// Invitation says what a ticket grants.
type Invitation struct {
	Tier  string        // membership.Own (default), Invited or Public
	Roles []string      // free words such as "worker"; at most 16
	Life  time.Duration // how long it can be redeemed; default 24 h, at most 30 days
}

// defaultListen is any address, one port for TCP and UDP.
var defaultListen = []string{"0.0.0.0:0", "[::]:0"}

// complete checks c and fills in the defaults.
func (c Config) complete() (Config, error) {
	if c.DataDir == "" {
		return c, errors.New("mesh config: no data directory")
	}
	if c.NoTCP && c.NoQUIC {
		return c, errors.New("mesh config: TCP and QUIC are both switched off")
	}
	if len(c.Listen) == 0 {
		c.Listen = defaultListen
	}
	for _, a := range append(append([]string(nil), c.Listen...), c.Announce...) {
		if _, err := netip.ParseAddrPort(a); err != nil {
			return c, fmt.Errorf("mesh config: address %q: want ip:port", a)
		}
	}
	if c.Name == "" {
		c.Name, _ = os.Hostname()
	}
	if len(c.Name) > maxName {
		c.Name = c.Name[:maxName]
	}
	if len(c.Features) > maxFeatures {
		return c, fmt.Errorf("mesh config: %d features, at most %d", len(c.Features), maxFeatures)
	}
	if c.Interface == nil {
		c.Interface = func(net.Interface) bool { return true }
	}
	if c.Deny == nil {
		c.Deny = func(mesh.PeerID) (string, bool) { return "", false }
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&c.PingEvery, 2500*time.Millisecond)
	def(&c.SilentAfter, 6*time.Second)
	def(&c.RedialWait, 800*time.Millisecond)
	if c.PingEvery > maxPingEvery {
		return c, fmt.Errorf("mesh config: a ping every %v, at most every %v", c.PingEvery, maxPingEvery)
	}
	if c.WantConnected <= 0 {
		c.WantConnected = wantConnected
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// maxPingEvery stays clear of the 10 s after which the answering side of libp2p's
// ping resets a stream on which nothing came.
const maxPingEvery = 8 * time.Second

// Bounds on what a peer's hello may carry; more is refused, not cut.
const (
	maxName      = 64
	maxFeatures  = 128
	maxProtocols = 128
	maxAddrs     = 16        // addresses kept per member
	maxPayload   = 256 << 10 // the node's part of hello
	maxRecords   = 256       // member records in one message
	maxMembers   = 4096      // rows of the member table
)
