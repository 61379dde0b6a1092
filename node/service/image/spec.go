package image

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/beammesh/beammesh/proto/client/imagepb"
	"github.com/beammesh/beammesh/proto/fault"
)

// recipeVersion changes the ids of all images; raise it when the base recipe
// or the meaning of a step changes.
const recipeVersion = "1"

// Bounds of a spec.
const (
	maxSteps     = 256
	maxStepBytes = 64 << 10
)

// Step is one step of a chain: each makes a layer.
type Step struct {
	Kind string   `json:"kind"` // "pip" or "shell"
	Args []string `json:"args"` // packages, or one command
}

// Spec is a canonical image: equal images have equal specs, on every node.
type Spec struct {
	Suite  string   `json:"suite"` // Debian suite of the base
	Minor  string   `json:"minor"` // its Python: "3.11"
	Steps  []Step   `json:"steps,omitempty"`
	Env    []string `json:"env,omitempty"`
	Recipe string   `json:"recipe"`

	Force bool `json:"-"` // build even if it exists
}

// ID names the image by what it is made of.
func (s Spec) ID() string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // strings only
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

// Base is the spec of the image below all steps.
func (s Spec) Base() Spec { return Spec{Suite: s.Suite, Minor: s.Minor, Recipe: s.Recipe} }

// BaseFolder names the folder, in a cache of bases, with the files of s's base.
func (s Spec) BaseFolder() string { return s.Suite + "-" + s.Base().ID()[:8] }

// suites are the bases that can be made from Debian packages, by Python minor.
var suites = map[string]string{"3.9": "bullseye", "3.11": "bookworm", "3.13": "trixie"}

// DefaultMinor is the Python of an image that does not say.
const DefaultMinor = "3.11"

// Default is the image of a function without one.
func Default() Spec {
	return Spec{Suite: suites[DefaultMinor], Minor: DefaultMinor, Recipe: recipeVersion}
}

func newSpec(python string, packages, commands []string, steps []*imagepb.BuildStep, env []string, base, dockerfile string, secrets []string, gpu string) (Spec, error) {
	s := Spec{Recipe: recipeVersion}
	minor := strings.TrimPrefix(strings.TrimPrefix(python, "micromamba"), "python")
	if minor == "" || minor == "3" {
		minor = DefaultMinor
	}
	if strings.HasPrefix(python, "micromamba") {
		return s, fault.New(fault.Unsupported, "micromamba images are not served by this version", "use python_version=\"python3.11\"")
	}
	suite, ok := suites[minor]
	if !ok {
		var have []string
		for m := range suites {
			have = append(have, "python"+m)
		}
		slices.Sort(have)
		return s, fault.New(fault.Invalid, fmt.Sprintf("there is no base image with Python %s here", minor), "available: "+strings.Join(have, ", "))
	}
	s.Suite, s.Minor = suite, minor
	switch {
	case dockerfile != "":
		return s, fault.New(fault.Unsupported, "Dockerfiles are not served by this version", "use Image(python_packages=…, commands=…)")
	case len(secrets) > 0:
		return s, fault.New(fault.Unsupported, "build secrets are not served by this version", "")
	case gpu != "":
		return s, fault.New(fault.Unsupported, "building on a GPU is not served by this version", "leave build_with_gpu out")
	}
	if base != "" {
		if err := s.from(base); err != nil {
			return s, err
		}
	}
	if len(packages) > 0 {
		s.Steps = append(s.Steps, Step{Kind: "pip", Args: packages})
	}
	for _, c := range commands {
		s.Steps = append(s.Steps, Step{Kind: "shell", Args: []string{c}})
	}
	for _, b := range steps {
		switch b.Type {
		case "shell":
			s.Steps = append(s.Steps, Step{Kind: "shell", Args: []string{b.Command}})
		case "pip":
			// Neighbouring packages are one step, as users expect of one install.
			if n := len(s.Steps); n > 0 && s.Steps[n-1].Kind == "pip" {
				s.Steps[n-1].Args = append(slices.Clone(s.Steps[n-1].Args), b.Command)
			} else {
				s.Steps = append(s.Steps, Step{Kind: "pip", Args: []string{b.Command}})
			}
		default:
			return s, fault.New(fault.Unsupported, fmt.Sprintf("build steps of type %q are not served by this version", b.Type), "use pip packages and shell commands")
		}
	}
	s.Env = env
	return s, s.Check()
}

// Check refuses what no request could have made: specs also come from peers.
func (s Spec) Check() error {
	if suites[s.Minor] != s.Suite || s.Suite == "" || s.Recipe != recipeVersion {
		return fault.New(fault.Invalid, fmt.Sprintf("no base image of Python %q on Debian %q can be made here", s.Minor, s.Suite), "update this node or the one that asks")
	}
	size := 0
	for _, st := range s.Steps {
		if (st.Kind != "pip" && st.Kind != "shell") || len(st.Args) == 0 {
			return fault.New(fault.Invalid, fmt.Sprintf("build step of kind %q", st.Kind), "")
		}
		for _, a := range st.Args {
			size += len(a)
		}
	}
	if len(s.Steps) > maxSteps || size > maxStepBytes {
		return fault.New(fault.TooLarge, fmt.Sprintf("the image has %d steps and %d bytes of them, at most %d and %d are taken", len(s.Steps), size, maxSteps, maxStepBytes), "put the steps into a script")
	}
	for _, e := range s.Env {
		if k, _, ok := strings.Cut(e, "="); !ok || k == "" {
			return fault.New(fault.Invalid, fmt.Sprintf("env entry %q is not NAME=value", e), "")
		}
	}
	return nil
}

// from takes a base image by name: those that are Debian suites can be made
// here, others need a registry.
func (s *Spec) from(name string) error {
	short := strings.TrimPrefix(strings.TrimPrefix(strings.TrimPrefix(name, "docker.io/"), "library/"), "debian:")
	for minor, suite := range suites {
		if short == suite || short == suite+"-slim" {
			s.Suite, s.Minor = suite, minor
			return nil
		}
	}
	return fault.New(fault.NotFound, fmt.Sprintf("base image %q was not found: not in the local store, not at a peer, no registry or mirror is configured, and Debian packages make only debian:bullseye, debian:bookworm and debian:trixie", name),
		"use one of these, or leave base_image out for Python 3.11 on Debian bookworm")
}
