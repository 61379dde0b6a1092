package network

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The table in nft's own words, with 1100 for the forwarder's port:
//
//	table inet NAME {
//	  set private    { ipv4 intervals } # what no container reaches
//	  set reach      { ipv4 intervals } # but the owner allows
//	  set blocked    { ipv4 }           # containers with no network
//	  set restricted { ipv4 }           # containers with an allow list
//	  set allowed    { ipv4 . ipv4 intervals }
//	  chain input   { hook input;   iifname NAME jump to_node }
//	  chain forward { hook forward; oifname NAME ct state established,related accept
//	                                oifname NAME drop
//	                                iifname NAME jump out }
//	  chain to_node { ct state established,related accept
//	                  ip saddr @blocked reject
//	                  ip daddr GATEWAY udp dport 1100 accept
//	                  ip daddr GATEWAY tcp dport 1100 accept
//	                  reject }
//	  chain out     { ip saddr @blocked reject
//	                  ip daddr @private ip daddr != @reach reject
//	                  ip saddr . ip daddr @allowed accept
//	                  ip saddr @restricted reject
//	                  meta nfproto ipv4 accept
//	                  drop }
//	  chain dns     { hook prerouting nat;  iifname NAME ip daddr GATEWAY udp dport 53 redirect to 1100, same for tcp }
//	  chain leave   { hook postrouting nat; ip saddr SUBNET oifname != NAME masquerade }
//	}
//
// out asks the policy for every packet, not only for the first of a
// connection, so that a change of policy cuts open connections too.

// privatePrefixes is where owners' networks and link-local services live.
var privatePrefixes = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/3"), // multicast, reserved, broadcast
}

// writeTableLocked replaces the table in one transaction; mu is held.
func (n *Network) writeTableLocked() error {
	connected, err := n.connected()
	if err != nil {
		return err
	}
	c, err := nftables.New()
	if err != nil {
		return err
	}
	t := &nftables.Table{Name: n.cfg.Name, Family: nftables.TableFamilyINet}
	c.AddTable(t) // so that there is one to delete
	c.DelTable(t)
	c.AddTable(t)

	b := &builder{c: c, t: t}
	private := b.set("private", nftables.TypeIPAddr, true, intervals(append(slices.Clone(privatePrefixes), connected...)))
	reach := b.set("reach", nftables.TypeIPAddr, true, intervals(n.cfg.Reach))
	var blocked, restricted, allowed []nftables.SetElement
	for a, p := range n.policies {
		if p.Block {
			blocked = append(blocked, nftables.SetElement{Key: a.AsSlice()})
			continue
		}
		restricted = append(restricted, nftables.SetElement{Key: a.AsSlice()})
		for _, r := range merge(p.Allow) {
			allowed = append(allowed, nftables.SetElement{
				Key:    append(a.AsSlice(), be32(r.first)...),
				KeyEnd: append(a.AsSlice(), be32(r.last)...),
			})
		}
	}
	blockedSet := b.set("blocked", nftables.TypeIPAddr, false, blocked)
	restrictedSet := b.set("restricted", nftables.TypeIPAddr, false, restricted)
	allowedSet := b.set("allowed", nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr), true, allowed)

	gw, port := n.gateway.AsSlice(), be16(n.dns.port)
	br := n.cfg.Name
	filter := *nftables.ChainPriorityFilter - 10 // before others', so that "no" comes quickly
	input := b.chain("input", nftables.ChainTypeFilter, nftables.ChainHookInput, filter)
	forward := b.chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, filter)
	toNode, out := b.inner("to_node"), b.inner("out")
	b.rule(input, iif(br), jump("to_node"))
	b.rule(forward, oif(br), established(), verdict(expr.VerdictAccept))
	b.rule(forward, oif(br), verdict(expr.VerdictDrop))
	b.rule(forward, iif(br), jump("out"))

	b.rule(toNode, established(), verdict(expr.VerdictAccept))
	b.rule(toNode, saddr(), in(blockedSet), reject())
	for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		b.rule(toNode, daddr(), equal(gw), dport(proto, port), verdict(expr.VerdictAccept))
	}
	b.rule(toNode, reject())

	b.rule(out, saddr(), in(blockedSet), reject())
	b.rule(out, daddr(), in(private), daddr(), notIn(reach), reject())
	b.rule(out, saddr(), payload(9, 16, 4), in(allowedSet), verdict(expr.VerdictAccept))
	b.rule(out, saddr(), in(restrictedSet), reject())
	b.rule(out, ipv4(), verdict(expr.VerdictAccept))
	b.rule(out, verdict(expr.VerdictDrop))

	dns := b.chain("dns", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, *nftables.ChainPriorityNATDest)
	for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		b.rule(dns, iif(br), daddr(), equal(gw), dport(proto, be16(53)),
			exprs{&expr.Immediate{Register: 1, Data: port}, &expr.Redir{RegisterProtoMin: 1}})
	}
	leave := b.chain("leave", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource)
	mask := be32(^uint32(0) << (32 - n.subnet.Bits()))
	b.rule(leave, saddr(), exprs{&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: be32(0)}},
		equal(n.subnet.Addr().AsSlice()), notOif(br), exprs{&expr.Masq{}})
	if b.err != nil {
		return b.err
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("write table %s: %w", n.cfg.Name, err)
	}
	return nil
}

// builder adds to a table and keeps the first error.
type builder struct {
	c   *nftables.Conn
	t   *nftables.Table
	err error
}

func (b *builder) set(name string, key nftables.SetDatatype, interval bool, e []nftables.SetElement) *nftables.Set {
	s := &nftables.Set{Table: b.t, Name: name, KeyType: key, Interval: interval, Concatenation: key.Bytes > 4}
	if err := b.c.AddSet(s, e); err != nil && b.err == nil {
		b.err = fmt.Errorf("add set %s: %w", name, err)
	}
	return s
}

func (b *builder) chain(name string, typ nftables.ChainType, hook *nftables.ChainHook, prio nftables.ChainPriority) *nftables.Chain {
	accept := nftables.ChainPolicyAccept
	return b.c.AddChain(&nftables.Chain{Name: name, Table: b.t, Type: typ, Hooknum: hook, Priority: &prio, Policy: &accept})
}

func (b *builder) inner(name string) *nftables.Chain {
	return b.c.AddChain(&nftables.Chain{Name: name, Table: b.t})
}

func (b *builder) rule(ch *nftables.Chain, parts ...exprs) {
	b.c.AddRule(&nftables.Rule{Table: b.t, Chain: ch, Exprs: slices.Concat(parts...)})
}

// exprs is a part of a rule. Values travel through register 1.
type exprs []expr.Any

func iif(dev string) exprs    { return device(expr.MetaKeyIIFNAME, expr.CmpOpEq, dev) }
func oif(dev string) exprs    { return device(expr.MetaKeyOIFNAME, expr.CmpOpEq, dev) }
func notOif(dev string) exprs { return device(expr.MetaKeyOIFNAME, expr.CmpOpNeq, dev) }

func device(key expr.MetaKey, op expr.CmpOp, dev string) exprs {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, dev)
	return exprs{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: name}}
}

func ipv4() exprs {
	return exprs{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}}}
}

// payload loads bytes of the network header.
func payload(reg, offset, length uint32) exprs {
	return exprs{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}}
}

func saddr() exprs { return append(ipv4(), payload(1, 12, 4)...) }
func daddr() exprs { return append(ipv4(), payload(1, 16, 4)...) }

func equal(data []byte) exprs {
	return exprs{&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data}}
}

func dport(proto byte, port []byte) exprs {
	return exprs{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: port},
	}
}

func in(s *nftables.Set) exprs {
	return exprs{&expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID}}
}

func notIn(s *nftables.Set) exprs {
	return exprs{&expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID, Invert: true}}
}

func established() exprs {
	return exprs{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED),
			Xor:  binaryutil.NativeEndian.PutUint32(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(0)},
	}
}

func verdict(k expr.VerdictKind) exprs { return exprs{&expr.Verdict{Kind: k}} }
func jump(chain string) exprs          { return exprs{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}} }

// reject answers at once, where a drop would let user code wait for a minute.
func reject() exprs {
	return exprs{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}}
}

func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

// span is an inclusive range of IPv4 addresses.
type span struct{ first, last uint32 }

// merge turns prefixes into ranges that neither overlap nor touch, as the
// kernel's interval sets want them. IPv6 prefixes are left out.
func merge(l []netip.Prefix) []span {
	var s []span
	for _, p := range l {
		if !p.Addr().Is4() {
			continue
		}
		first := binary.BigEndian.Uint32(p.Masked().Addr().AsSlice())
		s = append(s, span{first, first | uint32(uint64(1)<<(32-p.Bits())-1)})
	}
	slices.SortFunc(s, func(a, b span) int { return int(int64(a.first) - int64(b.first)) })
	var out []span
	for _, x := range s {
		if k := len(out) - 1; k >= 0 && uint64(x.first) <= uint64(out[k].last)+1 {
			out[k].last = max(out[k].last, x.last)
			continue
		}
		out = append(out, x)
	}
	return out
}

func intervals(l []netip.Prefix) []nftables.SetElement {
	var out []nftables.SetElement
	for _, s := range merge(l) {
		out = append(out, nftables.SetElement{Key: be32(s.first)})
		if s.last != ^uint32(0) { // else it is open to the end
			out = append(out, nftables.SetElement{Key: be32(s.last + 1), IntervalEnd: true})
		}
	}
	return out
}

// deleteTable removes the named table; no error if there is none.
func deleteTable(name string) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	t := &nftables.Table{Name: name, Family: nftables.TableFamilyINet}
	c.AddTable(t)
	c.DelTable(t)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("delete table %s: %w", name, err)
	}
	return nil
}

// tableExists reports whether somebody has flushed the ruleset.
func (n *Network) tableExists() (bool, error) {
	c, err := nftables.New()
	if err != nil {
		return false, err
	}
	l, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("list tables: %w", err)
	}
	return slices.ContainsFunc(l, func(t *nftables.Table) bool { return t.Name == n.cfg.Name }), nil
}
