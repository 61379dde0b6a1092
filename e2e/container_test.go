package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/beammesh/beammesh/cli/dev"
)

// endings makes calls that end in every way and prints what the program sees.
const endings = `
import os, sys, time
from beam import BeamError, function

@function(cpu=0.2, memory=128, retries=0)
def exits(x):
    os._exit(7)

@function(cpu=0.2, memory=128, retries=0)
def eats(x):
    return len(bytearray(os.urandom(1) * (1 << 29)))

@function(cpu=0.2, memory=128, retries=2)
def devours(x):
    return len(bytearray(os.urandom(1) * (1 << 29)))

@function(cpu=0.2, memory=128, timeout=2)
def sleeps(x):
    time.sleep(600)

@function(cpu=0.2, memory=128)
def raises(x):
    raise KeyError("gone")

@function(cpu=0.2, memory=128, timeout=600)
def hangs(x):
    print("hanging", flush=True)
    time.sleep(600)

if __name__ == "__main__":
    for f in (exits, eats, devours, sleeps, raises, hangs):
        try:
            print(f.__name__, "returned", f.remote(1), flush=True)
        except BeamError as e:
            print(f.__name__, type(e).__name__, e.code, str(e).replace("\n", " "), flush=True)
        except KeyError as e:
            print(f.__name__, "KeyError", e.args, flush=True)
`

func testEndsAreToldApart(m *mesh) {
	t := m.t
	p := m.startPython(1, endings)
	p.expect("hanging")
	hanging := m.task(1, "hangs", running)
	if _, errs, code := m.beam(1, "task", "stop", hanging.ID); code != 0 {
		t.Fatal(errs)
	}
	out, errs, code := p.wait()
	if code != 0 {
		t.Fatalf("exit %d\n%s%s", code, out, errs)
	}
	for _, want := range []struct {
		fn, seen, text, status, code string
		attempt                      int
	}{
		{"exits", "exits RemoteError failed", "exit code 7", "ERROR", "failed", 1},
		{"eats", "eats OutOfMemoryError out_of_memory", "128 MiB", "ERROR", "out_of_memory", 1},
		{"devours", "devours OutOfMemoryError out_of_memory", "128 MiB", "ERROR", "out_of_memory", 3}, // its container ends with each call
		{"sleeps", "sleeps TaskTimeoutError job_timeout", "", "TIMEOUT", "job_timeout", 1},
		{"raises", "raises KeyError ('gone',)", "", "ERROR", "failed", 1},
		{"hangs", "hangs TaskCancelledError cancelled", "", "CANCELLED", "cancelled", 1},
	} {
		var line string
		for l := range strings.Lines(out) {
			if strings.HasPrefix(l, want.fn+" ") {
				line = l
			}
		}
		if !strings.HasPrefix(line, want.seen) || !strings.Contains(line, want.text) {
			t.Errorf("%s: the program saw %q, want %q with %q", want.fn, line, want.seen, want.text)
		}
		task := m.task(1, want.fn, over)
		if task.Status != want.status || task.Error == nil || task.Error.Code != want.code || task.Attempt != want.attempt {
			t.Errorf("%s is listed as %s, attempt %d, error %+v; want %s, %d, %s", want.fn, task.Status, task.Attempt, task.Error, want.status, want.attempt, want.code)
		}
	}
}

const shutIn = `
import errno, json, os, socket, sys, threading, time
from beam import QueueDepthAutoscaler, function

def try_connect(host, port):
    try:
        with socket.create_connection((host, port), timeout=4) as s:
            return s.recv(100).decode()
    except OSError as e:
        return "refused"

@function(cpu=0.2, memory=512)
def look(node, outside):
    found = {}
    with open("/proc/net/route") as f:
        gateway = [l.split()[2] for l in f if l.split()[1] == "00000000"][0]
    gateway = socket.inet_ntoa(bytes.fromhex(gateway)[::-1])
    found["node"] = [try_connect(h, p) for h in (node, gateway) for p in (1993, 1994, 1992)]
    found["outside"] = try_connect(*outside)
    found["name"] = socket.gethostbyname("outside.example")
    try:
        socket.gethostbyname("nothing.example")
        found["none"] = "found"
    except OSError:
        found["none"] = "not found"
    st = os.statvfs("/")
    found["disk"] = st.f_blocks * st.f_frsize
    hold, n = threading.Event(), 0
    threading.stack_size(65536)
    try:
        while n < 20000:
            threading.Thread(target=hold.wait, daemon=True).start()
            n += 1
    except RuntimeError:
        pass
    hold.set()
    found["threads"] = n
    return found

@function(cpu=0.2, memory=256)
def fill(_):
    # All but the last 64 MiB are set aside, the rest is written.
    st = os.statvfs("/")
    n = st.f_bavail * st.f_frsize - (64 << 20)
    fd = os.open("/opt/full", os.O_CREAT | os.O_WRONLY)
    os.posix_fallocate(fd, 0, n)
    os.lseek(fd, n, os.SEEK_SET)
    try:
        while n < 64 << 30:
            n += os.write(fd, b"x" * (1 << 20))
    except OSError as e:
        end = errno.errorcode[e.errno]
    else:
        end = "never full"
    os.close(fd)
    os.unlink("/opt/full")
    with open("/opt/again", "wb") as f:
        f.write(b"x" * (1 << 20))
    return {"end": end, "bytes": n}

@function(cpu=0.2, memory=128)
def listen(seconds):
    s = socket.create_server(("0.0.0.0", 4444))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as u:
        u.connect(("192.0.2.1", 9))
        own = u.getsockname()[0]
    end, reached = time.monotonic() + seconds, []
    print("address", own, flush=True)
    while (left := end - time.monotonic()) > 0:
        s.settimeout(left)
        try:
            c, peer = s.accept()
        except OSError:
            break
        c.sendall(b"welcome")
        c.close()
        reached.append(peer[0])
        print("reached by", peer[0], flush=True)
    return own, reached

# On both nodes that have a GPU: one call each, which stays until the other ran.
@function(gpu="H100", cpu=0.2, memory=128, keep_warm_seconds=0, autoscaler=QueueDepthAutoscaler(max_containers=2))
def knock(host):
    found = try_connect(host, 4444)
    time.sleep(8)
    return found

@function(cpu=0.2, memory=128)
def knock_plain(host):
    return try_connect(host, 4444)

if __name__ == "__main__":
    if sys.argv[1] == "listen":
        print(listen.remote(float(sys.argv[2])), flush=True)
    elif sys.argv[1] == "knock":
        print(sorted(set(knock.map([sys.argv[2]] * 2)) | {knock_plain.remote(sys.argv[2])}), flush=True)
    elif sys.argv[1] == "fill":
        print(json.dumps(fill.remote(1)), flush=True)
    else:
        print(json.dumps(look.remote(sys.argv[1], (sys.argv[2], int(sys.argv[3])))), flush=True)
`

// outside is an address of the documentation's range: as public for containers
// as any, and routed to this machine alone.
const outside = "203.0.113.7"

// nameServer is where the nodes send what containers ask for.
const nameServer = dev.GatewayArg + ":5399"

func testContainerIsShutIn(m *mesh) {
	t := m.t
	if out, err := exec.Command("ip", "addr", "replace", outside+"/32", "dev", "lo").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("ip", "addr", "del", outside+"/32", "dev", "lo").Run() })
	l, err := net.Listen("tcp4", outside+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "hello from outside")
			c.Close()
		}
	}()
	serveNames(t, m)

	_, port, _ := net.SplitHostPort(l.Addr().String())
	out := m.mustPython(1, shutIn, m.dev.Nodes[0].Addr.String(), outside, port)
	for _, want := range []string{`"node": ["refused", "refused", "refused", "refused", "refused", "refused"]`,
		`"outside": "hello from outside"`, `"name": "` + outside + `"`, `"none": "not found"`} {
		if !strings.Contains(out, want) {
			t.Errorf("a container saw %s want %s", out, want)
		}
	}
	var disk, threads int64
	if _, err := fmt.Sscanf(out[strings.Index(out, `"disk"`):], `"disk": %d, "threads": %d`, &disk, &threads); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if disk <= 0 || disk > 11<<30 {
		t.Errorf("a container sees a disk of %d bytes, want the limit of 10 GiB", disk)
	}
	if threads < 3000 || threads > 4200 {
		t.Errorf("a container started %d threads, want the limit of 4096 to hold", threads)
	}

	// The limit of the disk holds, and says so as disks do; what is freed is there
	// again.
	out = m.mustPython(1, shutIn, "fill")
	var full struct {
		End   string
		Bytes int64
	}
	if err := json.Unmarshal([]byte(lastLine(out)), &full); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if full.End != "ENOSPC" || full.Bytes < 9<<30 || full.Bytes > 10<<30 {
		t.Errorf("a container wrote %d bytes and then met %s, want ENOSPC at somewhat below 10 GiB", full.Bytes, full.End)
	}
	t.Logf("figure: a container's disk was full after %.2f GiB: %s", float64(full.Bytes)/(1<<30), full.End)
	testContainersDoNotMeet(m)
}

// testContainersDoNotMeet lets one container listen. Its own node reaches it: the
// listener is there, at this address. Containers of the same node and of others
// do not.
func testContainersDoNotMeet(m *mesh) {
	t := m.t
	server := m.startPython(2, shutIn, "listen", "60")
	server.expect("address")
	line, _ := server.out.snapshot()
	addr := strings.Fields(line[strings.Index(line, "address"):])[1]
	home := m.task(2, "listen", running).Node
	const connect = `import socket, sys; print(socket.create_connection((sys.argv[1], 4444), timeout=10).recv(100).decode())`
	out, err := exec.Command("nsenter", "--net=/run/netns/"+m.dev.Nodes[index(t, home)-1].NetNS, python(), "-c", connect, addr).CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "welcome" {
		t.Fatalf("the node %s does not reach its own container at %s: %v\n%s", home, addr, err, out)
	}
	server.expect("reached by")
	if got := m.mustPython(1, shutIn, "knock", addr); !strings.Contains(got, "['refused']") {
		t.Errorf("containers reached another one: %s", got)
	}
	from := map[string]bool{}
	for _, i := range []int{1, 2} {
		for _, task := range m.tasks(i) {
			if strings.HasSuffix(task.Name, "knock") || strings.HasSuffix(task.Name, "knock_plain") {
				from[task.Node] = true
			}
		}
	}
	if !from[home] || len(from) < 2 {
		t.Errorf("%s listened and containers on %v knocked, want one there and one elsewhere", home, from)
	}
	got, errs, code := server.wait()
	if code != 0 || strings.Count(got, "reached by") != 1 {
		t.Errorf("the listening container was reached by more than its node, or failed: exit %d\n%s%s", code, got, errs)
	}
	t.Logf("the container on %s was reached by its node and by no container on %v", home, slices.Sorted(maps.Keys(from)))
}

// serveNames answers for outside.example at the bridge, until the test ends.
func serveNames(t testing.TB, m *mesh) {
	t.Helper()
	gateway := m.dev.Subnet.Masked().Addr().Next()
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(gateway, 5399)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, 1500)
		for {
			n, from, err := c.ReadFromUDP(b)
			if err != nil {
				return
			}
			var q dnsmessage.Message
			if q.Unpack(b[:n]) != nil || len(q.Questions) != 1 {
				continue
			}
			a := dnsmessage.Message{Header: dnsmessage.Header{ID: q.ID, Response: true, RecursionAvailable: true}, Questions: q.Questions}
			switch name := q.Questions[0].Name; {
			case name.String() != "outside.example.":
				a.RCode = dnsmessage.RCodeNameError
			case q.Questions[0].Type == dnsmessage.TypeA:
				a.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: 60},
					Body: &dnsmessage.AResource{A: netip.MustParseAddr(outside).As4()}}}
			}
			if out, err := a.Pack(); err == nil {
				_, _ = c.WriteToUDP(out, from)
			}
		}
	}()
}
