package scheduler

import (
	"fmt"
	"slices"
	"strings"

	"github.com/beammesh/beammesh/scheduler/gpu"
)

// MaxNodes bounds a view; adverts of further nodes are ignored.
const MaxNodes = 1 << 17

// View is an owner's picture of the mesh: the last advert of each node, minus
// what the owner has asked of it and not yet heard about, plus what it has given
// back. Not safe for concurrent use. The zero value is not ready; use NewView.
type View struct {
	nodes map[NodeID]*viewNode
	// order holds all nodes, byClass those that have a device of the class, both
	// in canonical order. Decisions walk these, never the map.
	order   []*viewNode
	classes []string // sorted keys of byClass
	byClass map[string][]*viewNode
	visit   uint64   // stamp of the last walk
	spare   []Device // scratch of ScoreNode

	last      *viewNode   // found last
	slots     []*viewNode // by viewNode.slot; nil = free
	freeSlots []int32
	rankings  []*ranking
	asked     uint64 // counts the questions to rankings
	packing   *Packing
	packEpoch uint64 // of packing, when last looked at
	// freeGPU and allGPU are the milli-GPU of the nodes that are up.
	freeGPU, allGPU int64
	scarce          bool
	epoch           uint64 // counts the changes of how nodes are scored
	// changes are the nodes that changed, in order; the first is number
	// firstChange of all.
	changes     []*viewNode
	firstChange uint64
	front       []int32 // scratch of ranking.walk
}

type viewNode struct {
	advert Advert
	eff    Capacity // the advert's capacity with the notes applied
	source Source   // how it was first found
	class  string
	hash   uint64
	down   string // why it cannot be reached; "" = it can
	soft   bool   // down only until the next sign of life, however old its news
	// oldBoots are the lives before this one, the latest first: what they said
	// comes late and is ignored.
	oldBoots [8]string
	notes    []note
	stamp    uint64
	slot     int32
	changed  uint64 // its latest place in View.changes
	gone     bool   // forgotten
	// state stands for all that a ranking looks at; kept is the part of it that
	// only an advert changes, counted up.
	state uint64
	kept  uint64
	// what the node adds to View.freeGPU and allGPU
	freeGPU, allGPU int64
}

// note is something the advert does not show yet.
type note struct {
	key    string
	demand Demand
	credit bool // freed instead of taken
}

// NewView makes an empty view.
func NewView() *View {
	return &View{nodes: map[NodeID]*viewNode{}, byClass: map[string][]*viewNode{}}
}

// find is the node with an id, or nil. One message leads to several questions
// about one node, so the last one is remembered.
func (v *View) find(id NodeID) *viewNode {
	if v.last != nil && v.last.advert.Node == id {
		return v.last
	}
	n := v.nodes[id]
	if n != nil {
		v.last = n
	}
	return n
}

// Update takes an advert and says whether it was news. Credits are dropped,
// since the advert shows them or will be followed by one that does.
func (v *View) Update(a Advert, source Source) bool {
	n := v.find(a.Node)
	switch {
	case n == nil:
		if len(v.nodes) >= MaxNodes {
			return false
		}
		n = &viewNode{source: source, hash: HashOf(a.Node)}
		v.nodes[a.Node] = n
		if last := len(v.freeSlots) - 1; last >= 0 {
			n.slot, v.freeSlots = v.freeSlots[last], v.freeSlots[:last]
			v.slots[n.slot] = n
		} else {
			n.slot = int32(len(v.slots))
			v.slots = append(v.slots, n)
		}
	case n.advert.Boot == a.Boot:
		if a.Seq == n.advert.Seq && n.down != "" && n.soft {
			n.down = ""
			v.touch(n)
			v.countGPUs(n)
			return true
		}
		if a.Seq <= n.advert.Seq {
			return false
		}
	case slices.Contains(n.oldBoots[:], a.Boot) && source != SourceHello:
		return false
	default: // a handshake is with the present life, whatever we believed
		copy(n.oldBoots[1:], n.oldBoots[:])
		n.oldBoots[0] = n.advert.Boot
		n.notes = nil // promises of an earlier life
	}
	fresh := n.advert.Node == ""
	moved := fresh || !sameDevices(n.advert.Capacity.Devices, a.Capacity.Devices)
	if moved && !fresh {
		v.unindex(n)
	}
	if fresh || !n.advert.Capacity.sameKind(&a.Capacity) {
		n.kept++
	}
	n.advert, n.class, n.down = a, a.Capacity.Class(), ""
	n.notes = slices.DeleteFunc(n.notes, func(x note) bool { return x.credit })
	if moved {
		v.index(n)
	}
	v.refresh(n)
	return true
}

// sameDevices says whether two inventories have the same classes in the same order.
func sameDevices(a, b []Device) bool {
	return slices.EqualFunc(a, b, func(x, y Device) bool { return x.Class == y.Class })
}

// compareNodes is the canonical order: by hash of the id, then the id.
func compareNodes(a, b *viewNode) int {
	if a.hash != b.hash {
		if a.hash < b.hash {
			return -1
		}
		return 1
	}
	return strings.Compare(string(a.advert.Node), string(b.advert.Node))
}

func (v *View) index(n *viewNode) {
	insert := func(list []*viewNode) []*viewNode {
		i, _ := slices.BinarySearchFunc(list, n, compareNodes)
		return slices.Insert(list, i, n)
	}
	v.order = insert(v.order)
	for _, class := range deviceClasses(n.advert.Capacity.Devices) {
		if _, ok := v.byClass[class]; !ok {
			i, _ := slices.BinarySearch(v.classes, class)
			v.classes = slices.Insert(v.classes, i, class)
		}
		v.byClass[class] = insert(v.byClass[class])
	}
}

func (v *View) unindex(n *viewNode) {
	remove := func(list []*viewNode) []*viewNode {
		if i, ok := slices.BinarySearchFunc(list, n, compareNodes); ok {
			return slices.Delete(list, i, i+1)
		}
		return list
	}
	v.order = remove(v.order)
	for _, class := range deviceClasses(n.advert.Capacity.Devices) {
		if v.byClass[class] = remove(v.byClass[class]); len(v.byClass[class]) == 0 {
			delete(v.byClass, class)
			if i, ok := slices.BinarySearch(v.classes, class); ok {
				v.classes = slices.Delete(v.classes, i, i+1)
			}
		}
	}
}

func deviceClasses(ds []Device) []string {
	var cs []string
	for i := range ds {
		if !slices.Contains(cs, ds[i].Class) {
			cs = append(cs, ds[i].Class)
		}
	}
	return cs
}

// refresh computes eff anew from the advert and the notes.
func (v *View) refresh(n *viewNode) {
	devices := append(n.eff.Devices[:0], n.advert.Capacity.Devices...)
	n.eff = n.advert.Capacity
	n.eff.Devices = devices
	for i := range n.notes {
		if n.notes[i].credit {
			giveBack(&n.notes[i].demand, &n.eff)
		}
	}
	for i := range n.notes {
		if !n.notes[i].credit {
			takeAway(&n.notes[i].demand, &n.eff, v.packing)
		}
	}
	v.touch(n)
	v.countGPUs(n)
}

// sameKind says whether two capacities of a node differ at most in what is free.
func (c *Capacity) sameKind(o *Capacity) bool {
	return c.Total == o.Total && c.DiskFloorMiB == o.DiskFloorMiB && c.Zone == o.Zone && c.Arch == o.Arch &&
		c.BandwidthKiBps == o.BandwidthKiBps && sameDevices(c.Devices, o.Devices) && slices.Equal(c.HotRoots, o.HotRoots) &&
		slices.Equal(c.Isolation, o.Isolation) && slices.Equal(c.Features, o.Features)
}

// SetPacking makes the view rank by the fragmentation of GPUs from now on; nil
// ends it. The view sees by itself when p gets another mix.
func (v *View) SetPacking(p *Packing) {
	v.packing = p
	v.epoch++
}

// GPUs are called scarce below this share of free ones, and no longer scarce
// from the other on. In between it stays as it was: each change scores all nodes
// anew.
const (
	scarceBelow  = 300
	scarceBeyond = 400
)

// countGPUs brings the sums over all nodes up to date with n.
func (v *View) countGPUs(n *viewNode) {
	var free, all int64
	if n.down == "" && !n.gone {
		for i := range n.eff.Devices {
			free += n.eff.Devices[i].FreeMilli
		}
		all = int64(len(n.eff.Devices)) * GPUExclusive
	}
	v.freeGPU += free - n.freeGPU
	v.allGPU += all - n.allGPU
	n.freeGPU, n.allGPU = free, all
}

// followPacking notices what changes all scores at once.
func (v *View) followPacking() {
	if v.packing == nil {
		return
	}
	if v.packEpoch != v.packing.epoch {
		v.packEpoch = v.packing.epoch
		v.epoch++
	}
	limit := int64(scarceBelow)
	if v.scarce {
		limit = scarceBeyond
	}
	if scarce := v.freeGPU*1000 < v.allGPU*limit; scarce != v.scarce {
		v.scarce = scarce
		v.epoch++
	}
}

// takeAway is Allocate that takes what there is when not all is.
func takeAway(d *Demand, c *Capacity, p *Packing) {
	var few [MaxGPUCount]int
	if _, ok := take(d, c, few[:0], p); ok {
		return
	}
	c.Free.CPUMillis = max(0, c.Free.CPUMillis-d.CPUMillis)
	c.Free.MemoryMiB = max(0, c.Free.MemoryMiB-d.MemoryMiB)
	c.Free.DiskMiB = max(0, c.Free.DiskMiB-d.DiskMiB)
	if len(d.GPUs) == 0 {
		return
	}
	left := d.GPUs[0].Count
	for i := range c.Devices {
		if left > 0 && gpu.Matches(d.GPUs[0].Class, c.Devices[i].Class) && c.Devices[i].FreeMilli > 0 {
			c.Devices[i].FreeMilli = max(0, c.Devices[i].FreeMilli-d.Milli())
			left--
		}
	}
}

// giveBack guesses what a node frees when it lets d go.
func giveBack(d *Demand, c *Capacity) {
	c.Free.CPUMillis = min(c.Total.CPUMillis, c.Free.CPUMillis+d.CPUMillis)
	c.Free.MemoryMiB = min(c.Total.MemoryMiB, c.Free.MemoryMiB+d.MemoryMiB)
	c.Free.DiskMiB = min(c.Total.DiskMiB, c.Free.DiskMiB+d.DiskMiB)
	for i := range d.GPUs {
		left := d.GPUs[i].Count
		for j := range c.Devices {
			dev := &c.Devices[j]
			if left > 0 && gpu.Matches(d.GPUs[i].Class, dev.Class) && dev.FreeMilli+d.Milli() <= GPUExclusive {
				dev.FreeMilli += d.Milli()
				left--
			}
		}
		if left < d.GPUs[i].Count {
			return
		}
	}
}

// Debit notes that d was asked of a node under key, until Settle. One key counts
// once per node.
func (v *View) Debit(id NodeID, key string, d Demand) { v.addNote(id, note{key: key, demand: d}) }

// Credit notes that a node was told to let d go, until its next advert.
func (v *View) Credit(id NodeID, key string, d Demand) {
	v.addNote(id, note{key: key, demand: d, credit: true})
}

func (v *View) addNote(id NodeID, x note) {
	n := v.find(id)
	if n == nil {
		return
	}
	for i := range n.notes {
		if n.notes[i].key == x.key && n.notes[i].credit == x.credit {
			return
		}
	}
	n.notes = append(n.notes, x)
	v.refresh(n)
}

// Settle drops the debit under key: the node has answered, or never will. It
// says whether there was one.
func (v *View) Settle(id NodeID, key string) bool {
	n := v.find(id)
	if n == nil {
		return false
	}
	before := len(n.notes)
	n.notes = slices.DeleteFunc(n.notes, func(x note) bool { return x.key == key && !x.credit })
	if len(n.notes) == before {
		return false
	}
	v.refresh(n)
	return true
}

// SetDown takes a node out of placement until its next news or SetUp; soft means
// that a repeated advert (a heartbeat) is enough.
func (v *View) SetDown(id NodeID, reason string, soft bool) {
	if n := v.find(id); n != nil {
		if reason == "" {
			reason = "unreachable"
		}
		n.down, n.soft = reason, soft
		n.notes = nil
		v.refresh(n)
	}
}

// SetUp puts it back with its last advert.
func (v *View) SetUp(id NodeID) bool {
	n := v.find(id)
	if n == nil || n.down == "" {
		return false
	}
	n.down = ""
	v.touch(n)
	v.countGPUs(n)
	return true
}

// Forget drops a node altogether, for one that left the mesh.
func (v *View) Forget(id NodeID) {
	if n := v.find(id); n != nil {
		v.unindex(n)
		delete(v.nodes, id)
		v.last = nil
		n.gone = true
		v.countGPUs(n)
		v.slots[n.slot] = nil
		v.freeSlots = append(v.freeSlots, n.slot)
		v.touch(n)
	}
}

// Len is the number of nodes known, those that are down included.
func (v *View) Len() int { return len(v.order) }

// Advert is a node's last advert and whether the node is known and not down.
func (v *View) Advert(id NodeID) (a Advert, up bool) {
	n := v.find(id)
	if n == nil {
		return Advert{Node: id}, false
	}
	return n.advert, n.down == ""
}

// Effective is a node's capacity as far as this owner may take it: the last
// advert, less what was asked and not answered yet. The slices must not be
// written to.
func (v *View) Effective(id NodeID) (c Capacity, up bool) {
	n := v.find(id)
	if n == nil {
		return Capacity{}, false
	}
	return n.eff, n.down == ""
}

// Nodes lists the ids of all known nodes in canonical order.
func (v *View) Nodes() []NodeID {
	ids := make([]NodeID, len(v.order))
	for i, n := range v.order {
		ids[i] = n.advert.Node
	}
	return ids
}

// Up says whether a node is known and not down.
func (v *View) Up(id NodeID) bool {
	n := v.find(id)
	return n != nil && n.down == ""
}

// Draining says whether a node said so in its last advert.
func (v *View) Draining(id NodeID) bool {
	n := v.find(id)
	return n != nil && n.advert.Capacity.Draining
}

// SourceOf says how a node was first found.
func (v *View) SourceOf(id NodeID) Source {
	if n := v.find(id); n != nil {
		return n.source
	}
	return ""
}

// Classes lists the GPU classes of all nodes that are up, sorted.
func (v *View) Classes() []string {
	var cs []string
	for _, c := range v.classes {
		if c != "" && slices.ContainsFunc(v.byClass[c], func(n *viewNode) bool { return n.down == "" }) {
			cs = append(cs, c)
		}
	}
	return cs
}

// walk calls fn for every node that may have the devices d asks for, until fn
// returns false, in canonical order within each class.
func (v *View) walk(d *Demand, fn func(*viewNode) bool) {
	if len(d.GPUs) == 0 {
		for _, n := range v.order {
			if !fn(n) {
				return
			}
		}
		return
	}
	v.visit++
	for _, class := range v.classes {
		if !slices.ContainsFunc(d.GPUs, func(w gpu.Want) bool { return gpu.Matches(w.Class, class) }) {
			continue
		}
		for _, n := range v.byClass[class] {
			if n.stamp == v.visit {
				continue // seen under another of its classes
			}
			n.stamp = v.visit
			if !fn(n) {
				return
			}
		}
	}
}

// Clamp bends the cores of d to the largest node that could otherwise take it,
// and says so in note. d comes back unchanged when some node is large enough, when
// none could take it at all, or when StrictCPU is set.
func (v *View) Clamp(d Demand) (clamped Demand, note string) {
	if d.StrictCPU {
		return d, ""
	}
	var largest int64
	v.walk(&d, func(n *viewNode) bool {
		c := &n.advert.Capacity
		if n.down == "" && c.Total.CPUMillis > largest && fitOf(&d, c, 0) != FitNever {
			largest = c.Total.CPUMillis
		}
		return largest < d.CPUMillis
	})
	if largest == 0 || largest >= d.CPUMillis {
		return d, ""
	}
	note = fmt.Sprintf("asked for %s, the largest node that fits has %s", Cores(d.CPUMillis), coresOnly(largest))
	d.CPUMillis = largest
	return d, note
}

func coresOnly(millis int64) string {
	return strings.TrimSuffix(strings.TrimSuffix(Cores(millis), " cores"), " core")
}
