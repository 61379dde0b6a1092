package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/dns"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/beammesh/beammesh/runtime"
	"github.com/beammesh/beammesh/runtime/gpu"
	"github.com/beammesh/beammesh/runtime/runtimetest"
)

func TestInside(t *testing.T) {
	upstream := dnsServer(t)
	e := newEngine(t, func(c *Config) { c.Upstream = []string{upstream} })
	tg := target(e)
	rw, ro, run := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "private", "run")
	if err := errors.Join(os.Mkdir(filepath.Dir(run), 0o700), os.Mkdir(run, 0o711)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(ro, "secret"), []byte("42"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(run, "note"), []byte("hello"), 0o644); err != nil {
		t.Fatal(err)
	}
	c := start(t, e, runtime.Spec{ID: "inside", Hostname: "box-7", Layers: []runtime.Layer{{Root: "base"}, {Root: "without passwd"}, {Root: "code", Prefix: "mnt/code"}},
		Mounts: []runtime.Mount{{Source: rw, Target: "/data"}, {Source: ro, Target: "/ro", ReadOnly: true}, {Source: ro + "/secret", Target: "/one", ReadOnly: true}}, RunDir: run})
	want := func(what string, o runtimetest.Output, code int, part string) {
		t.Helper()
		if o.Code != code || !strings.Contains(o.Stdout+o.Stderr, part) {
			t.Errorf("%s: %+v, want code %d and %q", what, o, code, part)
		}
	}
	want("layer on top", tg.Do(t, c, "cat", "/mnt/code/app.py"), 0, "print(12)")
	want("whiteout", tg.Do(t, c, "cat", "/etc/passwd"), 1, "no such file")
	want("owner of a layer's file", tg.Do(t, c, "stat", "/bin/probe"), 0, "0:0 755")
	want("owner of the root folder", tg.Do(t, c, "stat", "/"), 0, "0:0 755")
	want("tmp", tg.Do(t, c, "stat", "/tmp"), 0, "0:0 777")
	want("hostname", tg.Do(t, c, "cat", "/proc/sys/kernel/hostname"), 0, "box-7")
	want("hosts", tg.Do(t, c, "lookup", "box-7"), 0, c.(*container).slot.addr.String())
	want("dns", tg.Do(t, c, "lookup", "x.example"), 0, "198.51.100.7")
	want("write to a layer's folder", tg.Do(t, c, "write", "/etc/new", "x"), 0, "")
	want("write through a mount", tg.Do(t, c, "write", "/data/f", "x"), 0, "")
	if fi, err := os.Stat(filepath.Join(rw, "f")); err != nil {
		t.Error(err)
	} else if o, _, _ := owner(fi); o != 0 {
		t.Errorf("owner of the written file on the host is %d, want root", o)
	}
	want("private file of root, mounted", tg.Do(t, c, "cat", "/ro/secret"), 0, "42")
	want("mounted file", tg.Do(t, c, "cat", "/one"), 0, "42")
	want("read-only mount", tg.Do(t, c, "write", "/ro/x", "x"), 1, "read-only")
	want("caller's run folder", tg.Do(t, c, "cat", "/run/beam/note"), 0, "hello")
	want("run folder is read-only", tg.Do(t, c, "write", "/run/beam/x", "x"), 1, "read-only")
	want("init is read-only", tg.Do(t, c, "write", "/.beam/init", "x"), 1, "")
	want("sysctls are read-only", tg.Do(t, c, "write", "/proc/sys/kernel/hostname", "x"), 1, "read-only")
	want("sys is read-only", tg.Do(t, c, "write", "/sys/kernel/x", "x"), 1, "")
	want("no block devices", tg.Do(t, c, "ls", "/dev"), 0, "null")
	if o := tg.Do(t, c, "ls", "/dev"); strings.Contains(o.Stdout, "loop") || strings.Contains(o.Stdout, "kvm") {
		t.Errorf("devices of the host in /dev:\n%s", o.Stdout)
	}
	if o := tg.Do(t, c, "cat", "/proc/self/status"); !strings.Contains(o.Stdout, "NoNewPrivs:\t1") || !strings.Contains(o.Stdout, "Seccomp:\t2") ||
		!strings.Contains(o.Stdout, "CapInh:\t0000000000000000") || !strings.Contains(o.Stdout, "CapAmb:\t0000000000000000") {
		t.Errorf("status of a process:\n%s", o.Stdout)
	}
	if o := tg.Do(t, c, "cat", "/proc/self/mountinfo"); strings.Contains(o.Stdout, "rootfs.lower") || strings.Contains(o.Stdout, e.cfg.Root) {
		t.Errorf("mounts of the host shine through:\n%s", o.Stdout)
	}

	other := start(t, e, runtime.Spec{ID: "other"})
	tg.Await(t, other, "serve", "0.0.0.0:7000")
	addr := other.(*container).slot.addr.String() + ":7000"
	want("another container", tg.Do(t, c, "dial", addr), 1, "")
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Errorf("node to container: %v", err)
	} else {
		conn.Close()
	}
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	want("a port of the node", tg.Do(t, c, "dial", fmt.Sprintf("%s:%d", e.net.Gateway(), l.Addr().(*net.TCPAddr).Port)), 1, "")
	blocked := start(t, e, runtime.Spec{ID: "blocked", Network: runtime.Network{Block: true, Allow: []netip.Prefix{}}})
	want("dns without a network", tg.Do(t, blocked, "lookup", "x.example"), 1, "")
}

// dnsServer knows every name.
func dnsServer(t *testing.T) string {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		r := new(dns.Msg).SetReply(q)
		if q.Question[0].Qtype == dns.TypeA {
			r.Answer = append(r.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(198, 51, 100, 7)})
		}
		w.WriteMsg(r)
	})}
	go s.ActivateAndServe()
	t.Cleanup(func() { s.Shutdown() })
	return pc.LocalAddr().String()
}

func TestDeviceEdits(t *testing.T) {
	edits := func(context.Context, []string) (gpu.Edits, error) {
		// The node of /dev/fuse stands for the device: containers do not get it.
		return gpu.Edits{Devices: []gpu.DeviceNode{{HostPath: "/dev/fuse"}, {Path: "/dev/nvidia1", Type: "c", Major: 10, Minor: 229, Access: "r"}},
			Env:    []string{"NVIDIA_VISIBLE_DEVICES=void"},
			Mounts: []gpu.Mount{{Source: "/etc/hostname", Target: "/usr/lib/libcuda.so.1", Options: []string{"bind", "ro"}}}}, nil
	}
	e := newEngine(t, func(c *Config) { c.DeviceEdits = edits })
	tg := target(e)
	withGPU := start(t, e, runtime.Spec{ID: "gpu", GPUs: []string{"gpu-1"}})
	cpu := start(t, e, runtime.Spec{ID: "cpu"})
	// Opened, but there is nothing to read without a mount.
	if o := tg.Do(t, withGPU, "cat", "/dev/nvidia1"); !strings.Contains(o.Stderr, "read /dev/nvidia1") {
		t.Errorf("open a granted device: %+v", o)
	}
	if o := tg.Do(t, withGPU, "cat", "/dev/fuse"); !strings.Contains(o.Stderr, "read /dev/fuse") {
		t.Errorf("open a granted device: %+v", o)
	}
	if o := tg.Do(t, withGPU, "env", "NVIDIA_VISIBLE_DEVICES"); o.Stdout != "void" {
		t.Errorf("environment: %+v", o)
	}
	if o := tg.Do(t, cpu, "ls", "/dev"); strings.Contains(o.Stdout, "nvidia") || strings.Contains(o.Stdout, "fuse") {
		t.Errorf("a CPU job sees a device:\n%s", o.Stdout)
	}
	for id, n := range map[string]int{"gpu": 2, "cpu": 0} {
		b, err := e.OCISpec(id)
		if err != nil {
			t.Fatal(err)
		}
		var s specs.Spec
		if err := json.Unmarshal(b, &s); err != nil {
			t.Fatal(err)
		}
		edits := 0
		for _, m := range s.Mounts {
			if strings.Contains(m.Destination, "fuse") || strings.Contains(m.Destination, "nvidia") || strings.Contains(m.Destination, "cuda") {
				edits++
			}
		}
		// One rule denies all, one more allows each device; a mount for each
		// device and one for the library.
		if len(s.Linux.Devices) != 0 || len(s.Linux.Resources.Devices) != n+1 || edits != n+n/2 {
			t.Errorf("%s: rules %+v, mounts %+v", id, s.Linux.Resources.Devices, s.Mounts)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), runtimetest.Patience)
	defer cancel()
	again := runtime.Spec{ID: "taken", Layers: base, GPUs: []string{"gpu-1"}}
	if _, err := e.Start(ctx, again); !errors.Is(err, runtime.ErrNoResource) {
		t.Errorf("device that is not free: %v, want ErrNoResource", err)
	}
	if err := withGPU.Stop(ctx, 0); err != nil {
		t.Fatal(err)
	}
	start(t, e, again)
}

func TestSimulatedDevices(t *testing.T) {
	inv, err := gpu.Simulated("H100:2")
	if err != nil {
		t.Fatal(err)
	}
	devs, err := inv.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	e := newEngine(t, func(c *Config) { c.DeviceEdits = inv.Edits })
	c := start(t, e, runtime.Spec{ID: "sim", GPUs: []string{devs[1].ID}})
	if o := target(e).Do(t, c, "ls", "/dev"); !strings.Contains(o.Stdout, "nvidia1-simulated") || strings.Contains(o.Stdout, "nvidia0") {
		t.Errorf("granted was the second device, /dev has\n%s", o.Stdout)
	}
}
