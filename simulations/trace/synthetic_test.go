package trace_test

import (
	"bytes"
	"fmt"
	"hash/fnv"
	"iter"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/beammesh/beammesh/simulations/trace"
)

func first[T any](n int, rows iter.Seq[T]) (out []T) {
	for x := range rows {
		if out = append(out, x); len(out) == n {
			break
		}
	}
	return out
}

// The hashes are of what amd64 gives; another architecture must give the same.
func TestSyntheticIsTheSameEverywhere(t *testing.T) {
	h := fnv.New64a()
	for _, k := range first(20_000, trace.Synthetic{Seed: 7}.Tasks()) {
		fmt.Fprintln(h, taskText(k))
	}
	for _, n := range first(5_000, trace.SyntheticNodes(7)) {
		fmt.Fprintln(h, n)
	}
	if got, want := fmt.Sprintf("%016x", h.Sum64()), "6ab427271433711b"; got != want {
		t.Errorf("hash %s, want %s", got, want)
	}
	if a, b := first(1, trace.Synthetic{Seed: 7}.Tasks())[0], first(1, trace.Synthetic{Seed: 8}.Tasks())[0]; taskText(a) == taskText(b) {
		t.Error("two seeds give the same")
	}
}

func TestSyntheticHasTheStatedDistributions(t *testing.T) {
	const n = 200_000
	s := trace.Synthetic{Seed: 3, Every: 100 * time.Millisecond, Shortest: time.Second, Longest: 1000 * time.Second}
	tasks := first(n, s.Tasks())
	near := func(what string, got, want, tolerance float64) {
		t.Helper()
		if math.Abs(got-want) > tolerance*want {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	near("mean gap", tasks[n-1].Arrival.Seconds()/n, .1, .01)
	var square, sum float64
	var last time.Duration
	whole := 0
	for _, k := range tasks {
		gap := (k.Arrival - last).Seconds()
		last = k.Arrival
		square += gap * gap
		sum += k.Duration.Seconds()
		if k.Duration < time.Second || k.Duration > 1000*time.Second {
			t.Fatalf("duration %s", k.Duration)
		}
		if len(k.Demand.GPUs) == 0 {
			whole++
		}
	}
	near("mean square of the gaps, 2 / rate²", square/n, 2*.1*.1, .03)
	near("mean duration", sum/n, 1+math.Log(1000), .05)
	near("share without a GPU", float64(whole)/n, .15, .03)
	slices.SortFunc(tasks, func(a, b trace.Task) int { return int(a.Duration - b.Duration) })
	near("median duration", tasks[n/2].Duration.Seconds(), 2, .02)
}

func TestWritersAndReadersAgree(t *testing.T) {
	var b bytes.Buffer
	tasks := first(500, trace.Synthetic{Seed: 1}.Tasks())
	for i := range tasks { // the format keeps whole seconds
		tasks[i].Arrival = tasks[i].Arrival.Truncate(time.Second)
		tasks[i].Duration = tasks[i].Duration.Truncate(time.Second)
	}
	if err := trace.WriteOpenbPods(&b, slices.Values(tasks)); err != nil {
		t.Fatal(err)
	}
	for i, k := range all(t, trace.OpenbPods(text(t, "pods", b.String()))) {
		if taskText(k) != taskText(tasks[i]) {
			t.Fatalf("wrote %s, read %s", taskText(tasks[i]), taskText(k))
		}
	}
	b.Reset()
	nodes := first(200, trace.SyntheticNodes(1))
	if err := trace.WriteOpenbNodes(&b, slices.Values(nodes)); err != nil {
		t.Fatal(err)
	}
	if got := all(t, trace.OpenbNodes(text(t, "nodes", b.String()))); !slices.Equal(got, nodes) {
		t.Errorf("wrote %v, read %v", nodes[:3], got[:3])
	}
}

func ExampleSynthetic() {
	for task := range (trace.Synthetic{Seed: 1, Every: time.Minute}).Tasks() {
		fmt.Println(task.Name, task.Arrival.Round(time.Second), task.Duration.Round(time.Second), task.Demand)
		if task.Name == "task-2" {
			break
		}
	}
	// Output:
	// task-0 40s 2m31s 2 cores, 8 GiB, any GPU (200/1000)
	// task-1 54s 1m21s 12 cores, 48 GiB, any GPU
	// task-2 1m47s 1m3s 12 cores, 48 GiB, any GPU
}
