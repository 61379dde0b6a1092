// Command testsum runs all tests of the repository, shows what goes on, and
// ends with one line: N passed, N failed, N skipped.
//
//	go build -o .cache/bin/testsum ./tools/testsum && .cache/bin/testsum
//	.cache/bin/testsum -groups lint,go        # only some
//	.cache/bin/testsum -groups go ./cli/...   # only some packages
//
// Groups: lint (format, vet, generated code), go (all packages but e2e, with
// the race detector where it links little), python (the SDK), e2e (real
// containers in real namespaces; needs root, or sudo, and bin/beam).
//
// It fails when a test failed, when a group ran no test at all, and when tests
// were skipped for more than three different reasons: each reason has to be
// one that the README lists.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// maxSkipReasons is how many different reasons to skip tests there may be.
const maxSkipReasons = 3

type group struct {
	name string
	run  func(ctx context.Context, r *report, packages []string) error
}

var groups = []group{
	{"lint", lint},
	{"go", goTests},
	{"python", pythonTests},
	{"e2e", endToEnd},
}

func main() {
	only := flag.String("groups", "", "comma-separated groups to run (default: all)")
	flag.BoolVar(&useRace, "race", true, "use the race detector where it links little")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ok := run(ctx, *only, flag.Args())
	stop()
	if !ok {
		os.Exit(1)
	}
}

func run(ctx context.Context, only string, packages []string) bool {
	var names []string
	for _, g := range groups {
		names = append(names, g.name)
	}
	wanted := names
	if only != "" {
		wanted = strings.Split(only, ",")
		for _, w := range wanted {
			if !slices.Contains(names, w) {
				fmt.Fprintf(os.Stderr, "error: no group %q: one of %s\n", w, strings.Join(names, ", "))
				return false
			}
		}
	}
	r := newReport(os.Stdout)
	for _, g := range groups {
		if !slices.Contains(wanted, g.name) || ctx.Err() != nil {
			continue
		}
		start := time.Now()
		r.heading(g.name)
		before := r.count()
		if err := g.run(ctx, r, packages); err != nil {
			r.add(result{Name: g.name, State: failed, Output: err.Error()})
		}
		if r.count() == before {
			r.add(result{Name: g.name, State: failed, Output: "the group ran no test"})
		}
		r.footing(g.name, time.Since(start))
	}
	if ctx.Err() != nil {
		r.add(result{Name: "interrupted", State: failed, Output: "not all tests ran"})
	}
	return r.finish()
}
