package build

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/runtime"
)

// Kind says what a Step does.
type Kind string

// The kinds of steps.
const (
	Pip   Kind = "pip"   // installs Packages
	Shell Kind = "shell" // runs Command with sh
	Env   Kind = "env"   // sets Env for later steps and in the image
	Files Kind = "files" // lays Files on top; runs nothing
)

// Bounds of a request, far above what people write by hand.
const (
	maxSteps    = 128
	maxStepText = 256 << 10 // bytes of one step's packages, command or variables
)

// Step is one link of the chain.
type Step struct {
	Kind     Kind
	Packages []string // requirement specifiers, "numpy>=2"; no options but -r's content
	Command  string
	Env      []string // KEY=value
	Files    runtime.Layer
}

// recipeVersion is part of every key: raise it when a step of the same text
// would make something else.
const recipeVersion = 1

func baseKey(base []runtime.Layer) string { return hash("base", base) }

func (s Step) key(parent string) string { return hash(parent, s) }

// hash is over JSON, in which fields cannot run into each other.
func hash(parent string, v any) string {
	b, err := json.Marshal([]any{recipeVersion, parent, v})
	if err != nil {
		panic(err) // strings in structs
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func (s Step) title() string {
	t := ""
	switch s.Kind {
	case Pip:
		t = "pip install " + strings.Join(s.Packages, " ")
	case Shell:
		t = "run " + s.Command
	default:
		t = string(s.Kind)
	}
	t = strings.Join(strings.Fields(t), " ")
	if r := []rune(t); len(r) > 80 {
		t = string(r[:79]) + "…"
	}
	return t
}

func (s Step) args() []string {
	if s.Kind == Pip {
		return append([]string{"python3", "-m", "pip", "install", "--"}, s.Packages...)
	}
	return []string{"sh", "-ec", s.Command}
}

func validate(steps []Step) error {
	if len(steps) > maxSteps {
		return fault.New(fault.TooLarge, fmt.Sprintf("image has %d steps, the limit is %d", len(steps), maxSteps),
			"put several commands into one")
	}
	for i, s := range steps {
		bad := func(format string, a ...any) error {
			return fault.Newf(fault.Invalid, "image step %d: %s", i+1, fmt.Sprintf(format, a...))
		}
		n := len(s.Command)
		for _, t := range append(s.Packages[:len(s.Packages):len(s.Packages)], s.Env...) {
			n += len(t)
		}
		if n > maxStepText {
			return fault.Newf(fault.TooLarge, "image step %d has %d bytes, the limit is %d", i+1, n, maxStepText)
		}
		switch s.Kind {
		case Pip:
			if len(s.Packages) == 0 {
				return bad("no packages")
			}
			for _, p := range s.Packages {
				if strings.TrimSpace(p) == "" || strings.HasPrefix(strings.TrimSpace(p), "-") {
					return fault.New(fault.Invalid, fmt.Sprintf("image step %d: %q is no package", i+1, p),
						"options of pip go into a command: commands=['pip install …']")
				}
			}
		case Shell:
			if strings.TrimSpace(s.Command) == "" {
				return bad("no command")
			}
		case Env:
			for _, kv := range s.Env {
				if k, _, ok := strings.Cut(kv, "="); !ok || k == "" || strings.ContainsAny(kv, "\x00\n") {
					return bad("%q is not KEY=value on one line", kv)
				}
			}
		case Files:
			if s.Files.Root == "" {
				return bad("no files")
			}
		default:
			return bad("unknown kind %q", s.Kind)
		}
	}
	return nil
}
