package journal

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/beammesh/beammesh/proto/fault"
)

var ctx = context.Background()

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.now }
func (c *clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func open(t testing.TB, dir string, o Options) *Journal {
	t.Helper()
	j, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

func submit(t testing.TB, j *Journal, task Task) {
	t.Helper()
	if task.Workspace == "" {
		task.Workspace = "w"
	}
	if err := j.Submit(ctx, task, Input{Spec: []byte("spec"), Args: []byte("args of " + task.ID)}); err != nil {
		t.Fatal(err)
	}
}

func attempt(t testing.TB, j *Journal, id, worker string) uint64 {
	t.Helper()
	f, err := j.Attempt(ctx, id, worker)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func finish(t testing.TB, j *Journal, id string, o Outcome) {
	t.Helper()
	if err := j.Done(ctx, id, attempt(t, j, id, "box"), o); err != nil {
		t.Fatal(err)
	}
}

func wantCode(t testing.TB, what string, err error, code fault.Code) {
	t.Helper()
	if fault.CodeOf(err) != code {
		t.Fatalf("%s: got %v (code %q), want %q", what, err, fault.CodeOf(err), code)
	}
}

func TestLifeOfATask(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, Options{})
	submit(t, j, Task{ID: "t1", Stub: "s", Name: "square", CallbackURL: "https://example.org/cb", Headless: true})
	f1 := attempt(t, j, "t1", "box2")
	if err := j.Retry(ctx, "t1", f1, fault.NodeLost, "box2 is gone", true); err != nil {
		t.Fatal(err)
	}
	f2 := attempt(t, j, "t1", "box3")
	if f2 <= f1 {
		t.Fatalf("fence %d after %d", f2, f1)
	}
	wantCode(t, "result of the old attempt", j.Done(ctx, "t1", f1, Outcome{Status: Complete}), fault.Conflict)
	if err := j.Done(ctx, "t1", f2, Outcome{Status: Complete, Result: []byte("144")}); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "second result", j.Done(ctx, "t1", f2, Outcome{Status: Complete}), fault.Conflict)
	wantCode(t, "cancel after the end", j.Done(ctx, "t1", 0, Outcome{Status: Cancelled}), fault.Conflict)
	_, err := j.Attempt(ctx, "t1", "box4")
	wantCode(t, "attempt after the end", err, fault.Conflict)
	if err := j.Ack(ctx, "t1"); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = open(t, dir, Options{})
	got, err := j.Get("t1")
	if err != nil || got.Status != Complete || got.Attempts != 2 || got.Lost != 1 || got.Worker != "box3" ||
		got.Fence != f2 || !got.Acked || got.CallbackURL != "https://example.org/cb" || got.Ended.IsZero() || got.ErrorCode != "" {
		t.Fatalf("%+v %v", got, err)
	}
	in, err := j.Input("t1")
	if err != nil || string(in.Spec) != "spec" || string(in.Args) != "args of t1" {
		t.Fatalf("%+v %v", in, err)
	}
	if r, err := j.Result("t1"); err != nil || string(r) != "144" {
		t.Fatalf("%q %v", r, err)
	}
	wantCode(t, "same id again", j.Submit(ctx, Task{ID: "t1", Workspace: "w"}, Input{}), fault.Conflict)
	if _, err = j.Get("nope"); fault.From(err).Code != fault.NotFound || fault.From(err).Hint == "" {
		t.Fatalf("unknown task: %v", err)
	}
}

func TestFencesGrowOverRestarts(t *testing.T) {
	dir := t.TempDir()
	var last uint64
	for range 3 {
		j := open(t, dir, Options{})
		id := fmt.Sprint("t", j.Epoch())
		submit(t, j, Task{ID: id})
		for range 3 {
			f := attempt(t, j, id, "box")
			if f <= last {
				t.Fatalf("fence %d after %d", f, last)
			}
			last = f
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestUnfinishedAfterRestart(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, Options{})
	for _, id := range []string{"a", "b", "c"} {
		submit(t, j, Task{ID: id, Headless: id == "c"})
	}
	finish(t, j, "a", Outcome{Status: Error, ErrorCode: fault.Failed, ErrorText: "boom", ExitCode: 1})
	attempt(t, j, "c", "box7")
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = open(t, dir, Options{})
	got := map[string]Task{}
	if err := j.Unfinished(func(x Task) bool { got[x.ID] = x; return true }); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got["b"].Status != Pending || got["c"].Status != Running || got["c"].Worker != "box7" || !got["c"].Headless {
		t.Fatalf("%+v", got)
	}
	if s := j.Stats(); s.Open != 2 || s.Ended != 1 || s.EndedBytes == 0 {
		t.Fatalf("%+v", s)
	}
	if err := j.Done(ctx, "b", 0, Outcome{Status: Cancelled}); err != nil {
		t.Fatalf("cancel of a task that never ran: %v", err)
	}
}

func TestListFiltersAndPages(t *testing.T) {
	c := &clock{now: time.Now()}
	j := open(t, t.TempDir(), Options{Now: c.Now})
	for i := range 25 {
		ws := "w"
		if i%5 == 0 {
			ws = "other"
		}
		submit(t, j, Task{ID: fmt.Sprintf("t%02d", i), Workspace: ws, Stub: fmt.Sprint("s", i%2), Name: "app:fn"})
		c.Add(time.Second)
	}
	finish(t, j, "t01", Outcome{Status: Complete})
	var got []string
	q := Query{Workspace: "w", Limit: 7}
	for pages := 0; pages < 20; pages++ {
		tasks, next, err := j.List(q)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range tasks {
			got = append(got, x.ID)
		}
		if q.After = next; next == "" {
			break
		}
	}
	if len(got) != 20 || got[0] != "t24" || !slices.IsSortedFunc(got, func(a, b string) int { return strings.Compare(b, a) }) {
		t.Fatalf("%v", got)
	}
	for name, c := range map[string]struct {
		q    Query
		want int
	}{
		"status":  {Query{Statuses: []Status{Complete, Error}}, 1},
		"stub":    {Query{Stub: "s1"}, 12},
		"prefix":  {Query{IDPrefix: "t1"}, 10},
		"name":    {Query{Name: "app:"}, 25},
		"nothing": {Query{Name: "zzz"}, 0},
	} {
		if tasks, _, err := j.List(c.q); err != nil || len(tasks) != c.want {
			t.Errorf("%s: %d tasks, want %d: %v", name, len(tasks), c.want, err)
		}
	}
	if _, _, err := j.List(Query{After: "zz"}); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("bad cursor: %v", err)
	}
}

func TestRetention(t *testing.T) {
	c := &clock{now: time.Now()}
	dir := t.TempDir()
	j := open(t, dir, Options{Now: c.Now, Limits: Limits{Count: 5, Bytes: 40_000}})
	add := func(id string, size int) {
		submit(t, j, Task{ID: id})
		finish(t, j, id, Outcome{Status: Complete, Result: make([]byte, size)})
		c.Add(time.Second)
	}
	check := func(what string, want ...string) {
		t.Helper()
		if err := j.Prune(); err != nil {
			t.Fatal(err)
		}
		tasks, _, err := j.List(Query{})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, x := range tasks {
			got = append(got, x.ID)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%s: %v is kept, want %v", what, got, want)
		}
	}
	submit(t, j, Task{ID: "open"})
	c.Add(time.Second)
	for i := range 8 {
		add(fmt.Sprint("t", i), 10)
	}
	check("count", "t7", "t6", "t5", "t4", "t3", "open")
	add("big1", 20_000)
	add("big2", 20_000)
	check("bytes", "big2", "open")
	c.Add(25 * time.Hour)
	check("age", "open")
	if s := j.Stats(); s != (Stats{Open: 1}) {
		t.Fatalf("%+v", s)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	// Nothing of the forgotten ones is left on disk.
	j = open(t, dir, Options{Now: c.Now})
	for _, p := range []byte("tiarsdu") {
		n := 0
		if err := j.scan(p, false, nil, func([]byte, []byte) (bool, error) { n++; return true, nil }); err != nil {
			t.Fatal(err)
		}
		want := 1
		if p == 'r' || p == 'd' {
			want = 0
		}
		if n != want {
			t.Errorf("%d keys under %q, want %d", n, p, want)
		}
	}
}

func TestBounds(t *testing.T) {
	j := open(t, t.TempDir(), Options{})
	big := make([]byte, MaxInline+1)
	wantCode(t, "big arguments", j.Submit(ctx, Task{ID: "a", Workspace: "w"}, Input{Args: big}), fault.TooLarge)
	wantCode(t, "no workspace", j.Submit(ctx, Task{ID: "a"}, Input{}), fault.Invalid)
	wantCode(t, "long callback", j.Submit(ctx, Task{ID: "a", Workspace: "w", CallbackURL: string(big)}, Input{}), fault.TooLarge)
	submit(t, j, Task{ID: "a"})
	f := attempt(t, j, "a", "box")
	wantCode(t, "big result", j.Done(ctx, "a", f, Outcome{Status: Complete, Result: big}), fault.TooLarge)
	wantCode(t, "end that is none", j.Done(ctx, "a", f, Outcome{Status: Running}), fault.Internal)
	wantCode(t, "ack of a running task", j.Ack(ctx, "a"), fault.Conflict)
	if err := j.Done(ctx, "a", f, Outcome{Status: Error, ErrorText: strings.Repeat("x", 1<<20)}); err != nil {
		t.Fatal(err)
	}
	if x, err := j.Get("a"); err != nil || len(x.ErrorText) > maxText {
		t.Fatalf("error text of %d bytes: %v", len(x.ErrorText), err)
	}
	j.mu.Lock()
	j.open = MaxOpen
	j.mu.Unlock()
	wantCode(t, "full", j.Submit(ctx, Task{ID: "b", Workspace: "w"}, Input{}), fault.NoCapacity)
}

func TestClosed(t *testing.T) {
	j := open(t, t.TempDir(), Options{})
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatalf("second close: %v", err)
	}
	wantCode(t, "submit", j.Submit(ctx, Task{ID: "a", Workspace: "w"}, Input{}), fault.Unreachable)
	_, err := j.Get("a")
	wantCode(t, "get", err, fault.Unreachable)
}

// TestOneResult races many ends of one task: exactly one is accepted.
func TestOneResult(t *testing.T) {
	j := open(t, t.TempDir(), Options{})
	for i := range 20 {
		id := fmt.Sprint("t", i)
		submit(t, j, Task{ID: id})
		f := attempt(t, j, id, "box")
		var wg sync.WaitGroup
		won := make(chan string, 8)
		for w := range 8 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				fence, o := f, Outcome{Status: Complete, Result: []byte(fmt.Sprint(w))}
				if w == 7 {
					fence, o = 0, Outcome{Status: Cancelled}
				}
				if err := j.Done(ctx, id, fence, o); err == nil {
					won <- string(o.Result)
				} else if fault.CodeOf(err) != fault.Conflict {
					t.Error(err)
				}
			}()
		}
		wg.Wait()
		if len(won) != 1 {
			t.Fatalf("%d results were accepted", len(won))
		}
		if r, err := j.Result(id); err != nil || string(r) != <-won {
			t.Fatalf("kept %q: %v", r, err)
		}
	}
}

// TestPowerCut drops what was not synced: what was acknowledged is there.
func TestPowerCut(t *testing.T) {
	fs := vfs.NewCrashableMem()
	j := open(t, "j", Options{FS: fs})
	var want []string
	for i := range 30 {
		id := fmt.Sprint("t", i)
		submit(t, j, Task{ID: id, Headless: i%3 == 0})
		f := attempt(t, j, id, "box")
		if i%2 == 0 {
			if err := j.Done(ctx, id, f, Outcome{Status: Complete, Result: []byte(id)}); err != nil {
				t.Fatal(err)
			}
		}
		want = append(want, id)
		after := open(t, "j", Options{FS: fs.CrashClone(vfs.CrashCloneCfg{})})
		for k, id := range want {
			x, err := after.Get(id)
			if err != nil || (x.Status == Complete) != (k%2 == 0) {
				t.Fatalf("cut after %d: task %s is %+v: %v", i, id, x, err)
			}
			if k%3 == 0 && x.Fence == 0 {
				t.Fatalf("cut after %d: attempt of headless %s is lost", i, id)
			}
		}
		if f, err := after.Attempt(ctx, id, "box"); err == nil && f <= attemptFence(t, j, id) {
			t.Fatalf("fence %d was given before", f)
		}
		if err := after.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func attemptFence(t testing.TB, j *Journal, id string) uint64 {
	t.Helper()
	x, err := j.Get(id)
	if err != nil {
		t.Fatal(err)
	}
	return x.Fence
}

// TestKill ends a working process with SIGKILL, five times on one directory.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	for round := range 5 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKillChild$")
		cmd.Env = append(os.Environ(), "JOURNAL_KILL_DIR="+dir, fmt.Sprint("JOURNAL_KILL_ROUND=", round))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		var errs bytes.Buffer
		cmd.Stderr = &errs
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		submitted, done := map[string]bool{}, map[string]bool{}
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			what, id, _ := strings.Cut(lines.Text(), " ")
			switch what {
			case "submitted":
				submitted[id] = true
			case "done":
				done[id] = true
			}
			if len(done) == 50+20*round {
				_ = cmd.Process.Kill()
			}
		}
		_ = cmd.Wait()
		if len(done) < 50 {
			t.Fatalf("child finished %d tasks, stderr: %s", len(done), errs.String())
		}
		j := open(t, dir, Options{})
		for id := range submitted {
			x, err := j.Get(id)
			if err != nil {
				t.Errorf("round %d: submitted %s is lost: %v", round, id, err)
				continue
			}
			r, err := j.Result(id)
			if done[id] && (err != nil || x.Status != Complete || string(r) != id) {
				t.Errorf("round %d: result of %s is lost: %+v %v", round, id, x, err)
			}
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestKillChild(t *testing.T) {
	dir := os.Getenv("JOURNAL_KILL_DIR")
	if dir == "" {
		t.Log("runs only as the child of TestKill")
		return
	}
	j, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	say := func(what, id string) {
		mu.Lock()
		defer mu.Unlock()
		_, _ = fmt.Fprintln(os.Stdout, what, id)
	}
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range 100_000 {
				id := fmt.Sprintf("%s-%d-%d", os.Getenv("JOURNAL_KILL_ROUND"), w, i)
				if err := j.Submit(ctx, Task{ID: id, Workspace: "w"}, Input{Args: []byte("x")}); err != nil {
					return
				}
				say("submitted", id)
				f, err := j.Attempt(ctx, id, "box")
				if err != nil {
					return
				}
				if err := j.Done(ctx, id, f, Outcome{Status: Complete, Result: []byte(id)}); err != nil {
					return
				}
				say("done", id)
			}
		}()
	}
	wg.Wait()
}

func BenchmarkAttachedCall(b *testing.B) {
	j := open(b, b.TempDir(), Options{})
	var n int
	for b.Loop() {
		n++
		id := fmt.Sprint(n)
		submit(b, j, Task{ID: id})
		finish(b, j, id, Outcome{Status: Complete, Result: []byte("144")})
	}
}

// What is kept in memory of unfinished tasks is bounded, goes with the task and
// changes nothing that can be seen.
func TestHotTasksAreBounded(t *testing.T) {
	j := open(t, t.TempDir(), Options{})
	j.mu.Lock()
	for i := range maxHot - 1 {
		j.hot[fmt.Sprint("other", i)] = Task{}
	}
	j.mu.Unlock()
	for _, id := range []string{"a", "b"} {
		if err := j.Submit(ctx, Task{ID: id, Workspace: "w"}, Input{}); err != nil {
			t.Fatal(err)
		}
		if err := j.Submit(ctx, Task{ID: id, Workspace: "w"}, Input{}); fault.CodeOf(err) != fault.Conflict {
			t.Errorf("%s twice: %v", id, err)
		}
	}
	if _, ok := j.recall("a"); !ok {
		t.Error("an unfinished task was not kept")
	}
	if _, ok := j.recall("b"); ok {
		t.Error("more than the bound is kept")
	}
	for _, id := range []string{"a", "b"} {
		fence, err := j.Attempt(ctx, id, "w1")
		if err != nil {
			t.Fatal(err)
		}
		if err := j.Done(ctx, id, fence, Outcome{Status: Complete}); err != nil {
			t.Fatal(err)
		}
		if err := j.Done(ctx, id, 0, Outcome{Status: Complete}); fault.CodeOf(err) != fault.Conflict {
			t.Errorf("%s ended twice: %v", id, err)
		}
	}
	if _, ok := j.recall("a"); ok {
		t.Error("an ended task is still kept")
	}
}
