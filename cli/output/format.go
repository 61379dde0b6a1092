package output

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/beammesh/beammesh/proto/fault"
)

// Format is one way to print data.
type Format string

// The formats of -o.
const (
	FormatTable Format = "table"
	FormatWide  Format = "wide"
	FormatJSON  Format = "json"
	FormatYAML  Format = "yaml"
	FormatName  Format = "name"
)

// Formats lists all of them, for help and completion.
func Formats() []string {
	return []string{string(FormatTable), string(FormatWide), string(FormatJSON), string(FormatYAML), string(FormatName)}
}

// ParseFormat reads the value of -o.
func ParseFormat(s string) (Format, error) {
	for _, f := range Formats() {
		if s == f {
			return Format(s), nil
		}
	}
	return "", fault.New(fault.Invalid, fmt.Sprintf("no output format %q", s), "one of "+strings.Join(Formats(), ", "))
}

// Machine tells whether programs read the output: then nothing else is
// printed beside the data, and errors are JSON.
func (f Format) Machine() bool { return f == FormatJSON || f == FormatYAML }

// Printer writes data in one format.
type Printer struct {
	Out    io.Writer
	Format Format
	Style  Style
}

// Value prints v as JSON or YAML; it is meant for formats where Machine is true.
func (p *Printer) Value(v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	if p.Format != FormatYAML {
		_, err := p.Out.Write(b.Bytes())
		return err
	}
	// JSON is YAML: reading it as YAML nodes keeps names and order of fields
	// the same in both formats.
	var n yaml.Node
	if err := yaml.Unmarshal(b.Bytes(), &n); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	block(&n)
	enc := yaml.NewEncoder(p.Out)
	enc.SetIndent(2)
	if err := enc.Encode(&n); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return enc.Close()
}

// Line prints v as one line of JSON, for streams.
func (p *Printer) Line(v any) error {
	e := json.NewEncoder(p.Out)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// block gives nodes YAML's own indented look, but leaves empty lists and maps
// as [] and {}.
func block(n *yaml.Node) {
	if len(n.Content) > 0 || n.Kind == yaml.ScalarNode {
		n.Style = 0
	}
	for _, c := range n.Content {
		block(c)
	}
}
