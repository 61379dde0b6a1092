package gpu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"
)

// The test binary is also a helper process, of several tempers.
func TestMain(m *testing.M) {
	if temper := os.Getenv("GPU_TEST_TEMPER"); temper != "" {
		helper(temper)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func helper(temper string) {
	sc := bufio.NewScanner(os.Stdin)
	enc := json.NewEncoder(os.Stdout)
	for n := 0; sc.Scan(); n++ {
		var q Request
		_ = json.Unmarshal(sc.Bytes(), &q)
		dev := Device{ID: fmt.Sprintf("GPU-%d", n), Model: "H100"}
		switch temper {
		case "good":
			_ = enc.Encode(Reply{ID: q.ID, Devices: []Device{dev}})
			if n < 2 {
				_ = enc.Encode(Reply{}) // something has changed
			}
		case "hangs": // answers nothing, ever
		case "crashes":
			fmt.Fprintln(os.Stderr, "panic: driver")
			os.Exit(2)
		case "once": // good, then gone, as by kill -9
			_ = enc.Encode(Reply{ID: q.ID, Devices: []Device{dev}})
			os.Exit(0)
		case "garbage":
			fmt.Println("\x00\x01 not json")
		case "flood":
			fmt.Println(strings.Repeat("x", MaxLine+1))
		case "driverless":
			_ = enc.Encode(Reply{ID: q.ID, NoDriver: true, Error: "no NVIDIA driver: library not found"})
		}
	}
}

func testHelper(t testing.TB, program string, limit time.Duration) *Helper {
	t.Helper()
	h := NewHelper(HelperConfig{Argv: []string{program}, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Limit: limit, Always: true})
	t.Cleanup(func() { h.Close() })
	return h
}

func tempered(t *testing.T, temper string, limit time.Duration) *Helper {
	t.Helper()
	t.Setenv("GPU_TEST_TEMPER", temper)
	return testHelper(t, "/proc/self/exe", limit)
}

func TestBadHelpersGiveErrorsInTime(t *testing.T) {
	for temper, want := range map[string]string{
		"hangs": "no answer", "crashes": "ended", "garbage": "ended", "flood": "ended",
	} {
		t.Run(temper, func(t *testing.T) {
			limit := time.Minute
			if temper == "hangs" {
				limit = 100 * time.Millisecond
			}
			h := tempered(t, temper, limit)
			p, err := h.process()
			if err != nil {
				t.Fatal(err)
			}
			_, err = h.List(t.Context())
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
			}
			select {
			case <-p.gone:
			case <-time.After(time.Minute):
				t.Error("process is left")
			}
			// The next one waits its turn instead of starting at once.
			if _, err := h.List(t.Context()); err == nil || !strings.Contains(err.Error(), "pauses") {
				t.Errorf("right after a failure: %v", err)
			}
		})
	}
}

func TestDriverless(t *testing.T) {
	h := tempered(t, "driverless", time.Minute)
	if _, err := h.List(t.Context()); !errors.Is(err, ErrNoDriver) {
		t.Errorf("got %v", err)
	}
	if l, ok := <-h.Watch(t.Context()); !ok || len(l) != 0 {
		t.Errorf("watch gave %v, %v", l, ok)
	}
}

func TestCallerInAHurryLeavesHelperAlone(t *testing.T) {
	h := tempered(t, "hangs", time.Hour)
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan error)
	go func() {
		_, err := h.List(ctx)
		got <- err
	}()
	for len(h.turn) == 0 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-got; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	// The request is still the helper's: others wait, also by their own limit.
	ctx, cancel = context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := h.List(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	h.Close()
	if _, err := h.List(t.Context()); err == nil {
		t.Error("listed after Close")
	}
}

func TestWatchFollowsTheHelper(t *testing.T) {
	h := tempered(t, "good", time.Minute)
	w := h.Watch(t.Context())
	for {
		select {
		case l := <-w: // those in between may be skipped
			if len(l) == 1 && l[0].ID == "GPU-2" {
				h.Close()
				for range w {
				}
				return
			}
		case <-time.After(time.Minute):
			t.Fatal("changes are not followed")
		}
	}
}

func TestHelperIsStartedAgain(t *testing.T) {
	h := tempered(t, "once", time.Minute)
	w := h.Watch(t.Context())
	have := func(n int) {
		t.Helper()
		for {
			select {
			case l := <-w:
				if len(l) == n {
					return
				}
			case <-time.After(time.Minute):
				t.Fatalf("waited for %d devices", n)
			}
		}
	}
	have(1)
	have(0) // it is gone
	have(1) // a second later: another one
}
