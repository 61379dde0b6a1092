package workertest

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/beammesh/beammesh/mesh/meshtest"
	"github.com/beammesh/beammesh/node/worker"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	"github.com/beammesh/beammesh/runtime"
	"github.com/beammesh/beammesh/runtime/runtimetest"
	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/market"
)

// Patience is how long tests wait for what must come: machines that run tests
// are slow and shared.
const Patience = time.Minute

// Options of a worker; zeros are fine.
type Options struct {
	Send   func(to scheduler.NodeID, m any)
	Advert func(scheduler.Advert)
	Pull   func(ctx context.Context, roots []string) error
	Cores  int64 // 4
	Dir    string
	Market market.WorkerConfig // its times and bounds; the rest is filled in
}

// Worker is a worker.Worker of plain processes.
type Worker struct {
	*worker.Worker
	Mesh   *meshtest.Node
	Engine *runtimetest.Fake
	LogDir string
	Clock  func() time.Duration

	stop context.CancelFunc
	done chan struct{}
	once sync.Once
}

// New makes a worker on a node that is not started yet and runs it until the end
// of the test.
func New(t testing.TB, node *meshtest.Node, o Options) *Worker {
	t.Helper()
	dir := o.Dir
	if dir == "" {
		dir = t.TempDir()
	}
	began := time.Now()
	w := &Worker{Mesh: node, Engine: runtimetest.NewFake(mkdir(t, dir, "engine"), nil), LogDir: filepath.Join(dir, "logs"),
		Clock: func() time.Duration { return time.Since(began) }, done: make(chan struct{})}
	if o.Send == nil {
		o.Send = func(scheduler.NodeID, any) {}
	}
	if o.Advert == nil {
		o.Advert = func(scheduler.Advert) {}
	}
	if o.Cores == 0 {
		o.Cores = 4
	}
	m := o.Market
	m.Node, m.Name, m.Boot = scheduler.NodeID(node.PeerID()), node.Self().Name, node.Self().BootID
	m.Capacity = Capacity(o.Cores)
	var err error
	w.Worker, err = worker.New(worker.Config{Market: m, Engine: w.Engine, Puller: puller{o.Pull}, LogDir: w.LogDir, Bundle: dir,
		Name: node.Self().Name, Clock: w.Clock, Log: slog.New(slog.DiscardHandler), RunDirs: filepath.Join(dir, "run"),
		Sockets: func(string) (func(), error) { return func() {}, nil }, Send: o.Send, Advertise: o.Advert})
	if err != nil {
		t.Fatal(err)
	}
	node.Handle(worker.LeaseProtocol, w.ServeLease)
	node.Handle(worker.LogsProtocol, w.ServeLogs)
	ctx, stop := context.WithCancel(context.Background())
	w.stop = stop
	go func() {
		defer close(w.done)
		w.Run(ctx)
	}()
	t.Cleanup(w.Close)
	return w
}

// Close ends the worker; what it started is gone when it returns.
func (w *Worker) Close() {
	w.once.Do(func() {
		w.Worker.Close()
		w.stop()
		<-w.done
		_ = w.Engine.Close()
	})
}

func mkdir(t testing.TB, parts ...string) string {
	t.Helper()
	d := filepath.Join(parts...)
	if err := os.MkdirAll(d, 0o700); err != nil {
		t.Fatal(err)
	}
	return d
}

// Capacity is that of a machine with some cores and much of everything else.
func Capacity(cores int64) scheduler.Capacity {
	r := scheduler.Resources{CPUMillis: cores * 1000, MemoryMiB: 16 << 10, DiskMiB: 100 << 10}
	return scheduler.Capacity{Total: r, Free: r, Isolation: []string{"trusted"}, Arch: goruntime.GOARCH}
}

// Order is a work order whose program loads as handler says.
func Order(handler string) *peerv1.WorkOrder {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return &peerv1.WorkOrder{WorkspaceId: "ws", StubId: "stub", StubType: "function", Handler: handler, Python: self, CodeRoot: "code",
		ImageRoots: []string{"image"}, Env: []string{isRunner + "=1"}}
}

type puller struct {
	pull func(ctx context.Context, roots []string) error
}

func (p puller) Pull(ctx context.Context, image []string, code string, _ []string) (int64, []string, error) {
	if p.pull == nil {
		return 0, nil, nil
	}
	return 0, nil, p.pull(ctx, append(slices.Clone(image), code))
}

// Container gives a container of the worker once it is there.
func (w *Worker) Container(t testing.TB, id string) *runtimetest.FakeContainer {
	t.Helper()
	c, err := w.Engine.Get(id)
	if err != nil {
		t.Fatal(err)
	}
	return c.(*runtimetest.FakeContainer)
}

// Gate is a FIFO at which a call waits.
type Gate struct{ path string }

// NewGate makes one; the arguments of a call that waits at it are Args.
func NewGate(t testing.TB) *Gate {
	t.Helper()
	g := &Gate{filepath.Join(t.TempDir(), "gate")}
	if err := syscall.Mkfifo(g.path, 0o600); err != nil {
		t.Fatal(err)
	}
	return g
}

// Args makes a call wait at the gate.
func (g *Gate) Args() []byte { return []byte("gate " + g.path) }

// Open lets the call through, which then returns text. It blocks until the call
// is there, for Patience.
func (g *Gate) Open(t testing.TB, text string) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		f, err := os.OpenFile(g.path, os.O_WRONLY, 0) // blocks until somebody reads
		if err == nil {
			_, err = f.WriteString(text + "\n")
			_ = f.Close()
		}
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(Patience):
		t.Fatal("nobody came to the gate")
	}
}

// OpenAll lets every call through that comes to the gate, now or later, for the
// rest of the test: of several attempts of one task any may get there first.
func (g *Gate) OpenAll(t testing.TB, text string) {
	t.Helper()
	over, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			f, err := os.OpenFile(g.path, os.O_WRONLY, 0) // blocks until somebody reads
			select {
			case <-over:
				_ = f.Close()
				return
			default:
			}
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = f.WriteString(text + "\n") // a reader that is gone again is no matter
			_ = f.Close()
		}
	}()
	t.Cleanup(func() {
		close(over)
		if f, err := os.OpenFile(g.path, os.O_RDONLY|syscall.O_NONBLOCK, 0); err == nil {
			<-done
			_ = f.Close()
		}
	})
}

// Runs lists the "task attempt" lines of the calls that came to the gate.
func (g *Gate) Runs(t testing.TB) []string {
	t.Helper()
	b, err := os.ReadFile(g.path + ".runs")
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

// NoLeaks fails the test if goroutines that were started during it are left at
// its end. Call it first, so that it looks last.
func NoLeaks(t testing.TB) {
	t.Helper()
	before := goruntime.NumGoroutine()
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		// Ends are told before the goroutine that tells them has returned.
		deadline := time.Now().Add(Patience)
		for goruntime.NumGoroutine() > before {
			if time.Now().After(deadline) {
				buf := make([]byte, 1<<20)
				t.Errorf("%d goroutines are left of %d before:\n%s", goruntime.NumGoroutine(), before, buf[:goruntime.Stack(buf, true)])
				return
			}
			goruntime.Gosched()
			time.Sleep(time.Millisecond)
		}
	})
}

// Gone tells whether a process has ended.
func Gone(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	// A zombie has ended; only its parent has not looked.
	_, rest, ok := strings.Cut(string(b), ") ")
	return ok && strings.HasPrefix(rest, "Z")
}

var _ runtime.Engine = (*runtimetest.Fake)(nil)
