package local

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/beammesh/beammesh/node/ledger"
	"github.com/beammesh/beammesh/node/ledger/fsm"
	"github.com/beammesh/beammesh/node/ledger/ledgertest"
	"github.com/beammesh/beammesh/proto/fault"
)

func open(t testing.TB, dir string, o Options) *Ledger {
	t.Helper()
	l, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func TestConformance(t *testing.T) {
	ledgertest.Run(t, func(t *testing.T) ledger.Ledger { return open(t, t.TempDir(), Options{}) })
}

func TestLinearizable(t *testing.T) {
	ledgertest.Linearizable(t, 7, open(t, t.TempDir(), Options{}))
}

func TestSecondOpenOfDirectoryIsRefused(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, Options{})
	if l, err := Open(dir, Options{}); fault.CodeOf(err) != fault.Conflict {
		t.Fatalf("got %v %v, want a conflict", l, err)
	}
}

func TestExpiredTokenIsRemoved(t *testing.T) {
	var mu sync.Mutex
	now := time.Now()
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	dir := t.TempDir()
	l := open(t, dir, Options{Now: clock})
	ctx, cancel := context.WithTimeout(context.Background(), ledgertest.Patience)
	defer cancel()
	put := func(id string, exp time.Time) {
		if _, err := l.Propose(ctx, ledger.PutToken{Workspace: "w", ID: id, Token: ledger.Token{Active: true, Expires: exp}}); err != nil {
			t.Fatal(err)
		}
	}
	put("short", now.Add(time.Hour))
	put("long", now.Add(1000*time.Hour))
	put("forever", time.Time{})
	mu.Lock()
	now = now.Add(26 * time.Hour) // expiry plus the day it stays visible
	mu.Unlock()
	// The event comes by the loop's own timer, armed again by this write.
	put("nudge", time.Time{})
	gone := fmt.Errorf("gone")
	err := l.Watch(ctx, ledger.Filter{Kind: ledger.KindToken}, 0, func(e ledger.Event) error {
		if e.Deleted {
			if e.Record.ID != "short" {
				return fmt.Errorf("%s expired", e.Record.ID)
			}
			return gone
		}
		return nil
	})
	if err != gone {
		t.Fatalf("watch: %v", err)
	}
	p, err := l.List(ctx, ledger.Query{Kind: ledger.KindToken, Workspace: "w"})
	if err != nil || len(p.Records) != 3 {
		t.Fatalf("%d tokens left: %v", len(p.Records), err)
	}
}

func TestWatchFromCompactedRevision(t *testing.T) {
	// Straight into the state machine: one sync instead of ten thousand.
	dir := t.TempDir()
	m, err := fsm.Open(dir, fsm.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var log []fsm.Entry
	for i := range uint64(ledger.MaxEvents + 2) {
		raw, err := ledger.EncodeCommand(ledger.PutObject{Workspace: "w", ID: fmt.Sprint(i), Object: ledger.Object{Root: "r"}})
		if err != nil {
			t.Fatal(err)
		}
		log = append(log, fsm.Entry{Index: i + 1, Command: raw})
	}
	if _, err := m.Apply(log); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	l := open(t, dir, Options{})
	ctx, cancel := context.WithTimeout(context.Background(), ledgertest.Patience)
	defer cancel()
	stop := errors.New("stop")
	for from, compacted := range map[uint64]bool{0: true, 1: true, 2: false, ledger.MaxEvents + 1: false} {
		err := l.Watch(ctx, ledger.Filter{}, from, func(e ledger.Event) error {
			if e.Revision != from+1 {
				return fmt.Errorf("event %d", e.Revision)
			}
			return stop
		})
		if errors.Is(err, ledger.ErrCompacted) != compacted || !compacted && !errors.Is(err, stop) {
			t.Errorf("watch from %d gave %v", from, err)
		}
	}
}

// TestPowerCut drops everything that was not synced at the moment of the cut.
func TestPowerCut(t *testing.T) {
	fs := vfs.NewCrashableMem()
	for round := range 5 {
		l, err := Open("ledger", Options{FS: fs})
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		acked := map[string]bool{}
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		enough := make(chan struct{}, 1)
		for w := range 8 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for i := 0; ctx.Err() == nil; i++ {
					id := fmt.Sprintf("%d-%d-%d", round, w, i)
					if _, err := l.Propose(ctx, ledger.PutObject{Workspace: "w", ID: id, Object: ledger.Object{Root: "r"}}); err != nil {
						return
					}
					mu.Lock()
					acked[id] = true
					n := len(acked)
					mu.Unlock()
					if n >= 100 {
						select {
						case enough <- struct{}{}:
						default:
						}
					}
				}
			}()
		}
		<-enough
		mu.Lock() // what is acknowledged by now must be in the clone
		want := make([]string, 0, len(acked))
		for id := range acked {
			want = append(want, id)
		}
		mu.Unlock()
		cut := fs.CrashClone(vfs.CrashCloneCfg{})
		cancel()
		wg.Wait()
		_ = l.Close()
		fs = cut
		after, err := Open("ledger", Options{FS: fs})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		for _, id := range want {
			if _, err := after.Get(context.Background(), ledger.Key{Kind: ledger.KindObject, Workspace: "w", ID: id}, 0); err != nil {
				t.Errorf("round %d: acknowledged %s is lost: %v", round, id, err)
			}
		}
		if err := after.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestKill ends a process that writes with SIGKILL and looks for everything it
// had acknowledged.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	for round := range 5 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKillChild$")
		cmd.Env = append(os.Environ(), "LEDGER_KILL_DIR="+dir, fmt.Sprint("LEDGER_KILL_ROUND=", round))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		var errs bytes.Buffer
		cmd.Stderr = &errs
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var acked []string
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			id, ok := strings.CutPrefix(lines.Text(), "acked ")
			if !ok {
				continue
			}
			acked = append(acked, id)
			if len(acked) == 100+30*round {
				_ = cmd.Process.Kill()
			}
		}
		_ = cmd.Wait()
		if len(acked) < 100 {
			t.Fatalf("child acknowledged %d, stderr: %s", len(acked), errs.String())
		}
		l := open(t, dir, Options{})
		for _, id := range acked {
			if _, err := l.Get(context.Background(), ledger.Key{Kind: ledger.KindObject, Workspace: "w", ID: id}, 0); err != nil {
				t.Errorf("round %d: acknowledged %s is lost: %v", round, id, err)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestKillChild(t *testing.T) {
	dir := os.Getenv("LEDGER_KILL_DIR")
	if dir == "" {
		t.Log("runs only as the child of TestKill")
		return
	}
	l, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range 100_000 {
				id := fmt.Sprintf("%s-%d-%d", os.Getenv("LEDGER_KILL_ROUND"), w, i)
				if _, err := l.Propose(context.Background(), ledger.PutObject{Workspace: "w", ID: id, Object: ledger.Object{Root: "r"}}); err != nil {
					return
				}
				mu.Lock()
				_, err := fmt.Fprintln(os.Stdout, "acked", id)
				mu.Unlock()
				if err != nil {
					return
				}
			}
		}()
	}
	wg.Wait()
}
