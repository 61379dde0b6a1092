package network

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// makeBridge creates the bridge with an address in a subnet that nothing on
// this machine uses.
func (n *Network) makeBridge() error {
	name := n.cfg.Name
	la := netlink.NewLinkAttrs()
	la.Name = name
	// A fixed address: by default a bridge takes that of its lowest port, and
	// containers' neighbour tables would go stale whenever one leaves.
	h := fnv.New32a()
	h.Write([]byte(name))
	s := h.Sum32()
	la.HardwareAddr = net.HardwareAddr{0x02, 0xbe, byte(s >> 24), byte(s >> 16), byte(s >> 8), byte(s)}
	off := false
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: la, MulticastSnooping: &off}); err != nil {
		return fmt.Errorf("make bridge %s: %w", name, err)
	}
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("make bridge %s: %w", name, err)
	}
	n.bridge = l.Attrs().Index
	for file, v := range map[string]string{
		"net/ipv4/ip_forward":                     "1",
		"net/ipv6/conf/" + name + "/disable_ipv6": "1",
		"net/ipv4/conf/" + name + "/rp_filter":    "1", // no packets with an address of elsewhere
	} {
		if err := setSysctl(file, v); err != nil {
			return fmt.Errorf("make bridge %s: %w", name, err)
		}
	}
	// Another node may look for a subnet at the same moment: both see the
	// other's address after their own is set, and at least one moves on.
	for try := uint32(0); try < 16; try++ {
		taken, err := takenPrefixes(n.bridge)
		if err != nil {
			return fmt.Errorf("choose subnet: %w", err)
		}
		sub, ok := freeSubnet(n.cfg.Subnets, n.cfg.Bits, s+try, taken)
		if !ok {
			return fmt.Errorf("choose subnet: all of %v are in use on this machine", n.cfg.Subnets)
		}
		gw := sub.Addr().Next()
		a := &netlink.Addr{IPNet: &net.IPNet{IP: gw.AsSlice(), Mask: net.CIDRMask(n.cfg.Bits, 32)}}
		if err := netlink.AddrAdd(l, a); err != nil {
			return fmt.Errorf("set address of bridge %s: %w", name, err)
		}
		if taken, err = takenPrefixes(n.bridge); err != nil {
			return fmt.Errorf("choose subnet: %w", err)
		}
		if overlaps(sub, taken) {
			if err := netlink.AddrDel(l, a); err != nil {
				return fmt.Errorf("set address of bridge %s: %w", name, err)
			}
			continue
		}
		n.subnet, n.gateway = sub, gw
		if err := netlink.LinkSetUp(l); err != nil {
			return fmt.Errorf("set bridge %s up: %w", name, err)
		}
		return nil
	}
	return fmt.Errorf("choose subnet: other nodes took each one tried of %v", n.cfg.Subnets)
}

// setSysctl writes a setting of the thread's network namespace, unless it is
// so already: /proc/sys may be read-only. A kernel without it is as good.
func setSysctl(file, v string) error {
	path := "/proc/sys/" + file
	old, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && strings.TrimSpace(string(old)) == v {
		return nil
	}
	if err := os.WriteFile(path, []byte(v), 0); err != nil {
		return fmt.Errorf("set %s to %s: %w", file, v, err)
	}
	return nil
}

// freeSubnet picks the first subnet of the given size that overlaps nothing
// taken. Where it starts to look within a range depends on seed, so that the
// nodes of a machine rarely collide.
func freeSubnet(pools []netip.Prefix, bits int, seed uint32, taken []netip.Prefix) (netip.Prefix, bool) {
	for _, p := range pools {
		if p.Bits() > bits || !p.Addr().Is4() {
			continue
		}
		count := uint32(1) << (bits - p.Bits())
		base := p.Masked().Addr().As4()
		start := uint32(base[0])<<24 | uint32(base[1])<<16 | uint32(base[2])<<8 | uint32(base[3])
		for i := range count {
			v := start + (seed+i)%count<<(32-bits)
			sub := netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}), bits)
			if !overlaps(sub, taken) {
				return sub, true
			}
		}
	}
	return netip.Prefix{}, false
}

func overlaps(p netip.Prefix, l []netip.Prefix) bool {
	for _, t := range l {
		if p.Overlaps(t) {
			return true
		}
	}
	return false
}

// takenPrefixes are the addresses and routes of this network namespace, those
// of the device skip left out. A default route takes nothing.
func takenPrefixes(skip int) ([]netip.Prefix, error) {
	var out []netip.Prefix
	add := func(n *net.IPNet) {
		if n == nil {
			return
		}
		if a, ok := netip.AddrFromSlice(n.IP); ok {
			if ones, _ := n.Mask.Size(); ones > 0 {
				out = append(out, netip.PrefixFrom(a.Unmap(), ones).Masked())
			}
		}
	}
	addrs, err := netlink.AddrList(nil, unix.AF_INET)
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if a.LinkIndex != skip {
			add(a.IPNet)
		}
	}
	routes, err := netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		if r.LinkIndex != skip && r.Type == unix.RTN_UNICAST {
			add(r.Dst)
		}
	}
	// Servers of the resolver may lie behind a default route, in a range that
	// would then be hidden from this machine.
	for _, s := range resolvers() {
		if ap, err := netip.ParseAddrPort(s); err == nil && ap.Addr().Is4() {
			out = append(out, netip.PrefixFrom(ap.Addr(), 32))
		}
	}
	return out, nil
}

// connected are the networks that this machine has a leg in, but not the bridge's.
func (n *Network) connected() ([]netip.Prefix, error) {
	addrs, err := netlink.AddrList(nil, unix.AF_INET)
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		ones, _ := a.Mask.Size()
		if ok && ones > 0 && a.LinkIndex != n.bridge {
			out = append(out, netip.PrefixFrom(ip.Unmap(), ones).Masked())
		}
	}
	return out, nil
}

func isNoDevice(err error) bool { return errors.Is(err, unix.ENODEV) }

// Sweep removes the devices, the table and the openings in other tables of the
// named network, whoever made them.
func Sweep(name string) error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("sweep network %s: %w", name, err)
	}
	var errs []error
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, name+"-") {
			errs = append(errs, deleteLink(l.Attrs().Name))
		}
	}
	errs = append(errs, deleteLink(name), deleteTable(name), closeForeign(name))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("sweep network %s: %w", name, err)
	}
	return nil
}
