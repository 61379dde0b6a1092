package mesh

import (
	"fmt"
	"path/filepath"

	"github.com/beammesh/beammesh/simulations"
)

var _ simulations.Traced = Experiment{}

// TraceFiles implements simulations.Traced: made-up nodes and tasks need none.
func (e Experiment) TraceFiles(s simulations.Settings) ([]string, error) {
	r := s.Reader(e.Params())
	list := r.Text("list")
	if r.Err() != nil || list == "" {
		return nil, r.Err()
	}
	if s.Traces == "" {
		return nil, fmt.Errorf("list %s needs the openb trace: set BEAM_TRACES to the directory that holds openb/", list)
	}
	return []string{filepath.Join(s.Traces, "openb", "openb_node_list_gpu_node.csv"), filepath.Join(s.Traces, "openb", "openb_pod_list_"+list+".csv")}, nil
}
