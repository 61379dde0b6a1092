//go:build bootstrap

package build

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestBootstrapReal needs root, mmdebstrap and a mirror:
//
//	go test -tags bootstrap -run Real -v ./runtime/build
func TestBootstrapReal(t *testing.T) {
	for suite, python := range suites {
		t.Run(suite, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "root")
			last := Progress{}
			err := Bootstrap(t.Context(), BaseConfig{Suite: suite, Dir: dir}, func(p Progress) {
				if p.Phase != last.Phase {
					t.Logf("%+v after %+v", p, last)
				}
				last = p
			})
			if err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command("chroot", dir, "python", "-c", "import sys, ssl, sqlite3, ctypes, lzma, bz2, zoneinfo, venv,"+
				"ensurepip, curses, readline; print('%d.%d' % sys.version_info[:2])").CombinedOutput()
			if err != nil || string(out) != python+"\n" {
				t.Errorf("python says %s, %v", out, err)
			}
			if out, err := exec.Command("chroot", dir, "pip", "--version").CombinedOutput(); err != nil {
				t.Errorf("pip says %s, %v", out, err)
			}
			for _, empty := range []string{"dev", "proc", "var/lib/apt/lists"} {
				if l, err := os.ReadDir(filepath.Join(dir, empty)); err != nil || len(l) > 0 {
					t.Errorf("%s holds %v, %v", empty, l, err)
				}
			}
			size, _ := exec.Command("du", "-sm", dir).Output()
			t.Logf("%s", size)
		})
	}
}
