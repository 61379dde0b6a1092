package mesh

import (
	"context"
	"testing"
	"time"

	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/simulations/trace/tracetest"
)

func TestTry2(t *testing.T) {
	dir := tracetest.Dir(t)
	for seed := uint64(42); seed < 42+uint64(envInt("SEEDS", 2)); seed++ {
		base := func() Config {
			return Config{Seed: seed, Latency: time.Millisecond, Jitter: time.Duration(envInt("JIT", 1)) * time.Millisecond, GossipEvery: time.Duration(envInt("G", 60)) * time.Second,
				Start: time.Duration(envInt("ST", 100)) * time.Millisecond, Detect: time.Second, TakeOver: 3 * time.Second, Threads: envInt("TH", 2), MixEvery: time.Minute,
				Owner:  market.OwnerConfig{FirstWidth: envInt("FW", 1), AskWidth: envInt("AW", 4), MaxRounds: envInt("MR", 3), NoHistory: true, LeaseFor: 180 * time.Second, MaxOffers: 1 << 20, MaxRecent: 1, IgnoreReplies: envInt("IGN", 0) == 1},
				Worker: market.WorkerConfig{NoHistory: true, RenewEvery: 60 * time.Second},
			}
		}
		ob := Openb{Seed: seed, Traces: dir, List: "default", Owners: envInt("K", 16), Percent: int64(envInt("PCT", 130)), Every: time.Duration(envInt("EV", 50)) * time.Millisecond, Run: time.Duration(envInt("RUN", 0)) * time.Second}
		cfg := base()
		mix, err := ob.Fill(&cfg)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Mix = mix
		t0 := time.Now()
		if err := Central(context.Background(), &cfg); err != nil {
			t.Fatal(err)
		}
		t.Logf("seed %d central: 95 %d 100 %d 110 %d 130 %d alloc %d in %v, kinds %d, mix %d", seed, Unallocated(&cfg, 95), Unallocated(&cfg, 100), Unallocated(&cfg, 110), Unallocated(&cfg, 130), Allocated(&cfg, time.Duration(envInt("W0", 200))*time.Second, time.Duration(envInt("W1", 500))*time.Second), time.Since(t0), len(cfg.Kinds), len(mix.Shapes()))
		if envInt("CENTRAL", 0) == 1 { continue }
		cfg = base()
		ob.Fill(&cfg)
		if envInt("LEARN", 0) == 0 {
			cfg.Mix = mix
		}
		t0 = time.Now()
		w, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Run(context.Background(), time.Hour); err != nil {
			t.Fatal(err)
		}
		s := w.Stats()
		n := float64(w.total)
		var total int64
		for m, c := range s.Messages {
			if Message(m) < MsgAdvert && Message(m) != MsgRenew && Message(m) != MsgRenewAck {
				total += c
			}
		}
		t.Logf("seed %d ours: 95 %d 100 %d 110 %d 130 %d alloc %d, asks/task %.2f, msgs/task %.2f pulled %d p99 %v in %v mixes %d", seed, Unallocated(&cfg, 95), Unallocated(&cfg, 100), Unallocated(&cfg, 110), Unallocated(&cfg, 130), Allocated(&cfg, time.Duration(envInt("W0", 200))*time.Second, time.Duration(envInt("W1", 500))*time.Second), float64(s.Messages[MsgAsk])/n, float64(total)/n, s.Pulled, s.Place.Quantile(990), time.Since(t0), w.mixes)
	}
}
