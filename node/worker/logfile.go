package worker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"sync"
	"time"
)

const (
	// maxLogFile bounds the log of one attempt; the first bytes are kept and
	// the end says how much is missing.
	maxLogFile = 8 << 20
	// maxLogFiles, maxLogBytes and maxLogAge bound the folder; half of the first
	// two is left when one is passed.
	maxLogFiles = 10_000
	maxLogBytes = 4 << 30
	maxLogAge   = 7 * 24 * time.Hour
)

// Record header in a log file: one byte for the descriptor, then the length as
// four bytes big endian, then the bytes.
const logHeader = 5

var safeName = regexp.MustCompile(`^[a-zA-Z0-9-]{1,64}$`)

// maxSilent bounds the attempts that are remembered to have printed nothing.
const maxSilent = 10_000

// logDir keeps one bounded file per attempt that prints, readable while it
// grows. Most attempts print nothing: making a file for each would cost more
// than a short call does.
type logDir struct {
	dir string

	mu     sync.Mutex
	open   map[string]*attemptLog // by file name
	files  int                    // about as many are there
	bytes  int64
	silent map[string]bool // ended without output; forgotten when it is full
}

type attemptLog struct {
	path    string
	mu      sync.Mutex
	f       *os.File // nil until something is printed
	size    int64
	dropped int64
	done    bool
	wake    chan struct{} // closed and replaced on every change
}

func newLogDir(dir string) (*logDir, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make log folder: %w", err)
	}
	d := &logDir{dir: dir, open: map[string]*attemptLog{}, silent: map[string]bool{}}
	d.prune(time.Now())
	return d, nil
}

func logName(task string, attempt uint32) (string, error) {
	if !safeName.MatchString(task) {
		return "", fmt.Errorf("task id %q is not a name", task)
	}
	return fmt.Sprintf("%s.%d.log", task, attempt), nil
}

// create begins the log of an attempt; the caller closes it with finish.
func (d *logDir) create(task string, attempt uint32) (*attemptLog, error) {
	name, err := logName(task, attempt)
	if err != nil {
		return nil, err
	}
	l := &attemptLog{path: filepath.Join(d.dir, name), wake: make(chan struct{})}
	d.mu.Lock()
	d.open[name] = l
	delete(d.silent, name)
	over := d.overLocked()
	d.mu.Unlock()
	if over {
		d.prune(time.Now())
	}
	return l, nil
}

// closedLog takes nothing: it stands in where there is no file.
func closedLog() *attemptLog { return &attemptLog{done: true, wake: make(chan struct{})} }

func (l *attemptLog) write(fd int, p []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done {
		return
	}
	if keep := max(0, maxLogFile-l.size-logHeader); l.dropped > 0 || int64(len(p)) > keep {
		if l.dropped > 0 {
			keep = 0 // what follows a gap would mislead
		}
		l.dropped += int64(len(p)) - keep
		p = p[:keep]
	}
	if len(p) > 0 {
		l.appendLocked(fd, p)
	}
}

func (l *attemptLog) appendLocked(fd int, p []byte) {
	rec := make([]byte, 0, logHeader+len(p))
	n := len(p)
	rec = append(rec, byte(fd), byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	rec = append(rec, p...)
	if err := l.writeLocked(rec); err != nil {
		l.dropped += int64(n) // a full disk must not end the program
	}
	close(l.wake)
	l.wake = make(chan struct{})
}

func (l *attemptLog) writeLocked(rec []byte) error {
	if l.f == nil {
		f, err := os.OpenFile(l.path, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		l.f = f
	}
	w, err := l.f.WriteAt(rec, l.size)
	if err == nil {
		l.size += int64(w)
	}
	return err
}

// finish ends the log; later writes are ignored.
func (d *logDir) finish(task string, attempt uint32, l *attemptLog) {
	if l.path == "" {
		return // a closedLog
	}
	l.mu.Lock()
	if l.dropped > 0 {
		l.appendLocked(2, fmt.Appendf(nil, "\n[%d bytes of output are not kept: a log holds %d MiB]\n", l.dropped, maxLogFile>>20))
	}
	l.done = true
	close(l.wake)
	l.wake = make(chan struct{})
	f, size := l.f, l.size
	l.mu.Unlock()
	name, err := logName(task, attempt)
	if err != nil {
		return
	}
	d.mu.Lock()
	if d.open[name] == l {
		delete(d.open, name)
	}
	if f != nil {
		d.files++
		d.bytes += size
	} else {
		if len(d.silent) >= maxSilent {
			clear(d.silent)
		}
		d.silent[name] = true
	}
	over := d.overLocked()
	d.mu.Unlock()
	if f != nil {
		// Readers that still follow hold l; the file itself is reopened by path.
		_ = f.Close()
	}
	if over {
		d.prune(time.Now())
	}
}

func (d *logDir) overLocked() bool { return d.files > maxLogFiles || d.bytes > maxLogBytes }

// read calls fn for every record from the start. With follow it goes on until
// the attempt ends or stop closes. attempt 0 means the newest.
func (d *logDir) read(task string, attempt uint32, follow bool, stop <-chan struct{}, fn func(fd int, p []byte) error) error {
	if attempt == 0 {
		attempt = d.newest(task)
	}
	name, err := logName(task, attempt)
	if err != nil {
		return err
	}
	d.mu.Lock()
	live, silent := d.open[name], d.silent[name]
	d.mu.Unlock()
	if silent || live != nil && !live.printed(follow, stop) {
		return nil
	}
	f, err := os.Open(filepath.Join(d.dir, name))
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("nothing was printed, or it is no longer kept: %w", err)
	}
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer f.Close()
	var off int64
	for {
		var end int64
		done, wake := true, (<-chan struct{})(nil)
		if live != nil {
			live.mu.Lock()
			end, done, wake = live.size, live.done, live.wake
			live.mu.Unlock()
		} else if st, err := f.Stat(); err == nil {
			end = st.Size()
		}
		for off < end {
			var h [logHeader]byte
			if off+logHeader > end {
				return nil // cut by a crash of the node
			}
			if _, err := f.ReadAt(h[:], off); err != nil {
				return fmt.Errorf("read log: %w", err)
			}
			n := int64(h[1])<<24 | int64(h[2])<<16 | int64(h[3])<<8 | int64(h[4])
			if n > maxLogFile {
				return fmt.Errorf("read log: record of %d bytes", n)
			}
			if off+logHeader+n > end {
				return nil
			}
			p := make([]byte, n)
			if _, err := f.ReadAt(p, off+logHeader); err != nil {
				return fmt.Errorf("read log: %w", err)
			}
			if err := fn(int(h[0]), p); err != nil {
				return err
			}
			off += logHeader + n
		}
		if done || !follow {
			return nil
		}
		select {
		case <-wake:
		case <-stop:
			return nil
		}
	}
}

// printed tells whether there is a file, waiting for one if it is to be
// followed until the attempt ends or stop closes.
func (l *attemptLog) printed(follow bool, stop <-chan struct{}) bool {
	for {
		l.mu.Lock()
		there, done, wake := l.f != nil, l.done, l.wake
		l.mu.Unlock()
		if there || done || !follow {
			return there
		}
		select {
		case <-wake:
		case <-stop:
			return false
		}
	}
}

// newest is the highest attempt that is known of a task.
func (d *logDir) newest(task string) uint32 {
	for a := uint32(64); a > 0; a-- {
		name, err := logName(task, a)
		if err != nil {
			return 1
		}
		d.mu.Lock()
		known := d.open[name] != nil || d.silent[name]
		d.mu.Unlock()
		if known {
			return a
		}
		if _, err := os.Stat(filepath.Join(d.dir, name)); err == nil {
			return a
		}
	}
	return 1
}

// prune removes the oldest logs that are over the bounds, but none that is
// being written.
func (d *logDir) prune(now time.Time) {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return
	}
	type aged struct {
		name string
		mod  time.Time
		size int64
	}
	var files []aged
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			files = append(files, aged{e.Name(), info.ModTime(), info.Size()})
		}
	}
	sort.Slice(files, func(i, j int) bool { return files[i].mod.After(files[j].mod) })
	d.mu.Lock()
	defer d.mu.Unlock()
	d.files, d.bytes = 0, 0
	for _, f := range files {
		old := d.files >= maxLogFiles/2 || d.bytes+f.size > maxLogBytes/2 || now.Sub(f.mod) > maxLogAge
		if old && d.open[f.name] == nil && os.Remove(filepath.Join(d.dir, f.name)) == nil {
			continue
		}
		d.files++
		d.bytes += f.size
	}
}
