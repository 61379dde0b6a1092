package initd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/beammesh/beammesh/runtime"
	"github.com/beammesh/beammesh/runtime/ctl"
)

// The test binary is also init and the processes in the "container".
func TestMain(m *testing.M) {
	if c := os.Getenv("INITD_TEST_CONFIG"); c != "" {
		os.Unsetenv("INITD_TEST_CONFIG")
		var cfg Config
		if err := json.Unmarshal([]byte(c), &cfg); err != nil {
			panic(err)
		}
		os.Exit(Run(cfg, slog.New(slog.NewTextHandler(os.Stderr, nil))))
	}
	if role := os.Getenv("INITD_TEST_ROLE"); role != "" {
		child(role)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child is a process inside.
func child(role string) {
	fd3 := os.NewFile(3, "frames")
	send := func(n int, payload []byte) {
		b, err := ctl.EncodeRunner(ctl.RunnerHeader{Type: ctl.RunnerStarted, Attempt: n}, payload)
		if err == nil {
			_, err = fd3.Write(b)
		}
		if err != nil {
			os.Exit(9)
		}
	}
	switch role {
	case "order": // a line on each stream, then a frame
		for i := range 500 {
			fmt.Fprintf(os.Stdout, "%d\n", i)
			fmt.Fprintf(os.Stderr, "%d\n", i)
			send(i, nil)
		}
		fmt.Print("last\n")
	case "echo": // every frame back, until stop
		send(-1, nil)
		r := bufio.NewReader(fd3)
		for {
			head, err := r.Peek(8)
			if err != nil {
				os.Exit(8)
			}
			n, err := ctl.RunnerFrameLen(head)
			if err != nil {
				os.Exit(7)
			}
			f := make([]byte, n)
			if _, err := io.ReadFull(r, f); err != nil {
				os.Exit(6)
			}
			h, _, err := ctl.DecodeRunner(f)
			if err != nil || h.Type == ctl.RunnerStop {
				return
			}
			if _, err := fd3.Write(f); err != nil {
				os.Exit(5)
			}
		}
	case "flood": // 16 MiB, with its progress in a file
		buf := bytes.Repeat([]byte("x"), 64<<10)
		for i := range 256 {
			_ = os.WriteFile(os.Getenv("PROGRESS"), []byte(strconv.Itoa(i)), 0o600)
			_, _ = os.Stdout.Write(buf)
		}
	case "get":
		res, err := http.Get(os.Getenv("URL"))
		if err != nil {
			fmt.Print(err)
			os.Exit(1)
		}
		_, _ = io.Copy(os.Stdout, res.Body)
	case "garbage":
		_, _ = fd3.Write(bytes.Repeat([]byte{0xff}, 64))
		select {}
	}
}

func self(role string, env ...string) runtime.ProcessSpec {
	return runtime.ProcessSpec{Args: []string{"/proc/self/exe"}, Env: append(env, "INITD_TEST_ROLE="+role)}
}

// container is an init that runs as PID 1 of its own namespaces.
type container struct {
	t   testing.TB
	dir string
	cmd *exec.Cmd
	srv *ctl.Server
	ses *ctl.Session
	end chan struct{} // closed when init has exited
}

func start(t testing.TB, cfg Config) *container {
	t.Helper()
	// Not t.TempDir, whose name can be too long for a socket that init dials.
	dir, err := os.MkdirTemp("", "initd-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	c := &container{t: t, dir: dir, end: make(chan struct{})}
	c.srv, err = ctl.Listen(dir, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.srv.Close() })
	cfg.Ctl, cfg.API = dir+"/ctl.sock", dir+"/api.sock"
	j, _ := json.Marshal(cfg)
	c.cmd = exec.Command("/proc/self/exe")
	c.cmd.Env = append(os.Environ(), "INITD_TEST_CONFIG="+string(j))
	c.cmd.Stdout, c.cmd.Stderr = os.Stderr, os.Stderr
	c.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = c.cmd.Wait()
		close(c.end)
	}()
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill()
		<-c.end
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if c.ses, err = c.srv.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	return c
}

func testLog(t testing.TB) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

func (c *container) exec(p runtime.ProcessSpec) *ctl.Process {
	c.t.Helper()
	pr, err := c.ses.Exec(c.t.Context(), p)
	if err != nil {
		c.t.Fatal(err)
	}
	return pr
}

func wait(t testing.TB, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(time.Minute):
		t.Fatalf("waited a minute for %s", what)
	}
}

func (c *container) exitCode() int {
	c.t.Helper()
	wait(c.t, "init to exit", c.end)
	return c.cmd.ProcessState.ExitCode()
}

func TestManyShortChildren(t *testing.T) {
	c := start(t, Config{Proxy: []string{}})
	const n = 300
	type result struct {
		out  string
		code int
		err  error
	}
	res := make([]chan result, n)
	for i := range n {
		res[i] = make(chan result, 1)
		go func() {
			var out strings.Builder
			p, err := c.ses.Exec(t.Context(), runtime.ProcessSpec{
				Args:   []string{"sh", "-c", fmt.Sprintf("echo %d; exit %d", i, i%100)},
				Output: func(_ int, b []byte) { out.Write(b) }})
			if err != nil {
				res[i] <- result{err: err}
				return
			}
			<-p.Done()
			res[i] <- result{out.String(), p.ExitCode(), nil}
		}()
	}
	for i := range n {
		select {
		case r := <-res[i]:
			if r.err != nil || r.out != fmt.Sprintf("%d\n", i) || r.code != i%100 {
				t.Errorf("child %d: %+v", i, r)
			}
		case <-time.After(2 * time.Minute):
			t.Fatalf("child %d is lost", i)
		}
	}
}

func TestOrderOfOutputAndFrames(t *testing.T) {
	c := start(t, Config{Proxy: []string{}})
	var out [3]strings.Builder
	frames := 0
	p := self("order")
	p.Frames = true
	p.Output = func(fd int, b []byte) { out[fd].Write(b) }
	p.Frame = func(b []byte) {
		h, _, err := ctl.DecodeRunner(b)
		line := fmt.Sprintf("\n%d\n", frames)
		if err != nil || h.Attempt != frames ||
			!strings.Contains("\n"+out[1].String(), line) || !strings.Contains("\n"+out[2].String(), line) {
			t.Errorf("frame %d: %+v %v, before its output", frames, h, err)
		}
		frames++
	}
	pr := c.exec(p)
	wait(t, "the process", pr.Done())
	if frames != 500 || !strings.HasSuffix(out[1].String(), "\n499\nlast\n") || pr.ExitCode() != 0 {
		t.Errorf("%d frames, exit code %d, output ends %q", frames, pr.ExitCode(), out[1].String()[max(0, out[1].Len()-20):])
	}
}

func TestLargeFramesBothWays(t *testing.T) {
	c := start(t, Config{Proxy: []string{}})
	got := make(chan []byte, 4)
	p := self("echo")
	p.Frames = true
	p.Frame = func(b []byte) { got <- b }
	pr := c.exec(p)
	<-got // ready
	for _, n := range []int{0, 1, ctl.Fragment - 8, ctl.Fragment, 3*ctl.Fragment + 17, ctl.MaxRunnerPayload} {
		payload := bytes.Repeat([]byte("0123456789abcdef!"), n/17+1)[:n]
		f, err := ctl.EncodeRunner(ctl.RunnerHeader{Type: ctl.RunnerCall, TaskID: "t"}, payload)
		if err != nil {
			t.Fatal(err)
		}
		if err := pr.Send(f); err != nil {
			t.Fatal(err)
		}
		select {
		case b := <-got:
			if !bytes.Equal(b, f) {
				t.Errorf("payload of %d bytes came back changed", n)
			}
		case <-time.After(time.Minute):
			t.Fatalf("payload of %d bytes did not come back", n)
		}
	}
	if err := pr.Send([]byte("no frame at all")); err == nil {
		t.Error("sent what is not a frame")
	}
	stop, _ := ctl.EncodeRunner(ctl.RunnerHeader{Type: ctl.RunnerStop}, nil)
	if err := pr.Send(stop); err != nil {
		t.Fatal(err)
	}
	wait(t, "the process", pr.Done())
	if pr.ExitCode() != 0 {
		t.Errorf("exit code %d", pr.ExitCode())
	}
	if err := pr.Send(stop); !errors.Is(err, runtime.ErrClosed) {
		t.Errorf("send after the end: %v", err)
	}
}

func TestSlowConsumerSlowsProcess(t *testing.T) {
	c := start(t, Config{Proxy: []string{}})
	progress := t.TempDir() + "/progress"
	hold, total := make(chan struct{}), 0
	p := self("flood", "PROGRESS="+progress)
	p.Output = func(_ int, b []byte) { <-hold; total += len(b) }
	pr := c.exec(p)
	// It stands still once nothing moves for a while. When the machine is so
	// slow that we look too early, the bound holds all the more.
	at, since := "", time.Now()
	for time.Since(since) < time.Second {
		b, _ := os.ReadFile(progress)
		if string(b) != at || len(b) == 0 {
			at, since = string(b), time.Now()
		}
		time.Sleep(20 * time.Millisecond)
	}
	chunks, err := strconv.Atoi(at)
	if limit := 2*ctl.Window/ctl.Fragment + 4; err != nil || chunks > limit {
		t.Errorf("process wrote %s chunks ahead of a consumer that stands still, limit %d", at, limit)
	}
	// Others are not held up by it.
	other := c.exec(runtime.ProcessSpec{Args: []string{"true"}})
	wait(t, "another process", other.Done())
	close(hold)
	wait(t, "the process", pr.Done())
	if total != 16<<20 {
		t.Errorf("got %d bytes", total)
	}
}

func TestSignalsAndGroups(t *testing.T) {
	c := start(t, Config{Proxy: []string{}})
	ready := make(chan struct{}, 1)
	tell := func(int, []byte) { poke(ready) }
	group := c.exec(runtime.ProcessSpec{Args: []string{"sh", "-c", "sleep 1000 & echo; wait"}, Output: tell})
	<-ready
	if err := group.Signal(int(syscall.SIGKILL), true); err != nil {
		t.Fatal(err)
	}
	wait(t, "the killed group", group.Done())
	if group.ExitCode() != 137 {
		t.Errorf("killed: exit code %d", group.ExitCode())
	}
	one := c.exec(runtime.ProcessSpec{Args: []string{"sh", "-c", "trap 'exit 7' USR1; echo; while :; do sleep 0.05; done"}, Output: tell})
	<-ready
	if err := one.Signal(int(syscall.SIGUSR1), false); err != nil {
		t.Fatal(err)
	}
	wait(t, "the trap", one.Done())
	if one.ExitCode() != 7 {
		t.Errorf("trapped: exit code %d", one.ExitCode())
	}
	// What a process leaves behind in its group goes with it; an own session stays.
	c.run("sh", "-c", "cd "+c.dir+"; sleep 1001 & setsid sh -c '>there; exec sleep 1002' & until [ -e there ]; do sleep 0.01; done; exit 0")
	for c.count("1001") > 0 {
		time.Sleep(10 * time.Millisecond) // killed already, perhaps not reaped
	}
	for c.count("1002") == 0 {
		if n := c.count(">there; exec sleep 1002"); n == 0 && c.count("1002") == 0 {
			t.Fatal("a process with its own session was killed too")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// run runs a command to its end.
func (c *container) run(args ...string) string {
	c.t.Helper()
	var out strings.Builder
	p := c.exec(runtime.ProcessSpec{Args: args, Output: func(_ int, b []byte) { out.Write(b) }})
	wait(c.t, strings.Join(args, " "), p.Done())
	if p.ExitCode() != 0 {
		c.t.Fatalf("%v: exit code %d: %s", args, p.ExitCode(), out.String())
	}
	return out.String()
}

// count counts processes anywhere below init whose last argument is arg.
func (c *container) count(arg string) int {
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", c.cmd.Process.Pid))
	if err != nil {
		c.t.Fatal(err)
	}
	all, _ := os.ReadDir("/proc")
	n := 0
	for _, e := range all {
		in, err := os.Readlink("/proc/" + e.Name() + "/ns/pid")
		if err != nil || in != ns {
			continue
		}
		cmd, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if strings.HasSuffix(string(cmd), "\x00"+arg+"\x00") {
			n++
		}
	}
	return n
}

func TestExecDetails(t *testing.T) {
	c := start(t, Config{Proxy: []string{}})
	for _, args := range [][]string{{"no-such-program"}, {"/no/such/program"}, {"/etc/passwd"}} {
		_, err := c.ses.Exec(t.Context(), runtime.ProcessSpec{Args: args})
		if !errors.Is(err, ctl.ErrExec) || !strings.Contains(err.Error(), args[0]) {
			t.Errorf("%v: %v", args, err)
		}
	}
	cwd := c.dir + "/made/for/it"
	// Two pipes: nothing orders the one against the other.
	var out [3]strings.Builder
	p := c.exec(runtime.ProcessSpec{Args: []string{"sh", "-c", "pwd; echo $A $B; cat; readlink /proc/self/fd/0; echo err >&2"},
		Env: []string{"A=1", "B=2", "A=3"}, Cwd: cwd, Output: func(fd int, b []byte) { out[fd].Write(b) }})
	wait(t, "the process", p.Done())
	if want := cwd + "\n3 2\n/dev/null\n"; out[1].String() != want || out[2].String() != "err\n" {
		t.Errorf("got %q and %q, want %q", out[1].String(), out[2].String(), want)
	}
	g := self("garbage")
	g.Frames = true
	pr := c.exec(g)
	wait(t, "the process that writes garbage", pr.Done())
	if pr.ExitCode() != 137 {
		t.Errorf("garbage on descriptor 3: exit code %d", pr.ExitCode())
	}
}

func TestShutdown(t *testing.T) {
	c := start(t, Config{Proxy: []string{}})
	ready := make(chan struct{}, 2)
	tell := func(int, []byte) { ready <- struct{}{} }
	nice := c.exec(runtime.ProcessSpec{Args: []string{"sh", "-c", "trap 'exit 3' TERM; echo; while :; do sleep 0.05; done"}, Output: tell})
	deaf := c.exec(runtime.ProcessSpec{Args: []string{"sh", "-c", "trap '' TERM; echo; while :; do sleep 0.05; done"}, Output: tell})
	<-ready
	<-ready
	if err := c.ses.Shutdown(2 * time.Second); err != nil {
		t.Fatal(err)
	}
	wait(t, "the session", c.ses.Done())
	wait(t, "the process that obeys", nice.Done())
	wait(t, "the process that does not", deaf.Done())
	if c.ses.Err() != nil || nice.ExitCode() != 3 || deaf.ExitCode() != 137 {
		t.Errorf("session %v, exit codes %d and %d, want 3 and 137", c.ses.Err(), nice.ExitCode(), deaf.ExitCode())
	}
	if code := c.exitCode(); code != ExitShutdown {
		t.Errorf("init exited with %d", code)
	}
}

func TestNodeRestart(t *testing.T) {
	c := start(t, Config{Proxy: []string{}})
	got := make(chan int, 4)
	p := self("echo")
	p.Frames = true
	p.Frame = func(b []byte) {
		h, _, _ := ctl.DecodeRunner(b)
		got <- h.Attempt
	}
	old := c.exec(p)
	<-got // ready
	c.srv.Close()
	wait(t, "the old node's process", old.Done())

	srv, err := ctl.Resume(c.dir, c.ses.Secret(), testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ses, err := srv.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	run := ses.Running()
	if len(run) != 1 || run[0].Proc != old.ID() || run[0].PID != old.PID() {
		t.Fatalf("running %+v, want process %d", run, old.ID())
	}
	pr, err := ses.Attach(run[0].Proc, p)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ses.Attach(run[0].Proc, p); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("second attach: %v", err)
	}
	f, _ := ctl.EncodeRunner(ctl.RunnerHeader{Type: ctl.RunnerCall, Attempt: 42}, nil)
	if err := pr.Send(f); err != nil {
		t.Fatal(err)
	}
	for n := -1; n == -1; { // ready may come again, when its acknowledgement was lost
		select {
		case n = <-got:
			if n != -1 && n != 42 {
				t.Errorf("echo of %d", n)
			}
		case <-time.After(time.Minute):
			t.Fatal("no echo through the new node")
		}
	}
	// The new node's own processes have other numbers.
	c.ses = ses
	if out := c.run("echo", "hi"); out != "hi\n" {
		t.Error(out)
	}
	if err := ses.Shutdown(0); err != nil {
		t.Fatal(err)
	}
	wait(t, "the attached process", pr.Done())
	if pr.ExitCode() != 137 || c.exitCode() != ExitShutdown {
		t.Errorf("exit codes %d and %d", pr.ExitCode(), c.exitCode())
	}
}

func TestOwnerGapEndsEverything(t *testing.T) {
	c := start(t, Config{Proxy: []string{}, Gap: time.Second})
	c.exec(runtime.ProcessSpec{Args: []string{"sleep", "1003"}})
	c.srv.Close()
	if code := c.exitCode(); code != ExitOwnerGap {
		t.Errorf("init exited with %d, want %d", code, ExitOwnerGap)
	}
}

func TestProxyJoinsAPI(t *testing.T) {
	c := start(t, Config{}) // its own network namespace: the real ports
	get := func(url string) (string, int) {
		var out strings.Builder
		p := self("get", "URL="+url)
		p.Output = func(_ int, b []byte) { out.Write(b) }
		pr := c.exec(p)
		wait(t, "the request", pr.Done())
		return out.String(), pr.ExitCode()
	}
	if out, code := get("http://127.0.0.1:1993/"); code == 0 {
		t.Errorf("answered with no API behind: %q", out)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "api ", r.URL.Path)
	})}
	ln, err := net.Listen("unix", c.dir+"/api.sock")
	if err != nil {
		t.Fatal(err)
	}
	go srv.Serve(ln)
	defer srv.Close()
	for _, port := range []string{"1993", "1994"} {
		if out, code := get("http://127.0.0.1:" + port + "/x"); code != 0 || out != "api /x" {
			t.Errorf("port %s: %q, exit code %d", port, out, code)
		}
	}
}
