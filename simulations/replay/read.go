package replay

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/record"
)

// Journal is what one node recorded.
type Journal struct {
	Node    scheduler.NodeID
	Name    string
	Records []record.Record
	// Offset is the node's clock at the start of the recording: subtracting it
	// puts all nodes on one time.
	Offset time.Duration
	// Zero is what the clock on the wall said at time 0 of all nodes.
	Zero time.Time
	// Since leaves out, in all but Verify, what came before: on the time of all
	// nodes. The mesh should be without work then.
	Since time.Duration
}

// Since leaves out what came before a moment.
func Since(js []Journal, wall time.Time) {
	for i := range js {
		js[i].Since = wall.Sub(js[i].Zero)
	}
}

// Read reads the journals of nodes: each path is a node's journal folder (the
// "market" folder of its data directory), the data directory itself, or one file
// of lines. A torn last line, as a kill leaves it, is left out.
func Read(paths []string) ([]Journal, error) {
	var js []Journal
	for _, p := range paths {
		files, err := segments(p)
		if err != nil {
			return nil, err
		}
		var rs []record.Record
		for _, f := range files {
			if rs, err = readFile(f, rs); err != nil {
				return nil, err
			}
		}
		j, err := newJournal(rs)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
		if slices.ContainsFunc(js, func(o Journal) bool { return o.Node == j.Node }) {
			return nil, fmt.Errorf("%s: the journal of %s is given twice", p, j.Name)
		}
		js = append(js, j)
	}
	return align(js), nil
}

// segments lists the files of one journal in order.
func segments(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	for _, dir := range []string{path, filepath.Join(path, "market")} {
		files, err := filepath.Glob(filepath.Join(dir, "market-*.jsonl"))
		if err != nil {
			return nil, err
		}
		if len(files) > 0 {
			slices.Sort(files)
			return files, nil
		}
	}
	return nil, fmt.Errorf("%s holds no market journal: give a node's data directory, and see that it ran without --market-journal 0", path)
}

func readFile(name string, rs []record.Record) ([]record.Record, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	defer f.Close()
	in := bufio.NewReaderSize(f, 256<<10)
	for n := 1; ; n++ {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return rs, nil // what has no newline is torn
		}
		if err != nil {
			return nil, fmt.Errorf("read journal %s: %w", name, err)
		}
		r, err := record.Parse(line)
		if err != nil {
			return nil, fmt.Errorf("%s line %d: %w", name, n, err)
		}
		rs = append(rs, r)
	}
}

// newJournal looks who wrote the records. Only the last life of a node counts:
// its clock began anew with each.
func newJournal(rs []record.Record) (Journal, error) {
	for i := len(rs) - 1; i >= 0; i-- {
		if s, ok := rs[i].Event.(record.OwnerStart); ok {
			return Journal{Node: s.Config.ID.Peer, Name: s.Name, Records: rs[i:]}, nil
		}
	}
	return Journal{}, errors.New("the journal does not have the start of its node: it was longer than its bound (--market-journal)")
}

// align finds each clock's offset: the earliest start of all nodes is time 0.
func align(js []Journal) []Journal {
	var first time.Time
	for _, j := range js {
		s := j.Records[0].Event.(record.OwnerStart)
		if w := s.Wall.Add(-j.Records[0].At); first.IsZero() || w.Before(first) {
			first = w
		}
	}
	for i := range js {
		s := js[i].Records[0].Event.(record.OwnerStart)
		js[i].Zero = first
		js[i].Offset = -s.Wall.Add(-js[i].Records[0].At).Sub(first)
	}
	slices.SortStableFunc(js, func(a, b Journal) int { return strings.Compare(a.Name, b.Name) })
	return js
}

// at is when r was, on the time of all nodes.
func (j *Journal) at(r *record.Record) time.Duration { return r.At - j.Offset }

// Verify feeds every journal into fresh machines.
func Verify(js []Journal) record.Summary {
	var all record.Summary
	for _, j := range js {
		v := record.NewVerifier()
		for _, r := range j.Records {
			v.Feed(r)
		}
		s := v.Summary()
		all.Steps += s.Steps
		all.Equal += s.Equal
		all.Skipped += s.Skipped
		all.Lost += s.Lost
		all.Awards += s.Awards
		all.EqualAwards += s.EqualAwards
		all.Dispatches += s.Dispatches
		all.EqualDispatches += s.EqualDispatches
		if all.First == "" && s.First != "" {
			all.First = j.Name + ": " + s.First
		}
	}
	return all
}
