package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// wantBuffer is what QUIC asks the kernel for; with less it drops packets on
// fast links.
const wantBuffer = 7 << 20

func udp(ctx context.Context, _ Config) Check {
	a, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return fail("", "no UDP socket: %v", err)
	}
	defer func() { _ = a.Close() }()
	b, err := net.DialUDP("udp4", nil, a.LocalAddr().(*net.UDPAddr))
	if err != nil {
		return fail("", "no UDP socket: %v", err)
	}
	defer func() { _ = b.Close() }()
	deadline, _ := ctx.Deadline()
	_, _ = a.SetDeadline(deadline), b.SetDeadline(deadline)
	msg := bytes.Repeat([]byte("beam"), 300) // 1200 bytes: QUIC's least
	if _, err := b.Write(msg); err != nil {
		return fail("let UDP pass on the loopback interface", "send: %v", err)
	}
	buf := make([]byte, 2048)
	n, from, err := a.ReadFromUDP(buf)
	if err == nil {
		_, err = a.WriteToUDP(buf[:n], from)
	}
	if err == nil {
		n, err = b.Read(buf)
	}
	if err != nil || !bytes.Equal(buf[:n], msg) {
		return fail("let UDP pass on the loopback interface", "no echo of 1200 bytes: %v", err)
	}
	size := 0
	if rerr := a.SetReadBuffer(wantBuffer); rerr == nil {
		raw, err := a.SyscallConn()
		if err != nil {
			return fail("", "%v", err)
		}
		_ = raw.Control(func(fd uintptr) { size, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF) })
		size /= 2 // the kernel doubles what it was asked for
	}
	if size < wantBuffer {
		return warn(fmt.Sprintf("sysctl -w net.core.rmem_max=%d net.core.wmem_max=%d", wantBuffer, wantBuffer),
			"echo works; the receive buffer is %d KiB, QUIC wants %d: fast links lose packets", size>>10, wantBuffer>>10)
	}
	return ok("echo works; receive buffer %d KiB", size>>10)
}

func dns(ctx context.Context, c Config) Check {
	begin := time.Now()
	_, err := net.DefaultResolver.LookupHost(ctx, c.Resolve)
	took := time.Since(begin).Round(time.Millisecond)
	var de *net.DNSError
	switch {
	case err == nil:
		return ok("%s found in %s", c.Resolve, took)
	case errors.As(err, &de) && de.IsNotFound:
		return ok("the name server answers in %s (it does not know %s)", took, c.Resolve)
	}
	return warn("check /etc/resolv.conf; a mesh works without, images and packages from outside do not",
		"the name server does not answer: %v", err)
}

func ports(_ context.Context, c Config) Check {
	if c.Running {
		return ok("taken by the node that runs here")
	}
	var busy []string
	for _, addr := range c.Listen {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			busy = append(busy, fmt.Sprintf("tcp %s: %v", addr, cause(err)))
			continue
		}
		_ = l.Close()
	}
	for _, addr := range c.ListenUDP {
		l, err := net.ListenPacket("udp", addr)
		if err != nil {
			busy = append(busy, fmt.Sprintf("udp %s: %v", addr, cause(err)))
			continue
		}
		_ = l.Close()
	}
	if len(busy) > 0 {
		return fail("another node may run here ('beam node status'); else give this one others: --grpc, --http, --listen",
			"%s", strings.Join(busy, "; "))
	}
	return ok("%d are free", len(c.Listen)+len(c.ListenUDP))
}

func cause(err error) error {
	var se *os.SyscallError
	if errors.As(err, &se) {
		return se.Err
	}
	return err
}

// forwarding sends a packet from one network namespace to another through this
// machine, the way a container's packets go. Docker and ufw set firewalls that
// drop those.
func forwarding(ctx context.Context, _ Config) Check {
	ip, err := exec.LookPath("ip")
	if err != nil {
		if ip = "/usr/sbin/ip"; !exists(ip) {
			return fail("apt-get install iproute2", "the program `ip` is missing")
		}
	}
	subnet, err := probeSubnet()
	if err != nil {
		return skip("%v", err)
	}
	addr := func(i int) string { b := subnet.As4(); b[3] += byte(i); return netip.AddrFrom4(b).String() }
	var ends [2]*held
	for i := range ends {
		h, err := hold(&syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET})
		if err != nil {
			return skip("needs network namespaces: %v", err)
		}
		defer h.release()
		ends[i] = h
		// Host side .1 and .5, namespace side .2 and .6 of two /30.
		dev, pid := fmt.Sprintf("bmdoc%d%c", os.Getpid()%1_000_000, 'a'+i), strconv.Itoa(h.cmd.Process.Pid)
		host, inside := addr(4*i+1), addr(4*i+2)
		if err := run(ctx, 0, ip, "link", "add", dev, "type", "veth", "peer", "name", "eth0", "netns", pid); err != nil {
			return skip("cannot make a link: %v", err)
		}
		defer func() { _ = run(context.WithoutCancel(ctx), 0, ip, "link", "del", dev) }()
		for _, a := range [][]string{{"addr", "add", host + "/30", "dev", dev}, {"link", "set", dev, "up"}} {
			if err := run(ctx, 0, ip, a...); err != nil {
				return skip("cannot set up a link: %v", err)
			}
		}
		// For this link only: the node does the same for its bridge.
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+dev+"/forwarding", []byte("1"), 0o644); err != nil {
			return fail("sysctl -w net.ipv4.ip_forward=1", "forwarding cannot be switched on: %v", err)
		}
		for _, a := range [][]string{{"addr", "add", inside + "/30", "dev", "eth0"}, {"link", "set", "eth0", "up"}, {"route", "add", "default", "via", host}} {
			if err := run(ctx, h.cmd.Process.Pid, ip, a...); err != nil {
				return skip("cannot set up a link: %v", err)
			}
		}
	}
	return passes(ctx, ends[0].cmd.Process.Pid, ends[1].cmd.Process.Pid, addr(6))
}

// passes connects from one namespace to the other. A dropped packet is told by
// silence: three seconds are many round trips inside one machine.
func passes(ctx context.Context, from, to int, addr string) Check {
	var l net.Listener
	if err := in(to, func() (err error) { l, err = net.Listen("tcp4", addr+":0"); return err }); err != nil {
		return skip("cannot listen: %v", err)
	}
	defer func() { _ = l.Close() }()
	err := in(from, func() error {
		c, err := (&net.Dialer{Timeout: 3 * time.Second}).DialContext(ctx, "tcp4", l.Addr().String())
		if err == nil {
			_ = c.Close()
		}
		return err
	})
	if err != nil {
		return warn("if containers have no network: iptables -I FORWARD -j ACCEPT, or allow routed traffic in your firewall ('ufw default allow routed')",
			"a firewall of this machine (Docker, ufw?) drops forwarded packets: the node puts rules for its own containers in front (%v)", cause(err))
	}
	return ok("packets pass between namespaces")
}

// run runs a program, in the network namespace of pid unless that is 0.
func run(ctx context.Context, pid int, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	start := cmd.Start
	if pid != 0 {
		start = func() error { return in(pid, cmd.Start) }
	}
	err := start()
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(out.String()))
	}
	return nil
}

// in runs fn on a thread in the network namespace of pid; the thread ends with it.
func in(pid int, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err == nil {
			err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
			_ = f.Close()
		}
		if err == nil {
			err = fn()
		}
		done <- err
	}()
	return <-done
}

// probeSubnet finds 8 addresses of the range for network tests (RFC 2544) that
// this machine does not use.
func probeSubnet() (netip.Addr, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Addr{}, err
	}
	for i := range 250 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 19, byte((os.Getpid() + i) % 250), 0}), 24)
		if !slices.ContainsFunc(addrs, func(a net.Addr) bool {
			q, err := netip.ParsePrefix(a.String())
			return err == nil && q.Overlaps(p)
		}) {
			return p.Addr(), nil
		}
	}
	return netip.Addr{}, errors.New("no test address is free")
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }
