package marketwire

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/gpu"
	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

const peer = scheduler.NodeID("12D3KooWpeer")

func list[T any](g *rapid.Generator[T], most int) *rapid.Generator[[]T] {
	return rapid.Custom(func(t *rapid.T) []T {
		l := rapid.SliceOfN(g, 0, most).Draw(t, "list")
		if len(l) == 0 {
			return nil
		}
		return l
	})
}

var (
	names     = rapid.StringMatching(`[a-z0-9-]{1,48}`)
	texts     = rapid.StringN(0, 40, 120)
	amounts   = rapid.Int64Range(0, 1<<30)
	durations = rapid.Map(rapid.Int64Range(0, 3_600_000), func(ms int64) time.Duration { return time.Duration(ms) * time.Millisecond })
	roots     = rapid.Map(rapid.SliceOfN(rapid.Byte(), 32, 32), func(b []byte) string {
		mh, err := multihash.Encode(b, multihash.BLAKE3)
		if err != nil {
			panic(err)
		}
		return cid.NewCidV1(cid.Raw, mh).String()
	})
	fences = rapid.Custom(func(t *rapid.T) market.Fence {
		return market.Fence{Epoch: rapid.Uint64().Draw(t, "epoch"), Attempt: rapid.Uint32().Draw(t, "attempt")}
	})
	refs = rapid.Custom(func(t *rapid.T) market.LeaseRef {
		return market.LeaseRef{Offer: market.OfferID(names.Draw(t, "offer")), Lease: market.LeaseID(names.Draw(t, "lease")), Fence: fences.Draw(t, "fence")}
	})
	owners = rapid.Custom(func(t *rapid.T) market.OwnerID {
		return market.OwnerID{Peer: peer, Epoch: rapid.Uint64().Draw(t, "epoch")}
	})
	anyOwner = rapid.Custom(func(t *rapid.T) market.OwnerID {
		return market.OwnerID{Peer: scheduler.NodeID(names.Draw(t, "peer")), Epoch: rapid.Uint64().Draw(t, "epoch")}
	})
	demands = rapid.Custom(func(t *rapid.T) scheduler.Demand {
		d := scheduler.Demand{CPUMillis: amounts.Draw(t, "cpu"), MemoryMiB: amounts.Draw(t, "mem"), DiskMiB: amounts.Draw(t, "disk"),
			GPUMilli: rapid.Int64Range(0, 1000).Draw(t, "milli"), StrictCPU: rapid.Bool().Draw(t, "strict"),
			Isolation: texts.Draw(t, "isolation"), Zone: texts.Draw(t, "zone"), Arch: texts.Draw(t, "arch"),
			Features: list(texts, 3).Draw(t, "features"), Priority: rapid.Int().Draw(t, "priority"), Workspace: texts.Draw(t, "ws")}
		d.GPUs = list(rapid.Custom(func(t *rapid.T) gpu.Want {
			return gpu.Want{Class: names.Draw(t, "class"), Count: rapid.IntRange(1, 4).Draw(t, "count")}
		}), 3).Draw(t, "gpus")
		d.Roots = list(rapid.Custom(func(t *rapid.T) scheduler.Root {
			return scheduler.Root{Name: names.Draw(t, "root"), Bytes: amounts.Draw(t, "bytes")}
		}), 4).Draw(t, "roots")
		return d
	})
	adverts = rapid.Custom(func(t *rapid.T) scheduler.Advert {
		total := scheduler.Resources{CPUMillis: amounts.Draw(t, "cpu"), MemoryMiB: amounts.Draw(t, "mem"), DiskMiB: amounts.Draw(t, "disk")}
		free := scheduler.Resources{CPUMillis: rapid.Int64Range(0, total.CPUMillis).Draw(t, "cpu"), MemoryMiB: total.MemoryMiB, DiskMiB: rapid.Int64Range(0, total.DiskMiB).Draw(t, "disk")}
		a := scheduler.Advert{Node: peer, Name: texts.Draw(t, "name"), Boot: names.Draw(t, "boot"), Seq: rapid.Uint64().Draw(t, "seq"),
			Capacity: scheduler.Capacity{Total: total, Free: free, DiskFloorMiB: amounts.Draw(t, "floor"), Queue: rapid.IntRange(0, 1000).Draw(t, "queue"),
				Zone: texts.Draw(t, "zone"), HotRoots: list(roots, 4).Draw(t, "roots"), Isolation: list(texts, 2).Draw(t, "isolation"),
				Arch: texts.Draw(t, "arch"), Features: list(texts, 2).Draw(t, "features"), Draining: rapid.Bool().Draw(t, "draining"),
				BandwidthKiBps: amounts.Draw(t, "bandwidth")}}
		for i := range rapid.IntRange(0, 3).Draw(t, "devices") {
			a.Capacity.Devices = append(a.Capacity.Devices, scheduler.Device{ID: string(rune('a' + i)), Class: names.Draw(t, "class"),
				MemoryMiB: amounts.Draw(t, "mem"), FreeMilli: rapid.Int64Range(0, 1000).Draw(t, "free"), Simulated: rapid.Bool().Draw(t, "sim")})
		}
		return a
	})
	refusals = rapid.Custom(func(t *rapid.T) scheduler.Refusal {
		return scheduler.Refusal{Code: scheduler.Code(names.Draw(t, "code")), Never: rapid.Bool().Draw(t, "never"), Text: texts.Draw(t, "text")}
	})
	grants = rapid.Custom(func(t *rapid.T) scheduler.Grant {
		return scheduler.Grant{Devices: list(names, 4).Draw(t, "devices"), GPUMilli: amounts.Draw(t, "milli"), CPUMillis: amounts.Draw(t, "cpu"),
			MemoryMiB: amounts.Draw(t, "mem"), DiskMiB: amounts.Draw(t, "disk")}
	})
)

// messages makes every message that one machine says to the other, as peer says
// it. What the transport fills in (Node) is peer's.
var messages = rapid.Custom(func(t *rapid.T) any {
	offer, lease := market.OfferID(names.Draw(t, "offer")), market.LeaseID(names.Draw(t, "lease"))
	hold, shape := names.Draw(t, "hold"), names.Draw(t, "shape")
	switch rapid.IntRange(0, 11).Draw(t, "kind") {
	case 0:
		return market.Ask{Owner: owners.Draw(t, "owner"), Offer: offer, Round: rapid.Int().Draw(t, "round"), Shape: shape, Demand: demands.Draw(t, "demand")}
	case 1:
		return market.Award{Owner: owners.Draw(t, "owner"), Offer: offer, Lease: lease, Fence: fences.Draw(t, "fence"), Hold: hold, Demand: demands.Draw(t, "demand"),
			LeaseFor: durations.Draw(t, "for"), Headless: rapid.Bool().Draw(t, "headless"), Shape: shape, More: rapid.IntRange(0, 1<<20).Draw(t, "more")}
	case 2:
		return market.Release{Owner: owners.Draw(t, "owner"), Offer: offer, Lease: lease, Fence: fences.Draw(t, "fence"), Hold: hold, Reason: texts.Draw(t, "reason")}
	case 3:
		return market.RenewAck{Owner: owners.Draw(t, "owner"), Unknown: list(refs, 4).Draw(t, "unknown")}
	case 4:
		return market.EndedAck{Owner: owners.Draw(t, "owner"), Lease: lease}
	case 5:
		return market.OpenOffer{Owner: owners.Draw(t, "owner"), Shape: shape, Demand: demands.Draw(t, "demand"), Count: rapid.IntRange(1, 1<<20).Draw(t, "count"),
			TTL: durations.Draw(t, "ttl"), Direct: rapid.Bool().Draw(t, "direct")}
	case 6:
		return market.AskReply{Offer: offer, Round: rapid.Int().Draw(t, "round"), Node: peer, Hold: hold, HoldFor: durations.Draw(t, "for"),
			Refusals: list(refusals, maxRefusals).Draw(t, "refusals"), Advert: adverts.Draw(t, "advert")}
	case 7:
		return market.AwardReply{Offer: offer, Lease: lease, Node: peer, OK: rapid.Bool().Draw(t, "ok"), Grant: grants.Draw(t, "grant"),
			Refusals: list(refusals, maxRefusals).Draw(t, "refusals"), Advert: adverts.Draw(t, "advert")}
	case 8:
		return market.ReleaseReply{Node: peer, Advert: adverts.Draw(t, "advert")}
	case 9:
		return market.Renew{Owner: anyOwner.Draw(t, "owner"), Node: peer, Leases: list(refs, 4).Draw(t, "leases")}
	case 10:
		return market.Ended{Owner: anyOwner.Draw(t, "owner"), Node: peer, Offer: offer, Lease: lease, Fence: fences.Draw(t, "fence"),
			Reason: market.EndReason(names.Draw(t, "reason")), Detail: texts.Draw(t, "detail"), Advert: adverts.Draw(t, "advert")}
	}
	return market.Pull{Owner: anyOwner.Draw(t, "owner"), Shape: shape, Node: peer, Hold: hold, HoldFor: durations.Draw(t, "for"), Advert: adverts.Draw(t, "advert")}
})

func onWire(t interface{ Fatal(...any) }, m any, order []byte) *peerv1.MarketMessage {
	w, err := Encode(m, order)
	if err != nil {
		t.Fatal(err)
	}
	b, err := proto.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	out := new(peerv1.MarketMessage)
	if err := proto.Unmarshal(b, out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestEveryMessageRoundTrips(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := messages.Draw(t, "message")
		order := rapid.SliceOfN(rapid.Byte(), 0, 8).Draw(t, "order")
		d, err := Decode(peer, onWire(t, m, order))
		if err != nil {
			t.Fatal(err)
		}
		var got any = d.ToOwner
		if d.ToWorker != nil {
			got = d.ToWorker
		}
		if (d.ToOwner == nil) == (d.ToWorker == nil) || !reflect.DeepEqual(got, m) {
			t.Fatalf("got  %+v\nwant %+v", got, m)
		}
		if _, ok := m.(market.Award); ok && string(d.Order) != string(order) {
			t.Fatalf("order %q, want %q", d.Order, order)
		}
	})
}

// Whoever sends it, a message is the sender's own or refused.
func TestNobodySpeaksForAnother(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := messages.Draw(t, "message")
		d, err := Decode("12D3KooWliar", onWire(t, m, []byte("order")))
		switch m.(type) {
		case market.Renew: // names only the sender's own leases
			if err != nil || d.ToOwner.(market.Renew).Node != "12D3KooWliar" {
				t.Fatalf("%+v, %v", d, err)
			}
		default:
			if !errors.Is(err, ErrMessage) || d.ToOwner != nil || d.ToWorker != nil || d.Order != nil {
				t.Fatalf("%T of another node gives %+v, %v", m, d, err)
			}
		}
	})
}

func TestBoundsOfNames(t *testing.T) {
	long := strings.Repeat("x", maxName+1)
	ad := AdvertOut(scheduler.Advert{Node: peer, Boot: "b"})
	own := &peerv1.Owner{Peer: string(peer)}
	ref := &peerv1.LeaseRef{Offer: long}
	many := make([]*peerv1.LeaseRef, market.MaxRenew+1)
	for i := range many {
		many[i] = &peerv1.LeaseRef{}
	}
	for name, m := range map[string]*peerv1.MarketMessage{
		"ask":             {What: &peerv1.MarketMessage_Ask{Ask: &peerv1.Ask{Owner: own, Offer: long}}},
		"award":           {What: &peerv1.MarketMessage_Award{Award: &peerv1.Award{Owner: own, Lease: long}}},
		"award's hold":    {What: &peerv1.MarketMessage_Award{Award: &peerv1.Award{Owner: own, Hold: long}}},
		"demand":          {What: &peerv1.MarketMessage_Ask{Ask: &peerv1.Ask{Owner: own, Demand: &peerv1.Demand{Amounts: &peerv1.Amounts{CpuMillis: -1}}}}},
		"release":         {What: &peerv1.MarketMessage_Release{Release: &peerv1.Release{Owner: own, Lease: long}}},
		"ack":             {What: &peerv1.MarketMessage_EndedAck{EndedAck: &peerv1.EndedAck{Owner: own, Lease: long}}},
		"renewals":        {What: &peerv1.MarketMessage_Renew{Renew: &peerv1.LeaseRenew{Leases: many}}},
		"renewal":         {What: &peerv1.MarketMessage_Renew{Renew: &peerv1.LeaseRenew{Leases: []*peerv1.LeaseRef{ref}}}},
		"answered":        {What: &peerv1.MarketMessage_RenewAck{RenewAck: &peerv1.RenewAck{Owner: own, Unknown: many}}},
		"bid":             {What: &peerv1.MarketMessage_AskReply{AskReply: &peerv1.AskReply{Hold: long, Advert: ad}}},
		"bid, no advert":  {What: &peerv1.MarketMessage_AskReply{AskReply: &peerv1.AskReply{}}},
		"grant":           {What: &peerv1.MarketMessage_AwardReply{AwardReply: &peerv1.AwardReply{Advert: ad, Grant: &peerv1.Grant{Devices: make([]string, scheduler.MaxDevices+1)}}}},
		"device":          {What: &peerv1.MarketMessage_AwardReply{AwardReply: &peerv1.AwardReply{Advert: ad, Grant: &peerv1.Grant{Devices: []string{long}}}}},
		"ended":           {What: &peerv1.MarketMessage_Ended{Ended: &peerv1.Ended{Lease: ref, Advert: ad}}},
		"pull":            {What: &peerv1.MarketMessage_Pull{Pull: &peerv1.Pull{Hold: long, Advert: ad}}},
		"nothing":         {},
		"another's kinds": {What: &peerv1.MarketMessage_WantAdvert{WantAdvert: &peerv1.WantAdvert{}}},
	} {
		if d, err := Decode(peer, m); !errors.Is(err, ErrMessage) {
			t.Errorf("%s: %+v, %v", name, d, err)
		}
	}
	// Texts are cut, at whole characters.
	d, err := Decode(peer, &peerv1.MarketMessage{What: &peerv1.MarketMessage_Ended{Ended: &peerv1.Ended{Advert: ad, Detail: "x" + strings.Repeat("é", 2000)}}})
	if err != nil {
		t.Fatal(err)
	}
	if s := d.ToOwner.(market.Ended).Detail; len(s) > maxDetail || len(s) < maxDetail-2 || !utf8.ValidString(s) {
		t.Errorf("detail has %d bytes, valid %v", len(s), utf8.ValidString(s))
	}
	if _, err := Encode("no message", nil); !errors.Is(err, ErrMessage) {
		t.Errorf("encode: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	for i := range 40 {
		if b, err := proto.Marshal(onWire(f, messages.Example(i), []byte("order"))); err == nil {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		m := new(peerv1.MarketMessage)
		if proto.Unmarshal(in, m) != nil {
			return
		}
		d, err := Decode(peer, m)
		if err != nil {
			if d.ToOwner != nil || d.ToWorker != nil || d.Order != nil {
				t.Fatalf("%v, and yet %+v", err, d)
			}
			return
		}
		// What was taken can be said again, and means the same.
		var got any = d.ToOwner
		if d.ToWorker != nil {
			got = d.ToWorker
		}
		again, err := Decode(peer, onWire(t, got, d.Order))
		if err != nil {
			t.Fatalf("%+v: %v", got, err)
		}
		if !reflect.DeepEqual(again, d) && !(len(d.Order) == 0 && reflect.DeepEqual(again.ToWorker, d.ToWorker) && reflect.DeepEqual(again.ToOwner, d.ToOwner)) {
			t.Fatalf("%+v\nbecame %+v", d, again)
		}
	})
}
