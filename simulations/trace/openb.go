package trace

import (
	"encoding/csv"
	"fmt"
	"io"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/gpu"
)

// OpenbNodes reads a node list of Alibaba's 2023 GPU trace.
func OpenbNodes(f *File) iter.Seq2[Node, error] {
	t, err := newTable(f, "an openb node list", "sn", "cpu_milli", "memory_mib", "gpu")
	return each(t, err, func() (Node, bool) {
		n := Node{
			Name:      strings.Clone(t.text("sn")),
			CPUMillis: t.whole("cpu_milli", maxMillis, "thousandths of a core"),
			MemoryMiB: t.whole("memory_mib", maxMillis, "MiB"),
			GPUs:      int(t.whole("gpu", scheduler.MaxDevices, "GPUs")),
		}
		if n.Name == "" {
			t.fail("sn", "a name")
		}
		if n.GPUs > 0 {
			n.Class = t.class("model")
		}
		return n, true
	})
}

// class reads the name of a GPU.
func (t *table) class(column string) string {
	class := gpu.Normalise(t.text(column))
	if class == "" || class == gpu.Any {
		t.fail(column, "the name of a GPU")
	}
	return class
}

// OpenbPods reads a pod list of Alibaba's 2023 GPU trace. The lists whose names
// have multigpu in them lack the columns of models and times: their tasks run on
// any GPU and are not Timed.
func OpenbPods(f *File) iter.Seq2[Task, error] {
	t, err := newTable(f, "an openb pod list", "name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli")
	specs := gpuSpecs{}
	return each(t, err, func() (Task, bool) {
		task := Task{Name: strings.Clone(t.text("name")), Timed: t.has("creation_time")}
		task.Demand.CPUMillis = t.whole("cpu_milli", maxMillis, "thousandths of a core")
		task.Demand.MemoryMiB = t.whole("memory_mib", maxMillis, "MiB")
		count := int(t.whole("num_gpu", scheduler.MaxGPUCount, "GPUs"))
		milli := t.whole("gpu_milli", scheduler.GPUExclusive, "thousandths of a GPU")
		switch {
		case count == 0: // gpu_milli means nothing
		case milli == 0 || milli < scheduler.GPUExclusive && count > 1:
			t.fail("gpu_milli", "1 to 1000 thousandths of a GPU for one, 1000 for several")
		default:
			task.Demand.GPUMilli = milli
			task.Demand.GPUs = specs.read(t, "gpu_spec", count)
		}
		if task.Name == "" {
			t.fail("name", "a name")
		}
		if task.Timed {
			task.Arrival = t.seconds("creation_time")
			task.Duration = t.span("scheduled_time", "deletion_time")
		}
		return task, true
	})
}

// span is the time from one column to another, 0 when either is empty.
func (t *table) span(from, to string) time.Duration {
	if t.text(from) == "" || t.text(to) == "" {
		return 0
	}
	start, end := t.seconds(from), t.seconds(to)
	if end < start {
		t.fail(to, "a time that is not before "+from)
		return 0
	}
	return end - start
}

// gpuSpecs remembers what the few specifications of a file mean.
type gpuSpecs map[string][]gpu.Want

// maxSpecs bounds what is remembered; a file has some twenty.
const maxSpecs = 1 << 10

// read understands "V100M16|V100M32"; empty is any GPU. A name that is there
// twice stays twice: the published mix counts such a list as a shape of its own.
func (s gpuSpecs) read(t *table, column string, count int) []gpu.Want {
	spec := t.text(column)
	key := strconv.Itoa(count) + " " + spec
	if wants, ok := s[key]; ok {
		return wants
	}
	wants := []gpu.Want{{Class: gpu.Any, Count: count}}
	if spec != "" {
		wants = nil
		for name := range strings.SplitSeq(spec, "|") {
			if class := gpu.Normalise(name); class != "" {
				wants = append(wants, gpu.Want{Class: class, Count: count})
			}
		}
		if len(wants) == 0 || len(wants) > scheduler.MaxGPUChoices {
			t.fail(column, fmt.Sprintf("1 to %d names of GPUs with | between them, or nothing", scheduler.MaxGPUChoices))
			return nil
		}
	}
	if len(s) < maxSpecs {
		s[key] = wants
	}
	return wants
}

// WriteOpenbNodes writes what OpenbNodes reads.
func WriteOpenbNodes(w io.Writer, nodes iter.Seq[Node]) error {
	out := csv.NewWriter(w)
	out.Write([]string{"sn", "cpu_milli", "memory_mib", "gpu", "model"})
	for n := range nodes {
		out.Write([]string{n.Name, itoa(n.CPUMillis), itoa(n.MemoryMiB), strconv.Itoa(n.GPUs), n.Class})
	}
	out.Flush()
	return out.Error()
}

// WriteOpenbPods writes what OpenbPods reads. Times are whole seconds there:
// what is finer is cut.
func WriteOpenbPods(w io.Writer, tasks iter.Seq[Task]) error {
	out := csv.NewWriter(w)
	out.Write([]string{"name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli", "gpu_spec",
		"qos", "pod_phase", "creation_time", "deletion_time", "scheduled_time"})
	for t := range tasks {
		count, milli, spec := 0, int64(0), ""
		for i, w := range t.Demand.GPUs {
			count, milli = w.Count, t.Demand.Milli()
			if i > 0 {
				spec += "|"
			}
			if w.Class != gpu.Any {
				spec += w.Class
			}
		}
		start, end := int64(t.Arrival/time.Second), int64((t.Arrival+t.Duration)/time.Second)
		out.Write([]string{t.Name, itoa(t.Demand.CPUMillis), itoa(t.Demand.MemoryMiB), strconv.Itoa(count), itoa(milli), spec,
			"LS", "Succeeded", itoa(start), itoa(end), itoa(start)})
	}
	out.Flush()
	return out.Error()
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }
