package trace_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/beammesh/beammesh/simulations/trace"
	"github.com/beammesh/beammesh/simulations/trace/tracetest"
)

func open(t testing.TB, path string) *trace.File {
	t.Helper()
	f, err := trace.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func text(t testing.TB, name, s string) *trace.File {
	t.Helper()
	f, err := trace.NewFile(name, strings.NewReader(s))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func all[T any](t testing.TB, rows iter.Seq2[T, error]) (out []T) {
	t.Helper()
	for x, err := range rows {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, x)
	}
	return out
}

func failure[T any](rows iter.Seq2[T, error]) (n int, err error) {
	for _, e := range rows {
		if err = e; err == nil {
			n++
		}
	}
	return n, err
}

func taskText(k trace.Task) string {
	return fmt.Sprintf("%s %s [%s] milli=%d timed=%v at=%s for=%s steps=%d", k.Name, k.Group, k.Demand, k.Demand.GPUMilli, k.Timed, k.Arrival, k.Duration, k.Steps)
}

func requestText(r trace.Request) string {
	return fmt.Sprintf("%s by %s at=%s for=%s tokens=%d/%d adapters=%d", r.Service, r.Caller, r.Arrival, r.Duration, r.TokensIn, r.TokensOut, r.Adapters)
}

func lines[T any](t *testing.T, rows iter.Seq2[T, error], show func(T) string) string {
	var b strings.Builder
	for _, x := range all(t, rows) {
		b.WriteString(show(x) + "\n")
	}
	return b.String()
}

// readers runs each reader over a file and prints what it gives.
var readers = []struct {
	file string
	read func(*testing.T, *trace.File) string
	want string
}{
	{"nodes.csv", func(t *testing.T, f *trace.File) string {
		return lines(t, trace.OpenbNodes(f), func(n trace.Node) string { return fmt.Sprint(n) })
	}, "{alpha 32000 65536 2 T4}\n{beta 96000 524288 8 V100M32}\n{gamma 16000 32768 0 }\n"},
	{"spot.csv", func(t *testing.T, f *trace.File) string {
		return lines(t, trace.SpotNodes(f), func(n trace.Node) string { return fmt.Sprint(n) })
	}, "{17 128000 0 8 A100-80}\n{18 192000 0 1 SERIES1}\n"},
	{"pods.csv", func(t *testing.T, f *trace.File) string { return lines(t, trace.OpenbPods(f), taskText) },
		"a  [6 cores, 12 GiB, any GPU (460/1000)] milli=460 timed=true at=10s for=1m30s steps=0\n" +
			"b  [88 cores, 320 GiB, 8x V100M16 or 8x V100M32 or 8x V100M32] milli=1000 timed=true at=11s for=1m0s steps=0\n" +
			"c  [0.5 cores] milli=0 timed=true at=12s for=0s steps=0\n"},
	{"pods_short.csv", func(t *testing.T, f *trace.File) string { return lines(t, trace.OpenbPods(f), taskText) },
		"a  [12 cores, 16 GiB, any GPU] milli=1000 timed=false at=0s for=0s steps=0\n" +
			"b  [4 cores, 8 GiB, 2x any GPU] milli=1000 timed=false at=0s for=0s steps=0\n"},
	{"dlrm.csv", func(t *testing.T, f *trace.File) string { return lines(t, trace.DLRM(f), taskText) },
		"i0 app_1 [12 cores, 120.5 GiB, 640 GiB disk, any GPU] milli=0 timed=false at=0s for=0s steps=0\n" +
			"i1 app_1 [64 cores, 16 GiB, 100 GiB disk] milli=0 timed=true at=16m40s for=1m0.5s steps=0\n" +
			"i2 app_2 [64 cores, 16 GiB, 100 GiB disk] milli=0 timed=true at=33m20s for=0s steps=0\n"},
	{"gavel.trace", func(t *testing.T, f *trace.File) string { return lines(t, trace.Gavel(f), taskText) },
		" Net (batch size 8) [0 cores, 8x any GPU] milli=0 timed=true at=93h29m1.5s for=0s steps=779751\n" +
			" Net (batch size 16) [0 cores, any GPU] milli=0 timed=true at=93h29m2s for=0s steps=12\n"},
	{"functions.csv", func(t *testing.T, f *trace.File) string { return lines(t, trace.Functions(f), requestText) },
		"f1 by aaaa at=0s for=250ms tokens=0/0 adapters=0\nf2 by aaaa at=3.86004ms for=57.154s tokens=0/0 adapters=0\n"},
	{"llm.csv", func(t *testing.T, f *trace.File) string { return lines(t, trace.LLM(f), requestText) },
		" by  at=0s for=0s tokens=4808/10 adapters=0\n by  at=52ms for=0s tokens=3180/8 adapters=0\n"},
	{"lora.csv", func(t *testing.T, f *trace.File) string { return lines(t, trace.LoRA(f), requestText) },
		"M7 by G1 at=0s for=32s tokens=0/0 adapters=2\nM7 by G2 at=2h0m0s for=43s tokens=0/0 adapters=0\n"},
}

func TestReaders(t *testing.T) {
	for _, r := range readers {
		raw, err := os.ReadFile(filepath.Join("testdata", r.file))
		if err != nil {
			t.Fatal(err)
		}
		crlf := bytes.ReplaceAll(raw, []byte("\n"), []byte("\r\n"))
		var zipped bytes.Buffer
		z := gzip.NewWriter(&zipped)
		z.Write(crlf)
		z.Close()
		for form, content := range map[string][]byte{
			"plain": raw, "crlf": crlf, "gzip": zipped.Bytes(), "no last line break": bytes.TrimRight(raw, "\n"),
			"byte order mark": append([]byte("\xef\xbb\xbf"), raw...),
		} {
			t.Run(r.file+" "+form, func(t *testing.T) {
				path := filepath.Join(t.TempDir(), r.file)
				if err := os.WriteFile(path, content, 0o600); err != nil {
					t.Fatal(err)
				}
				if got := r.read(t, open(t, path)); got != r.want {
					t.Errorf("got:\n%swant:\n%s", got, r.want)
				}
			})
		}
	}
}

func TestErrorsSayWhereAndWhatWasExpected(t *testing.T) {
	const pods = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,creation_time,deletion_time,scheduled_time\n"
	pod := func(rest string) string { return pods + "a,1000,10,1,500,,1,9,2\n" + rest + "\n" }
	for _, c := range []struct {
		name, text, want string
	}{
		{"empty file", "", "t.csv: is empty, want a header with name, cpu_milli"},
		{"missing columns", "name,cpu_milli,gpu\n", "t.csv:1: has no column memory_mib, num_gpu, gpu_milli, which an openb pod list must have; its columns are name, cpu_milli, gpu"},
		{"column twice", "name,cpu_milli,name\n", "t.csv:1: column name: is there twice"},
		{"short row", pod("b,1000,10"), "t.csv:3: has 3 fields, want 9"},
		{"long row", pod("b,1,1,1,1,,1,9,2,7"), "t.csv:3: has 10 fields, want 9"},
		{"no name", pod(",1,1,1,1,,1,9,2"), `t.csv:3: column name: is "", want a name`},
		{"cores for thousandths", pod("b,0.5,10,1,500,,1,9,2"), `t.csv:3: column cpu_milli: is "0.5", want a whole number of thousandths of a core, 0 or more`},
		{"bytes for MiB", pod("b,1000,17179869184,1,500,,1,9,2"), `t.csv:3: column memory_mib: is "17179869184", want at most 2147483648 MiB: is it in another unit?`},
		{"negative", pod("b,-1,10,1,500,,1,9,2"), `t.csv:3: column cpu_milli: is "-1", want a whole number`},
		{"word", pod("b,1,10,one,500,,1,9,2"), `t.csv:3: column num_gpu: is "one", want a whole number of GPUs`},
		{"share above one", pod("b,1,10,1,5000,,1,9,2"), `t.csv:3: column gpu_milli: is "5000", want at most 1000 thousandths of a GPU`},
		{"shares of several", pod("b,1,10,2,500,,1,9,2"), `t.csv:3: column gpu_milli: is "500", want 1 to 1000 thousandths of a GPU for one, 1000 for several`},
		{"gpu name", pod("b,1,10,1,500,|,1,9,2"), `t.csv:3: column gpu_spec: is "|", want 1 to 16 names of GPUs with | between them, or nothing`},
		{"negative time", pod("b,1,10,1,500,,-1,9,2"), `t.csv:3: column creation_time: is "-1", want seconds from 0`},
		{"milliseconds", pod("b,1,10,1,500,,1700000000000,9,2"), `t.csv:3: column creation_time: is "1700000000000", want seconds from 0 to`},
		{"ends before it starts", pod("b,1,10,1,500,,1,2,9"), `t.csv:3: column deletion_time: is "2", want a time that is not before scheduled_time`},
		{"open quote", pod(`b,"1,10,1,500,,1,2,9`), `t.csv:3: extraneous or missing " in quoted-field`},
		{"not a trace", strings.Repeat("x", 1<<17), "t.csv:1: is longer than 65536 bytes: is this a trace?"},
		{"not gzip", "\x1f\x8bnothing", "t.csv: looks like gzip, but "},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, err := trace.NewFile("t.csv", strings.NewReader(c.text))
			if err == nil {
				_, err = failure(trace.OpenbPods(f))
			}
			var e *trace.Error
			if !errors.As(err, &e) || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		})
	}
	n, err := failure(trace.LLM(text(t, "llm", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:04,1,1\n2023-11-16 18:17:03,1,1\n")))
	if n != 1 || err == nil || !strings.Contains(err.Error(), "llm:3: column TIMESTAMP") {
		t.Errorf("a time before the first: %d rows, then %v", n, err)
	}
}

// endless is a pod list of n rows that are made as they are read.
type endless struct {
	n, at int
	rest  []byte
}

func (e *endless) Read(p []byte) (int, error) {
	if len(e.rest) == 0 {
		if e.at > e.n {
			return 0, io.EOF
		}
		if e.rest = []byte("name,cpu_milli,memory_mib,num_gpu,gpu_milli\n"); e.at > 0 {
			e.rest = fmt.Appendf(e.rest[:0], "pod-%d,1000,1024,1,%d\n", e.at, e.at%1000+1)
		}
		e.at++
	}
	n := copy(p, e.rest)
	e.rest = e.rest[n:]
	return n, nil
}

func TestLongTracesStream(t *testing.T) {
	const rows, limit = 300_000, 8 << 20
	f, err := trace.NewFile("long", &endless{n: rows})
	if err != nil {
		t.Fatal(err)
	}
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	n := 0
	for _, err := range trace.OpenbPods(f) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == rows {
			runtime.GC()
			runtime.ReadMemStats(&now)
		}
	}
	if n != rows || int64(now.HeapAlloc)-int64(before.HeapAlloc) > limit {
		t.Errorf("%d rows, and the heap grew by %d bytes", n, int64(now.HeapAlloc)-int64(before.HeapAlloc))
	}
}

func TestReadersStopWhenTheCallerDoes(t *testing.T) {
	n := 0
	for range trace.OpenbPods(open(t, "testdata/pods.csv")) {
		n++
		break
	}
	if n != 1 {
		t.Errorf("%d rows", n)
	}
}

// The recorded traces, by their counts and sums as their sources state them.
func TestRecordedTraces(t *testing.T) {
	dir := tracetest.Dir(t)
	gpus := func(file string, read func(*trace.File) iter.Seq2[trace.Node, error], nodes, devices int) {
		t.Helper()
		n := 0
		rows := all(t, read(open(t, filepath.Join(dir, file))))
		for _, x := range rows {
			n += x.GPUs
		}
		if len(rows) != nodes || n != devices {
			t.Errorf("%s: %d nodes with %d GPUs, want %d with %d", file, len(rows), n, nodes, devices)
		}
	}
	gpus("openb/openb_node_list_gpu_node.csv", trace.OpenbNodes, 1213, 6212)
	gpus("openb/openb_node_list_all_node.csv", trace.OpenbNodes, 1523, 6212)
	gpus("alibaba-other/spot2026_node_info.csv", trace.SpotNodes, 4278, 10412)

	counts := map[string]int{
		"default": 8152, "cpu050": 7439, "cpu100": 7853, "cpu200": 8832, "cpu250": 9420,
		"gpushare40": 8152, "gpushare60": 8152, "gpushare80": 8152, "gpushare100": 8152,
		"gpuspec10": 8152, "gpuspec20": 8152, "gpuspec25": 8152, "gpuspec33": 8152,
		"multigpu20": 8324, "multigpu30": 8508, "multigpu40": 8746, "multigpu50": 9061,
	}
	for name, want := range counts {
		rows := all(t, trace.OpenbPods(open(t, filepath.Join(dir, "openb/openb_pod_list_"+name+".csv"))))
		if len(rows) != want || rows[0].Timed == strings.HasPrefix(name, "multigpu") {
			t.Errorf("%s: %d tasks, want %d; timed: %v", name, len(rows), want, rows[0].Timed)
		}
		for i := range rows {
			if err := rows[i].Demand.Validate(); err != nil {
				t.Errorf("%s: %s: %v", name, rows[i].Name, err)
			}
		}
	}
	for file, c := range map[string]struct {
		read func(*trace.File) int
		want int
	}{
		"azure/AzureLLMInferenceTrace_code.csv":     {func(f *trace.File) int { return len(all(t, trace.LLM(f))) }, 8819},
		"azure/AzureLLMInferenceTrace_conv.csv":     {func(f *trace.File) int { return len(all(t, trace.LLM(f))) }, 19366},
		"azure/invitro/Azure2021_200.csv":           {func(f *trace.File) int { return len(all(t, trace.Functions(f))) }, 199},
		"alibaba-other/dlrm2025_trace.csv":          {func(f *trace.File) int { return len(all(t, trace.DLRM(f))) }, 23871},
		"alibaba-other/genai2026_lora_requests.csv": {func(f *trace.File) int { return len(all(t, trace.LoRA(f))) }, 26823 - 25},
		"philly/gavel_msr_ee9e8c_seed0.trace":       {func(f *trace.File) int { return len(all(t, trace.Gavel(f))) }, 2000},
	} {
		if got := c.read(open(t, filepath.Join(dir, file))); got != c.want {
			t.Errorf("%s: %d rows, want %d", file, got, c.want)
		}
	}
}

func FuzzReaders(f *testing.F) {
	for _, r := range readers {
		raw, err := os.ReadFile(filepath.Join("testdata", r.file))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		try := func(read func(*trace.File) error) {
			file, err := trace.NewFile("fuzz", bytes.NewReader(raw))
			if err == nil {
				err = read(file)
			}
			var e *trace.Error
			if err != nil && !errors.As(err, &e) && len(raw) > 1 && string(raw[:2]) != "\x1f\x8b" {
				t.Errorf("%v is not a trace.Error", err)
			}
		}
		task := func(rows iter.Seq2[trace.Task, error]) (err error) {
			for x, e := range rows {
				if err = e; err == nil && (x.Demand.Validate() != nil || x.Arrival < 0 || x.Duration < 0 || x.Steps < 0) {
					t.Errorf("read %+v", x)
				}
			}
			return err
		}
		node := func(rows iter.Seq2[trace.Node, error]) (err error) {
			for x, e := range rows {
				if err = e; err == nil {
					a := x.Capacity()
					if len(a.Devices) != x.GPUs || x.CPUMillis < 0 || x.MemoryMiB < 0 || x.GPUs > 0 && x.Class == "" {
						t.Errorf("read %+v", x)
					}
				}
			}
			return err
		}
		request := func(rows iter.Seq2[trace.Request, error]) (err error) {
			for x, e := range rows {
				if err = e; err == nil && (x.Arrival < 0 || x.Duration < 0 || x.TokensIn < 0 || x.TokensOut < 0 || x.Adapters < 0) {
					t.Errorf("read %+v", x)
				}
			}
			return err
		}
		try(func(f *trace.File) error { return node(trace.OpenbNodes(f)) })
		try(func(f *trace.File) error { return node(trace.SpotNodes(f)) })
		try(func(f *trace.File) error { return task(trace.OpenbPods(f)) })
		try(func(f *trace.File) error { return task(trace.DLRM(f)) })
		try(func(f *trace.File) error { return task(trace.Gavel(f)) })
		try(func(f *trace.File) error { return request(trace.Functions(f)) })
		try(func(f *trace.File) error { return request(trace.LLM(f)) })
		try(func(f *trace.File) error { return request(trace.LoRA(f)) })
	})
}
