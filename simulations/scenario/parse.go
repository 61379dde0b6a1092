package scenario

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/simulations"
)

// MaxBytes is the largest text of a scenario.
const MaxBytes = 1 << 20

// words are the first words that a line may have.
var words = []string{"experiment", "policy", "seeds", "set", "sweep"}

// statement is one line without its comment.
type statement struct {
	line  int
	words []string
}

// Parse reads a scenario. file is what its errors call it, and without folder
// and ending its name.
func Parse(file, text string, experiments []simulations.Experiment) (*Scenario, error) {
	if len(text) > MaxBytes {
		return nil, fault.New(fault.TooLarge, fmt.Sprintf("%s has %d bytes, a scenario has at most %d", file, len(text), MaxBytes), "")
	}
	lines, doc := split(text)
	s, err := begin(file, lines, experiments)
	if err != nil {
		return nil, err
	}
	s.Name, s.Doc = strings.TrimSuffix(filepath.Base(file), Ending), doc
	first := map[string]int{} // line in which a thing was said
	for _, l := range lines {
		what, err := s.apply(l.words)
		if err != nil {
			return nil, at(file, l.line, err)
		}
		if before, ok := first[what]; ok {
			return nil, at(file, l.line, fault.New(fault.Invalid, fmt.Sprintf("%s was given in line %d already", what, before), "keep one of the two lines"))
		}
		first[what] = l.line
	}
	return s, nil
}

// split gives the lines that say something and the first comment.
func split(text string) (lines []statement, doc string) {
	for i, l := range strings.Split(text, "\n") {
		code, comment, commented := strings.Cut(l, "#")
		if w := strings.Fields(code); len(w) > 0 {
			lines = append(lines, statement{line: i + 1, words: w})
		} else if commented && doc == "" && len(lines) == 0 {
			doc = strings.TrimSpace(comment)
		}
	}
	return lines, doc
}

// begin finds the experiment, which all other lines depend on.
func begin(file string, lines []statement, experiments []simulations.Experiment) (*Scenario, error) {
	names := make([]string, len(experiments))
	for i, e := range experiments {
		names[i] = e.Name()
	}
	for _, l := range lines {
		if l.words[0] != "experiment" {
			continue
		}
		if len(l.words) != 2 {
			return nil, at(file, l.line, fault.New(fault.Invalid, "experiment takes one name", Suggest("", names)))
		}
		for _, e := range experiments {
			if e.Name() == l.words[1] {
				return Of(e), nil
			}
		}
		return nil, at(file, l.line, fault.New(fault.Invalid, fmt.Sprintf("unknown experiment %q", l.words[1]), Suggest(l.words[1], names)))
	}
	for _, l := range lines { // a typo in the word itself is the better message
		if err := checkWord(l.words[0]); err != nil {
			return nil, at(file, l.line, err)
		}
	}
	return nil, fault.New(fault.Invalid, file+" names no experiment", "add a line such as: experiment "+names[0])
}

func checkWord(word string) error {
	for _, w := range words {
		if w == word {
			return nil
		}
	}
	return fault.New(fault.Invalid, fmt.Sprintf("unknown word %q", word), Suggest(word, words))
}

// apply takes one line in and says what it was about, to notice doubles.
func (s *Scenario) apply(w []string) (what string, err error) {
	if err := checkWord(w[0]); err != nil {
		return "", err
	}
	form := map[string]string{"policy": "policy NAME…", "seeds": "seeds 42..51 60", "set": "set NAME VALUE", "sweep": "sweep NAME VALUE VALUE…"}[w[0]]
	short := map[string]int{"experiment": 2, "policy": 2, "seeds": 2, "set": 3, "sweep": 3}[w[0]]
	if len(w) < short || w[0] == "set" && len(w) != 3 {
		return "", fault.New(fault.Invalid, fmt.Sprintf("%s has %d words after it", w[0], len(w)-1), "write: "+form)
	}
	switch w[0] {
	case "policy":
		return "policy", s.SetPolicies(w[1:])
	case "seeds":
		return "seeds", s.SetSeeds(w[1:])
	case "set", "sweep":
		return w[1], s.SetValues(w[1], w[2:])
	}
	return "experiment", nil
}

// at puts the place before a message.
func at(file string, line int, err error) error {
	f := &fault.Error{Code: fault.Invalid, Message: err.Error()}
	if errors.As(err, &f) {
		f = fault.New(f.Code, f.Message, f.Hint)
	}
	f.Message = fmt.Sprintf("%s line %d: %s", file, line, f.Message)
	return f
}
