package network

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Other firewalls on the machine. A packet must pass every base chain of a
// hook; "accept" in one says only that this one has no objection. So an accept
// for our bridge at the head of a foreign chain gives the decision to our own
// table and changes nothing for other devices.

// openForeign lets the bridge through base chains that would drop what they do
// not know. It writes only where something is missing, so it may run after
// every change of the ruleset.
func openForeign(name string) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	chains, err := foreignChains(c, name)
	if err != nil {
		return err
	}
	for _, ch := range chains {
		rules, err := c.GetRules(ch.Table, ch)
		if errors.Is(err, unix.ENOENT) {
			continue // deleted meanwhile
		}
		if err != nil {
			return fmt.Errorf("list rules of %s %s: %w", ch.Table.Name, ch.Name, err)
		}
		if !dropsUnknown(ch, rules) {
			continue
		}
		want := []expr.MetaKey{expr.MetaKeyIIFNAME}
		if *ch.Hooknum == *nftables.ChainHookForward {
			want = append(want, expr.MetaKeyOIFNAME)
		}
		for _, key := range want {
			if findOpening(rules, name, key) == nil {
				c.InsertRule(&nftables.Rule{Table: ch.Table, Chain: ch, Exprs: opening(name, key)})
			}
		}
	}
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("let bridge %s through other firewalls: %w", name, err)
	}
	return legacy(name, "-I")
}

// closeForeign removes every opening for the bridge.
func closeForeign(name string) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	chains, err := foreignChains(c, name)
	if err != nil {
		return err
	}
	for _, ch := range chains {
		rules, err := c.GetRules(ch.Table, ch)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return fmt.Errorf("list rules of %s %s: %w", ch.Table.Name, ch.Name, err)
		}
		for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
			if r := findOpening(rules, name, key); r != nil {
				if err := c.DelRule(r); err != nil {
					return err
				}
			}
		}
	}
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("close openings for bridge %s: %w", name, err)
	}
	return legacy(name, "-D")
}

// foreignChains are the base chains of others that filter input or forwarding
// of IPv4.
func foreignChains(c *nftables.Conn, name string) ([]*nftables.Chain, error) {
	all, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	var out []*nftables.Chain
	for _, ch := range all {
		f := ch.Table.Family
		if ch.Hooknum == nil || ch.Type != nftables.ChainTypeFilter || ch.Table.Name == name ||
			f != nftables.TableFamilyIPv4 && f != nftables.TableFamilyINet {
			continue
		}
		if h := *ch.Hooknum; h == *nftables.ChainHookForward || h == *nftables.ChainHookInput {
			out = append(out, ch)
		}
	}
	return out, nil
}

// dropsUnknown reports whether a packet that no rule knows is dropped: by the
// policy, or by a last rule without a condition.
func dropsUnknown(ch *nftables.Chain, rules []*nftables.Rule) bool {
	if ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop {
		return true
	}
	if len(rules) == 0 {
		return false
	}
	drops := false
	for _, e := range rules[len(rules)-1].Exprs {
		switch e := e.(type) {
		case *expr.Counter, *expr.Log:
		case *expr.Reject:
			drops = true
		case *expr.Verdict:
			drops = e.Kind == expr.VerdictDrop
		default:
			return false
		}
	}
	return drops
}

// opening is what `iptables -i NAME -j ACCEPT` makes, so that iptables can
// still show the chain.
func opening(name string, key expr.MetaKey) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: append([]byte(name), 0)},
		&expr.Counter{},
		&expr.Verdict{Kind: expr.VerdictAccept},
	}
}

func findOpening(rules []*nftables.Rule, name string, key expr.MetaKey) *nftables.Rule {
	for _, r := range rules {
		if len(r.Exprs) != 4 {
			continue
		}
		m, ok1 := r.Exprs[0].(*expr.Meta)
		c, ok2 := r.Exprs[1].(*expr.Cmp)
		v, ok3 := r.Exprs[3].(*expr.Verdict)
		if ok1 && ok2 && ok3 && m.Key == key && v.Kind == expr.VerdictAccept &&
			string(bytes.TrimRight(c.Data, "\x00")) == name {
			return r
		}
	}
	return nil
}

// legacy inserts (-I) or deletes (-D) the openings in the tables of the old
// iptables, which nftables does not show. Only where the kernel has such tables.
func legacy(name, action string) error {
	b, err := os.ReadFile("/proc/thread-self/net/ip_tables_names")
	if err != nil || !strings.Contains("\n"+string(b), "\nfilter\n") {
		return nil
	}
	tool, err := exec.LookPath("iptables-legacy")
	if err != nil {
		return nil // whoever filled the table took its tool along; nothing we can do
	}
	for _, rule := range [][]string{
		{"FORWARD", "-i", name, "-j", "ACCEPT"},
		{"FORWARD", "-o", name, "-j", "ACCEPT"},
		{"INPUT", "-i", name, "-j", "ACCEPT"},
	} {
		there := exec.Command(tool, append([]string{"-w", "10", "-C"}, rule...)...).Run() == nil
		if there == (action == "-I") {
			continue
		}
		if out, err := exec.Command(tool, append([]string{"-w", "10", action}, rule...)...).CombinedOutput(); err != nil {
			return fmt.Errorf("iptables-legacy %s %v: %w: %s", action, rule, err, bytes.TrimSpace(out))
		}
	}
	return nil
}
