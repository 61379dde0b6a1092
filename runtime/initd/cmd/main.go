// Command initd is PID 1 of our containers; see package initd.
package main

import (
	"flag"
	"log/slog"
	"os"
	goruntime "runtime"
	"runtime/debug"
	"strings"

	"github.com/beammesh/beammesh/runtime/initd"
)

func main() {
	// Init's memory counts on top of what the user asked for: stay small.
	debug.SetGCPercent(50)
	goruntime.GOMAXPROCS(min(2, goruntime.GOMAXPROCS(0)))
	var cfg initd.Config
	flag.StringVar(&cfg.Ctl, "ctl", "", "socket of the node (default /run/beam/ctl.sock)")
	flag.StringVar(&cfg.API, "api", "", "socket of the node's API (default /run/beam/api.sock)")
	proxy := flag.String("proxy", "127.0.0.1:1993,127.0.0.1:1994", "addresses joined to the API, empty for none")
	flag.DurationVar(&cfg.Gap, "gap", 0, "how long to run without a node (default 60s)")
	flag.Parse()
	cfg.Proxy = strings.FieldsFunc(*proxy, func(r rune) bool { return r == ',' })
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	os.Exit(initd.Run(cfg, log))
}
