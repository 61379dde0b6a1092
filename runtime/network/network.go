// Package network connects containers to the world: one bridge for the node,
// one veth pair per container, one nftables table that says what they reach,
// and a DNS forwarder on the bridge.
//
//	n, err := network.New(network.Config{Name: "bm1", Subnets: pool})
//	addr, err := n.Attach(pair, 7)        // eth0 in the pair's network namespace
//	n.SetPolicy(addr, runtime.Network{})  // what Spec.Network said
//	n.Detach(7)
//	n.Close()
//
// A container reaches the internet through masquerading and the forwarder's
// port 53. It reaches neither other containers, nor any port of this machine,
// nor private, link-local or directly connected networks, and nothing over
// IPv6. Where another firewall on the machine drops forwarding by default
// (Docker, ufw, firewalld) the bridge is let through there and filtered here.
//
// The devices live in the network namespace of the process. Safe for
// concurrent use. Needs root.
package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/beammesh/beammesh/runtime"
	"github.com/beammesh/beammesh/runtime/userns"
)

// Config is what New needs; Name and Subnets are required.
type Config struct {
	Name     string         // of the bridge and the table: [a-z0-9]{1,10}
	Subnets  []netip.Prefix // ranges to take a free subnet from
	Bits     int            // size of the subnet; 0 = 20
	Upstream []string       // DNS servers; none = /etc/resolv.conf
	Reach    []netip.Prefix // private prefixes that are open all the same
	Log      *slog.Logger
}

// Network is the bridge and what belongs to it.
type Network struct {
	cfg     Config
	log     *slog.Logger
	subnet  netip.Prefix
	gateway netip.Addr
	bridge  int // interface index
	dns     *forwarder

	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex // guards the kernel's table and what follows
	policies map[netip.Addr]runtime.Network
	legs     string // the connected networks that the table was written with
	closed   bool
}

// New makes the bridge, the table and the forwarder. What an earlier process
// of the same name left is removed first.
func New(cfg Config) (*Network, error) {
	if cfg.Bits == 0 {
		cfg.Bits = 20
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := Sweep(cfg.Name); err != nil {
		return nil, err
	}
	n := &Network{cfg: cfg, log: cfg.Log, policies: map[netip.Addr]runtime.Network{}}
	if err := n.open(); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

func (n *Network) open() error {
	if err := n.makeBridge(); err != nil {
		return err
	}
	var err error
	if n.dns, err = listenDNS(n.gateway, n.cfg.Upstream, n.blocked, n.log); err != nil {
		return err
	}
	// Watch first: a change between the first look and the watch is not missed.
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	changes, err := n.watch(ctx)
	if err != nil {
		return err
	}
	if err := n.apply(); err != nil {
		return err
	}
	n.wg.Add(1)
	go func() {
		defer n.wg.Done()
		n.follow(ctx, changes)
	}()
	return nil
}

// Gateway is the node's address on the bridge, also the containers' DNS server.
func (n *Network) Gateway() netip.Addr { return n.gateway }

// Subnet is the containers' network.
func (n *Network) Subnet() netip.Prefix { return n.subnet }

// Addr is the address that goes with a slot, 0 <= slot < 2^(32-Bits)-3.
func (n *Network) Addr(slot int) netip.Addr {
	a := n.subnet.Addr().As4()
	v := uint32(a[0])<<24 | uint32(a[1])<<16 | uint32(a[2])<<8 | uint32(a[3])
	v += uint32(slot) + 2
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

func (n *Network) device(slot int) string { return fmt.Sprintf("%s-%x", n.cfg.Name, slot) }

// Attach gives the pair's network namespace an eth0 with the slot's address
// and a default route. On error nothing is left.
func (n *Network) Attach(p *userns.Pair, slot int) (netip.Addr, error) {
	addr := n.Addr(slot)
	if !n.subnet.Contains(addr) {
		return addr, fmt.Errorf("attach slot %d: subnet %s is full", slot, n.subnet)
	}
	host := n.device(slot)
	la := netlink.NewLinkAttrs()
	la.Name = host
	la.MasterIndex = n.bridge
	veth := &netlink.Veth{LinkAttrs: la, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(p.Net.Fd()))}
	if err := netlink.LinkAdd(veth); err != nil {
		return addr, fmt.Errorf("attach slot %d: %w", slot, err)
	}
	err := n.setUp(host, p, addr)
	if err != nil {
		err = errors.Join(fmt.Errorf("attach slot %d: %w", slot, err), n.Detach(slot))
	}
	return addr, err
}

func (n *Network) setUp(host string, p *userns.Pair, addr netip.Addr) error {
	l, err := netlink.LinkByName(host)
	if err != nil {
		return err
	}
	// Ports that are isolated do not talk to each other, only to the bridge.
	if err := netlink.LinkSetIsolated(l, true); err != nil {
		return fmt.Errorf("isolate port: %w", err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return err
	}
	in, err := netlink.NewHandleAt(netns.NsHandle(int(p.Net.Fd())))
	if err != nil {
		return err
	}
	defer in.Close()
	lo, err := in.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := in.LinkSetUp(lo); err != nil {
		return err
	}
	eth, err := in.LinkByName("eth0")
	if err != nil {
		return err
	}
	ip := &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(n.cfg.Bits, 32)}
	if err := in.AddrAdd(eth, &netlink.Addr{IPNet: ip}); err != nil {
		return err
	}
	if err := in.LinkSetUp(eth); err != nil {
		return err
	}
	if err := in.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: n.gateway.AsSlice()}); err != nil {
		return err
	}
	return p.InNet(func() error {
		for file, v := range map[string]string{
			"net/ipv6/conf/all/disable_ipv6":      "1",       // nothing routes it
			"net/ipv4/ping_group_range":           "0 65535", // ping without a raw socket
			"net/ipv4/ip_unprivileged_port_start": "0",
		} {
			if err := setSysctl(file, v); err != nil {
				return err
			}
		}
		return nil
	})
}

// Detach removes the slot's veth pair and its policy. No error if there is none.
func (n *Network) Detach(slot int) error {
	if err := n.SetPolicy(n.Addr(slot), runtime.Network{}); err != nil {
		return err
	}
	return deleteLink(n.device(slot))
}

func deleteLink(name string) error {
	l, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(l)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) && !isNoDevice(err) {
		return fmt.Errorf("delete device %s: %w", name, err)
	}
	return nil
}

// SetPolicy says what the container at addr may reach, at once and for
// connections that are open already. The zero value is the default.
func (n *Network) SetPolicy(addr netip.Addr, p runtime.Network) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, had := n.policies[addr]
	if !p.Block && len(p.Allow) == 0 {
		if !had {
			return nil
		}
		delete(n.policies, addr)
	} else {
		n.policies[addr] = p
	}
	if n.closed {
		return nil
	}
	if err := n.writeTableLocked(); err != nil {
		return fmt.Errorf("set network policy of %s: %w", addr, err)
	}
	return nil
}

// blocked reports whether the container at addr has no network at all.
func (n *Network) blocked(addr netip.Addr) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.policies[addr].Block
}

// Close removes everything that New and Attach made. May be called twice.
func (n *Network) Close() error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return nil
	}
	n.closed = true
	n.mu.Unlock()
	if n.cancel != nil {
		n.cancel()
	}
	n.wg.Wait()
	if n.dns != nil {
		n.dns.close()
	}
	return Sweep(n.cfg.Name)
}
