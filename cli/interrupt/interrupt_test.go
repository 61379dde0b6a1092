package interrupt

import (
	"context"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

func TestFirstEndsInOrderSecondAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signals := make(chan os.Signal, 2)
		ended := false
		ctx, stop := Context(t.Context(), signals, func() { ended = true })
		defer stop()
		synctest.Wait()
		if ctx.Err() != nil || ended {
			t.Fatalf("before any signal: ctx %v, ended %v", ctx.Err(), ended)
		}
		signals <- os.Interrupt
		synctest.Wait()
		if ctx.Err() != context.Canceled || ended {
			t.Fatalf("after one signal: ctx %v, ended %v", ctx.Err(), ended)
		}
		signals <- os.Interrupt
		synctest.Wait()
		if ended {
			t.Fatal("a signal that came twice at once ended the process")
		}
		time.Sleep(same)
		signals <- os.Interrupt
		synctest.Wait()
		if !ended {
			t.Fatal("after two signals: the process goes on")
		}
	})
}

func TestStopEndsTheWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signals := make(chan os.Signal, 2)
		ctx, stop := Context(t.Context(), signals, func() { t.Error("ended at once") })
		stop()
		stop()
		if ctx.Err() == nil {
			t.Error("the context outlives stop")
		}
		signals <- os.Interrupt
		synctest.Wait()
		if len(signals) != 1 {
			t.Error("a signal was taken after stop")
		}
	})
}
