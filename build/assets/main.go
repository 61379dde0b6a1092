// Command assets makes the helper programs that beam embeds (see
// runtime/assets): it builds them, packs the Python bundle and writes all of
// it, compressed, with a manifest to runtime/assets/embedded.
//
//	go run ./build/assets && go build -tags assets -o bin/beam ./cli/beam
//
// It needs no root and writes below the repository and Go's caches only. The
// second run is fast: the go command leaves a program alone whose inputs are
// the same, and what has not changed is not compressed again.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/beammesh/beammesh/runtime/assets"
)

func main() {
	sdk := flag.String("sdk", "sdk/python", "folder of the Python SDK")
	work := flag.String("work", "build/out", "folder for what is built, kept between runs")
	out := flag.String("out", "runtime/assets/embedded", "folder that is embedded")
	flag.Parse()
	if err := run(*sdk, *work, *out); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(sdk, work, out string) error {
	if _, err := os.Stat("build/assets/main.go"); err != nil {
		return errors.New("run it in the repository's root")
	}
	if err := checkTools(); err != nil {
		return err
	}
	work, err := filepath.Abs(work)
	if err != nil {
		return err
	}
	for _, d := range []string{work, out} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	steps := []func(to string) error{
		func(to string) error { return buildRunc(to) },
		func(to string) error { return buildGo(to, "./build/shim", false, "no_grpc") },
		func(to string) error { return buildGo(to, "./runtime/initd/cmd", false, "") },
		func(to string) error { return buildGo(to, "./build/nvml", true, "") },
		func(to string) error { return packRunner(sdk, work, to) },
	}
	names := []string{assets.Runc, assets.Shim, assets.Initd, assets.NVML, assets.Runner}
	m := assets.Manifest{Assets: make([]assets.Asset, len(names))}
	errs := make([]error, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() {
			from := filepath.Join(work, name)
			if name == assets.Runner {
				from += ".tar"
			}
			if err := steps[i](from); err != nil {
				errs[i] = fmt.Errorf("%s: %w", name, err)
				return
			}
			m.Assets[i], errs[i] = compress(name, from, out)
			m.Assets[i].Tar = name == assets.Runner
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	j, err := json.MarshalIndent(m, "", "\t")
	if err != nil {
		return err
	}
	return writeIfChanged(filepath.Join(out, assets.ManifestName), append(j, '\n'))
}

// checkTools names everything that is missing at once.
func checkTools() error {
	var missing []string
	for tool, pkg := range map[string]string{"gcc": "gcc libc6-dev", "pkg-config": "pkg-config", "python3": "python3"} {
		if _, err := exec.LookPath(tool); err != nil {
			missing = append(missing, pkg)
		}
	}
	if len(missing) == 0 && exec.Command("pkg-config", "--exists", "libseccomp").Run() != nil {
		missing = append(missing, "libseccomp-dev")
	}
	if len(missing) > 0 {
		return fmt.Errorf("not installed: %s\nhint: sudo apt-get install -y %[1]s", strings.Join(missing, " "))
	}
	return nil
}

func buildRunc(to string) error {
	// A module of its own: its versions must not bend ours.
	return goBuild(to, "build/runc", []string{"CGO_ENABLED=1"}, "github.com/opencontainers/runc",
		"seccomp netgo osusergo", "-s -w -extldflags -static -X main.version="+runcVersion)
}

const runcVersion = "1.5.2" // as in build/runc/go.mod

func buildGo(to, pkg string, cgo bool, tags string) error {
	env := []string{"CGO_ENABLED=0"}
	if cgo {
		env = []string{"CGO_ENABLED=1"}
	}
	return goBuild(to, ".", env, pkg, tags, "-s -w")
}

func goBuild(to, dir string, env []string, pkg, tags, ldflags string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-tags", tags, "-ldflags", ldflags, "-o", to, pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	return runQuiet(cmd)
}

// runQuiet shows a command's output only when it fails.
func runQuiet(cmd *exec.Cmd) error {
	b, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, b)
	}
	return nil
}
