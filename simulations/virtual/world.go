package virtual

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/mesh/libp2p"
	"github.com/beammesh/beammesh/mesh/libp2p/virtual"
	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/market"
)

// Config of a World. Nodes and Dir are required; the other zeros have defaults.
type Config struct {
	Nodes int
	Dir   string // for the nodes' data folders
	Seed  uint64 // of the topology; the identities are random

	// Owners is how many nodes, from the first on, take tasks and so keep a view
	// of all others; all.
	Owners int
	// PerTopic is how many nodes gossip adverts on one topic, on average at most;
	// 256.
	PerTopic int
	// Neighbours is how many nodes of its own topic each one connects to. 0: the
	// nodes connect by themselves, as in the product.
	Neighbours int

	Latency       time.Duration // one way; 25 ms
	BitsPerSecond int           // of each host, each way; 100 Mbit/s

	Heartbeat   time.Duration // an advert is gossiped at least this often; 5 s
	AdvertEvery time.Duration // and at most this often when it changes; 100 ms
	PingEvery   time.Duration // on each connection; the product's 2 s

	StartTime time.Duration // of a container; 500 ms
	RunFor    time.Duration // of a container; 0 = until released

	Capacity scheduler.Capacity // of each node
	Owner    market.OwnerConfig // template; ID is filled in
}

func (c Config) withDefaults() Config {
	if c.Owners <= 0 || c.Owners > c.Nodes {
		c.Owners = c.Nodes
	}
	number := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	length := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	number(&c.PerTopic, 256)
	number(&c.BitsPerSecond, 100_000_000)
	length(&c.Latency, 25*time.Millisecond)
	length(&c.Heartbeat, 5*time.Second)
	length(&c.AdvertEvery, 100*time.Millisecond)
	length(&c.StartTime, 500*time.Millisecond)
	return c
}

// Topics of gossip.
const (
	topicAdverts = "adverts" // followed by the shard, a scheduler.Topic
	// TopicOffers is where work that waits is gossiped; all nodes hear it.
	TopicOffers = "offers"
)

// graftTime is how long gossipsub takes to build its overlay of a new topic: two
// of its heartbeats.
const graftTime = 2 * time.Second

// floodTime is how long Flood waits: for the heartbeat that repairs a loss.
const floodTime = 2 * time.Second

// firstAdverts is over how long the nodes first say what they have: a mesh does
// not start in one instant.
const firstAdverts = 10 * time.Second

// World is a mesh of nodes in virtual time.
type World struct {
	cfg    Config
	net    *virtual.Network
	hosts  []libp2p.Config
	meshes []*libp2p.Mesh
	nodes  []*Node
	frames virtual.Frames
	start  time.Time
	ctx    context.Context
	stop   context.CancelFunc
	wg     sync.WaitGroup // what nodes do beside their machines

	mu         sync.Mutex
	tasks      map[market.OfferID]*task
	changed    chan struct{} // closed and replaced at every placement and loss
	messages   map[string]int
	violations []string
	heard      func(node int) // told of what comes on TopicOffers; may be nil
}

// New boots the nodes, connects them and waits until every owner knows all of
// them.
func New(ctx context.Context, cfg Config) (_ *World, err error) {
	w := &World{cfg: cfg.withDefaults(), start: time.Now(), tasks: map[market.OfferID]*task{}, changed: make(chan struct{}), messages: map[string]int{}}
	w.ctx, w.stop = context.WithCancel(context.WithoutCancel(ctx))
	w.net = virtual.New(w.cfg.Latency, w.cfg.BitsPerSecond)
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Close())
		}
	}()
	for i := range w.cfg.Nodes {
		n := &Node{w: w, i: i}
		c := libp2p.Config{DataDir: filepath.Join(w.cfg.Dir, fmt.Sprint(i)), Name: fmt.Sprint("node", i), Hello: n, NoDirectory: true,
			PingEvery: w.cfg.PingEvery, SilentAfter: w.cfg.PingEvery * 11 / 4} // the product's proportion
		if w.cfg.Neighbours > 0 {
			c.WantConnected = 1 // the founder
		}
		w.nodes = append(w.nodes, n)
		w.hosts = append(w.hosts, w.frames.Watch(w.net.Attach(c)))
	}
	if w.meshes, err = virtual.Boot(ctx, w.hosts, func(i int, m *libp2p.Mesh) { w.nodes[i].boot(m) }); err != nil {
		return w, err
	}
	pairs := w.topology()
	for _, n := range w.nodes {
		if err := n.subscribe(); err != nil {
			return w, err
		}
	}
	if w.cfg.Neighbours > 0 {
		w.introduce()
		if err := virtual.Meet(ctx, w.meshes, pairs); err != nil {
			return w, err
		}
	}
	time.Sleep(graftTime)
	for _, n := range w.nodes {
		w.wg.Go(n.advertise)
	}
	return w, w.known(ctx)
}

// depth is how many bits of a node's hash choose its advert topic: as few as give
// PerTopic nodes a topic, on average.
func (w *World) depth() (bits int) {
	for w.cfg.Nodes > w.cfg.PerTopic<<bits {
		bits++
	}
	return bits
}

// topicName is where the adverts of a shard are gossiped.
func topicName(t scheduler.Topic) string { return topicAdverts + "/" + t.String() }

// topology connects each node to its neighbours: a ring through its topic, then
// nodes of the topic by chance, and one of another topic that carries the open
// offers across. Owners hear all topics, so they know a few nodes of each.
func (w *World) topology() (pairs [][2]int) {
	rng := rand.New(rand.NewPCG(w.cfg.Seed, 0x6d657368))
	shards := make([][]int, 1<<w.depth())
	place := make([]int, len(w.nodes)) // of each node in its shard
	for i, n := range w.nodes {
		n.topic = scheduler.TopicOf(&w.cfg.Capacity, n.ID(), w.depth())
		place[i] = len(shards[n.topic.Shard])
		shards[n.topic.Shard] = append(shards[n.topic.Shard], i)
	}
	seen := map[[2]int]bool{}
	meet := func(a, b int) {
		if a != b && !seen[[2]int{a, b}] && !seen[[2]int{b, a}] {
			seen[[2]int{a, b}] = true
			pairs = append(pairs, [2]int{a, b})
		}
	}
	for i, n := range w.nodes {
		own := shards[n.topic.Shard]
		meet(i, own[(place[i]+1)%len(own)])
		for range w.cfg.Neighbours - 1 {
			meet(i, own[rng.IntN(len(own))])
		}
		if len(shards) == 1 {
			continue
		}
		meet(i, rng.IntN(len(w.nodes)))
		for s, others := range shards {
			if i < w.cfg.Owners && s != int(n.topic.Shard) && len(others) > 0 {
				meet(i, others[rng.IntN(len(others))])
				meet(i, others[rng.IntN(len(others))])
			}
		}
	}
	return pairs
}

// introduce tells each node of those whose gossip it is to pass on, its own topic
// and the owners; a mesh does not pass on what somebody unheard of says. Owners
// learn where everybody is.
func (w *World) introduce() {
	owners := w.meshes[:w.cfg.Owners]
	shards := make([][]*libp2p.Mesh, 1<<w.depth())
	for i, n := range w.nodes {
		shards[n.topic.Shard] = append(shards[n.topic.Shard], w.meshes[i])
	}
	for i, n := range w.nodes {
		if i < w.cfg.Owners {
			virtual.Learn(w.meshes[i], w.meshes)
			continue
		}
		virtual.Learn(w.meshes[i], shards[n.topic.Shard])
		virtual.Learn(w.meshes[i], owners)
	}
}

// known waits until every owner's view has all nodes.
func (w *World) known(ctx context.Context) error {
	limit := time.NewTimer(firstAdverts + 4*w.cfg.Heartbeat)
	defer limit.Stop()
	for _, n := range w.nodes[:w.cfg.Owners] {
		select {
		case <-n.knowsAll:
		case <-limit.C:
			n.mu.Lock()
			defer n.mu.Unlock()
			return fmt.Errorf("node %d knows %d of %d nodes", n.i, n.owner.View().Len(), w.cfg.Nodes)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Now is the time since the world began.
func (w *World) Now() time.Duration { return time.Since(w.start) }

// Node gives a node, from 0 on.
func (w *World) Node(i int) *Node { return w.nodes[i] }

// Kill ends a node as if its power went: not a packet leaves it any more.
func (w *World) Kill(i int) error {
	w.net.Silence(w.hosts[i])
	w.nodes[i].halt()
	err := w.meshes[i].Close()
	w.nodes[i].close()
	return err
}

// Flood publishes data of so many bytes from a node to everybody, as an offer
// that is not placed by asking would be, and tells how long it took to each of
// the others that it reached, and what it cost in frames.
func (w *World) Flood(ctx context.Context, from, bytes int) (delays []time.Duration, frames int, err error) {
	var mu sync.Mutex
	sent, before := time.Now(), w.frames.Of(TopicOffers)
	w.onOffer(func(int) {
		mu.Lock()
		defer mu.Unlock()
		delays = append(delays, time.Since(sent))
	})
	defer w.onOffer(nil)
	if err := w.meshes[from].Publish(ctx, TopicOffers, make([]byte, bytes)); err != nil {
		return nil, 0, err
	}
	time.Sleep(floodTime)
	mu.Lock()
	defer mu.Unlock()
	return delays, w.frames.Of(TopicOffers) - before, nil
}

func (w *World) onOffer(fn func(node int)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.heard = fn
}

// AdvertFrames is how many frames the adverts have cost so far.
func (w *World) AdvertFrames() int {
	return w.frames.Total(func(topic string) bool { return strings.HasPrefix(topic, topicAdverts) })
}

// Close ends all nodes and the network; it may be called once, and the bubble
// needs no more waiting afterwards.
func (w *World) Close() error {
	w.stop()
	for _, n := range w.nodes {
		n.halt()
	}
	err := virtual.Close(w.meshes)
	for _, n := range w.nodes {
		n.close()
	}
	w.wg.Wait()
	w.net.Close()
	time.Sleep(virtual.Linger)
	return err
}

// peer is a mesh id as the scheduler's.
func peer(id mesh.PeerID) scheduler.NodeID { return scheduler.NodeID(id) }
