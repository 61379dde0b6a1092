package trace

import (
	"iter"
	"strings"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/gpu"
)

// Gavel reads a trace of training jobs as the Gavel simulator keeps them: no
// header, seven fields with tabs between them. How long a job takes follows from
// its Steps and the speed of the GPU, which the trace does not tell.
func Gavel(f *File) iter.Seq2[Task, error] {
	t := newBare(f, "job type", "command", "steps argument", "needs data", "total steps", "arrival", "scale factor")
	return each(t, nil, func() (Task, bool) {
		task := Task{
			Group:   strings.Clone(t.text("job type")),
			Timed:   true,
			Arrival: t.seconds("arrival"),
			Steps:   t.whole("total steps", maxCount, "steps"),
		}
		n := int(t.whole("scale factor", scheduler.MaxGPUCount, "GPUs"))
		if n == 0 {
			t.fail("scale factor", "1 GPU or more")
		}
		task.Demand.GPUs = []gpu.Want{{Class: gpu.Any, Count: n}}
		return task, true
	})
}
