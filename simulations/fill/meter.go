package fill

import (
	"fmt"

	"github.com/beammesh/beammesh/simulations"
)

// meter gathers a run's curves: for each whole percent of arrived demand the
// means over the tasks that round to it.
type meter struct {
	total   int64 // milli-GPU
	arrived int64
	failed  int
	tasks   int
	columns []column
}

type column struct {
	n, used, frag int64 // sums; frag times the mix's weight
}

func newMeter(total int64, percent int) *meter {
	return &meter{total: total, columns: make([]column, percent+1)}
}

func (m *meter) add(milli, used, frag int64, placed bool) {
	m.tasks++
	if !placed {
		m.failed++
	}
	m.arrived += milli
	c := &m.columns[min(roundEven(100*m.arrived, m.total), int64(len(m.columns)-1))]
	c.n++
	c.used += used
	c.frag += frag
}

// roundEven is n/of to the nearest, halves to the even number.
func roundEven(n, of int64) int64 {
	q, r := n/of, n%of
	if 2*r > of || 2*r == of && q%2 == 1 {
		q++
	}
	return q
}

func (m *meter) result(policy string, weight int64) *simulations.Result {
	var x, allocated, fragmented []float64
	r := &simulations.Result{}
	for i, c := range m.columns {
		if c.n == 0 {
			continue
		}
		x = append(x, float64(i))
		allocated = append(allocated, 100*float64(c.used)/float64(c.n)/float64(m.total))
		fragmented = append(fragmented, 100*float64(c.frag)/float64(c.n)/float64(weight)/float64(m.total))
		for _, mark := range marks {
			if i == mark {
				r.Add(fmt.Sprintf("unallocated_at_%d", i), "%", -1, 100-allocated[len(allocated)-1])
				r.Add(fmt.Sprintf("fragmented_at_%d", i), "%", -1, fragmented[len(fragmented)-1])
			}
		}
	}
	r.Add("failed", "tasks", -1, float64(m.failed))
	r.Add("arrived", "tasks", 0, float64(m.tasks))
	r.Series = []simulations.Series{
		{Plot: "allocation over arrival", Label: policy, XLabel: "arrived GPU demand, % of the cluster", YLabel: "allocated GPUs, %", X: x, Y: allocated},
		{Plot: "fragmentation over arrival", Label: policy, XLabel: "arrived GPU demand, % of the cluster", YLabel: "fragmented GPUs, % of the cluster", X: x, Y: fragmented},
	}
	return r
}
