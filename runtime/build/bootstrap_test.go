package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/beammesh/beammesh/proto/fault"
)

func TestProgressFromLog(t *testing.T) {
	f, err := os.Open("testdata/mmdebstrap.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var got []Progress
	last := newParser(func(p Progress) { got = append(got, p) }).read(f)
	want := []Progress{
		{PhaseIndex, 0, 0},
		{PhaseDownload, 0, 2859000}, {PhaseDownload, 2759000, 2859000}, {PhaseDownload, 2858000, 2859000}, {PhaseDownload, 2858990, 2859000},
		{PhaseInstall, 1, 4}, {PhaseInstall, 2, 4}, {PhaseInstall, 3, 4}, {PhaseInstall, 4, 4},
		{PhaseDownload, 2858990, 3900000}, {PhaseDownload, 3899990, 3900000},
		{PhaseInstall, 5, 6}, {PhaseInstall, 6, 6},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if len(last) != 29 || last[28] != "I: success in 36.9392 seconds" {
		t.Errorf("last lines: %q", last)
	}
}

const classic = `# main archive
deb [arch=amd64 signed-by=/k.gpg] http://user:secret@mirror.example/debian bookworm main contrib # a comment
deb-src http://mirror.example/debian bookworm main
deb cdrom:[Debian] bookworm main
deb http://other.example/apt stable-thing main
deb http://sec.example/debian-security bookworm-security main
`

const deb822 = `Types: deb deb-src
URIs: http://mirror.example/debian
Suites: trixie trixie-updates
Components: main
Signed-By: /usr/share/keyrings/d.gpg

# switched off
Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: trixie-security
Components: main
`

func etc(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for n, text := range files {
		at := filepath.Join(dir, n)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestHostSources(t *testing.T) {
	for name, c := range map[string]struct {
		files           map[string]string
		suite           string
		private, public string
	}{
		"classic, other suite": {map[string]string{"sources.list": classic}, "trixie",
			"deb [signed-by=/k.gpg] http://user:secret@mirror.example/debian trixie main\ndeb http://sec.example/debian-security trixie-security main\n",
			"deb http://mirror.example/debian trixie main\ndeb http://sec.example/debian-security trixie-security main\n"},
		"deb822": {map[string]string{"sources.list.d/debian.sources": deb822}, "bookworm",
			"deb [signed-by=/usr/share/keyrings/d.gpg] http://mirror.example/debian bookworm main\ndeb [signed-by=/usr/share/keyrings/d.gpg] http://mirror.example/debian bookworm-updates main\n",
			"deb http://mirror.example/debian bookworm main\ndeb http://mirror.example/debian bookworm-updates main\n"},
	} {
		s, err := hostSources(etc(t, c.files), c.suite)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := s.list(true); got != c.private {
			t.Errorf("%s: private list\n%s, want\n%s", name, got, c.private)
		}
		if got := s.list(false); got != c.public {
			t.Errorf("%s: public list\n%s, want\n%s", name, got, c.public)
		}
	}
	for name, files := range map[string]map[string]string{"nothing": {}, "not Debian": {"sources.list": "deb http://mirror.example/ubuntu noble main\n"}} {
		if _, err := hostSources(etc(t, files), "bookworm"); fault.CodeOf(err) != fault.Unsupported {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// tool is a program in mmdebstrap's place. $# arguments: …, suite, dir, "-".
func tool(t *testing.T, script string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	at := filepath.Join(t.TempDir(), "tool")
	text := "#!/bin/bash\nset -e\nsuite=${@: -3:1} dir=${@: -2:1}\n" + script
	if err := os.WriteFile(at, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return at
}

const tree = `mkdir -p $dir/usr/bin $dir/usr/lib/python3.11 $dir/etc/apt/apt.conf.d $dir/dev $dir/var/log
touch $dir/usr/bin/python3 $dir/usr/lib/python3.11/EXTERNALLY-MANAGED $dir/dev/null $dir/etc/resolv.conf $dir/var/log/x
echo 'Acquire::http::Proxy "secret";' > $dir/etc/apt/apt.conf.d/99mmdebstrap
cat > $dir/sources
`

func TestBootstrap(t *testing.T) {
	at := tool(t, "echo run >> $(dirname $0)/runs\n"+tree)
	dir := filepath.Join(t.TempDir(), "new", "base")
	if err := os.MkdirAll(dir+".part/left/by/a/kill", 0o755); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 { // one works, the others wait for it
		wg.Go(func() {
			if err := Bootstrap(t.Context(), BaseConfig{Suite: "bookworm", Dir: dir, Tool: at}, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	runs, _ := os.ReadFile(filepath.Join(filepath.Dir(at), "runs"))
	if string(runs) != "run\n" {
		t.Errorf("tool ran %q", runs)
	}
	for _, gone := range []string{"usr/lib/python3.11/EXTERNALLY-MANAGED", "dev/null", "etc/resolv.conf", "var/log/x", "left"} {
		if _, err := os.Lstat(filepath.Join(dir, gone)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is there: %v", gone, err)
		}
	}
	conf, _ := os.ReadFile(filepath.Join(dir, "etc/apt/apt.conf.d/99mmdebstrap"))
	list, _ := os.ReadFile(filepath.Join(dir, "etc/apt/sources.list"))
	given, _ := os.ReadFile(filepath.Join(dir, "sources"))
	if strings.Contains(string(conf), "Proxy") || !strings.HasPrefix(string(list), "deb ") ||
		!strings.Contains(string(given), " bookworm main") {
		t.Errorf("apt.conf %q, sources %q, tool got %q", conf, list, given)
	}
	if _, err := os.Stat(dir + ".part"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("part is left: %v", err)
	}
}

func TestBootstrapFails(t *testing.T) {
	at := tool(t, "mkdir -p $dir/half\nfor i in {1..100}; do echo line $i; done\necho E: no network >&2\nexit 25\n")
	dir := filepath.Join(t.TempDir(), "base")
	err := Bootstrap(t.Context(), BaseConfig{Suite: "bookworm", Dir: dir, Tool: at}, nil)
	f := fault.From(err)
	if f.Code != fault.BuildFailed || f.Hint == "" || !strings.Contains(f.Message, "E: no network") || strings.Contains(f.Message, "line 3\n") {
		t.Errorf("got %+v", f)
	}
	for _, d := range []string{dir, dir + ".part"} {
		if _, err := os.Stat(d); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", d, err)
		}
	}
	for name, c := range map[string]BaseConfig{"suite": {Suite: "woody", Dir: dir}, "tool": {Suite: "bookworm", Dir: dir, Tool: "no-such-tool"}} {
		if err := Bootstrap(t.Context(), c, nil); fault.From(err).Hint == "" {
			t.Errorf("unknown %s: %v", name, err)
		}
	}
}

// A suite whose updates are gone is made without them.
func TestBootstrapWithoutUpdates(t *testing.T) {
	at := tool(t, `[ "$(tee $dir.list | wc -l)" = 1 ] || { echo "E: no Release file"; exit 100; }`+"\n"+tree+"cp $dir.list $dir/sources\n")
	src, err := hostSources("/etc/apt", "bookworm")
	if err != nil || len(src) < 2 {
		t.Logf("this machine has %d sources, %v: one try is enough here", len(src), err)
	}
	dir := filepath.Join(t.TempDir(), "base")
	if err := Bootstrap(t.Context(), BaseConfig{Suite: "bookworm", Dir: dir, Tool: at}, nil); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "sources")); strings.Count(string(b), "\n") != 1 {
		t.Errorf("tool got %q", b)
	}
}

// A node that is killed takes its tools along, and the next one starts afresh.
func TestBootstrapAfterKill(t *testing.T) {
	if at := os.Getenv("BUILD_TEST_TOOL"); at != "" { // we are the node
		err := Bootstrap(t.Context(), BaseConfig{Suite: "bookworm", Dir: os.Getenv("BUILD_TEST_DIR"), Tool: at}, nil)
		t.Fatal("not killed: ", err)
	}
	dir := filepath.Join(t.TempDir(), "base")
	mark := filepath.Join(t.TempDir(), "begun")
	at := tool(t, "mkdir -p $dir/half\n[ -e "+mark+" ] || { sleep 1005 & touch "+mark+"; sleep 1005; }\n"+tree)
	node := exec.Command("/proc/self/exe", "-test.run=^TestBootstrapAfterKill$")
	node.Env = append(os.Environ(), "BUILD_TEST_TOOL="+at, "BUILD_TEST_DIR="+dir)
	if err := node.Start(); err != nil {
		t.Fatal(err)
	}
	for _, err := os.Stat(mark); err != nil; _, err = os.Stat(mark) {
		time.Sleep(10 * time.Millisecond)
	}
	_ = node.Process.Kill()
	_ = node.Wait()
	if err := Bootstrap(t.Context(), BaseConfig{Suite: "bookworm", Dir: dir, Tool: at}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "half")); err != nil {
		t.Error(err)
	}
	wantNone(t, "1005")
}

func TestBootstrapCancelLeavesNothing(t *testing.T) {
	at := tool(t, "mkdir -p $dir/half\nsleep 1004 &\necho 'Need to get 1 kB of archives.'\nsleep 1004\n")
	dir := filepath.Join(t.TempDir(), "base")
	ctx, cancel := context.WithCancel(t.Context())
	begun := make(chan struct{})
	got := make(chan error, 1)
	go func() {
		got <- Bootstrap(ctx, BaseConfig{Suite: "bookworm", Dir: dir, Tool: at}, func(p Progress) {
			if p.Phase == PhaseDownload {
				close(begun)
			}
		})
	}()
	<-begun
	waiter := make(chan error, 1)
	short, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	go func() { waiter <- Bootstrap(short, BaseConfig{Suite: "bookworm", Dir: dir, Tool: at}, nil) }()
	if err := <-waiter; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second caller: %v", err)
	}
	cancel()
	select {
	case err := <-got:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("does not return after cancel")
	}
	if _, err := os.Stat(dir + ".part"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("part is left: %v", err)
	}
	wantNone(t, "1004")
}

// wantNone checks that no "sleep <arg>" runs: a tool's children go with it,
// since their pid namespace does.
func wantNone(t *testing.T, arg string) {
	t.Helper()
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range all {
		if b, _ := os.ReadFile(f); string(b) == "sleep\x00"+arg+"\x00" {
			pid := strings.Split(f, "/")[2]
			var n int
			_, _ = fmt.Sscan(pid, &n)
			_ = syscall.Kill(n, syscall.SIGKILL)
			t.Errorf("process %s is left", pid)
		}
	}
}
