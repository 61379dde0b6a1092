package node

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/gpu"
)

func newMixer(t *testing.T, publish func([]byte)) (*mixer, chan []scheduler.Weighted) {
	t.Helper()
	sets := make(chan []scheduler.Weighted, 16)
	m := &mixer{clock: func() time.Duration { return time.Minute }, change: make(chan struct{}, 1),
		set: func(ws []scheduler.Weighted) { sets <- ws }, publish: func(_ context.Context, b []byte) { publish(b) }}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); m.run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return m, sets
}

// TestMixTravels: what one owner asks for reaches the machines of another node.
func TestMixTravels(t *testing.T) {
	reports := make(chan []byte, 16)
	a, own := newMixer(t, func(b []byte) { reports <- b })
	b, sets := newMixer(t, func([]byte) { t.Error("a report was passed on") })
	want := scheduler.Demand{CPUMillis: 2000, MemoryMiB: 512, GPUs: []gpu.Want{{Class: "H100", Count: 2}}}
	a.observe(want)
	b.heard(mesh.PeerID("a"), <-reports)
	for _, got := range [][]scheduler.Weighted{<-own, <-sets} {
		if len(got) != 1 || got[0].Demand.String() != want.String() || got[0].Weight <= 0 {
			t.Errorf("got %v", got)
		}
	}
	b.heard(mesh.PeerID("x"), []byte("no report"))
}

// TestReportsFitGossip: of more shapes than one message takes, the frequent ones go.
func TestReportsFitGossip(t *testing.T) {
	reports := make(chan []byte, 16)
	m := &mixer{clock: func() time.Duration { return 0 }, change: make(chan struct{}, 1),
		set: func([]scheduler.Weighted) {}, publish: func(_ context.Context, b []byte) { reports <- b }}
	for i := range 64 {
		d := scheduler.Demand{CPUMillis: 1000 + int64(i), MemoryMiB: 1 << 20, GPUs: []gpu.Want{{Class: fmt.Sprintf("GPU-%d-with-a-long-name", i), Count: 8}}}
		for range 64 - i {
			m.observe(d)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); m.run(ctx) }()
	b := <-reports
	cancel()
	<-done
	other, sets := newMixer(t, func([]byte) {})
	other.heard(mesh.PeerID("a"), b)
	got := <-sets
	if len(b) > mesh.MaxGossip || len(got) < 10 || got[0].Demand.CPUMillis != 1000 {
		t.Errorf("%d bytes with %d shapes, the first %v", len(b), len(got), got[0])
	}
}
