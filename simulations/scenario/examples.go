package scenario

import (
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/simulations"
)

// Ending is how the names of scenario files end.
const Ending = ".sim"

//go:embed examples/*.sim
var examples embed.FS

// Examples are the names of the bundled scenarios, sorted.
func Examples() []string {
	entries, err := examples.ReadDir("examples")
	if err != nil {
		panic(err) // embedded: cannot be missing
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = strings.TrimSuffix(e.Name(), Ending)
	}
	return names
}

// Find gives the scenario that name stands for: a file when it has a slash or
// ends in .sim, else a bundled scenario or an experiment.
func Find(name string, experiments []simulations.Experiment) (*Scenario, error) {
	if strings.Contains(name, "/") || strings.HasSuffix(name, Ending) {
		text, err := readFile(name)
		if err != nil {
			return nil, err
		}
		return Parse(name, text, experiments)
	}
	if text, err := examples.ReadFile("examples/" + name + Ending); err == nil {
		return Parse(name+Ending, string(text), experiments)
	}
	names := Examples()
	for _, e := range experiments {
		if e.Name() == name {
			return Of(e), nil
		}
		names = append(names, e.Name())
	}
	hint := Suggest(name, names)
	if _, err := os.Stat(name); err == nil {
		hint = fmt.Sprintf("is the file meant? then write ./%s", name)
	}
	return nil, fault.New(fault.NotFound, fmt.Sprintf("no scenario or experiment %q", name), hint)
}

// readFile reads at most as much as a scenario may have, and one byte more.
func readFile(name string) (string, error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fault.New(fault.NotFound, "no file "+name, "`beam sim list` shows the bundled scenarios")
	}
	if err != nil {
		return "", fault.Wrap(fault.Invalid, err, "the scenario cannot be read", "")
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxBytes+1))
	if err != nil {
		return "", fault.Wrap(fault.Invalid, err, "the scenario cannot be read", "")
	}
	return string(b), nil
}
