package ledgertest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/beammesh/beammesh/node/ledger"
	"github.com/beammesh/beammesh/proto/fault"
)

// casInput is one operation on one workspace record.
type casInput struct {
	key  string
	read bool
	name string // value to set
	from uint64 // IfRevision
}

type casOutput struct {
	name     string
	revision uint64
	missing  bool
	conflict bool
}

type casState struct {
	name     string
	revision uint64 // 0 = no record
}

// casModel says what a single copy of the record would do.
var casModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byKey := map[string][]porcupine.Operation{}
		var keys []string
		for _, op := range history {
			k := op.Input.(casInput).key
			if byKey[k] == nil {
				keys = append(keys, k)
			}
			byKey[k] = append(byKey[k], op)
		}
		var out [][]porcupine.Operation
		for _, k := range keys {
			out = append(out, byKey[k])
		}
		return out
	},
	Init: func() any { return casState{} },
	Step: func(state, input, output any) (bool, any) {
		s, in, out := state.(casState), input.(casInput), output.(casOutput)
		exists := s.revision != 0
		switch {
		case in.read && !exists:
			return out.missing, s
		case in.read:
			return !out.missing && out.name == s.name && out.revision == s.revision, s
		case !exists && in.from != 0:
			return out.missing, s
		case exists && in.name != s.name && in.from != s.revision:
			return out.conflict, s
		case exists && in.name == s.name:
			return !out.conflict && !out.missing && out.revision == s.revision, s
		}
		ok := !out.conflict && !out.missing && out.name == in.name && out.revision > s.revision
		return ok, casState{in.name, out.revision}
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v -> %+v", input, output) },
}

// Linearizable runs clients against ledgers of one mesh (the voter, followers
// of it) at once and checks that their compare-and-sets and reads have an order
// in which a single copy would have answered the same.
func Linearizable(t *testing.T, seed uint64, ledgers ...ledger.Ledger) {
	const clients, ops, keys = 6, 40, 3
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	var mu sync.Mutex
	var history []porcupine.Operation
	start := time.Now()
	var wg sync.WaitGroup
	for c := range clients {
		wg.Add(1)
		go func() {
			defer wg.Done()
			l := ledgers[c%len(ledgers)]
			rng := rand.New(rand.NewPCG(seed, uint64(c)))
			seen := map[string]uint64{}
			for i := range ops {
				in := casInput{key: fmt.Sprint("w", rng.IntN(keys)), read: rng.IntN(3) == 0}
				if !in.read {
					in.name, in.from = fmt.Sprintf("c%d-%d", c, i), seen[in.key]
				}
				call := time.Since(start).Nanoseconds()
				out, err := perform(ctx, l, in)
				back := time.Since(start).Nanoseconds()
				if err != nil {
					t.Errorf("client %d %+v: %v", c, in, err)
					return
				}
				if out.revision != 0 {
					seen[in.key] = out.revision
				} else if out.conflict { // look, so that the next one has a chance
					if a, err := l.Get(ctx, ledger.Key{Kind: ledger.KindWorkspace, Workspace: in.key, ID: in.key}, 0); err == nil {
						seen[in.key] = a.Revision
					}
				}
				mu.Lock()
				history = append(history, porcupine.Operation{ClientId: c, Input: in, Call: call, Output: out, Return: back})
				mu.Unlock()
			}
		}()
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	won := 0
	for _, op := range history {
		if !op.Input.(casInput).read && op.Output.(casOutput).revision != 0 {
			won++
		}
	}
	if won < keys {
		t.Fatalf("only %d of %d operations wrote: the history shows nothing", won, len(history))
	}
	switch porcupine.CheckOperationsTimeout(casModel, history, Patience) {
	case porcupine.Illegal:
		t.Fatalf("history of %d operations is not linearizable (seed %d)", len(history), seed)
	case porcupine.Unknown:
		t.Fatalf("history of %d operations was not checked in time (seed %d)", len(history), seed)
	}
}

func perform(ctx context.Context, l ledger.Ledger, in casInput) (casOutput, error) {
	var rec ledger.Record
	var err error
	if in.read {
		var a ledger.Answer
		a, err = l.Get(ctx, ledger.Key{Kind: ledger.KindWorkspace, Workspace: in.key, ID: in.key}, 0)
		if a.Cached {
			return casOutput{}, fmt.Errorf("read of %s came from a copy", in.key)
		}
		rec = a.Record
	} else {
		var r ledger.Result
		r, err = l.Propose(ctx, ledger.PutWorkspace{ID: in.key, Name: in.name, IfRevision: in.from})
		rec = r.Record
	}
	switch fault.CodeOf(err) {
	case "":
		return casOutput{name: rec.Body.(ledger.Workspace).Name, revision: rec.Revision}, nil
	case fault.NotFound:
		return casOutput{missing: true}, nil
	case fault.Conflict:
		return casOutput{conflict: true}, nil
	}
	return casOutput{}, err
}
