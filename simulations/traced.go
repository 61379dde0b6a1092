package simulations

// Traced is an Experiment that reads trace files. Results carry a hash of
// them, so that numbers from different data are not taken for the same.
type Traced interface {
	Experiment
	// TraceFiles are the files that Run would read with these settings, as paths
	// that begin with s.Traces; none when s says so.
	TraceFiles(s Settings) ([]string, error)
}
