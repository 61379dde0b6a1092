package client

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"github.com/beammesh/beammesh/proto/fault"
)

// DefaultContext is the context that the Python SDK and stock clients read.
// Selecting another context copies it there.
const DefaultContext = "default"

// maxConfigBytes bounds the file we read; a real one has some hundred bytes.
const maxConfigBytes = 1 << 20

// Context is one named way to reach a mesh.
type Context struct {
	Name  string
	Token string
	Host  string // gateway_host: any node
	Port  int    // gateway_port; 0 = 1993
}

// same tells whether two contexts lead to the same place with the same token.
func (c Context) same(o Context) bool {
	return c.Token == o.Token && c.Host == o.Host && c.Port == o.Port
}

// Config is the INI file that we share with the Python SDK and stock clients:
// one section per context. Sections and keys that we do not know are kept.
type Config struct {
	path     string
	sections []section
}

type section struct {
	name string
	keys []pair
}

type pair struct{ key, value string }

// ConfigPath is the file for a home directory.
func ConfigPath(home string) string { return filepath.Join(home, ".beam", "config.ini") }

// LoadConfig reads path; a file that is not there is an empty Config.
func LoadConfig(path string) (*Config, error) {
	c := &Config{path: path}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "read configuration", "")
	}
	if len(data) > maxConfigBytes {
		return nil, fault.New(fault.Invalid, fmt.Sprintf("%s is larger than %d bytes", path, maxConfigBytes), "")
	}
	if err := c.parse(data); err != nil {
		return nil, fault.New(fault.Invalid, fmt.Sprintf("%s: %v", path, err),
			"mend the line, or move the file away and run `beam config create`")
	}
	return c, nil
}

func (c *Config) parse(data []byte) error {
	sc := bufio.NewScanner(bytes.NewReader(data))
	sc.Buffer(nil, maxConfigBytes)
	var current *section
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
		case line[0] == '[':
			name := strings.TrimSpace(strings.TrimSuffix(line[1:], "]"))
			if line[len(line)-1] != ']' || name == "" {
				return fmt.Errorf("line %d: a section looks like [name]", n)
			}
			current = c.section(name)
		default:
			key, value, ok := strings.Cut(line, "=")
			if !ok {
				key, value, ok = strings.Cut(line, ":")
			}
			if !ok || current == nil {
				return fmt.Errorf("line %d: want key = value inside a [section]", n)
			}
			current.set(strings.ToLower(strings.TrimSpace(key)), strings.TrimSpace(value))
		}
	}
	return sc.Err()
}

// section finds or adds the section. The pointer is valid until the next call.
func (c *Config) section(name string) *section {
	for i := range c.sections {
		if c.sections[i].name == name {
			return &c.sections[i]
		}
	}
	c.sections = append(c.sections, section{name: name})
	return &c.sections[len(c.sections)-1]
}

func (s *section) get(key string) string {
	for _, p := range s.keys {
		if p.key == key {
			return p.value
		}
	}
	return ""
}

func (s *section) set(key, value string) {
	for i := range s.keys {
		if s.keys[i].key == key {
			s.keys[i].value = value
			return
		}
	}
	s.keys = append(s.keys, pair{key, value})
}

func (s *section) context() Context {
	port, _ := strconv.Atoi(s.get("gateway_port")) // checked by Resolve, where it matters
	return Context{Name: s.name, Token: s.get("token"), Host: s.get("gateway_host"), Port: port}
}

// Contexts gives all contexts by name, the default first.
func (c *Config) Contexts() []Context {
	out := make([]Context, 0, len(c.sections))
	for i := range c.sections {
		out = append(out, c.sections[i].context())
	}
	sort.SliceStable(out, func(i, j int) bool {
		if a, b := out[i].Name == DefaultContext, out[j].Name == DefaultContext; a != b {
			return a
		}
		return out[i].Name < out[j].Name
	})
	return out
}

// Context gives one context by name.
func (c *Config) Context(name string) (Context, bool) {
	for i := range c.sections {
		if c.sections[i].name == name {
			return c.sections[i].context(), true
		}
	}
	return Context{}, false
}

// Put adds or replaces a context.
func (c *Config) Put(ctx Context) error {
	if ctx.Name == "" || strings.ContainsAny(ctx.Name, "[]\r\n") {
		return fault.New(fault.Invalid, fmt.Sprintf("%q cannot be the name of a context", ctx.Name), "use letters, digits and '-'")
	}
	for _, v := range []string{ctx.Token, ctx.Host} {
		if strings.ContainsAny(v, "\r\n") {
			return fault.New(fault.Invalid, "a value of a context has a line break in it", "")
		}
	}
	s := c.section(ctx.Name)
	s.set("token", ctx.Token)
	s.set("gateway_host", ctx.Host)
	s.set("gateway_port", strconv.Itoa(ctx.Port))
	return nil
}

// Delete removes a context and says whether it was there.
func (c *Config) Delete(name string) bool {
	for i := range c.sections {
		if c.sections[i].name == name {
			c.sections = append(c.sections[:i], c.sections[i+1:]...)
			return true
		}
	}
	return false
}

// Selected is the name whose values the default context has: a named one when
// there is one, else "default".
func (c *Config) Selected() string {
	def, ok := c.Context(DefaultContext)
	if !ok {
		return ""
	}
	for _, x := range c.Contexts() {
		if x.Name != DefaultContext && x.same(def) {
			return x.Name
		}
	}
	return DefaultContext
}

// DeleteNode removes every context that leads to a node, and gives their names.
func (c *Config) DeleteNode(host string, port int) (names []string) {
	for _, x := range c.Contexts() {
		if x.Host == host && (x.Port == port || x.Port == 0 && port == DefaultPort) {
			c.Delete(x.Name)
			names = append(names, x.Name)
		}
	}
	return names
}

// Select makes name the default. Values of the default that no other context
// has are kept as context "previous".
func (c *Config) Select(name string) error {
	chosen, ok := c.Context(name)
	if !ok {
		return fault.New(fault.NotFound, fmt.Sprintf("no context %q", name), "`beam config list` shows what there is")
	}
	if name == DefaultContext {
		return nil
	}
	if def, ok := c.Context(DefaultContext); ok && c.Selected() == DefaultContext {
		def.Name = "previous"
		if err := c.Put(def); err != nil {
			return err
		}
	}
	chosen.Name = DefaultContext
	return c.Put(chosen)
}

// Path is the file that Save writes.
func (c *Config) Path() string { return c.path }

// Save replaces the file at once: a crash leaves the old or the new one. It is
// readable by its owner only, because it holds tokens.
func (c *Config) Save() error {
	var b strings.Builder
	for i, s := range c.sections {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "[%s]\n", s.name)
		for _, p := range s.keys {
			fmt.Fprintf(&b, "%s = %s\n", p.key, p.value)
		}
	}
	dir := filepath.Dir(c.path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fault.Wrap(fault.Internal, err, "save configuration", "")
	}
	tmp, err := os.CreateTemp(dir, ".config-*") // made with mode 0600
	if err != nil {
		return fault.Wrap(fault.Internal, err, "save configuration", "")
	}
	defer os.Remove(tmp.Name()) // fails, as meant, once it was renamed
	_, err = tmp.WriteString(b.String())
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), c.path)
	}
	if err != nil {
		return fault.Wrap(fault.Internal, err, "save configuration", "")
	}
	return nil
}

// SaveLocal stores the token of the node on this machine. It becomes the
// default when there is none yet or the default already is this node; a
// default that leads elsewhere is left alone and the context is called name.
// It gives the name that was used.
func SaveLocal(path string, x Context, name string) (string, error) {
	c, err := LoadConfig(path)
	if err != nil {
		return "", err
	}
	x.Name = DefaultContext
	if def, ok := c.Context(DefaultContext); ok && def.Token != "" && (def.Host != x.Host || def.Port != x.Port) {
		x.Name = name
		if name == "" || name == DefaultContext {
			x.Name = "local"
		}
	}
	if err := c.Put(x); err != nil {
		return "", err
	}
	return x.Name, c.Save()
}
