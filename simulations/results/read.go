package results

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"github.com/beammesh/beammesh/proto/fault"
)

// MaxLine is the longest line of a results file: a run with fifty curves of ten
// thousand points.
const MaxLine = 32 << 20

// File is a results file that was read.
type File struct {
	Path    string
	Records []Record // of each key the last one, in the order of Compare
	// Torn tells that the file ends in half a line: its writer was killed there,
	// or is about to write the rest.
	Torn bool
	Log  []LogEntry // what the log beside it says; may be empty
}

// Read reads a results file and its log.
func Read(path string) (*File, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "no results file "+path, "`beam sim sweep SCENARIO` writes one")
	}
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "the results cannot be read", "")
	}
	defer f.Close()
	out := &File{Path: path}
	at := map[string]int{}
	end, err := scan(f, path, func(_ int64, line []byte) error {
		var r Record
		if err := decode(line, &r); err != nil {
			return err
		}
		k := r.Key()
		if i, ok := at[k]; ok {
			out.Records[i] = r
			return nil
		}
		at[k] = len(out.Records)
		out.Records = append(out.Records, r)
		return nil
	})
	if err != nil {
		return nil, err
	}
	out.Torn = end.torn
	slices.SortStableFunc(out.Records, func(a, b Record) int { return Compare(&a, &b) })
	out.Log, err = readLog(LogPath(path))
	return out, err
}

// decode reads one line. Fields that this version does not know are ignored.
func decode(line []byte, r *Record) error {
	if err := json.Unmarshal(line, r); err != nil {
		return err
	}
	if r.Experiment == "" || r.Policy == "" {
		return errors.New("it has no experiment or no policy")
	}
	if r.Failed == nil && len(r.Metrics) == 0 {
		return errors.New("it has no metrics")
	}
	for _, s := range r.Series {
		if len(s.X) != len(s.Y) {
			return fmt.Errorf("the series %q has %d x and %d y", s.Plot, len(s.X), len(s.Y))
		}
	}
	return nil
}

// tail is how a file ends.
type tail struct {
	good int64 // bytes of whole lines
	torn bool
}

// scan calls each with every whole line and its offset. A last line without an
// end is torn and left out. Whatever else is no record is an error: nothing we
// do can have made it, so the file is somebody else's.
func scan(r io.Reader, path string, each func(offset int64, line []byte) error) (tail, error) {
	in := bufio.NewReaderSize(r, 1<<16)
	var t tail
	for n := 1; ; n++ {
		line, err := readLine(in)
		switch {
		case errors.Is(err, io.EOF) && len(line) == 0:
			return t, nil
		case errors.Is(err, io.EOF) && begins(line):
			t.torn = true
			return t, nil
		case errors.Is(err, io.EOF):
			err = errors.New("it begins in another way")
		case err == nil:
			err = each(t.good, line)
		}
		if err != nil {
			return t, fault.Wrap(fault.Invalid, err, fmt.Sprintf("%s line %d is no result of a run", path, n), "is it a results file?")
		}
		t.good += int64(len(line)) + 1
	}
}

// begins tells whether a torn line can be the start of a record's.
func begins(line []byte) bool {
	const start = `{"experiment":"`
	n := min(len(line), len(start))
	return string(line[:n]) == start[:n]
}

var errLong = fmt.Errorf("the line is longer than %d bytes", MaxLine)

// readLine gives a line without its end; io.EOF comes with what stood after the
// last end.
func readLine(in *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			return line[:len(line)-1], nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return line, err
		case len(line) > MaxLine:
			return nil, errLong
		}
	}
}
