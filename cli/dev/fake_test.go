package dev

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary plays the node: `<binary> node up …` runs a process that
// listens where it is told, leaves helpers and mounts behind, and says that it
// is ready. What is tested is the machinery around it, on the real machine.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "node" {
		fakeNode(os.Args[2], os.Args[3:])
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "up-and-die" {
		upAndDie()
		return
	}
	os.Exit(m.Run())
}

func fakeNode(verb string, args []string) {
	var ticket string
	if verb == "invite" {
		if got, err := ask(os.Getenv("GATEWAY_HOST")+":"+os.Getenv("GATEWAY_PORT"), 30*time.Second); err != nil || got != "node1 up" || os.Getenv("BEAM_TOKEN") != "token-1" {
			fmt.Fprintln(os.Stderr, "fake node: invite:", got, err)
			os.Exit(1)
		}
		fmt.Println("ticket-of-", os.Getpid())
		return
	}
	if verb == "join" {
		ticket, args = args[0], args[1:]
	}
	f := flag.NewFlagSet("node", flag.ExitOnError)
	data, grpc, http := f.String("data", "", ""), f.String("grpc", "", ""), f.String("http", "", "")
	fd := f.Int("ready-fd", -1, "")
	for _, n := range []string{"name", "listen", "cpus", "memory", "cpu-overcommit", "simulate-gpus"} {
		f.String(n, "", "")
	}
	_ = f.Parse(args)
	die := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "fake node:", err)
			os.Exit(1)
		}
	}
	if os.Getenv("FAKE_FAILS") == filepath.Base(*data) {
		die(fmt.Errorf("the disk is made of cheese"))
	}
	if os.Getenv("FAKE_HANGS") == filepath.Base(*data) {
		select {}
	}
	die(os.WriteFile(filepath.Join(*data, "ticket"), []byte(ticket), 0o600))
	for _, addr := range []string{*grpc, *http} {
		l, err := net.Listen("tcp", addr)
		die(err)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = fmt.Fprintln(c, filepath.Base(*data), verb)
				_ = c.Close()
			}
		}()
	}
	// What a node has: a mount in its folder, a helper, a child cgroup with a
	// container's process in it.
	mnt := filepath.Join(*data, "mnt")
	die(os.MkdirAll(mnt, 0o700))
	die(unix.Mount("tmpfs", mnt, "tmpfs", 0, "size=64k"))
	die(exec.Command("/bin/sh", "-c", "exec sleep 1000").Start())
	group := filepath.Join(cpuDir(os.Getenv("BEAM_CGROUP_PARENT")), "container1")
	die(os.MkdirAll(group, 0o755))
	die(exec.Command("/bin/sh", "-c", fmt.Sprintf("echo $$ > %s/cgroup.procs; exec setsid sleep 1000", group)).Start())

	term := make(chan os.Signal, 1)
	signal.Notify(term, unix.SIGTERM)
	out := os.NewFile(uintptr(*fd), "ready")
	die(json.NewEncoder(out).Encode(map[string]string{
		"id": "peer-of-" + filepath.Base(*data), "ticket": "ticket-1", "token": "token-1", "grpc": *grpc, "http": *http}))
	_ = out.Close()
	<-term
}

// upAndDie starts a mesh and ends with SIGKILL at the given line of progress.
func upAndDie() {
	at := os.Args[3]
	_, err := Up(context.Background(), Options{Root: os.Args[2], Name: testName, Nodes: 2}, func(line string) {
		if strings.Contains(line, at) {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		}
	})
	fmt.Println("up returned", err)
}

const testName = "ledgerdev" // of links and namespaces; no other package uses it

func needMachine(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if err := checkHost(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat("/sys/class/net/" + testName); err == nil {
		t.Fatalf("interface %s is left over", testName)
	}
}

func testCtx(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// up starts a mesh that is taken down, and checked for leftovers, at the end.
func up(t *testing.T, o Options) *Mesh {
	t.Helper()
	needMachine(t)
	if o.Root == "" {
		o.Root = filepath.Join(t.TempDir(), "dev")
	}
	o.Name = testName
	t.Cleanup(func() {
		if err := Down(context.Background(), DownOptions{Root: o.Root}, nil); err != nil {
			t.Errorf("down: %v", err)
		}
		nothingLeft(t, o.Root)
	})
	m, err := Up(testCtx(t), o, func(line string) { t.Log(line) })
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func nothingLeft(t *testing.T, root string) {
	t.Helper()
	if _, err := os.Stat(root); err == nil {
		t.Errorf("folder %s is left", root)
	}
	if b, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(b), root+"/") {
		t.Errorf("mounts are left: %v", err)
	}
	for _, pattern := range []string{"/run/netns/" + testName + "*", "/sys/class/net/" + testName + "*",
		"/sys/fs/cgroup/beam-dev/" + testName, "/sys/fs/cgroup/*/beam-dev/" + testName} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			t.Errorf("%v is left", left)
		}
	}
	out, err := tool(context.Background(), "", "", "nft", "list", "ruleset")
	if err != nil || strings.Contains(out, testName) {
		t.Errorf("rules are left: %v\n%s", err, out)
	}
	for _, pid := range pids() {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if strings.Contains(string(b), root) {
			t.Errorf("process %d is left: %q", pid, b)
		}
	}
}

// ask dials addr and gives the line that comes back.
func ask(addr string, limit time.Duration) (string, error) {
	c, err := net.DialTimeout("tcp", addr, limit)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(limit))
	line, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(line), err
}

// inside runs fn on a thread in a network namespace.
func inside(t *testing.T, netns string, fn func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		f, err := os.Open(netnsPath(netns))
		if err == nil {
			err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = fn()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
