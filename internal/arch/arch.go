// Package arch reads the source of this repository and reports what breaks
// its architecture: imports that cross a border, packages without a comment,
// files that grew too long. Its test is the guard; to see what it finds:
//
//	go test ./internal/arch
//
// It parses files instead of asking the go command, so it sees all build tags,
// tests included, in well under a second. Folders with a go.mod of their own
// are not part of this module and not read.
package arch

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// Module is the import path of the repository's root.
const Module = "github.com/beammesh/beammesh"

// MaxLines is the most lines of a hand-written file. Usual are 80 to 250.
const MaxLines = 700

// Rule says what the packages below a folder must not import.
type Rule struct {
	// In are folders the rule holds for, themselves and below; "" is all.
	In []string
	// Except are folders below that it does not hold for.
	Except []string
	// Never are forbidden import path prefixes; those that begin with "./" are
	// folders of this module.
	Never []string
	// Allow are prefixes that Never would forbid.
	Allow []string
	Why   string
}

// Rules is the architecture; each rule carries its reason.
var Rules = []Rule{
	{In: []string{"scheduler"}, Never: []string{"./"}, Allow: []string{"./scheduler"},
		Why: "the scheduler is pure: it knows nothing of ours, so that simulations run the same code"},
	{In: []string{"proto"}, Never: []string{"./"}, Allow: []string{"./proto"},
		Why: "schemas know nothing of ours"},
	{In: []string{"mesh"}, Never: []string{"./"}, Allow: []string{"./mesh", "./proto"},
		Why: "mesh, content and runtime do not know each other; node joins them"},
	{In: []string{"content"}, Never: []string{"./"}, Allow: []string{"./content", "./proto"},
		Why: "mesh, content and runtime do not know each other; node joins them"},
	{In: []string{"runtime"}, Never: []string{"./"}, Allow: []string{"./runtime", "./proto"},
		Why: "mesh, content and runtime do not know each other; node joins them"},
	{In: []string{"cli"}, Except: []string{"cli/beam"}, Never: []string{"./node", "./mesh", "./content"},
		Why: "the command line talks to a node only through its API; its main injects the rest"},
	{In: []string{"cli"}, Except: []string{"cli/beam", "cli/sim"}, Never: []string{"./scheduler", "./simulations"},
		Why: "what decides runs in a node; `beam sim` alone, which needs no node, runs it in the simulator"},
	{In: []string{"node"}, Never: []string{"./cli", "./simulations"},
		Why: "the node does not know who calls it"},
	{In: []string{""}, Except: []string{"mesh/libp2p", "content/bitswap"}, Never: []string{"github.com/libp2p/"},
		Why: "one package imports libp2p, so that the rest compiles fast and is tested without it"},
	{In: []string{""}, Except: []string{"runtime/containerd", "build/shim"}, Never: []string{"github.com/containerd/containerd"},
		Why: "one package imports containerd, so that the rest compiles fast and is tested without it"},
	{In: []string{""}, Never: []string{"go.etcd.io/etcd/"},
		Why: "etcd's packages and pubsub register the same protobuf file and the process panics at start"},
}

// Check reads the tree below root and gives one line per problem, sorted.
func Check(root string) ([]string, error) {
	var problems []string
	packages := map[string]*pkg{}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			if rel != "." && ignored(root, rel, d.Name()) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(rel, ".go") {
			return nil
		}
		found, err := readFile(name, rel, packages)
		problems = append(problems, found...)
		return err
	})
	if err != nil {
		return nil, err
	}
	for dir, p := range packages {
		if !p.documented {
			problems = append(problems, fmt.Sprintf("%s: package %s has no package comment", dir, p.name))
		}
	}
	sort.Strings(problems)
	return problems, nil
}

// ignored tells folders that hold no source of this module.
func ignored(root, rel, base string) bool {
	if strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") || base == "testdata" || base == "node_modules" ||
		rel == "bin" || rel == "build/out" {
		return true
	}
	_, err := os.Stat(filepath.Join(root, rel, "go.mod"))
	return err == nil
}

type pkg struct {
	name       string
	documented bool
}

func readFile(name, rel string, packages map[string]*pkg) ([]string, error) {
	src, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	f, err := parser.ParseFile(token.NewFileSet(), name, src, parser.ImportsOnly|parser.ParseComments)
	if err != nil {
		return []string{fmt.Sprintf("%s: %v", rel, err)}, nil
	}
	dir := path.Dir(rel)
	p := packages[dir]
	if p == nil {
		p = &pkg{name: f.Name.Name}
		packages[dir] = p
	}
	generated := ast.IsGenerated(f)
	// A generated package has its comment in the schema.
	if f.Doc != nil && strings.TrimSpace(f.Doc.Text()) != "" || generated {
		p.documented = true
	}
	var problems []string
	if n := bytes.Count(src, []byte("\n")); n > MaxLines && !generated {
		problems = append(problems, fmt.Sprintf("%s: %d lines, the most is %d: split it by subject", rel, n, MaxLines))
	}
	for _, imp := range f.Imports {
		target, err := strconv.Unquote(imp.Path.Value)
		if err != nil {
			return problems, fmt.Errorf("%s: %w", rel, err)
		}
		for _, r := range Rules {
			if r.forbids(dir, target) {
				problems = append(problems, fmt.Sprintf("%s imports %s: %s", rel, target, r.Why))
			}
		}
	}
	return problems, nil
}

func (r Rule) forbids(dir, target string) bool {
	below := func(folder string) bool {
		return folder == "" || dir == folder || strings.HasPrefix(dir, folder+"/")
	}
	if !slices.ContainsFunc(r.In, below) || slices.ContainsFunc(r.Except, below) {
		return false
	}
	matches := func(prefix string) bool {
		folder, ours := strings.CutPrefix(prefix, "./")
		switch {
		case ours && folder == "":
			return target == Module || strings.HasPrefix(target, Module+"/")
		case ours:
			return target == Module+"/"+folder || strings.HasPrefix(target, Module+"/"+folder+"/")
		}
		return strings.HasPrefix(target, prefix)
	}
	return slices.ContainsFunc(r.Never, matches) && !slices.ContainsFunc(r.Allow, matches)
}
