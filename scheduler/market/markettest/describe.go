package markettest

import (
	"fmt"
	"strings"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/gpu"
	"github.com/beammesh/beammesh/scheduler/market"
)

// describe prints a message or action in one line; "" for those that would only
// be noise in a story (renewals that change nothing, adverts).
func describe(m any) string {
	switch m := m.(type) {
	case market.Ask:
		return fmt.Sprintf("ask %s round %d: %s", m.Offer, m.Round, m.Demand)
	case market.AskReply:
		if m.Hold != "" {
			return fmt.Sprintf("bid %s hold %s, free %s", m.Offer, m.Hold, free(m.Advert))
		}
		return fmt.Sprintf("refuse %s: %s, free %s", m.Offer, texts(m.Refusals), free(m.Advert))
	case market.Award:
		s := fmt.Sprintf("award %s fence %s", m.Lease, m.Fence)
		if m.Hold != "" {
			s += " hold " + m.Hold
		}
		if m.More > 0 {
			s += fmt.Sprintf(" (%d more wait)", m.More)
		}
		return s
	case market.AwardReply:
		if m.OK {
			return fmt.Sprintf("accept %s%s, free %s", m.Lease, onDevices(m.Grant), free(m.Advert))
		}
		return fmt.Sprintf("refuse award %s: %s", m.Lease, texts(m.Refusals))
	case market.Release:
		if m.Lease != "" {
			return fmt.Sprintf("release %s (%s)", m.Lease, m.Reason)
		}
		return fmt.Sprintf("release hold %s (%s)", m.Hold, m.Reason)
	case market.Renew:
		var ids []string
		for _, l := range m.Leases {
			ids = append(ids, string(l.Lease))
		}
		return "renew " + strings.Join(ids, " ")
	case market.RenewAck:
		if len(m.Unknown) == 0 {
			return ""
		}
		return fmt.Sprintf("renew ack, not mine: %s", m.Unknown[0].Lease)
	case market.Ended:
		return fmt.Sprintf("ended %s: %s", m.Lease, m.Reason)
	case market.OpenOffer:
		return fmt.Sprintf("open offer: %d x %s", m.Count, m.Demand)
	case market.Pull:
		return fmt.Sprintf("pull, hold %s, free %s", m.Hold, free(m.Advert))
	case market.Placed:
		s := fmt.Sprintf("PLACED %s on %s, fence %s", m.Offer, m.Node, m.Fence)
		if m.Pulled {
			s += ", pulled"
		}
		if m.Note != "" {
			s += " (" + m.Note + ")"
		}
		return s
	case market.Waiting:
		if m.Never {
			return fmt.Sprintf("WAITING %s for an unknown node: %s%s", m.Offer, nodes(m.Reasons), hint(m.Hint))
		}
		return fmt.Sprintf("WAITING %s: %s", m.Offer, nodes(m.Reasons))
	case market.Infeasible:
		return fmt.Sprintf("INFEASIBLE %s: %s%s", m.Offer, nodes(m.Reasons), hint(m.Hint))
	case market.Lost:
		return fmt.Sprintf("LOST %s on %s: %s, next attempt %d", m.Lease, m.Node, m.Reason, m.NextAttempt)
	case market.NodeDraining:
		return fmt.Sprintf("DRAINING %s under %s", m.Node, m.Lease)
	case market.Orphan:
		return fmt.Sprintf("ORPHAN %s on %s", m.Lease.Lease, m.Node)
	}
	return ""
}

func hint(s string) string {
	if s == "" {
		return ""
	}
	return "; hint: " + s
}

func texts(rs []scheduler.Refusal) string {
	var parts []string
	for _, r := range rs {
		parts = append(parts, r.Text)
	}
	return strings.Join(parts, "; ")
}

func nodes(rs []scheduler.NodeRefusal) string {
	var parts []string
	for _, r := range rs {
		parts = append(parts, fmt.Sprintf("%s %s", r.Node, texts(r.Reasons)))
	}
	return strings.Join(parts, " | ")
}

func onDevices(g scheduler.Grant) string {
	if len(g.Devices) == 0 {
		return ""
	}
	return " on " + strings.Join(g.Devices, ",")
}

// free prints the free vector of an advert: "3 cores, 1 of 2 GPUs".
func free(a scheduler.Advert) string {
	s := scheduler.Cores(a.Capacity.Free.CPUMillis)
	if n := len(a.Capacity.Devices); n > 0 {
		k := 0
		for _, d := range a.Capacity.Devices {
			if d.FreeMilli == scheduler.GPUExclusive {
				k++
			}
		}
		s += fmt.Sprintf(", %d of %d GPUs", k, n)
	}
	return s
}

func describeCapacity(c scheduler.Capacity) string {
	s := scheduler.Cores(c.Total.CPUMillis) + ", " + scheduler.Size(c.Total.MemoryMiB)
	var classes []string
	for _, d := range c.Devices {
		classes = append(classes, gpu.Normalise(d.Class))
	}
	if len(classes) > 0 {
		s += ", " + strings.Join(classes, " ")
	}
	return s
}
