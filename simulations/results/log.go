package results

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"
)

// LogEntry is how one run went on the machine that ran it.
type LogEntry struct {
	Key    string `json:"key"` // of the record
	Policy string `json:"policy"`
	Seed   uint64 `json:"seed"`
	// Wall is how long the run took, beside Jobs-1 others.
	Wall time.Duration `json:"wall_ns"`
	Jobs int           `json:"jobs"`
	// EventsPerSecond is the metric "events" by Wall; 0 when there is none.
	EventsPerSecond float64 `json:"events_per_second,omitempty"`
	// PeakRSS is the most memory that the whole process had until then.
	PeakRSS int64     `json:"process_peak_rss_bytes"`
	Version string    `json:"version"`
	Go      string    `json:"go"`
	Arch    string    `json:"arch"`
	Ended   time.Time `json:"ended"`
}

// LogPath is the log beside a results file.
func LogPath(results string) string { return results + ".log" }

// readLog gives what can be read of a log: it may be missing, and is not synced.
func readLog(path string) ([]LogEntry, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the log of the runs: %w", err)
	}
	var log []LogEntry
	for line := range strings.Lines(string(b)) {
		var e LogEntry
		if json.Unmarshal([]byte(line), &e) == nil && e.Key != "" {
			log = append(log, e)
		}
	}
	return log, nil
}

// Versions are the versions of the program that made the records, sorted, as
// far as the log knows.
func (f *File) Versions() []string {
	last := map[string]string{}
	for _, e := range f.Log {
		last[e.Key] = e.Version
	}
	var out []string
	for i := range f.Records {
		if v := last[f.Records[i].Key()]; v != "" && !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	slices.Sort(out)
	return out
}
