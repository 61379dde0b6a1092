package marketwire

import (
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	"github.com/beammesh/beammesh/scheduler"
	"google.golang.org/protobuf/proto"
)

// MixOut encodes a report of what was placed lately in at most limit bytes; the
// rarest shapes, which come last, are left out where they do not fit.
func MixOut(shapes []scheduler.Weighted, limit int) ([]byte, error) {
	m := new(peerv1.MixReport)
	for _, s := range shapes {
		m.Shapes = append(m.Shapes, &peerv1.MixShape{Demand: demandOut(s.Demand), Weight: s.Weight})
		if proto.Size(m) > limit {
			m.Shapes = m.Shapes[:len(m.Shapes)-1]
			break
		}
	}
	return proto.Marshal(m)
}

// MixIn reads one; scheduler.Recent checks what is in it.
func MixIn(b []byte) ([]scheduler.Weighted, error) {
	m := new(peerv1.MixReport)
	if err := proto.Unmarshal(b, m); err != nil {
		return nil, err
	}
	var shapes []scheduler.Weighted
	for _, s := range m.Shapes[:min(len(m.Shapes), scheduler.MaxShapes)] {
		shapes = append(shapes, scheduler.Weighted{Demand: demandIn(s.GetDemand()), Weight: s.GetWeight()})
	}
	return shapes, nil
}
