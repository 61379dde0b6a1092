package dev

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
)

// chain is a chain of somebody else's firewall in which we put two rules.
type chain struct {
	Family string `json:"family"`
	Table  string `json:"table"`
	Name   string `json:"name"`
}

// makeRules lets the nodes out, the host in, and the host's loopback reach
// node 1's API. A packet passes only when every firewall on the machine lets
// it, and Docker and ufw drop forwarded ones by default: our accept goes into
// their chains too, in front.
func (m *Mesh) makeRules(ctx context.Context) error {
	grpc, http := m.loopbackPorts()
	one := m.Nodes[0].Addr
	rules := fmt.Sprintf(`table ip %[1]s {
  chain post {
    type nat hook postrouting priority 100;
    ip saddr %[2]s oifname != "%[3]s" masquerade
    ip saddr 127.0.0.0/8 oifname "%[3]s" masquerade
  }
  chain out {
    type nat hook output priority -100;
    ip daddr 127.0.0.1 tcp dport %[4]d dnat to %[5]s:%[6]d
    ip daddr 127.0.0.1 tcp dport %[7]d dnat to %[5]s:%[8]d
  }
}
`, m.Table, m.Subnet, m.Bridge, grpc, one, grpcPort, http, httpPort)
	if _, err := tool(ctx, "", rules, "nft", "-f", "-"); err != nil {
		return err
	}
	for _, c := range m.Foreign {
		for _, dir := range []string{"iifname", "oifname"} {
			if _, err := tool(ctx, "", "", "nft", "insert", "rule", c.Family, c.Table, c.Name, dir, m.Bridge, "counter", "accept"); err != nil {
				return err
			}
		}
	}
	if m.Legacy {
		for _, dir := range []string{"-i", "-o"} {
			if _, err := tool(ctx, "", "", legacyTool, "-w", "10", "-I", "FORWARD", dir, m.Bridge, "-j", "ACCEPT"); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *Mesh) loopbackPorts() (grpc, http uint16) {
	g, _ := netip.ParseAddrPort(m.GRPC) // written by us
	h, _ := netip.ParseAddrPort(m.HTTP)
	return g.Port(), h.Port()
}

// removeRules removes the table and, by the bridge's name in them, our rules
// in other chains.
func (m *Mesh) removeRules(ctx context.Context) error {
	var errs []error
	if _, err := tool(ctx, "", "", "nft", "list", "table", "ip", m.Table); err == nil {
		_, err := tool(ctx, "", "", "nft", "delete", "table", "ip", m.Table)
		errs = append(errs, err)
	}
	for _, c := range m.Foreign {
		handles, err := m.ourRules(ctx, c)
		if err != nil {
			continue // the chain is gone, and our rules with it
		}
		for _, h := range handles {
			_, err := tool(ctx, "", "", "nft", "delete", "rule", c.Family, c.Table, c.Name, "handle", fmt.Sprint(h))
			errs = append(errs, err)
		}
	}
	if m.Legacy {
		for _, dir := range []string{"-i", "-o"} {
			// Until there is none: a crashed Up may have run twice.
			for range 16 {
				if _, err := tool(ctx, "", "", legacyTool, "-w", "10", "-D", "FORWARD", dir, m.Bridge, "-j", "ACCEPT"); err != nil {
					break
				}
			}
		}
	}
	return errors.Join(errs...)
}

// ourRules finds the handles of the rules in c that name our bridge.
func (m *Mesh) ourRules(ctx context.Context, c chain) ([]int, error) {
	out, err := tool(ctx, "", "", "nft", "-j", "list", "chain", c.Family, c.Table, c.Name)
	if err != nil {
		return nil, err
	}
	var doc struct {
		Nftables []struct {
			Rule *struct {
				Handle int             `json:"handle"`
				Expr   json.RawMessage `json:"expr"`
			} `json:"rule"`
		} `json:"nftables"`
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil {
		return nil, fmt.Errorf("read nft's answer: %w", err)
	}
	var handles []int
	for _, e := range doc.Nftables {
		if e.Rule != nil && strings.Contains(string(e.Rule.Expr), `"`+m.Bridge+`"`) {
			handles = append(handles, e.Rule.Handle)
		}
	}
	return handles, nil
}

const legacyTool = "iptables-legacy"

// foreignChains lists the chains of other firewalls that forwarded IPv4
// packets pass.
func foreignChains(ctx context.Context) ([]chain, error) {
	out, err := tool(ctx, "", "", "nft", "-j", "list", "chains")
	if err != nil {
		return nil, err
	}
	var doc struct {
		Nftables []struct {
			Chain *struct {
				Family string `json:"family"`
				Table  string `json:"table"`
				Name   string `json:"name"`
				Type   string `json:"type"`
				Hook   string `json:"hook"`
			} `json:"chain"`
		} `json:"nftables"`
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil {
		return nil, fmt.Errorf("read nft's answer: %w", err)
	}
	var chains []chain
	for _, e := range doc.Nftables {
		if c := e.Chain; c != nil && c.Hook == "forward" && c.Type == "filter" && (c.Family == "ip" || c.Family == "inet") {
			chains = append(chains, chain{c.Family, c.Table, c.Name})
		}
	}
	return chains, nil
}

// legacyFirewall tells whether the old iptables filters packets here.
func legacyFirewall() bool {
	b, err := os.ReadFile("/proc/net/ip_tables_names")
	if err != nil {
		return false
	}
	_, terr := lookTool(legacyTool)
	return terr == nil && strings.Contains(string(b), "filter")
}
