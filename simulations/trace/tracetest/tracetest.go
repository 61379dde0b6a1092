// Package tracetest finds the recorded traces for tests. They are not part of
// the repository, since their licences are for research only.
package tracetest

import (
	"os"
	"path/filepath"
	"testing"
)

// Dir is the directory of the traces: what BEAM_TRACES says, else the directory
// shared/traces next to the repository. Without either the test is skipped.
func Dir(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("BEAM_TRACES")
	if dir == "" {
		if root := repository(); root != "" {
			dir = filepath.Join(root, "..", "shared", "traces")
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "openb")); dir == "" || err != nil {
		t.Skip("no traces: BEAM_TRACES is not set")
	}
	return dir
}

// repository is the directory of go.mod, above the package that is tested.
func repository() string {
	dir, err := os.Getwd()
	for err == nil {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	return ""
}
