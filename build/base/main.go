// Command base makes the root file system of the default base image ahead of
// the first function that needs it, in the folder where a node with the same
// BEAM_BASE_CACHE looks for it. The demo runs it beside the build.
//
//	go build -o .cache/bin/base ./build/base && sudo .cache/bin/base -cache .cache/base
//
// It writes one line per step to stdout, "phase done total". When the folder is
// there already it does nothing.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/beammesh/beammesh/node/service/image"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/runtime/build"
)

func main() {
	cache := flag.String("cache", ".cache/base", "folder of base images")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s := image.Default()
	dir, err := filepath.Abs(filepath.Join(*cache, s.BaseFolder()))
	if err == nil {
		err = build.Bootstrap(ctx, build.BaseConfig{Suite: s.Suite, Dir: dir}, func(p build.Progress) {
			fmt.Println(p.Phase, p.Done, p.Total)
		})
	}
	if err != nil {
		f := fault.From(err)
		fmt.Fprintln(os.Stderr, "error:", f.Message)
		if f.Hint != "" {
			fmt.Fprintln(os.Stderr, "hint:", f.Hint)
		}
		os.Exit(1)
	}
}
