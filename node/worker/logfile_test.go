package worker

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func readAll(t *testing.T, d *logDir, task string, attempt uint32) string {
	t.Helper()
	var b bytes.Buffer
	if err := d.read(task, attempt, false, nil, func(_ int, p []byte) error { b.Write(p); return nil }); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestLogKeepsTheBeginning(t *testing.T) {
	d, err := newLogDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	l, err := d.create("t", 1)
	if err != nil {
		t.Fatal(err)
	}
	piece := bytes.Repeat([]byte("a"), 1<<20)
	for range 10 {
		l.write(1, piece)
	}
	l.write(2, []byte("small, and after a gap"))
	d.finish("t", 1, l)
	l.write(1, []byte("after the end"))
	got := readAll(t, d, "t", 0)
	kept := strings.Count(got, "a") - strings.Count("small, and after a gap", "a")
	if len(got) > maxLogFile+200 || kept < maxLogFile-200 || strings.Contains(got, "gap") || !strings.Contains(got, "bytes of output are not kept") {
		t.Errorf("kept %d bytes ending in %q", len(got), got[len(got)-120:])
	}
}

func TestLogCutByACrash(t *testing.T) {
	dir := t.TempDir()
	d, err := newLogDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	l, err := d.create("t", 1)
	if err != nil {
		t.Fatal(err)
	}
	l.write(1, []byte("whole\n"))
	l.write(1, []byte("torn\n"))
	d.finish("t", 1, l)
	path := filepath.Join(dir, "t.1.log")
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := int64(1); cut < 10; cut++ {
		if err := os.Truncate(path, st.Size()-cut); err != nil {
			t.Fatal(err)
		}
		if got := readAll(t, d, "t", 1); got != "whole\n" {
			t.Errorf("cut by %d: %q", cut, got)
		}
	}
}

func TestLogNamesAreSafe(t *testing.T) {
	dir := t.TempDir()
	d, err := newLogDir(filepath.Join(dir, "logs"))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range []string{"", "../x", "a/b", ".", "x\x00y", strings.Repeat("a", 65)} {
		if l, err := d.create(task, 1); err == nil {
			d.finish(task, 1, l)
			t.Errorf("%q is taken as a name", task)
		}
		if err := d.read(task, 1, false, nil, nil); err == nil {
			t.Errorf("%q can be read", task)
		}
	}
}

func TestLogFollow(t *testing.T) {
	d, err := newLogDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	l, err := d.create("t", 1)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan string)
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- d.read("t", 1, true, stop, func(fd int, p []byte) error { got <- fmt.Sprint(fd, string(p)); return nil })
	}()
	for i, want := range []string{"1a", "2b", "1c"} {
		l.write(int(want[0]-'0'), []byte(want[1:]))
		select {
		case g := <-got:
			if g != want {
				t.Errorf("record %d is %q", i, g)
			}
		case <-time.After(time.Minute):
			t.Fatal("nothing came")
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
	// A reader that fails ends with its own error, and the end of the attempt
	// ends the rest.
	bad := errors.New("reader is gone")
	if err := d.read("t", 1, true, nil, func(int, []byte) error { return bad }); !errors.Is(err, bad) {
		t.Errorf("got %v", err)
	}
	go func() { done <- d.read("t", 1, true, nil, func(int, []byte) error { return nil }) }()
	d.finish("t", 1, l)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestLogFolderIsBounded(t *testing.T) {
	dir := t.TempDir()
	for i := range 30 {
		p := filepath.Join(dir, fmt.Sprintf("old%d.1.log", i))
		if err := os.WriteFile(p, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(p, time.Now(), time.Now().Add(-maxLogAge-time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	d, err := newLogDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("%d old logs are left", len(left))
	}
	live, err := d.create("live", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer d.finish("live", 1, live)
	live.write(1, []byte("x"))
	old := time.Now().Add(-maxLogAge - time.Hour)
	if err := os.Chtimes(filepath.Join(dir, "live.1.log"), old, old); err != nil {
		t.Fatal(err)
	}
	for i := range maxLogFiles + 1 {
		l, err := d.create(fmt.Sprint("t", i), 1)
		if err != nil {
			t.Fatal(err)
		}
		l.write(1, []byte("x"))
		d.finish(fmt.Sprint("t", i), 1, l)
	}
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(left) > maxLogFiles/2+3 {
		t.Errorf("%d logs are left of %d", len(left), maxLogFiles+2)
	}
	if _, err := os.Stat(filepath.Join(dir, "live.1.log")); err != nil {
		t.Error("a log that is being written was removed")
	}
	// Bytes count as well as files.
	d.mu.Lock()
	d.bytes = maxLogBytes + 1
	d.mu.Unlock()
	l, err := d.create("big", 1)
	if err != nil {
		t.Fatal(err)
	}
	d.finish("big", 1, l)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.bytes > maxLogBytes/2 {
		t.Errorf("counts %d bytes after looking", d.bytes)
	}
}

func TestSilentAttemptsHaveNoFile(t *testing.T) {
	dir := t.TempDir()
	d, err := newLogDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	l, err := d.create("t", 1)
	if err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, d, "t", 0); got != "" {
		t.Errorf("before it ended: %q", got)
	}
	// One that follows from the start gets what is printed late.
	got, done := make(chan string, 1), make(chan error, 1)
	go func() {
		done <- d.read("t", 1, true, nil, func(_ int, p []byte) error { got <- string(p); return nil })
	}()
	l.write(1, []byte("late"))
	d.finish("t", 1, l)
	if err := <-done; err != nil || <-got != "late" {
		t.Errorf("following: %v", err)
	}

	l, err = d.create("t", 2)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		done <- d.read("t", 2, true, nil, func(_ int, p []byte) error { return errors.New("something was printed") })
	}()
	d.finish("t", 2, l)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := readAll(t, d, "t", 0); got != "" {
		t.Errorf("the newest attempt printed nothing, read %q", got)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("%d files, want that of the first attempt", len(left))
	}
	if err := d.read("other", 1, false, nil, nil); err == nil || !strings.Contains(err.Error(), "nothing was printed") {
		t.Errorf("an unknown attempt: %v", err)
	}
}
