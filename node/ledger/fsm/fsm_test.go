package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/beammesh/beammesh/node/ledger"
	"github.com/beammesh/beammesh/proto/fault"
)

func openMem(t testing.TB, fs vfs.FS, dir string) *Machine {
	t.Helper()
	m, err := Open(dir, Options{FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func encode(t testing.TB, c ledger.Command) []byte {
	t.Helper()
	b, err := ledger.EncodeCommand(c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// randomLog makes entries over few keys, so that they meet: valid ones,
// refused ones, expiries, and bytes that are no command.
func randomLog(t testing.TB, rng *rand.Rand, n int) []Entry {
	now := time.UnixMilli(1_700_000_000_000)
	var log []Entry
	pick := func(of ...string) string { return of[rng.IntN(len(of))] }
	for i := range n {
		now = now.Add(time.Duration(rng.IntN(7_200_000)-600_000) * time.Millisecond) // clocks also go back
		ws, id := pick("w1", "w2"), pick("a", "b", "c")
		var raw []byte
		rev := uint64(rng.IntN(n))
		switch rng.IntN(10) {
		case 0:
			raw = encode(t, ledger.PutWorkspace{ID: ws, Name: pick("x", "y", "z"), IfRevision: rev})
		case 1:
			raw = encode(t, ledger.PutToken{Workspace: ws, ID: id, Token: ledger.Token{
				Scopes: []string{pick("read", "admin")}, Active: true, Expires: now.Add(time.Duration(rng.IntN(48)) * time.Hour)}})
		case 2:
			raw = encode(t, ledger.SetTokenActive{Workspace: ws, ID: id, Active: rng.IntN(2) == 0, IfRevision: rev * uint64(rng.IntN(2))})
		case 3:
			raw = encode(t, ledger.PutStub{Workspace: ws, Config: []byte(pick("1", "2", "3")), Name: "f", Type: "function"})
		case 4:
			raw = encode(t, ledger.PutObject{Workspace: ws, ID: id, Object: ledger.Object{Root: pick("r1", "r2")}})
		case 5:
			raw = encode(t, ledger.PutImage{Workspace: ws, ID: id, Image: ledger.Image{Roots: []string{pick("a", "b", "c"), pick("d", "e")}}})
		case 6:
			raw = encode(t, ledger.Delete{Key: ledger.Key{Kind: ledger.Kind(pick("object", "image", "stub")), Workspace: ws, ID: id}})
		case 7, 8:
			raw = encode(t, ledger.Expire{Key: ledger.Key{Kind: ledger.KindToken, Workspace: ws, ID: id}})
		case 9:
			raw = []byte(pick("", "{", `{"op":"moon"}`, `{"op":"delete","args":{"nope":1}}`))
		}
		log = append(log, Entry{Index: uint64(i + 1), Time: now, Command: raw})
	}
	return log
}

func snapshotOf(t testing.TB, m *Machine) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := m.Snapshot(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// describe makes an outcome comparable.
func describe(o Outcome) string {
	if o.Err != nil {
		return fmt.Sprint(fault.CodeOf(o.Err), ": ", o.Err)
	}
	b, err := o.Result.Record.MarshalJSON()
	return fmt.Sprint(string(b), o.Result.Changed, err)
}

// TestBatchingAndRestartsLeaveNoTrace is the metamorphic law of the state
// machine: one entry at a time, or any batches with restarts, replays and
// snapshot transfers between them, give the same answers and the same bytes.
func TestBatchingAndRestartsLeaveNoTrace(t *testing.T) {
	for seed := range uint64(12) {
		rng := rand.New(rand.NewPCG(seed, 1))
		log := randomLog(t, rng, 150)

		plain := openMem(t, vfs.NewMem(), "plain")
		var want []string
		for _, e := range log {
			out, err := plain.Apply([]Entry{e})
			if err != nil {
				t.Fatalf("seed %d entry %d: %v", seed, e.Index, err)
			}
			want = append(want, describe(out[0]))
		}
		wantBytes := snapshotOf(t, plain)
		if err := plain.Close(); err != nil {
			t.Fatal(err)
		}

		fs := vfs.NewMem()
		m := openMem(t, fs, "wild")
		for at := 0; at < len(log); {
			n := min(1+rng.IntN(40), len(log)-at)
			from := max(at-rng.IntN(3), 0) // a log replays what it is not sure of
			out, err := m.Apply(log[from : at+n])
			if err != nil {
				t.Fatalf("seed %d at %d: %v", seed, at, err)
			}
			for i := at; i < at+n; i++ {
				if got := describe(out[i-from]); got != want[i] {
					t.Fatalf("seed %d entry %d: got %s, want %s", seed, i+1, got, want[i])
				}
			}
			at += n
			switch rng.IntN(4) {
			case 0:
				if err := m.Close(); err != nil {
					t.Fatal(err)
				}
				m = openMem(t, fs, "wild")
			case 1:
				snap := snapshotOf(t, m)
				if err := m.Close(); err != nil {
					t.Fatal(err)
				}
				fs = vfs.NewMem()
				if err := Restore("wild", bytes.NewReader(snap), Options{FS: fs}); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				m = openMem(t, fs, "wild")
			}
		}
		if got := snapshotOf(t, m); !bytes.Equal(got, wantBytes) {
			t.Fatalf("seed %d: states differ (%d and %d bytes)", seed, len(got), len(wantBytes))
		}
		if m.Applied() != uint64(len(log)) {
			t.Fatalf("seed %d: applied %d", seed, m.Applied())
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestGapInLogIsRefused(t *testing.T) {
	m := openMem(t, vfs.NewMem(), "d")
	defer m.Close()
	put := encode(t, ledger.PutWorkspace{ID: "w", Name: "w"})
	if _, err := m.Apply([]Entry{{Index: 2, Command: put}}); err == nil {
		t.Fatal("entry 2 was applied to an empty state")
	}
	if m.Applied() != 0 || m.Revision() != 0 {
		t.Fatal("a refused batch left something")
	}
}

func TestTimeNeverGoesBack(t *testing.T) {
	m := openMem(t, vfs.NewMem(), "d")
	defer m.Close()
	late, early := time.UnixMilli(2_000_000), time.UnixMilli(1_000_000)
	out, err := m.Apply([]Entry{
		{Index: 1, Time: late, Command: encode(t, ledger.PutWorkspace{ID: "a", Name: "a"})},
		{Index: 2, Time: early, Command: encode(t, ledger.PutWorkspace{ID: "b", Name: "b"})},
	})
	if err != nil || !out[1].Result.Record.Created.Equal(late) || !m.Time().Equal(late) {
		t.Fatalf("second record was made at %v: %v", out[1].Result.Record.Created, err)
	}
}

func TestDamagedSnapshotIsRefusedAndOldStateKept(t *testing.T) {
	fs := vfs.NewMem()
	m := openMem(t, fs, "d")
	rng := rand.New(rand.NewPCG(3, 3))
	if _, err := m.Apply(randomLog(t, rng, 30)); err != nil {
		t.Fatal(err)
	}
	snap := snapshotOf(t, m)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	try := func(what string, b []byte) {
		t.Helper()
		if err := Restore("d", bytes.NewReader(b), Options{FS: fs}); !errors.Is(err, ErrDamaged) {
			t.Fatalf("%s: got %v", what, err)
		}
	}
	for i := 0; i < len(snap); i += 1 + len(snap)/40 {
		flipped := bytes.Clone(snap)
		flipped[i] ^= 1 << rng.IntN(8)
		try(fmt.Sprint("bit flipped in byte ", i), flipped)
		try(fmt.Sprint("cut at ", i), snap[:i])
	}
	m = openMem(t, fs, "d")
	defer m.Close()
	if !bytes.Equal(snapshotOf(t, m), snap) {
		t.Fatal("a refused restore changed the state")
	}
}

// TestRestoreInterrupted cuts a restore that replaces a state at many points,
// drops what was not synced, and finds the old state or the new one.
func TestRestoreInterrupted(t *testing.T) {
	build := func(fs vfs.FS, dir string, n int) []byte {
		m := openMem(t, fs, dir)
		defer m.Close()
		if _, err := m.Apply(randomLog(t, rand.New(rand.NewPCG(9, uint64(n))), n)); err != nil {
			t.Fatal(err)
		}
		return snapshotOf(t, m)
	}
	source := build(vfs.NewMem(), "src", 40)
	restored := false
	for cut := 1; cut < 400 && !restored; cut += 23 {
		fs := vfs.NewCrashableMem()
		old := build(fs, "d", 10)
		r := &cutter{r: bytes.NewReader(source), left: cut * 60}
		err := Restore("d", r, Options{FS: fs})
		fs = fs.CrashClone(vfs.CrashCloneCfg{})
		m := openMem(t, fs, "d")
		got := snapshotOf(t, m)
		_ = m.Close()
		want := source
		if err != nil {
			want = old
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("cut %d: state is neither (restore said %v)", cut, err)
		}
		restored = err == nil
	}
	if !restored {
		t.Fatal("no restore reached its end")
	}
	// And a restart between the mark and the rename.
	fs := vfs.NewMem()
	build(fs, "d", 10)
	if err := Restore("n", bytes.NewReader(source), Options{FS: fs}); err != nil {
		t.Fatal(err)
	}
	if err := fs.Rename("n", "d.restoring"); err != nil {
		t.Fatal(err)
	}
	m := openMem(t, fs, "d")
	defer m.Close()
	if !bytes.Equal(snapshotOf(t, m), source) {
		t.Fatal("a marked restore was not finished")
	}
}

type cutter struct {
	r    io.Reader
	left int
}

func (c *cutter) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n, err := c.r.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

func TestQuotaPerWorkspace(t *testing.T) {
	cmd := ledger.PutObject{Workspace: "w", ID: "z", Object: ledger.Object{Root: "r"}}
	if _, err := ledger.Step(cmd, nil, ledger.MaxPerWorkspace, 1, time.Now()); fault.CodeOf(err) != fault.TooLarge {
		t.Fatalf("record above the quota: %v", err)
	}
	if o, err := ledger.Step(cmd, nil, ledger.MaxPerWorkspace-1, 1, time.Now()); err != nil || !o.Changed {
		t.Fatalf("last record of the quota: %+v %v", o, err)
	}
	// The machine counts what it has: adding and removing returns the place.
	m := openMem(t, vfs.NewMem(), "d")
	defer m.Close()
	del := ledger.Delete{Key: cmd.Target()}
	for i, c := range []ledger.Command{cmd, cmd, del, del, cmd} {
		if _, err := m.Apply([]Entry{{Index: uint64(i + 1), Command: encode(t, c)}}); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := readCount(m.view, cmd.Target()); err != nil || n != 1 {
		t.Fatalf("count is %d: %v", n, err)
	}
}

func TestOpenOfDamagedStoreSaysSo(t *testing.T) {
	fs := vfs.NewMem()
	m := openMem(t, fs, "d")
	if _, err := m.Apply([]Entry{{Index: 1, Command: encode(t, ledger.PutWorkspace{ID: "w", Name: "w"})}}); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	names, err := fs.List("d")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if strings.HasPrefix(n, "MANIFEST") {
			f, err := fs.Create(filepath.Join("d", n), vfs.WriteCategoryUnspecified)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.Write([]byte("garbage that is no manifest")); err != nil {
				t.Fatal(err)
			}
			_ = f.Close()
		}
	}
	if _, err := Open("d", Options{FS: fs}); fault.CodeOf(err) != fault.Internal {
		t.Fatalf("open of a damaged store: %v", err)
	}
}

func FuzzDecodeCommand(f *testing.F) {
	f.Add([]byte(`{"op":"put_stub","args":{"workspace":"w","config":"eA==","name":"n","type":"function"}}`))
	f.Add([]byte(`{"op":"expire","args":{"key":{"kind":"token","workspace":"w","id":"t"}}}`))
	f.Add([]byte(`{"op":"put_image","args":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		cmd, err := ledger.DecodeCommand(b)
		if err != nil {
			return
		}
		again, err := ledger.EncodeCommand(cmd)
		if err != nil {
			t.Fatalf("decoded command does not encode: %v", err)
		}
		back, err := ledger.DecodeCommand(again)
		if err != nil || back.Target() != cmd.Target() {
			t.Fatalf("round trip: %v", err)
		}
		m := openMem(t, vfs.NewMem(), "d")
		defer m.Close()
		if _, err := m.Apply([]Entry{{Index: 1, Time: time.UnixMilli(1), Command: b}}); err != nil {
			t.Fatalf("apply: %v", err)
		}
	})
}
