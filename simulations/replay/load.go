package replay

import (
	"slices"
	"time"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/scheduler/record"
	"github.com/beammesh/beammesh/scheduler/replicas"
)

// Load is what users wanted of a mesh, and the mesh.
type Load struct {
	Nodes []Node
	Stubs []Stub
	Calls []Call // by time of submission
	// Failed calls are in Calls as if they had succeeded; Unfinished ones, which
	// never ended in the recording, are left out.
	Failed, Unfinished int
}

// Node is a machine as it was when the first call came.
type Node struct {
	ID     scheduler.NodeID
	Name   string
	Owner  market.OwnerConfig
	Worker market.WorkerConfig // Node is "" where the node runs no containers
	Hot    []string            // roots that were complete there
}

// Stub is one function and its pool.
type Stub struct {
	Owner  scheduler.NodeID
	Key    string
	Name   string
	Config replicas.Config
	Demand scheduler.Demand
	// Headless and Patient as in its offers.
	Headless, Patient bool
}

// Call is one call of a stub.
type Call struct {
	Stub     int // in Load.Stubs
	At       time.Duration
	Lasts    time.Duration // from begin to result
	Timeout  time.Duration
	Deadline time.Duration // after At; 0 = none
	ID       replicas.CallID
}

// LoadOf takes the load out of journals.
func LoadOf(js []Journal) Load {
	var l Load
	first := firstSubmit(js)
	for i := range js {
		j := &js[i]
		l.Nodes = append(l.Nodes, nodeOf(j, first))
		l.addCalls(j)
	}
	slices.SortStableFunc(l.Calls, func(a, b Call) int { return int(a.At - b.At) })
	return l
}

func firstSubmit(js []Journal) time.Duration {
	first := time.Duration(-1)
	for i := range js {
		for k := range js[i].Records {
			if _, ok := js[i].Records[k].Event.(replicas.Submit); ok {
				at := js[i].at(&js[i].Records[k])
				if at < js[i].Since {
					continue
				}
				if first < 0 || at < first {
					first = at
				}
				break
			}
		}
	}
	return first
}

// nodeOf is what j's node had at the given time.
func nodeOf(j *Journal, at time.Duration) Node {
	n := Node{ID: j.Node, Name: j.Name, Owner: j.Records[0].Event.(record.OwnerStart).Config}
	for k := range j.Records {
		r := &j.Records[k]
		if at >= 0 && j.at(r) > at && n.Worker.Node != "" {
			break
		}
		switch e := r.Event.(type) {
		case record.WorkerStart:
			n.Worker, n.Hot = e.Config, e.Config.Capacity.HotRoots
		case market.SetCapacity:
			n.Worker.Capacity = e.Capacity
		case market.SetHotRoots:
			n.Hot = e.Roots
		}
	}
	return n
}

// addCalls takes the calls of one owner in the order of its journal.
func (l *Load) addCalls(j *Journal) {
	type open struct {
		call  Call
		begun time.Duration // -1 = not
	}
	stubs := map[string]int{} // by machine
	calls := map[replicas.CallID]*open{}
	for k := range j.Records {
		r := &j.Records[k]
		at := j.at(r)
		switch e := r.Event.(type) {
		case record.PoolStart:
			key := r.Machine[len(record.PoolPrefix):]
			if i := slices.IndexFunc(l.Stubs, func(s Stub) bool { return s.Owner == j.Node && s.Key == key }); i >= 0 {
				stubs[r.Machine] = i
				continue
			}
			stubs[r.Machine] = len(l.Stubs)
			l.Stubs = append(l.Stubs, Stub{Owner: j.Node, Key: key, Name: e.Stub, Config: e.Config, Demand: e.Demand})
		case replicas.Submit:
			stub, ok := stubs[r.Machine]
			if !ok {
				continue // its pool's start is not in the journal
			}
			if at < j.Since {
				continue
			}
			c := Call{Stub: stub, At: at, ID: e.Call.ID, Timeout: e.Call.Timeout}
			if e.Call.Deadline > 0 {
				c.Deadline = e.Call.Deadline - r.At
			}
			o := &open{call: c, begun: -1}
			calls[e.Call.ID] = o
		case replicas.Begun:
			if o := calls[e.Call]; o != nil {
				o.begun = at
			}
		case replicas.Result:
			o := calls[e.Call]
			if o == nil || o.begun < 0 {
				continue
			}
			if e.Failure != nil {
				l.Failed++
			}
			o.call.Lasts = at - o.begun
			l.Calls = append(l.Calls, o.call)
			delete(calls, e.Call)
		case market.Submit:
			if i := slices.IndexFunc(l.Stubs, func(s Stub) bool { return s.Owner == j.Node && s.Key == e.Offer.Group }); i >= 0 {
				l.Stubs[i].Headless, l.Stubs[i].Patient = e.Offer.Headless, e.Offer.Patient
			}
		}
	}
	l.Unfinished += len(calls)
}

// Remove takes a node out; its functions are owned by the first that is left.
// It says whether there is a node of that name or id.
func (l *Load) Remove(name string) bool {
	i := slices.IndexFunc(l.Nodes, func(n Node) bool { return n.Name == name || string(n.ID) == name })
	if i < 0 || len(l.Nodes) == 1 {
		return false
	}
	gone := l.Nodes[i].ID
	l.Nodes = slices.Delete(slices.Clone(l.Nodes), i, i+1)
	l.Stubs = slices.Clone(l.Stubs)
	for k := range l.Stubs {
		if l.Stubs[k].Owner == gone {
			l.Stubs[k].Owner = l.Nodes[0].ID
		}
	}
	return true
}

// Add puts a node with these devices in. It has what the median node has of
// everything else, and no image.
func (l *Load) Add(name string, devices []scheduler.Device) {
	workers := slices.DeleteFunc(slices.Clone(l.Nodes), func(n Node) bool { return n.Worker.Node == "" })
	n := Node{ID: scheduler.NodeID(name), Name: name}
	if len(workers) > 0 {
		slices.SortStableFunc(workers, func(a, b Node) int {
			return int(a.Worker.Capacity.Total.CPUMillis - b.Worker.Capacity.Total.CPUMillis)
		})
		like := workers[len(workers)/2]
		n.Owner, n.Worker = like.Owner, like.Worker
		n.Worker.Capacity = like.Worker.Capacity.Clone()
	}
	n.Owner.ID = market.OwnerID{Peer: n.ID, Epoch: 1}
	n.Worker.Node, n.Worker.Name, n.Worker.Boot = n.ID, name, "added"
	n.Worker.Capacity.Devices, n.Worker.Capacity.HotRoots = devices, nil
	l.Nodes = append(slices.Clone(l.Nodes), n)
}
