package build

import (
	"bufio"
	"bytes"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/beammesh/beammesh/proto/fault"
)

// source is one line of a sources.list.
type source struct {
	uri, suite string
	components []string
	signedBy   string // key file, "" = apt's own
}

// sources of a suite, the release itself first.
type sources []source

// codenames are Debian releases that a host's apt may point to. Their archive
// holds the other releases too.
var codenames = []string{"bullseye", "bookworm", "trixie", "forky", "sid", "stable", "oldstable", "testing", "unstable"}

// list renders a sources.list. Private lists keep what only this machine
// needs: its key files, and the passwords in addresses.
func (l sources) list(private bool) string {
	var b strings.Builder
	for _, s := range l {
		b.WriteString("deb ")
		uri := s.uri
		if private && s.signedBy != "" {
			b.WriteString("[signed-by=" + s.signedBy + "] ")
		}
		if u, err := url.Parse(uri); err == nil && !private {
			u.User = nil
			uri = u.String()
		}
		b.WriteString(uri + " " + s.suite + " " + strings.Join(s.components, " ") + "\n")
	}
	return b.String()
}

// hostSources finds Debian's archive in a host's apt configuration and returns
// its sources for a suite: the release, then updates and security where the
// host has them.
func hostSources(etc, suite string) (sources, error) {
	all, err := readSources(etc)
	if err != nil {
		return nil, err
	}
	var out sources
	for _, kind := range []string{"", "-updates", "-security"} {
		for _, s := range all {
			base, ok := strings.CutSuffix(s.suite, kind)
			if kind == "-security" && !ok { // "bullseye/updates" was the older spelling
				base, ok = strings.CutSuffix(s.suite, "/updates")
			}
			if !ok || !slices.Contains(codenames, base) || !slices.Contains(s.components, "main") {
				continue
			}
			out = append(out, source{s.uri, suite + kind, []string{"main"}, s.signedBy})
			break
		}
		if kind == "" && len(out) == 0 {
			return nil, fault.New(fault.Unsupported, "no Debian archive in this machine's apt configuration",
				"add one to /etc/apt/sources.list.d, or get the base image from another node")
		}
	}
	return out, nil
}

// readSources reads sources.list, *.list and *.sources.
func readSources(etc string) ([]source, error) {
	files := []string{filepath.Join(etc, "sources.list")}
	for _, pat := range []string{"*.list", "*.sources"} {
		more, err := filepath.Glob(filepath.Join(etc, "sources.list.d", pat))
		if err != nil {
			return nil, err
		}
		files = append(files, more...)
	}
	var all []source
	for _, f := range files {
		b, err := os.ReadFile(f)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if strings.HasSuffix(f, ".sources") {
			all = append(all, parseDeb822(b)...)
		} else {
			all = append(all, parseList(b)...)
		}
	}
	return all, nil
}

// usable leaves out what a network install cannot use.
func usable(uri string) bool { return strings.Contains(uri, ":/") && !strings.HasPrefix(uri, "cdrom:") }

func parseList(b []byte) (all []source) {
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		l, _, _ := strings.Cut(sc.Text(), "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(l), "deb ")
		if !ok {
			continue
		}
		rest = strings.TrimSpace(rest)
		key := ""
		if opts, after, ok := strings.Cut(rest, "]"); ok && strings.HasPrefix(opts, "[") {
			rest = after
			for o := range strings.FieldsSeq(opts[1:]) {
				if v, ok := strings.CutPrefix(o, "signed-by="); ok {
					key = v
				}
			}
		}
		if f := strings.Fields(rest); len(f) >= 3 && usable(f[0]) {
			all = append(all, source{f[0], f[1], f[2:], key})
		}
	}
	return all
}

func parseDeb822(b []byte) (all []source) {
	for stanza := range strings.SplitSeq(strings.ReplaceAll(string(b), "\r", ""), "\n\n") {
		field := map[string]string{}
		last := ""
		for l := range strings.SplitSeq(stanza, "\n") {
			switch k, v, ok := strings.Cut(l, ":"); {
			case strings.HasPrefix(l, "#"), strings.TrimSpace(l) == "":
			case l[0] == ' ' || l[0] == '\t':
				field[last] += "\n" + strings.TrimSpace(l)
			case ok:
				last = strings.ToLower(k)
				field[last] = strings.TrimSpace(v)
			}
		}
		if strings.EqualFold(field["enabled"], "no") || !slices.Contains(strings.Fields(field["types"]), "deb") {
			continue
		}
		key := field["signed-by"]
		if strings.Contains(key, "\n") {
			key = "" // the key itself; apt's own list of Debian's keys is used
		}
		for u := range strings.FieldsSeq(field["uris"]) {
			for s := range strings.FieldsSeq(field["suites"]) {
				if usable(u) {
					all = append(all, source{u, s, strings.Fields(field["components"]), key})
				}
			}
		}
	}
	return all
}
