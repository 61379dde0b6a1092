package results

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/beammesh/beammesh/proto/fault"
)

// Store is a results file that is being written. Only one process has it at a
// time; another one's Open is refused.
type Store struct {
	path string
	file *os.File
	log  *os.File
	size int64           // bytes of whole lines
	at   map[string]line // by key
	torn bool
}

// line is where a record stands, and its identity without metrics and series.
type line struct {
	id     Record
	offset int64
	length int64
}

// Open opens or makes a results file and cuts off the half line that a killed
// writer may have left at its end.
func Open(path string) (*Store, error) {
	f, err := lock(path)
	if err != nil {
		return nil, err
	}
	s := &Store{path: path, file: f, at: map[string]line{}}
	end, err := scan(f, path, func(offset int64, text []byte) error {
		var r Record
		if err := decode(text, &r); err != nil {
			return err
		}
		s.note(r, offset, int64(len(text))+1)
		return nil
	})
	s.size, s.torn = end.good, end.torn
	if err == nil && end.torn {
		err = f.Truncate(end.good)
	}
	if err == nil {
		s.log, err = os.OpenFile(LogPath(path), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// lock opens path and takes its lock. A writer that ends puts a new file in the
// place of its own, so the one that was opened may be the old one by then.
func lock(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "the results file cannot be opened", "choose another one with --results")
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			_ = f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fault.New(fault.Conflict, path+" is being written by another sweep", "wait for its end, or choose another file with --results")
			}
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		opened, err1 := f.Stat()
		there, err2 := os.Stat(path)
		if err1 == nil && err2 == nil && os.SameFile(opened, there) {
			return f, nil
		}
		_ = f.Close()
		if err1 != nil {
			return nil, err1
		}
	}
}

func (s *Store) note(r Record, offset, length int64) {
	r.Metrics, r.Series = nil, nil
	s.at[r.Key()] = line{id: r, offset: offset, length: length}
}

// Torn tells whether Open cut something off.
func (s *Store) Torn() bool { return s.torn }

// Done tells whether a run has a result. A run that failed has none: it is
// tried again, the policy may have been mended.
func (s *Store) Done(key string) bool {
	l, ok := s.at[key]
	return ok && l.id.Failed == nil
}

// Append adds a record; when it returns, the line is on disk.
func (s *Store) Append(r *Record, e LogEntry) error {
	text, err := r.Line()
	if err != nil {
		return err
	}
	if len(text) > MaxLine {
		return fault.New(fault.TooLarge, fmt.Sprintf("the result of %s has %d bytes, at most %d can be stored", r.Policy, len(text), MaxLine),
			"give its series fewer points")
	}
	if _, err := s.file.WriteAt(text, s.size); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	if err := s.file.Sync(); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	s.note(*r, s.size, int64(len(text)))
	s.size += int64(len(text))
	e.Key, e.Policy, e.Seed = r.Key(), r.Policy, r.Seed
	b, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("log the run: %w", err)
	}
	// The line break comes first as well: the last writer may have been killed in
	// the middle of a line.
	_, err = s.log.Write(bytes.Join([][]byte{nil, b, nil}, []byte("\n")))
	return err
}

// Finish puts the records into the order of Compare and drops those that were
// run again since. So a finished file has the same bytes whatever the order in
// which its runs ended.
func (s *Store) Finish() error {
	lines := make([]line, 0, len(s.at))
	for _, l := range s.at {
		lines = append(lines, l)
	}
	slices.SortFunc(lines, func(a, b line) int { return Compare(&a.id, &b.id) })
	t, err := os.CreateTemp(filepath.Dir(s.path), filepath.Base(s.path)+".new-*")
	if err != nil {
		return fmt.Errorf("sort results: %w", err)
	}
	err = s.copyLines(t, lines)
	if err == nil {
		err = t.Chmod(0o644)
	}
	if err == nil {
		err = t.Sync()
	}
	if err := errors.Join(err, t.Close()); err != nil {
		return errors.Join(fmt.Errorf("sort results: %w", err), os.Remove(t.Name()))
	}
	if err := os.Rename(t.Name(), s.path); err != nil {
		return errors.Join(fmt.Errorf("sort results: %w", err), os.Remove(t.Name()))
	}
	return nil
}

func (s *Store) copyLines(to io.Writer, lines []line) error {
	for _, l := range lines {
		if _, err := io.Copy(to, io.NewSectionReader(s.file, l.offset, l.length)); err != nil {
			return err
		}
	}
	return nil
}

// Close lets go of the file. It may be called twice.
func (s *Store) Close() error {
	var errs []error
	for _, f := range []*os.File{s.file, s.log} {
		if f == nil {
			continue
		}
		if err := f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
