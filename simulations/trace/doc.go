// Package trace reads recorded work of real clusters, and makes up work like it.
//
// A reader is an iterator over one file: it holds one row at a time, so ten
// million rows need no more memory than ten. The first error ends it, and says
// the file, the line, the column and what was expected.
//
//	f, err := trace.Open("openb_pod_list_default.csv") // plain or gzip
//	defer f.Close()
//	for task, err := range trace.OpenbPods(f) {
//
// Columns are found by their names, so their order does not matter and further
// ones are ignored. Amounts are whole numbers in the units of package scheduler;
// times are durations since the trace's own start. Numbers are read as decimals
// and never pass through a float, so all machines read the same.
//
//	reader        gives     source
//	OpenbNodes    Node      Alibaba cluster-trace-gpu-v2023, openb_node_list_*
//	OpenbPods     Task      the same, openb_pod_list_*
//	SpotNodes     Node      Alibaba cluster-trace-v2026-spot-gpu, node_info
//	DLRM          Task      Alibaba cluster-trace-gpu-v2025
//	Gavel         Task      stanford-futuredata/gavel, made from Philly
//	Functions     Request   Azure Functions 2021, as in vhive-serverless/invitro
//	LLM           Request   Azure LLM inference 2023, code and conversation
//	LoRA          Request   Alibaba cluster-trace-v2026-GenAI
//
// Synthetic makes tasks from a seed where no trace is at hand. WriteOpenbPods and
// WriteOpenbNodes write what OpenbPods and OpenbNodes read.
//
// An iterator is for one goroutine; the functions keep no state.
package trace
