package build

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/beammesh/beammesh/runtime"
)

// Host is what builds take over from this machine: its certificate
// authorities and how it reaches package indexes. Steps see it read-only,
// below /run, and no image keeps it.
type Host struct {
	CABundle string            // file, "" = none
	Env      []string          // proxies and pip's variables
	Pip      map[string]string // pip.conf's [global] and [install] keys
	Apt      []string          // lines of apt.conf
}

// hostTarget is where steps find the files.
const hostTarget = "/run/beam-build"

// carried are the variables that steps get.
var carried = []string{
	"http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY",
	"PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_PROXY",
	"PIP_DEFAULT_TIMEOUT", "PIP_RETRIES", "PIP_CONSTRAINT",
}

// ReadHost looks at the environment, pip's and apt's configuration.
func ReadHost(ctx context.Context) Host {
	h := Host{Pip: map[string]string{}, Apt: aptSettings(ctx)}
	for _, f := range []string{os.Getenv("SSL_CERT_FILE"), "/etc/ssl/certs/ca-certificates.crt",
		"/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"} {
		if fi, err := os.Stat(f); f != "" && err == nil && fi.Mode().IsRegular() {
			h.CABundle = f
			break
		}
	}
	for _, k := range carried {
		if v := os.Getenv(k); v != "" {
			h.Env = append(h.Env, k+"="+v)
		}
	}
	files := []string{"/etc/pip.conf"}
	if home, err := os.UserHomeDir(); err == nil {
		files = append(files, filepath.Join(home, ".pip/pip.conf"), filepath.Join(home, ".config/pip/pip.conf"))
	}
	for _, f := range append(files, os.Getenv("PIP_CONFIG_FILE")) { // later ones win, as for pip
		if b, err := os.ReadFile(f); f != "" && err == nil {
			readPipConf(b, h.Pip)
		}
	}
	return h
}

// readPipConf adds the keys of [global] and [install]. A certificate file is
// not taken over, since the whole bundle is.
func readPipConf(b []byte, into map[string]string) {
	section, key := "", ""
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		l := sc.Text()
		t := strings.TrimSpace(l)
		switch {
		case t == "" || t[0] == '#' || t[0] == ';':
		case t[0] == '[':
			section, key = strings.Trim(t, "[]"), ""
		case section != "global" && section != "install":
		case key != "" && (l[0] == ' ' || l[0] == '\t'): // goes on from the line before
			into[key] += "\n    " + t
		default:
			k, v, ok := strings.Cut(t, "=")
			if !ok {
				k, v, _ = strings.Cut(t, ":")
			}
			key = strings.TrimSpace(k)
			into[key] = strings.TrimSpace(v)
		}
	}
	delete(into, "cert")
	delete(into, "client-cert")
}

// aptSettings are the host's Acquire options that say how to reach mirrors.
func aptSettings(ctx context.Context) []string {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "apt-config", "dump").Output()
	if err != nil {
		return nil // no apt here
	}
	var l []string
	for line := range strings.SplitSeq(string(out), "\n") {
		k, v, _ := strings.Cut(line, " ")
		if v == `"";` || v == "" {
			continue
		}
		for _, p := range []string{"Acquire::http::", "Acquire::https::", "Acquire::Retries", "Acquire::ForceIPv4", "Acquire::ForceIPv6",
			"Acquire::Check-Valid-Until"} {
			if strings.HasPrefix(k, p) && !strings.Contains(k, "User-Agent") && !strings.Contains(k, "::Detect") {
				l = append(l, line)
				break
			}
		}
	}
	return l
}

// prepare writes the files for one step and says how it gets them. The caller
// removes dir.
func (h Host) prepare() (dir string, mounts []runtime.Mount, env []string, err error) {
	dir, err = os.MkdirTemp("", "beam-build-")
	if err != nil {
		return "", nil, nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(dir)
		}
	}()
	if err = os.Chmod(dir, 0o755); err != nil { // steps run as another user of this machine
		return "", nil, nil, err
	}
	write := func(name string, b []byte) {
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), b, 0o644)
		}
	}
	mounts = []runtime.Mount{{Source: dir, Target: hostTarget, ReadOnly: true}}
	// Settings that suit every step; what Debian's pip does not know it ignores.
	env = append([]string{"PIP_NO_INPUT=1", "PIP_DISABLE_PIP_VERSION_CHECK=1", "PIP_NO_CACHE_DIR=1", "PIP_ROOT_USER_ACTION=ignore",
		"PIP_BREAK_SYSTEM_PACKAGES=1", "PIP_PROGRESS_BAR=off", "DEBIAN_FRONTEND=noninteractive",
		"PIP_CONFIG_FILE=" + hostTarget + "/pip.conf", "APT_CONFIG=" + hostTarget + "/apt.conf"}, h.Env...)
	apt := slices.Clone(h.Apt)
	if h.CABundle != "" {
		b, rerr := os.ReadFile(h.CABundle)
		if rerr != nil {
			return "", nil, nil, rerr
		}
		write("ca.pem", b)
		ca := hostTarget + "/ca.pem"
		for _, k := range []string{"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT", "NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO"} {
			env = append(env, k+"="+ca)
		}
		apt = slices.DeleteFunc(apt, func(l string) bool { return strings.HasPrefix(strings.ToLower(l), "acquire::https::cainfo ") })
		apt = append(apt, fmt.Sprintf("Acquire::https::CAInfo %q;", ca))
	}
	// Local wheel folders come along, each at a place of its own.
	local := func(links string) string {
		words := strings.Fields(links)
		for i, w := range words {
			if fi, serr := os.Stat(w); serr == nil && fi.IsDir() && filepath.IsAbs(w) {
				at := fmt.Sprintf("%s-wheels-%d", hostTarget, len(mounts))
				mounts = append(mounts, runtime.Mount{Source: w, Target: at, ReadOnly: true})
				words[i] = at
			}
		}
		return strings.Join(words, " ")
	}
	for i, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PIP_FIND_LINKS="); ok {
			env[i] = "PIP_FIND_LINKS=" + local(v)
		}
	}
	conf := "[global]\n"
	for _, k := range slices.Sorted(maps.Keys(h.Pip)) {
		v := h.Pip[k]
		if k == "find-links" {
			v = local(v)
		}
		conf += k + " = " + v + "\n"
	}
	write("pip.conf", []byte(conf))
	write("apt.conf", []byte(strings.Join(apt, "\n")+"\n"))
	return dir, mounts, env, err
}
