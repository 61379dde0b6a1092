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
)

// Context gives a context that ends with the first signal; the second one
// calls now. After stop, which may be called twice and waits for the watching
// goroutine, signals do nothing.
func Context(parent context.Context, signals <-chan os.Signal, now func()) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancel(parent)
	quit, end := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, act := range []func(){cancel, now} {
			select {
			case <-signals:
				act()
			case <-quit.Done():
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
