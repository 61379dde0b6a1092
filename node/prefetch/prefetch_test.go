package prefetch_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/beammesh/beammesh/content"
	"github.com/beammesh/beammesh/node/ledger"
	"github.com/beammesh/beammesh/node/ledger/ledgertest"
	"github.com/beammesh/beammesh/node/prefetch"
	"github.com/beammesh/beammesh/proto/fault"
)

const mib = 1 << 20

// rig is a node around a Prefetcher, in a bubble of virtual time.
type rig struct {
	t      *testing.T
	ledger *ledgertest.Fake
	away   error // what the ledger answers, when it does not
	cfg    prefetch.Config
	*prefetch.Prefetcher
	stop func()

	mu    sync.Mutex
	did   []string         // "fetch a", "unpack a+b"
	hot   map[string]bool  // roots in use
	fail  map[string]error // of fetches
	gates map[string]chan struct{}
	room  int64
	moved int64 // per fetch
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, ledger: ledgertest.NewFake(nil), hot: map[string]bool{}, fail: map[string]error{}, gates: map[string]chan struct{}{}, room: 100 << 30}
	r.cfg = prefetch.Config{
		Images: (*reader)(r), Log: slog.New(slog.DiscardHandler), Retry: time.Second, Budget: 1 << 40,
		Sizes: func(i ledger.Image) []int64 { return slices.Repeat([]int64{100 * mib}, len(i.Roots)) },
		Hot: func() func(string) bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			hot := r.hot
			return func(root string) bool { return hot[root] }
		},
		Fetch: r.fetch, Prepare: r.prepare,
		Yield: func(context.Context, string) {},
		Room: func() (int64, error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.room, nil
		},
	}
	return r
}

// reader is the ledger that may be away.
type reader rig

func (r *reader) Get(ctx context.Context, k ledger.Key, age time.Duration) (ledger.Answer, error) {
	return r.ledger.Get(ctx, k, age)
}

func (r *reader) List(ctx context.Context, q ledger.Query) (ledger.Page, error) {
	r.mu.Lock()
	err := r.away
	r.mu.Unlock()
	if err != nil {
		return ledger.Page{}, err
	}
	return r.ledger.List(ctx, q)
}

func (r *reader) Watch(ctx context.Context, f ledger.Filter, from uint64, fn func(ledger.Event) error) error {
	return r.ledger.Watch(ctx, f, from, fn)
}

// at waits at a gate, if the test made one.
func (r *rig) at(ctx context.Context, what string) error {
	r.mu.Lock()
	r.did = append(r.did, what)
	gate := r.gates[what]
	r.mu.Unlock()
	if gate == nil {
		return nil
	}
	select {
	case <-gate:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (r *rig) fetch(ctx context.Context, root string, _ []string, progress content.Progress) (int64, error) {
	progress(50*mib, 100*mib)
	if err := r.at(ctx, "fetch "+root); err != nil {
		return 0, err
	}
	progress(100*mib, 100*mib)
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.moved, r.fail[root]
}

func (r *rig) prepare(ctx context.Context, roots []string) error {
	return r.at(ctx, "unpack "+strings.Join(roots, "+"))
}

// gate stops at a step until the returned function is called.
func (r *rig) gate(what string) (open func()) {
	c := make(chan struct{})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gates[what] = c
	return func() { close(c) }
}

func (r *rig) start() {
	ctx, cancel := context.WithCancel(r.t.Context())
	r.Prefetcher = prefetch.New(r.cfg)
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Run(ctx)
	}()
	r.stop = func() { cancel(); <-done }
	r.t.Cleanup(r.stop)
	synctest.Wait()
}

func (r *rig) register(workspace string, roots ...string) {
	r.t.Helper()
	_, err := r.ledger.Propose(r.t.Context(), ledger.PutImage{Workspace: workspace, ID: "id-" + roots[len(roots)-1], Image: ledger.Image{Roots: roots, Python: "3.11"}})
	if err != nil {
		r.t.Fatal(err)
	}
	time.Sleep(time.Second) // in the bubble: so that later ones are newer
	synctest.Wait()
}

func (r *rig) base(root string) { r.t.Helper(); r.register(ledger.MeshScope, root) }

// took gives what was done since it was asked last.
func (r *rig) took() []string {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.did
	r.did = nil
	return out
}

// want compares what was done: the fetches in their order and the unpackings in
// theirs, for a layer is unpacked while the next one comes.
func (r *rig) want(steps ...string) {
	r.t.Helper()
	if got := r.took(); !slices.Equal(apart(got), apart(steps)) {
		r.t.Errorf("did %q, want %q", got, steps)
	}
}

func apart(steps []string) []string {
	out := slices.Clone(steps)
	slices.SortStableFunc(out, func(a, b string) int { return strings.Compare(a[:1], b[:1]) })
	return out
}

func (r *rig) set(fn func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fn()
}

func TestTakesTheBaseAndWhatIsInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.base("old")
		r.base("base")
		r.register("ws", "base", "used")
		r.register("ws", "base", "unused")
		r.hot["used"] = true
		r.start()
		r.want("fetch base", "unpack base", "fetch base", "fetch used", "unpack base", "unpack base+used")
		if s := r.State(); !s.Settled || s.Ready != 2 || s.String() != "2 ready" {
			t.Errorf("state %+v", s)
		}
		// A member begins to use the third; and one that nobody knows.
		r.Heard([]string{"used", "unused", "code"})
		r.want("fetch base", "fetch unused", "unpack base", "unpack base+unused")
		r.Heard([]string{"used", "unused"})
		r.want()
		// One more is built.
		r.register("ws", "new")
		r.want("fetch new", "unpack new")
	})
}

func TestMachinesOfOthersGetNoImagesOfWorkspaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.cfg.MeshOnly = true
		r.base("base")
		r.register("ws", "base", "private")
		r.hot["private"] = true
		r.start()
		r.register("ws", "more")
		r.Heard([]string{"private", "more"})
		r.want("fetch base", "unpack base")
	})
}

func TestALayerIsUnpackedWhileTheNextOneComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		open := r.gate("unpack a")
		r.start()
		r.register("ws", "a", "b")
		r.want("fetch a", "unpack a", "fetch b")
		if s := r.State(); s.Activity() != "unpacking image id-b" || s.Ready != 0 {
			t.Errorf("state %+v", s)
		}
		open()
		r.want("unpack a+b")
		if s := r.State(); s.Ready != 1 {
			t.Errorf("state %+v", s)
		}
	})
}

func TestOneImageAtATimeAndProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		open := r.gate("fetch a")
		r.register("ws", "x", "a")
		r.register("ws", "b")
		r.hot["a"], r.hot["b"] = true, true
		r.gates["fetch b"] = r.gates["fetch a"]
		r.start()
		r.want("fetch b")
		if s := r.State(); s.Settled || s.String() != "0 ready, fetching image id-b: 50 %, 1 to come" {
			t.Errorf("state %q %+v", s, s)
		}
		open()
		r.took()
		if s := r.State(); !s.Settled || s.Ready != 2 {
			t.Errorf("state %+v", s)
		}
	})
}

func TestASourceThatDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		dead := errors.New("no source can give them")
		r.fail["a"] = dead
		r.register("ws", "a")
		r.hot["a"] = true
		r.start()
		r.want("fetch a")
		if s := r.State(); !s.Settled || s.Ready != 0 || s.Waiting != 1 {
			t.Errorf("after a failure a start waits on: %+v", s)
		}
		time.Sleep(999 * time.Millisecond)
		r.want() // not before its time
		time.Sleep(time.Millisecond)
		r.want("fetch a")
		// Another source comes up: no need to wait.
		r.set(func() { delete(r.fail, "a") })
		r.Nudge()
		r.want("fetch a", "unpack a")
		if s := r.State(); s.Ready != 1 || s.Trouble != "" {
			t.Errorf("state %+v", s)
		}

		r.set(func() { r.fail["b"] = dead })
		r.register("ws", "b")
		time.Sleep(time.Hour)
		if got := r.took(); len(got) != prefetch.MaxTries {
			t.Errorf("tried %d times, want %d", len(got), prefetch.MaxTries)
		}
		if s := r.State(); !strings.Contains(s.Trouble, "image id-b") || !strings.Contains(s.Trouble, dead.Error()) {
			t.Errorf("trouble %q", s.Trouble)
		}
		r.Heard([]string{"b"})
		r.Nudge()
		time.Sleep(time.Hour)
		r.want() // left alone
	})
}

func TestADiskThatIsNearlyFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.room = 200*mib + prefetch.Margin - 1 // once as blocks, once unpacked
		r.start()
		r.register("ws", "a")
		time.Sleep(time.Hour)
		r.want()
		if s := r.State(); !strings.Contains(s.Trouble, "1224 MiB of disk") || !strings.Contains(s.Trouble, "1223 MiB are left") {
			t.Errorf("trouble %q", s.Trouble)
		}
		r.set(func() { r.room++ })
		r.register("ws", "b")
		r.want("fetch b", "unpack b")
		// Full in the middle, for something else wrote: not tried again.
		r.set(func() { r.fail["c"] = fmt.Errorf("put block: %w", content.ErrDiskFull) })
		r.register("ws", "c")
		time.Sleep(time.Hour)
		r.want("fetch c")
	})
}

func TestTheShareOfAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.cfg.Budget = 250 * mib
		r.moved = 100 * mib
		r.start()
		for _, name := range []string{"a", "b", "c"} {
			r.register("ws", name)
		}
		r.want("fetch a", "unpack a", "fetch b", "unpack b")
		if s := r.State(); !strings.Contains(s.Trouble, "2 images with 200 MiB were fetched ahead this hour") {
			t.Errorf("trouble %q", s.Trouble)
		}
		time.Sleep(time.Hour)
		r.register("ws", "d")
		r.want("fetch d", "unpack d")
		// What is here already costs nothing, but even of that there is an end.
		r.set(func() { r.moved = 0 })
		time.Sleep(time.Hour)
		for i := range prefetch.MaxHourly + 5 {
			r.register("ws", fmt.Sprint("e", i))
		}
		if got := len(r.took()); got != 2*prefetch.MaxHourly {
			t.Errorf("%d steps, want those of %d images", got, prefetch.MaxHourly)
		}
	})
}

func TestTheQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		open := r.gate("fetch first")
		r.start()
		r.register("ws", "first")
		for i := range prefetch.MaxWaiting + 7 {
			r.register("ws", fmt.Sprint("e", i))
		}
		if s := r.State(); s.Waiting != prefetch.MaxWaiting {
			t.Errorf("%d wait", s.Waiting)
		}
		open()
		got := r.took()
		if slices.Contains(got, "fetch e6") || !slices.Contains(got, "fetch e7") {
			t.Errorf("not the oldest were dropped: %q", got)
		}
	})
}

func TestAnEndInTheMiddle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.base("a")
		r.gate("fetch a")
		r.start()
		r.want("fetch a")
		r.stop() // and comes back
		r.set(func() { delete(r.gates, "fetch a") })
		r.start()
		r.want("fetch a", "unpack a")

		r.gate("unpack b")
		r.register("ws", "b")
		r.want("fetch b", "unpack b")
		r.stop()
		if s := r.State(); s.Ready != 1 || s.Doing != "" {
			t.Errorf("state %+v", s)
		}
	})
}

func TestUnpackingFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		broken := errors.New("no space left on device")
		n := 0
		r.cfg.Prepare = func(context.Context, []string) error { n++; return broken }
		r.gate("fetch b") // is not waited for when a cannot be unpacked
		r.start()
		r.register("ws", "a", "b")
		time.Sleep(time.Hour)
		if s := r.State(); n != prefetch.MaxTries || !strings.Contains(s.Trouble, broken.Error()) {
			t.Errorf("unpacked %d times, %+v", n, s)
		}
	})
}

func TestALedgerThatIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.base("a")
		r.away = fault.New(fault.Unreachable, "the founder does not answer", "")
		r.start()
		if s := r.State(); !s.Settled {
			t.Error("a start waits for a ledger that is away")
		}
		r.want()
		r.set(func() { r.away = nil })
		r.Nudge()
		r.want("fetch a", "unpack a")
	})
}

func TestYieldsBeforeItBegins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		idle := make(chan struct{})
		r.cfg.Yield = func(ctx context.Context, top string) {
			if top != "b" {
				t.Errorf("yields for %q", top)
			}
			<-idle
		}
		r.start()
		r.register("ws", "a", "b")
		r.want()
		close(idle)
		r.want("fetch a", "fetch b", "unpack a", "unpack a+b")
	})
}
