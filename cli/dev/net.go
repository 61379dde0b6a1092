package dev

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"

	"github.com/beammesh/beammesh/proto/fault"
)

// freeSubnet picks a /24 that meets none of this machine's addresses and
// routes. 10.144/16 is rare in homes and offices and not what nodes take for
// their containers.
func freeSubnet() (netip.Prefix, error) {
	taken, err := takenPrefixes()
	if err != nil {
		return netip.Prefix{}, fault.Wrap(fault.Internal, err, "read this machine's routes", "")
	}
	for i := range 256 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 144, byte(i), 0}), 24)
		free := true
		for _, t := range taken {
			free = free && !t.Overlaps(p)
		}
		if free {
			return p, nil
		}
	}
	return netip.Prefix{}, fault.New(fault.NoCapacity, "no subnet of 10.144.0.0/16 is free on this machine", "")
}

func takenPrefixes() ([]netip.Prefix, error) {
	var out []netip.Prefix
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Masked())
		}
	}
	f, err := os.Open("/proc/net/route")
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// Iface Destination Gateway Flags RefCnt Use Metric Mask …, addresses
		// as hex in the machine's byte order.
		w := strings.Fields(lines.Text())
		if len(w) < 8 {
			continue
		}
		dst, err1 := hex.DecodeString(w[1])
		mask, err2 := hex.DecodeString(w[7])
		if err1 != nil || err2 != nil || len(dst) != 4 || len(mask) != 4 {
			continue
		}
		var d, m [4]byte
		binary.BigEndian.PutUint32(d[:], binary.NativeEndian.Uint32(dst))
		binary.BigEndian.PutUint32(m[:], binary.NativeEndian.Uint32(mask))
		if ones, _ := net.IPMask(m[:]).Size(); ones > 0 { // the default route takes nothing
			out = append(out, netip.PrefixFrom(netip.AddrFrom4(d), ones).Masked())
		}
	}
	return out, nil
}

// gateway is the bridge's own address.
func gateway(subnet netip.Prefix) netip.Addr { return subnet.Masked().Addr().Next() }

func nodeAddr(subnet netip.Prefix, i int) netip.Addr {
	b := subnet.Masked().Addr().As4()
	b[3] = byte(10 + i)
	return netip.AddrFrom4(b)
}

// makeNetwork makes the bridge, the namespaces and the rules that m names.
func (m *Mesh) makeNetwork(ctx context.Context) error {
	cmds := []string{
		"link add name " + m.Bridge + " type bridge",
		fmt.Sprintf("addr add %s/%d dev %s", gateway(m.Subnet), m.Subnet.Bits(), m.Bridge),
		"link set " + m.Bridge + " up",
	}
	if _, err := tool(ctx, "", strings.Join(cmds, "\n")+"\n", "ip", "-batch", "-"); err != nil {
		return netErr(err)
	}
	for _, n := range m.Nodes {
		if err := m.plug(ctx, n); err != nil {
			return err
		}
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+m.Bridge+"/route_localnet", []byte("1"), 0o644); err != nil {
		return netErr(err)
	}
	if err := os.WriteFile(ipForward, []byte("1"), 0o644); err != nil {
		return netErr(err)
	}
	return m.makeRules(ctx)
}

// plug makes a node's namespace and joins it to the bridge.
func (m *Mesh) plug(ctx context.Context, n *Node) error {
	if _, err := tool(ctx, "", "", "ip", "netns", "add", n.NetNS); err != nil {
		return netErr(err)
	}
	out := "link add " + n.Veth + " type veth peer name eth0 netns " + n.NetNS + "\n" +
		"link set " + n.Veth + " master " + m.Bridge + " up\n"
	if _, err := tool(ctx, "", out, "ip", "-batch", "-"); err != nil {
		return netErr(err)
	}
	in := strings.Join([]string{
		"link set lo up",
		fmt.Sprintf("addr add %s/%d dev eth0", n.Addr, m.Subnet.Bits()),
		"link set eth0 up",
		"route add default via " + gateway(m.Subnet).String(),
	}, "\n") + "\n"
	if _, err := tool(ctx, n.NetNS, in, "ip", "-batch", "-"); err != nil {
		return netErr(err)
	}
	if err := m.redirectLocalDNS(ctx, n); err != nil {
		return netErr(err)
	}
	return nil
}

const ipForward = "/proc/sys/net/ipv4/ip_forward"

func netErr(err error) error {
	var f *fault.Error
	if errors.As(err, &f) {
		return f
	}
	return fault.Wrap(fault.Internal, err, "make the dev mesh's network", "'beam node doctor' tests what is needed")
}

// removeNetwork removes all of it; what is not there is no error.
func (m *Mesh) removeNetwork(ctx context.Context) error {
	var errs []error
	errs = append(errs, m.removeRules(ctx))
	for _, n := range m.Nodes {
		if _, err := os.Lstat("/sys/class/net/" + n.Veth); err == nil {
			if _, err := tool(ctx, "", "", "ip", "link", "del", n.Veth); err != nil {
				errs = append(errs, ignoreGone("/sys/class/net/"+n.Veth, err))
			}
		}
		if _, err := os.Lstat(netnsPath(n.NetNS)); err == nil {
			if _, err := tool(ctx, "", "", "ip", "netns", "del", n.NetNS); err != nil {
				// A crash between the file and its mount leaves a plain file.
				if rerr := os.Remove(netnsPath(n.NetNS)); rerr != nil {
					errs = append(errs, err)
				}
			}
		}
	}
	if _, err := os.Lstat("/sys/class/net/" + m.Bridge); err == nil {
		if _, err := tool(ctx, "", "", "ip", "link", "del", m.Bridge); err != nil {
			errs = append(errs, ignoreGone("/sys/class/net/"+m.Bridge, err))
		}
	}
	if m.IPForward == "0" {
		errs = append(errs, os.WriteFile(ipForward, []byte("0"), 0o644))
	}
	return errors.Join(errs...)
}

// ignoreGone drops err when the thing vanished by itself meanwhile, as links
// do when their namespace ends.
func ignoreGone(path string, err error) error {
	if _, serr := os.Lstat(path); errors.Is(serr, os.ErrNotExist) {
		return nil
	}
	return err
}

// redirectLocalDNS makes name resolution work in a namespace when the host's
// resolv.conf names a server on the host's loopback (systemd-resolved,
// dnsmasq): requests to it are sent to the servers behind it.
func (m *Mesh) redirectLocalDNS(ctx context.Context, n *Node) error {
	servers := nameservers("/etc/resolv.conf")
	if len(servers) == 0 {
		return nil
	}
	for _, s := range servers {
		if !s.IsLoopback() || !s.Is4() {
			return nil // one that can be reached as it is
		}
	}
	upstream, ok := upstreamDNS()
	if !ok {
		return fault.New(fault.Unsupported, "this machine's name server is on its loopback and where it asks is not known",
			"put a reachable 'nameserver' line into /etc/resolv.conf")
	}
	return redirectDNS(ctx, n, upstream)
}

func redirectDNS(ctx context.Context, n *Node, upstream netip.Addr) error {
	rules := fmt.Sprintf(`table ip beam_dns {
  chain out {
    type nat hook output priority -100;
    ip daddr 127.0.0.0/8 udp dport 53 dnat to %[1]s
    ip daddr 127.0.0.0/8 tcp dport 53 dnat to %[1]s
  }
  chain post {
    type nat hook postrouting priority 100;
    ip daddr %[1]s oifname "eth0" masquerade
  }
}
`, upstream)
	if _, err := tool(ctx, n.NetNS, rules, "nft", "-f", "-"); err != nil {
		return err
	}
	// Lets a packet with a loopback source leave until it is masqueraded.
	return writeIn(n.NetNS, "/proc/sys/net/ipv4/conf/eth0/route_localnet", "1")
}

// nameservers reads a resolv.conf.
func nameservers(path string) []netip.Addr {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var out []netip.Addr
	for _, line := range strings.Split(string(b), "\n") {
		f := strings.Fields(line)
		if len(f) >= 2 && f[0] == "nameserver" {
			if a, err := netip.ParseAddr(f[1]); err == nil {
				out = append(out, a)
			}
		}
	}
	return out
}

// upstreamDNS finds the server behind a local stub where the usual stubs keep it.
func upstreamDNS() (netip.Addr, bool) {
	for _, path := range []string{"/run/systemd/resolve/resolv.conf", "/run/NetworkManager/no-stub-resolv.conf", "/run/resolvconf/resolv.conf"} {
		for _, s := range nameservers(path) {
			if s.Is4() && !s.IsLoopback() {
				return s, true
			}
		}
	}
	return netip.Addr{}, false
}

// writeIn writes a file of /proc/sys/net as a network namespace sees it.
func writeIn(netns, path, value string) error {
	sh := exec.Command("/bin/sh", "-c", `echo "$1" > "$0"`, path, value)
	if err := startIn(netns, sh); err != nil {
		return err
	}
	if err := sh.Wait(); err != nil {
		return fmt.Errorf("write %s in %s: %w", path, netns, err)
	}
	return nil
}
