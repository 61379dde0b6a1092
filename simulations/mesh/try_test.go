package mesh

import (
	"context"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/beammesh/beammesh/scheduler/market"
)

func envInt(k string, d int) int {
	if v, err := strconv.Atoi(os.Getenv(k)); err == nil {
		return v
	}
	return d
}

func TestTry(t *testing.T) {
	n, k := envInt("N", 10000), envInt("T", 100000)
	cfg := Config{Seed: 1, Latency: time.Millisecond, Far: 20 * time.Millisecond, Jitter: time.Millisecond, GossipEvery: 15 * time.Second,
		Start: 100 * time.Millisecond, Detect: time.Second, TakeOver: 3 * time.Second, Threads: envInt("TH", 2), MixEvery: time.Minute,
		Owner:  market.OwnerConfig{FirstWidth: 1, NoHistory: true, MaxOffers: 1 << 20, MaxRecent: 1},
		Worker: market.WorkerConfig{NoHistory: true}, Keep: true,
	}
	t0 := time.Now()
	if err := (Synthetic{Seed: 1, Nodes: n, ZoneSize: 1000, Owners: max(1, n/envInt("PER", 1000)), Tasks: k, Run: 10 * time.Second, LoadPercent: 60}).Fill(&cfg); err != nil {
		t.Fatal(err)
	}
	t1 := time.Now()
	w, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t2 := time.Now()
	err = w.Run(context.Background(), time.Hour)
	t3 := time.Now()
	var ms runtime.MemStats
	runtime.ReadMemStats(&ms)
	s := w.Stats()
	var total int64
	for m, c := range s.Messages {
		if Message(m) < MsgAdvert {
			total += c
		}
		t.Logf("%s %.3f", Message(m), float64(c)/float64(k))
	}
	t.Logf("err %v: fill %v new %v run %v, %d events, %.2f us each, %.2f msgs/task, placements %d settled %d pulled %d, place p50 %v p99 %v, heap %d MB sys %d MB, alloc %d MB gc %d, mixes %d", err, t1.Sub(t0), t2.Sub(t1), t3.Sub(t2), w.Events(),
		float64(t3.Sub(t2).Microseconds())/float64(w.Events()), float64(total)/float64(k), s.Placements, s.Settled, s.Pulled, s.Place.Quantile(500), s.Place.Quantile(990), ms.HeapAlloc>>20, ms.Sys>>20, ms.TotalAlloc>>20, ms.NumGC, w.mixes)
}
