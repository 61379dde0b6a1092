package image

import (
	"regexp"
	"strings"
	"testing"

	"github.com/beammesh/beammesh/proto/client/imagepb"
	"github.com/beammesh/beammesh/proto/fault"
)

type request struct {
	python, base, dockerfile, gpu string
	packages, commands, env       []string
	secrets                       []string
	steps                         []*imagepb.BuildStep
}

func (r request) spec() (Spec, error) {
	return newSpec(r.python, r.packages, r.commands, r.steps, r.env, r.base, r.dockerfile, r.secrets, r.gpu)
}

func pip(p string) *imagepb.BuildStep   { return &imagepb.BuildStep{Type: "pip", Command: p} }
func shell(c string) *imagepb.BuildStep { return &imagepb.BuildStep{Type: "shell", Command: c} }

func TestEqualImagesHaveEqualIDs(t *testing.T) {
	for name, group := range map[string][]request{
		"default":  {{}, {python: "python3"}, {python: "python3.11"}, {python: "3.11"}, {base: "debian:bookworm"}, {base: "docker.io/library/debian:bookworm-slim"}},
		"3.9":      {{python: "python3.9"}, {base: "debian:bullseye"}},
		"packages": {{packages: []string{"a", "b"}}, {steps: []*imagepb.BuildStep{pip("a"), pip("b")}}, {packages: []string{"a"}, steps: []*imagepb.BuildStep{pip("b")}}},
		"commands": {{commands: []string{"x", "y"}}, {steps: []*imagepb.BuildStep{shell("x"), shell("y")}}},
	} {
		var first string
		for i, r := range group {
			s, err := r.spec()
			if err != nil {
				t.Fatalf("%s %d: %v", name, i, err)
			}
			if i == 0 {
				first = s.ID()
			}
			if s.ID() != first {
				t.Errorf("%s: request %d has id %s, the first %s", name, i, s.ID(), first)
			}
		}
	}
	if s, err := (request{}).spec(); err != nil || s.ID() != Default().ID() {
		t.Errorf("an empty request is not the default: %v", err)
	}
}

func TestDifferentImagesHaveDifferentIDs(t *testing.T) {
	seen := map[string]int{}
	for i, r := range []request{
		{}, {python: "python3.13"}, {packages: []string{"a"}}, {packages: []string{"a", "b"}}, {packages: []string{"b", "a"}}, {packages: []string{"a b"}},
		{commands: []string{"a"}}, {commands: []string{"a", "b"}}, {steps: []*imagepb.BuildStep{pip("a"), shell("x"), pip("b")}}, {env: []string{"A=1"}},
		{env: []string{"A=2"}}, {packages: []string{"a"}, commands: []string{"b"}},
	} {
		s, err := r.spec()
		if err != nil {
			t.Fatal(err)
		}
		id := s.ID()
		if !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(id) {
			t.Errorf("id %q", id)
		}
		if j, ok := seen[id]; ok {
			t.Errorf("requests %d and %d have the same id", i, j)
		}
		seen[id] = i
		s.Force = true
		if s.ID() != id {
			t.Error("building anew changes the id")
		}
		if b := s.Base(); b.ID() != (Spec{Suite: s.Suite, Minor: s.Minor, Recipe: s.Recipe}).ID() || len(b.Steps) != 0 {
			t.Errorf("base %+v", b)
		}
	}
}

func TestRefused(t *testing.T) {
	many := make([]string, maxSteps+1)
	for name, c := range map[string]struct {
		request
		want fault.Code
		text string
	}{
		"python 2":     {request{python: "python2.7"}, fault.Invalid, "2.7"},
		"micromamba":   {request{python: "micromamba3.11"}, fault.Unsupported, "micromamba"},
		"dockerfile":   {request{dockerfile: "FROM x"}, fault.Unsupported, "Dockerfile"},
		"secrets":      {request{secrets: []string{"s"}}, fault.Unsupported, "secrets"},
		"gpu":          {request{gpu: "H100"}, fault.Unsupported, "GPU"},
		"base image":   {request{base: "nvidia/cuda:12"}, fault.NotFound, "nvidia/cuda:12"},
		"unknown step": {request{steps: []*imagepb.BuildStep{{Type: "copy"}}}, fault.Unsupported, "copy"},
		"many steps":   {request{commands: many}, fault.TooLarge, "steps"},
		"long steps":   {request{commands: []string{strings.Repeat("x", maxStepBytes+1)}}, fault.TooLarge, "bytes"},
		"env":          {request{env: []string{"A"}}, fault.Invalid, "NAME=value"},
		"nameless env": {request{env: []string{"=x"}}, fault.Invalid, "NAME=value"},
	} {
		if _, err := c.spec(); fault.CodeOf(err) != c.want || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
}

// The request's own lists are not changed by adding steps to them.
func TestRequestIsNotChanged(t *testing.T) {
	packages := make([]string, 1, 10)
	packages[0] = "a"
	if _, err := (request{packages: packages, steps: []*imagepb.BuildStep{pip("b")}}).spec(); err != nil {
		t.Fatal(err)
	}
	if got := packages[:2][1]; got != "" {
		t.Errorf("the request's list got %q", got)
	}
}
