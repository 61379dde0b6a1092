package gpu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"time"
)

const (
	// callTime is what the driver may take. Without persistence mode it wakes
	// every GPU first, which takes seconds on a machine with eight.
	callTime = 30 * time.Second
	// lookTime is how often a Watch looks by itself: a driver that was
	// installed meanwhile tells nobody.
	lookTime   = time.Minute
	firstPause = time.Second
	lastPause  = time.Minute
)

var _ Inventory = (*Helper)(nil)

// Helper is the real GPUs, asked for through the helper process. The process
// is started when it is needed. One that does not answer in time is killed,
// one that is gone is started again, after a pause that doubles from 1 s to
// 1 min with each failure in a row.
type Helper struct {
	argv    []string
	log     *slog.Logger
	present func() bool // cheap look for anything of NVIDIA's
	limit   time.Duration

	turn    chan struct{} // capacity 1: one request at a time
	changed chan struct{} // closed and replaced, under mu, when devices may have changed

	mu       sync.Mutex
	proc     *process
	closed   bool
	failures int
	notUntil time.Time
	lastErr  error
}

// HelperConfig of a Helper.
type HelperConfig struct {
	Argv []string // the helper program, assets.Paths.NVML
	Log  *slog.Logger
	// Limit bounds one request, 0 = 30 s.
	Limit time.Duration
	// Always runs the program on machines too that have nothing of NVIDIA's.
	Always bool
}

// NewHelper returns the inventory behind the helper program. Nothing is
// started yet.
func NewHelper(c HelperConfig) *Helper {
	h := &Helper{argv: c.Argv, log: c.Log, present: present, limit: cmp.Or(c.Limit, callTime),
		turn: make(chan struct{}, 1), changed: make(chan struct{})}
	if c.Always {
		h.present = func() bool { return true }
	}
	return h
}

// present reports whether there is a driver or a device of NVIDIA's, so that
// other machines never run the helper.
func present() bool {
	for _, p := range []string{"/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg"} {
		if _, err := os.Stat(p); err == nil {
			return true
		}
	}
	vendors, _ := filepath.Glob("/sys/bus/pci/devices/*/vendor")
	for _, v := range vendors {
		b, _ := os.ReadFile(v)
		class, _ := os.ReadFile(filepath.Join(filepath.Dir(v), "class"))
		if strings.TrimSpace(string(b)) == "0x10de" && strings.HasPrefix(string(class), "0x03") {
			return true
		}
	}
	return false
}

// List asks the driver.
func (h *Helper) List(ctx context.Context) ([]Device, error) {
	if !h.present() {
		return nil, ErrNoDriver
	}
	r, err := h.call(ctx, Request{Op: OpList})
	if err != nil {
		return nil, fmt.Errorf("list GPUs: %w", err)
	}
	return r.Devices, nil
}

// Edits asks the driver's library what a container needs.
func (h *Helper) Edits(ctx context.Context, ids []string) (Edits, error) {
	if len(ids) == 0 {
		return Edits{}, nil
	}
	r, err := h.call(ctx, Request{Op: OpEdits, IDs: ids})
	if err != nil {
		return Edits{}, fmt.Errorf("edits for GPUs %s: %w", strings.Join(ids, ", "), err)
	}
	return r.Edits, nil
}

// Watch looks when the helper says so and by itself once a minute.
func (h *Helper) Watch(ctx context.Context) <-chan []Device {
	out := make(chan []Device, 1)
	go func() {
		defer close(out)
		var last []Device
		first := true
		for {
			h.mu.Lock()
			changed, closed := h.changed, h.closed
			h.mu.Unlock()
			if closed {
				return
			}
			wait := lookTime
			devs, err := h.List(ctx)
			if err != nil && !errors.Is(err, ErrNoDriver) {
				h.mu.Lock()
				wait = max(time.Until(h.notUntil), firstPause)
				h.mu.Unlock()
			}
			if first || !reflect.DeepEqual(devs, last) {
				first, last = false, devs
				select {
				case <-out: // nobody took it: it is old now
				default:
				}
				out <- devs
			}
			t := time.NewTimer(wait)
			select {
			case <-ctx.Done():
				t.Stop()
				return
			case <-changed:
			case <-t.C:
			}
			t.Stop()
		}
	}()
	return out
}

// Close ends the helper process.
func (h *Helper) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	if h.proc != nil {
		h.proc.kill()
		h.proc = nil
	}
	h.tellLocked()
	return nil
}

// call makes one request; requests of others wait for their turn.
func (h *Helper) call(ctx context.Context, req Request) (Reply, error) {
	select {
	case h.turn <- struct{}{}:
	case <-ctx.Done():
		return Reply{}, ctx.Err()
	}
	p, err := h.process()
	if err != nil {
		<-h.turn
		return Reply{}, err
	}
	// Not ctx alone: a caller in a hurry must not make a slow driver look
	// dead, and a caller without a limit must not wait for ever.
	res := make(chan answer, 1)
	go func() {
		defer func() { <-h.turn }()
		r, err := p.ask(req, h.limit)
		if err != nil {
			h.failed(p, err)
		} else {
			h.worked()
		}
		res <- answer{r, err}
	}()
	var a answer
	select {
	case a = <-res:
	case <-ctx.Done():
		return Reply{}, ctx.Err()
	}
	switch {
	case a.err != nil:
		return a.r, a.err
	case a.r.NoDriver:
		return a.r, fmt.Errorf("%w: %s", ErrNoDriver, a.r.Error)
	case a.r.NoDevice:
		return a.r, fmt.Errorf("%w: %s", ErrNoDevice, a.r.Error)
	case a.r.Error != "":
		return a.r, errors.New(a.r.Error)
	}
	return a.r, nil
}

type answer struct {
	r   Reply
	err error
}

// process returns the running helper or starts one.
func (h *Helper) process() (*process, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.closed:
		return nil, os.ErrClosed
	case h.proc != nil:
		return h.proc, nil
	case h.failures > 0 && time.Now().Before(h.notUntil):
		return nil, fmt.Errorf("GPU helper pauses for %s after: %w", time.Until(h.notUntil).Round(time.Second), h.lastErr)
	}
	p, err := startProcess(h.argv, h.log, h.tell)
	if err != nil {
		h.failedLocked(err)
		return nil, err
	}
	h.proc = p
	go func() {
		<-p.gone
		h.failed(p, errors.New("GPU helper ended"))
	}()
	return p, nil
}

func (h *Helper) worked() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failures, h.lastErr = 0, nil
}

// failed ends the helper process p, unless that is known already.
func (h *Helper) failed(p *process, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.proc != p {
		return
	}
	h.proc = nil
	p.kill()
	h.failedLocked(err)
	h.tellLocked()
}

func (h *Helper) failedLocked(err error) {
	h.lastErr = err
	h.notUntil = time.Now().Add(min(firstPause<<min(h.failures, 6), lastPause))
	h.failures++
	h.log.Warn("GPU helper", "err", err, "failures", h.failures)
}

func (h *Helper) tell() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tellLocked()
}

func (h *Helper) tellLocked() {
	close(h.changed)
	h.changed = make(chan struct{})
}
