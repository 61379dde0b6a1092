package containerd

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/beammesh/beammesh/runtime"
)

// BenchmarkStart is the time from Start to the first process's first byte, with
// the layers unpacked and a slot ready.
func BenchmarkStart(b *testing.B) {
	e := newEngine(b, func(c *Config) { c.Log = nil })
	ctx := context.Background()
	if err := e.Prepare(ctx, base); err != nil {
		b.Fatal(err)
	}
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		waitReady(b, e)
		b.StartTimer()
		begin := time.Now()
		c := start(b, e, runtime.Spec{ID: fmt.Sprintf("b%d", i)})
		target(e).Do(b, c, "say", "x")
		took = append(took, time.Since(begin))
		b.StopTimer()
		if err := c.Stop(ctx, 0); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[0].Microseconds())/1000, "min-ms")
}

// waitReady waits until a slot lies ready.
func waitReady(b *testing.B, e *Engine) {
	b.Helper()
	for end := time.Now().Add(time.Minute); len(e.slots.ready) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			b.Fatal("no slot gets ready")
		}
	}
}
