package trace

import (
	"iter"
	"strings"
	"time"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/gpu"
)

// SpotNodes reads the machines of Alibaba's 2026 spot GPU trace. It does not tell
// their memory.
func SpotNodes(f *File) iter.Seq2[Node, error] {
	t, err := newTable(f, "a spot node list", "gpu_model", "gpu_capacity_num", "cpu_num", "node_name")
	return each(t, err, func() (Node, bool) {
		n := Node{
			Name:      strings.Clone(t.text("node_name")),
			CPUMillis: t.scaled("cpu_num", 1000, maxMillis, "cores"),
			GPUs:      int(t.whole("gpu_capacity_num", scheduler.MaxDevices, "GPUs")),
		}
		if n.Name == "" {
			t.fail("node_name", "a name")
		}
		if n.GPUs > 0 {
			n.Class = t.class("gpu_model")
		}
		return n, true
	})
}

// DLRM reads the instances of Alibaba's 2025 trace of recommendation models.
// Those that ran before the trace began have no times: they are not Timed. One
// without an end was still running, its Duration is 0.
func DLRM(f *File) iter.Seq2[Task, error] {
	t, err := newTable(f, "a DLRM trace", "instance_sn", "app_name", "cpu_request", "gpu_request",
		"memory_request", "disk_request", "creation_time", "scheduled_time", "deletion_time")
	return each(t, err, func() (Task, bool) {
		task := Task{Name: strings.Clone(t.text("instance_sn")), Group: strings.Clone(t.text("app_name"))}
		task.Demand.CPUMillis = t.scaled("cpu_request", 1000, maxMillis, "cores")
		task.Demand.MemoryMiB = t.scaled("memory_request", 1024, maxMillis, "GiB")
		task.Demand.DiskMiB = t.scaled("disk_request", 1024, maxMillis, "GiB")
		if n := int(t.whole("gpu_request", scheduler.MaxGPUCount, "GPUs")); n > 0 {
			task.Demand.GPUs = []gpu.Want{{Class: gpu.Any, Count: n}}
		}
		if task.Name == "" {
			t.fail("instance_sn", "a name")
		}
		if t.text("creation_time") != "" {
			task.Timed = true
			task.Arrival = t.seconds("creation_time")
			task.Duration = t.span("scheduled_time", "deletion_time")
		}
		return task, true
	})
}

// LoRA reads the image requests of Alibaba's 2026 trace of generative models: the
// service is the base model, so equal ones show what locality is worth. Requests
// of which the trace does not tell the model are left out.
func LoRA(f *File) iter.Seq2[Request, error] {
	t, err := newTable(f, "a GenAI trace", "gmt_create", "exec_time_seconds", "groupId", "checkpoint_model_version_id", "num_lora")
	var start time.Time
	return each(t, err, func() (Request, bool) {
		r := Request{
			Arrival:  t.since(&start, "gmt_create", time.DateTime),
			Duration: t.seconds("exec_time_seconds"),
			Caller:   strings.Clone(t.text("groupId")),
			Service:  strings.Clone(t.text("checkpoint_model_version_id")),
			Adapters: int(t.whole("num_lora", 1<<10, "adapters")),
		}
		return r, r.Service != ""
	})
}
