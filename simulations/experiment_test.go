package simulations_test

import (
	"strings"
	"testing"
	"time"

	"github.com/beammesh/beammesh/simulations"
)

func TestReaderGivesDefaultsAndValues(t *testing.T) {
	params := []simulations.Param{
		{Name: "nodes", Kind: simulations.Int, Default: "10"},
		{Name: "latency", Kind: simulations.Duration, Default: "1ms"},
		{Name: "load", Kind: simulations.Float, Default: "0.8"},
		{Name: "list", Kind: simulations.Text, Default: "default"},
		{Name: "kill", Kind: simulations.Bool, Default: "false"},
	}
	r := simulations.Settings{Values: map[string]string{"nodes": "25", "kill": "true"}}.Reader(params)
	if r.Err() != nil {
		t.Fatal(r.Err())
	}
	if n, d, f, s, b := r.Int("nodes"), r.Duration("latency"), r.Float("load"), r.Text("list"), r.Bool("kill"); n != 25 ||
		d != time.Millisecond || f != 0.8 || s != "default" || !b {
		t.Errorf("got %d %v %v %q %v", n, d, f, s, b)
	}
}

func TestReaderNamesWhatIsWrong(t *testing.T) {
	params := []simulations.Param{{Name: "nodes", Kind: simulations.Int, Default: "10"}}
	for value, want := range map[string]string{"nodes=ten": `not "ten"`, "noodles=3": `unknown parameter "noodles"`} {
		name, v, _ := strings.Cut(value, "=")
		err := simulations.Settings{Values: map[string]string{name: v}}.Reader(params).Err()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q in it", value, err, want)
		}
	}
}
