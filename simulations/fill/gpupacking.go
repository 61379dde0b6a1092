package fill

import "github.com/beammesh/beammesh/scheduler"

// gpuPacking fills devices in use before free ones, and free ones of nodes in use
// before those of idle nodes, as AntMan does (Xiao et al., OSDI'20).
func gpuPacking() Policy {
	return Policy{Name: "gpupacking", Doc: "devices in use first, then nodes in use, then idle nodes (after AntMan, OSDI'20)",
		New: func(*Run) Scorer { return &packingScorer{} }}
}

type packingScorer struct{ fullest }

func (s *packingScorer) Score(d *scheduler.Demand, n *Node) int64 {
	if len(d.GPUs) == 0 {
		return 0
	}
	var whole int64
	for i := range n.Devices {
		if n.Devices[i].FreeMilli == scheduler.GPUExclusive {
			whole++
		}
	}
	if whole == int64(len(n.Devices)) {
		return max(33-whole, whole)
	}
	var taken, room int64 // whole devices to take, percent free of shared ones
	picks := s.Pick(d, n)
	for i := range n.Devices {
		if !picks.Has(i) {
			continue
		}
		if n.Devices[i].FreeMilli == scheduler.GPUExclusive {
			taken++
		}
		room += n.Devices[i].FreeMilli * 100 / scheduler.GPUExclusive
	}
	if taken > 0 {
		return max(50-taken, 33)
	}
	return max(100-room/10, 50)
}
