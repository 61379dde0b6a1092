// Command rptry is a scratch try.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/beammesh/beammesh/simulations/replay"
)

func show(name string, m replay.Measured) {
	fmt.Printf("%-10s", name)
	for _, x := range m.Result().Metrics {
		fmt.Printf(" %s=%.4g", x.Name, x.Value)
	}
	fmt.Println(m.Messages)
}

func main() {
	js, err := replay.Read(os.Args[2:])
	if err != nil {
		panic(err)
	}
	t := time.Now()
	fmt.Printf("%+v %v\n", replay.Verify(js), time.Since(t))
	l := replay.LoadOf(js)
	fmt.Println(len(l.Nodes), len(l.Stubs), len(l.Calls), l.Failed, l.Unfinished)
	host := func(string) string { return "host" }
	m := replay.Fit(js, host)
	fmt.Printf("%+v\n", m)
	rec := replay.Measure(js)
	show("recorded", rec)
	sim, open, err := replay.Simulate(context.Background(), l, m, replay.Options{HostOf: host, Until: l.Calls[len(l.Calls)-1].At})
	fmt.Println(open, err)
	show("simulated", replay.Measure(sim))
	if os.Args[1] != "-" {
		fmt.Println(l.Remove(os.Args[1]))
		sim, open, err = replay.Simulate(context.Background(), l, m, replay.Options{HostOf: host, Until: l.Calls[len(l.Calls)-1].At})
		fmt.Println(open, err)
		show("without", replay.Measure(sim))
	}
}
