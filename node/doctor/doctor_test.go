package doctor

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func byName(checks []Check) map[string]Check {
	out := map[string]Check{}
	for _, c := range checks {
		out[c.Name] = c
	}
	return out
}

// TestRun runs every probe on this machine. What a machine of the project's
// tests must be able to do is asserted; the rest must have a reason.
func TestRun(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	mounts := mountLines(t)
	var reported []Check
	checks := Run(context.Background(), Config{DataDir: dir, Listen: []string{"127.0.0.1:0"}, ListenUDP: []string{"127.0.0.1:0"}, Timeout: time.Minute},
		func(c Check) {
			reported = append(reported, c)
			t.Logf("%-16s %-4s %s (%s) %s", c.Name, c.State, c.Detail, c.Took.Round(time.Millisecond), c.Fix)
		})
	if len(checks) != len(probes) || len(reported) != len(probes) {
		t.Fatalf("%d checks and %d reports of %d probes", len(checks), len(reported), len(probes))
	}
	for _, c := range checks {
		if c.Detail == "" || c.OK != (c.State == OK || c.State == Warn) {
			t.Errorf("%+v", c)
		}
		if c.State == Fail && c.Fix == "" && c.Name != "data directory" {
			t.Errorf("%s fails without a fix: %s", c.Name, c.Detail)
		}
	}
	got := byName(checks)
	for _, name := range []string{"udp", "disk sync", "ports", "clock"} {
		if !got[name].OK {
			t.Errorf("%s: %+v", name, got[name])
		}
	}
	if os.Geteuid() == 0 {
		for _, name := range []string{"namespaces", "overlay mount", "user namespaces", "idmapped mounts", "cgroups", "fuse", "forwarding"} {
			if !got[name].OK {
				t.Errorf("%s: %+v", name, got[name])
			}
		}
	}
	b, err := json.Marshal(checks[0])
	if err != nil || !strings.Contains(string(b), `"name":"data directory"`) {
		t.Errorf("%s %v", b, err)
	}
	// Nothing is left.
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
	if now := mountLines(t); now != mounts {
		t.Errorf("mounts changed:\n%s\n%s", mounts, now)
	}
	for _, pattern := range []string{"/sys/fs/cgroup/" + groupPrefix + "*", "/sys/fs/cgroup/*/" + groupPrefix + "*", "/sys/class/net/bmdoc*"} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			t.Errorf("%v is left", left)
		}
	}
}

func mountLines(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, l := range strings.Split(string(b), "\n") {
		if strings.Contains(l, ".doctor-") {
			out = append(out, l)
		}
	}
	return strings.Join(out, "\n")
}

func TestFindings(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	busyUDP, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busyUDP.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for name, c := range map[string]struct {
		got   Check
		state State
		text  string
	}{
		"port taken":       {ports(ctx, Config{Listen: []string{busy.Addr().String()}}), Fail, "in use"},
		"UDP port taken":   {ports(ctx, Config{ListenUDP: []string{busyUDP.LocalAddr().String()}}), Fail, "in use"},
		"own port taken":   {ports(ctx, Config{Listen: []string{busy.Addr().String()}, Running: true}), OK, ""},
		"clock far off":    {clock(ctx, Config{Skews: map[string]time.Duration{"box2": -20 * time.Minute}}), Fail, "box2 is 20m0s behind"},
		"clock off":        {clock(ctx, Config{Skews: map[string]time.Duration{"box2": 10 * time.Minute, "box3": time.Second}}), Warn, "box2 is 10m0s ahead"},
		"clock right":      {clock(ctx, Config{Skews: map[string]time.Duration{"box3": time.Second}}), OK, "agrees"},
		"data in a file":   {dataDir(ctx, Config{DataDir: filepath.Join(file, "x")}), Fail, "cannot be written"},
		"resolver is away": {deadResolver(t, ctx), Warn, "does not answer"},
	} {
		if c.got.State != c.state || !strings.Contains(c.got.Detail, c.text) {
			t.Errorf("%s: %+v", name, c.got)
		}
		if c.state != OK && c.got.Fix == "" {
			t.Errorf("%s has no fix", name)
		}
	}
}

// deadResolver looks up a name with a resolver that asks a closed port.
func deadResolver(t *testing.T, ctx context.Context) Check {
	old := net.DefaultResolver
	t.Cleanup(func() { net.DefaultResolver = old })
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, "127.0.0.1:1")
	}}
	defer func() { net.DefaultResolver = old }()
	return dns(ctx, Config{Resolve: "example.com"})
}

func TestDataDirectoryOnOverlayIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	if err := tree(dir); err != nil {
		t.Fatal(err)
	}
	merged := filepath.Join(dir, "merged")
	c := onThread(func() Check {
		opts := "lowerdir=" + filepath.Join(dir, "lower") + ",upperdir=" + filepath.Join(dir, "upper") + ",workdir=" + filepath.Join(dir, "work")
		if err := unix.Mount("overlay", merged, "overlay", 0, opts); err != nil {
			return skip("%v", err)
		}
		return dataDir(context.Background(), Config{DataDir: filepath.Join(merged, "data")})
	})
	if c.State != Fail || !strings.Contains(c.Detail, "overlayfs") || c.Fix == "" {
		t.Fatalf("%+v", c)
	}
}

// A firewall that drops forwarded packets is noticed. Its chain is hooked so
// that it meets only this probe's links.
func TestForeignFirewallIsNoticed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Fatal(err)
	}
	rules := "table inet ledger_doctor {\n chain forward { type filter hook forward priority 0; policy accept; iifname \"bmdoc*\" drop; }\n}\n"
	remove := func() { _ = exec.Command(nft, "delete", "table", "inet", "ledger_doctor").Run() }
	t.Cleanup(remove)
	cmd := exec.Command(nft, "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c := runOne(context.Background(), Config{Timeout: time.Minute}, probe{"forwarding", true, forwarding})
	if c.State != Warn || !strings.Contains(c.Detail, "drops forwarded packets") || c.Fix == "" {
		t.Fatalf("%+v", c)
	}
}

func TestHangingProbeIsGivenUp(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	c := runOne(context.Background(), Config{Timeout: 20 * time.Millisecond}, probe{"hangs", false, func(context.Context, Config) Check {
		<-release
		return ok("")
	}})
	if c.State != Fail || c.OK || !strings.Contains(c.Detail, "longer than 20ms") {
		t.Fatalf("%+v", c)
	}
}

func TestRemainsOfKilledDoctorsAreRemoved(t *testing.T) {
	dir := t.TempDir()
	old, fresh := filepath.Join(dir, ".doctor-1"), filepath.Join(dir, ".doctor-2")
	for _, d := range []string{old, fresh} {
		if err := os.MkdirAll(filepath.Join(d, "lower"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	past := time.Now().Add(-2 * time.Hour)
	if err := os.Chtimes(old, past, past); err != nil {
		t.Fatal(err)
	}
	if c := dataDir(context.Background(), Config{DataDir: dir}); c.State == Fail {
		t.Fatalf("%+v", c)
	}
	if _, err := os.Stat(old); err == nil {
		t.Error("the old one is left")
	}
	if _, err := os.Stat(fresh); err != nil {
		t.Error("one that may be at work was removed")
	}
}

func TestNVIDIACardsAreCounted(t *testing.T) {
	root := t.TempDir()
	for name, files := range map[string][2]string{
		"gpu": {"0x10de\n", "0x030200\n"}, "nvidia-audio": {"0x10de\n", "0x040300\n"}, "intel": {"0x8086\n", "0x030000\n"},
	} {
		d := filepath.Join(root, name)
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
		for i, f := range []string{"vendor", "class"} {
			if err := os.WriteFile(filepath.Join(d, f), []byte(files[i]), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := nvidiaCards(root); n != 1 {
		t.Fatalf("%d cards", n)
	}
}
