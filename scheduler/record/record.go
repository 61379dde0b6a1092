package record

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/scheduler/replicas"
)

// The machines; a pool is PoolPrefix and its key.
const (
	Owner      = "owner"
	Worker     = "worker"
	PoolPrefix = "pool "
	gap        = "gap"
)

// MaxLine bounds one record; a reader refuses longer lines.
const MaxLine = 1 << 20

// Record is one step of one machine.
type Record struct {
	At      time.Duration
	Machine string
	// Event is a market.OwnerEvent, market.WorkerEvent or replicas.Event, or one
	// of OwnerStart, WorkerStart, PoolStart, PoolEnd, Gap.
	Event any
	// Decisions are the actions that matter, in order and in words.
	Decisions []string
}

// OwnerStart begins the owner of a node's new life.
type OwnerStart struct {
	Config market.OwnerConfig
	Name   string    // of the node, for people
	Wall   time.Time // when At was the time, for people and to join nodes' journals
}

// WorkerStart begins the worker.
type WorkerStart struct {
	Config market.WorkerConfig
	Wall   time.Time
}

// PoolStart begins the pool of one stub.
type PoolStart struct {
	Config replicas.Config
	Stub   string // its name, for people
	Demand scheduler.Demand
}

// PoolEnd forgets a pool.
type PoolEnd struct{}

// Gap says that records are missing here.
type Gap struct{ Lost int64 }

// line is a Record on disk.
type line struct {
	At      int64           `json:"at"`
	Machine string          `json:"m"`
	In      string          `json:"in"`
	Event   json.RawMessage `json:"ev,omitempty"`
	Out     []string        `json:"out,omitempty"`
}

// names maps the names of events to their types, apart for owner, worker and
// pool: they share names.
var (
	ownerEvents = names(OwnerStart{}, market.Submit{}, market.AdvertSeen{}, market.NodeUp{}, market.NodeDown{}, market.SendFailed{},
		market.DiscoveryDone{}, market.SetMix{}, market.ReleaseLease{}, market.Withdraw{}, market.Adopt{}, market.Disown{}, market.Tick{},
		market.AskReply{}, market.AwardReply{}, market.ReleaseReply{}, market.Renew{}, market.Ended{}, market.Pull{})
	workerEvents = names(WorkerStart{}, market.Ask{}, market.Award{}, market.Release{}, market.RenewAck{}, market.EndedAck{},
		market.OpenOffer{}, market.LeaseReady{}, market.Restore{}, market.LeaseDone{}, market.OwnerDown{}, market.OwnerUp{},
		market.Drain{}, market.SetMix{}, market.SetCapacity{}, market.SetHotRoots{}, market.Tick{})
	poolEvents = names(PoolStart{}, PoolEnd{}, replicas.Submit{}, replicas.Cancel{}, replicas.ReplicaReady{}, replicas.AcquireFailed{},
		replicas.ReplicaLost{}, replicas.ReplicaDraining{}, replicas.Begun{}, replicas.Result{}, replicas.Recalled{},
		replicas.Resume{}, replicas.SetLimits{}, replicas.Close{}, replicas.Tick{})
	gapEvents = names(Gap{})
)

func names(events ...any) map[string]reflect.Type {
	m := map[string]reflect.Type{}
	for _, e := range events {
		t := reflect.TypeOf(e)
		m[t.Name()] = t
	}
	return m
}

func eventsOf(machine string) map[string]reflect.Type {
	switch {
	case machine == Owner:
		return ownerEvents
	case machine == Worker:
		return workerEvents
	case machine == gap:
		return gapEvents
	case len(machine) > len(PoolPrefix) && machine[:len(PoolPrefix)] == PoolPrefix:
		return poolEvents
	}
	return nil
}

// Append writes r as one line, newline included, behind dst.
func Append(dst []byte, r *Record) ([]byte, error) {
	machine := r.Machine
	if _, ok := r.Event.(Gap); ok {
		machine = gap
	}
	t := reflect.TypeOf(r.Event)
	if eventsOf(machine)[t.Name()] != t {
		return dst, fmt.Errorf("record: %s has no event %s", machine, t)
	}
	l := line{At: int64(r.At), Machine: machine, In: t.Name(), Out: r.Decisions}
	if t.NumField() > 0 {
		b, err := json.Marshal(withoutText(r.Event))
		if err != nil {
			return dst, fmt.Errorf("record %s: %w", t.Name(), err)
		}
		l.Event = b
	}
	b, err := json.Marshal(&l)
	if err != nil {
		return dst, fmt.Errorf("record %s: %w", t.Name(), err)
	}
	if len(b) >= MaxLine {
		return dst, fmt.Errorf("record: %s of %d bytes is too long", t.Name(), len(b))
	}
	return append(append(dst, b...), '\n'), nil
}

// withoutText drops what users' programs said: no decision depends on it.
func withoutText(ev any) any {
	switch e := ev.(type) {
	case replicas.Result:
		if e.Failure != nil {
			e.Failure = &replicas.Failure{Kind: e.Failure.Kind, Name: e.Failure.Name}
		}
		return e
	case replicas.ReplicaLost:
		e.Failure.Text = ""
		return e
	case market.LeaseDone:
		e.Detail = ""
		return e
	case market.Ended:
		e.Detail = ""
		return e
	}
	return ev
}

// Parse reads one line. It refuses what Append does not write.
func Parse(b []byte) (Record, error) {
	if len(b) > MaxLine {
		return Record{}, errors.New("record: line is too long")
	}
	var l line
	if err := strict(b, &l); err != nil {
		return Record{}, fmt.Errorf("record: %w", err)
	}
	t := eventsOf(l.Machine)[l.In]
	if t == nil {
		return Record{}, fmt.Errorf("record: machine %q has no event %q", l.Machine, l.In)
	}
	ev := reflect.New(t)
	if len(l.Event) > 0 {
		// A journal of a newer node may know more fields.
		if err := json.Unmarshal(l.Event, ev.Interface()); err != nil {
			return Record{}, fmt.Errorf("record: %s: %w", l.In, err)
		}
	}
	return Record{At: time.Duration(l.At), Machine: l.Machine, Event: ev.Elem().Interface(), Decisions: l.Out}, nil
}

func strict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if d.More() {
		return errors.New("more than one value in a line")
	}
	return nil
}
