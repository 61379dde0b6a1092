// Package interrupt gives signals their two meanings: the first asks the
// command to end in order, the second ends the process at once. Main owns the
// signals and hands them in as a channel.
//
//	signals := make(chan os.Signal, 2)
//	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
//	ctx, stop := interrupt.Context(context.Background(), signals, func() { os.Exit(130) })
//	defer stop()
package interrupt

import (
	"context"
	"os"
	"time"
)

// same is how soon after the first a signal still counts as the same wish:
// tools such as timeout(1) send one to the process and one to its group.
const same = 250 * time.Millisecond

// Context gives a context that ends with the first signal; a second one, not
// within a quarter of a second, calls now. After stop, which may be called twice and waits for the watching
// goroutine, signals do nothing.
func Context(parent context.Context, signals <-chan os.Signal, now func()) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancel(parent)
	quit, end := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		var first time.Time
		for {
			select {
			case <-signals:
			case <-quit.Done():
				return
			}
			switch {
			case first.IsZero():
				first = time.Now()
				cancel()
			case time.Since(first) >= same:
				now()
				return
			}
		}
	}()
	return ctx, func() {
		cancel()
		end()
		<-done
	}
}
