package call

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"

	beamv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/fault"
	"google.golang.org/protobuf/proto"
)

// Bounds of the events that are kept for clients, those of one map and those of
// all maps of a node, in bytes. What does not fit into memory goes to files;
// what does not fit there either waits, see calls.keep.
const (
	mapMemory  = 64 << 20
	nodeMemory = 512 << 20
	mapDisk    = 4 << 30
	nodeDisk   = 16 << 30
	// eventOverhead is what an event costs beside its bytes, roughly.
	eventOverhead = 256
)

// shelf counts the events that all maps of a node keep, and holds those that
// are in files. Safe for concurrent use.
type shelf struct {
	dir                 string // for files; "" = none
	maxMemory, maxDisk  int
	mapMemory, mapDisk  int
	mu                  sync.Mutex
	memory, disk, files int
	freed               chan struct{} // closed and replaced when something was given back
}

func newShelf(dir string) *shelf {
	s := &shelf{dir: dir, maxMemory: nodeMemory, maxDisk: nodeDisk, mapMemory: mapMemory, mapDisk: mapDisk, freed: make(chan struct{})}
	if dir == "" {
		s.maxDisk = 0
	}
	return s
}

// event is a ResultEvent on the shelf.
type event struct {
	ev   *beamv1.ResultEvent // nil: in file
	file string
	size int
	log  bool
}

func sizeOf(ev *beamv1.ResultEvent) int { return proto.Size(ev) + eventOverhead }

// takeMemory reserves room; what it gave goes back by give.
func (s *shelf) takeMemory(size int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.memory+size > s.maxMemory {
		return false
	}
	s.memory += size
	return true
}

// forceMemory counts what is kept in any case: small events, of which a map has
// few that wait.
func (s *shelf) forceMemory(size int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.memory += size
}

func (s *shelf) takeDisk(size int) (file string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.disk+size > s.maxDisk {
		return "", false
	}
	s.disk += size
	s.files++
	return filepath.Join(s.dir, fmt.Sprint("event-", s.files)), true
}

// give takes an event off the shelf.
func (s *shelf) give(e event) {
	if e.file != "" {
		_ = os.Remove(e.file) // may never have been written
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.file != "" {
		s.disk -= e.size
	} else {
		s.memory -= e.size
	}
	close(s.freed)
	s.freed = make(chan struct{})
}

// waitFreed gives a channel that is closed when anything is given back after now.
func (s *shelf) waitFreed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.freed
}

// write puts an event into its file. It need not outlive the node: the map does
// not either.
func (s *shelf) write(file string, ev *beamv1.ResultEvent) error {
	b, err := proto.Marshal(ev)
	if err != nil {
		return fmt.Errorf("encode a result: %w", err)
	}
	if err := os.WriteFile(file, b, 0o600); err != nil {
		return fmt.Errorf("keep a result for its reader: %w", err)
	}
	return nil
}

// load gives an event with its number.
func (e event) load(number uint64) (*beamv1.ResultEvent, error) {
	if e.file == "" {
		return e.ev, nil
	}
	b, err := os.ReadFile(e.file)
	if err != nil {
		if os.IsNotExist(err) { // another reader has gone on, or the map has ended
			return nil, fault.Newf(fault.Conflict, "event %d is no longer kept: another reader was faster", number)
		}
		return nil, fmt.Errorf("read a kept result: %w", err)
	}
	ev := new(beamv1.ResultEvent)
	if err := proto.Unmarshal(b, ev); err != nil {
		return nil, fmt.Errorf("read a kept result: %w", err)
	}
	ev.Event = number
	return ev, nil
}
