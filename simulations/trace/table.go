package trace

import (
	"bufio"
	"compress/gzip"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strings"
)

// Error is what is wrong with a trace, and where.
type Error struct {
	File   string
	Line   int    // from 1; 0 = the file as a whole
	Column string // "" = the whole row
	What   string // `is "many", want a whole number of thousandths of a core`
}

func (e *Error) Error() string {
	s := e.File
	if e.Line > 0 {
		s += fmt.Sprintf(":%d", e.Line)
	}
	if e.Column != "" {
		s += ": column " + e.Column
	}
	return s + ": " + e.What
}

// File is an open trace.
type File struct {
	name  string
	data  *bufio.Reader
	close func() error
}

// Open opens a trace; gzip is noticed by its first bytes, whatever the name.
func Open(path string) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open trace: %w", err)
	}
	t, err := NewFile(filepath.Base(path), f)
	if err != nil {
		f.Close()
		return nil, err
	}
	t.close = f.Close
	return t, nil
}

// NewFile reads a trace from r; name is for errors.
func NewFile(name string, r io.Reader) (*File, error) {
	f := &File{name: name, data: bufio.NewReaderSize(r, 1<<16), close: func() error { return nil }}
	if magic, _ := f.data.Peek(2); string(magic) == "\x1f\x8b" {
		z, err := gzip.NewReader(f.data)
		if err != nil {
			return nil, &Error{File: name, What: "looks like gzip, but " + err.Error()}
		}
		f.data = bufio.NewReaderSize(z, 1<<16)
	}
	if bom, _ := f.data.Peek(3); string(bom) == "\xef\xbb\xbf" {
		f.data.Discard(3)
	}
	return f, nil
}

// Close closes the file. It may be called twice.
func (f *File) Close() error {
	err := f.close()
	f.close = func() error { return nil }
	return err
}

// maxColumns bounds a header.
const maxColumns = 256

// table reads rows by the names of their columns.
type table struct {
	file   string
	lines  *bufio.Reader // a line must fit its buffer
	comma  string
	where  map[string]int // column to index, only looked up
	width  int
	fields []string // of the current row
	line   int
	err    error // the first problem of the current row
}

// each makes an iterator of a table: row reads the current one, and says false to
// leave it out. err is a problem with the header.
func each[T any](t *table, err error, row func() (T, bool)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		if err != nil {
			yield(none, err)
			return
		}
		for t.next() {
			x, ok := row()
			if t.err != nil {
				break
			}
			if ok && !yield(x, nil) {
				return
			}
		}
		if t.err != nil {
			yield(none, t.err)
		}
	}
}

// newTable reads the header of a CSV file and looks for the columns it must have.
// kind says what the file was taken for: "an openb pod list".
func newTable(f *File, kind string, must ...string) (*table, error) {
	t := &table{file: f.name, lines: f.data, comma: ",", where: map[string]int{}}
	if !t.read() {
		if t.err == nil {
			t.err = &Error{File: f.name, What: "is empty, want a header with " + strings.Join(must, ", ")}
		}
		return nil, t.err
	}
	t.width = len(t.fields)
	if t.width > maxColumns {
		return nil, &Error{File: f.name, Line: t.line, What: fmt.Sprintf("has %d columns, at most %d are read", t.width, maxColumns)}
	}
	for i, name := range t.fields {
		name = strings.TrimSpace(name)
		if t.has(name) && name != "" {
			return nil, &Error{File: f.name, Line: t.line, Column: name, What: "is there twice"}
		}
		t.where[name] = i
	}
	var missing []string
	for _, name := range must {
		if !t.has(name) {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return nil, &Error{File: f.name, Line: t.line, What: fmt.Sprintf("has no column %s, which %s must have; its columns are %s",
			strings.Join(missing, ", "), kind, shorten(strings.Join(t.fields, ", ")))}
	}
	return t, nil
}

// newBare reads a file with tabs and without a header; its columns are named here.
func newBare(f *File, columns ...string) *table {
	t := &table{file: f.name, lines: f.data, comma: "\t", where: map[string]int{}, width: len(columns)}
	for i, name := range columns {
		t.where[name] = i
	}
	return t
}

// next moves to the next row; false at the end and on an error.
func (t *table) next() bool {
	if t.err != nil || !t.read() {
		return false
	}
	if len(t.fields) != t.width {
		t.err = &Error{File: t.file, Line: t.line, What: fmt.Sprintf("has %d fields, want %d", len(t.fields), t.width)}
		return false
	}
	return true
}

// read splits the next line that is not empty. A row is one line: a field cannot
// have a line break in it, and an opening quote cannot swallow the file.
func (t *table) read() bool {
	for {
		raw, err := t.lines.ReadSlice('\n')
		t.line++
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			t.err = &Error{File: t.file, Line: t.line, What: fmt.Sprintf("is longer than %d bytes: is this a trace?", t.lines.Size())}
			return false
		case err != nil && !errors.Is(err, io.EOF):
			t.err = fmt.Errorf("read trace %s, line %d: %w", t.file, t.line, err)
			return false
		}
		line := strings.TrimRight(string(raw), "\r\n")
		if line == "" {
			if err != nil {
				return false
			}
			continue
		}
		if t.comma == "," && strings.Contains(line, `"`) {
			return t.quoted(line)
		}
		t.fields = t.fields[:0]
		for field := range strings.SplitSeq(line, t.comma) {
			t.fields = append(t.fields, field)
		}
		return true
	}
}

// quoted splits a line with quotes in it, the rare case.
func (t *table) quoted(line string) bool {
	fields, err := csv.NewReader(strings.NewReader(line)).Read()
	if err != nil {
		var p *csv.ParseError
		if errors.As(err, &p) {
			err = p.Err
		}
		t.err = &Error{File: t.file, Line: t.line, What: err.Error()}
		return false
	}
	t.fields = fields
	return true
}

func (t *table) has(column string) bool { _, ok := t.where[column]; return ok }

// text is the field of a column, "" when the file does not have the column.
func (t *table) text(column string) string {
	if i, ok := t.where[column]; ok {
		return strings.TrimSpace(t.fields[i])
	}
	return ""
}

// fail notes what is wrong with a column of this row; the first one counts.
func (t *table) fail(column, want string) {
	if t.err == nil {
		t.err = &Error{File: t.file, Line: t.line, Column: column, What: fmt.Sprintf("is %q, want %s", shorten(t.text(column)), want)}
	}
}

func shorten(s string) string {
	const limit = 120
	if len(s) > limit {
		return strings.ToValidUTF8(s[:limit], "") + "…"
	}
	return s
}
