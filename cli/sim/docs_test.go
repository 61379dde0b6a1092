package sim_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/beammesh/beammesh/simulations/results"
)

// TestDocsPolicy does what docs/simulations.md tells a researcher to do: it puts
// the policy that is printed there into a copy of the tree, builds, and types the
// commands.
func TestDocsPolicy(t *testing.T) {
	doc, err := os.ReadFile("../../docs/simulations.md")
	if err != nil {
		t.Fatal(err)
	}
	code := between(t, string(doc), "```go\n", "```")
	commands := strings.Split(strings.TrimSpace(between(t, string(doc), "git clone REPOSITORY", "```")), "\n")
	if n := len(commands); n > 10 {
		t.Errorf("%d commands, at most 10 are promised", n)
	}

	dir := t.TempDir()
	overlay := map[string]string{}
	replace := func(name string, text []byte) {
		copied := filepath.Join(dir, filepath.Base(name))
		if err := os.WriteFile(copied, text, 0o600); err != nil {
			t.Fatal(err)
		}
		at, err := filepath.Abs(filepath.Join("../..", name))
		if err != nil {
			t.Fatal(err)
		}
		overlay[at] = copied
	}
	sed := regexp.MustCompile(`(?m)^sed -i '(.*)' (\S+)$`).FindStringSubmatch(string(doc))
	file := regexp.MustCompile(`(?m)^\$EDITOR (\S+)$`).FindStringSubmatch(string(doc))
	if sed == nil || file == nil {
		t.Fatal("the page does not say which files to edit")
	}
	edited, err := exec.Command("sed", sed[1], filepath.Join("../..", sed[2])).Output()
	if err != nil {
		t.Fatal(err)
	}
	replace(sed[2], edited)
	replace(file[1], []byte(code))
	b, err := json.Marshal(map[string]any{"Replace": overlay})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}

	// The test program is the command line too, and much faster to link than beam.
	beam := filepath.Join(dir, "beam")
	if out, err := exec.Command("go", "test", "-c", "-overlay", filepath.Join(dir, "overlay.json"), "-o", beam, ".").CombinedOutput(); err != nil {
		t.Fatalf("the policy of the page does not build: %v\n%s", err, out)
	}
	typed := 0
	for _, line := range commands {
		args, ok := strings.CutPrefix(line, "bin/beam ")
		if !ok {
			continue
		}
		typed++
		c := exec.Command(beam, strings.Fields(args)...)
		c.Dir = dir
		c.Env = append(os.Environ(), "BEAM_TRACES=")
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
	}
	if typed != 3 {
		t.Errorf("%d commands of beam on the page, want 3", typed)
	}
	f, err := results.Read(filepath.Join(dir, "fill-synthetic.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]int{}
	for _, r := range f.Records {
		if r.Failed == nil {
			have[r.Policy]++
		}
	}
	if len(have) != 2 || have["snug"] == 0 || have["snug"] != have["fgd"] {
		t.Errorf("runs: %v", have)
	}
	if _, err := os.Stat(filepath.Join(dir, "snug.html")); err != nil {
		t.Error(err)
	}
}

func between(t *testing.T, text, from, to string) string {
	t.Helper()
	_, rest, ok := strings.Cut(text, from)
	if !ok {
		t.Fatalf("the page lacks %q", from)
	}
	inside, _, ok := strings.Cut(rest, to)
	if !ok {
		t.Fatalf("the page lacks %q after %q", to, from)
	}
	return inside
}
