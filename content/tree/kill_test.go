package tree_test

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/beammesh/beammesh/content"
	"github.com/beammesh/beammesh/content/blocks"
	"github.com/beammesh/beammesh/content/tree"
)

const (
	killRole  = "BEAM_TEST_KILL_ROLE"
	killStore = "BEAM_TEST_KILL_STORE"
	killDir   = "BEAM_TEST_KILL_DIR"
	killRoot  = "BEAM_TEST_KILL_ROOT"
)

// TestMain lets the test binary play the process that gets killed.
func TestMain(m *testing.M) {
	role := os.Getenv(killRole)
	if role == "" {
		os.Exit(m.Run())
	}
	// Say each step on stdout; the test kills at one of them.
	say := func(int64, int64) { os.Stdout.WriteString(".\n") }
	s, err := blocks.Open(os.Getenv(killStore), blocks.Options{FloorBytes: -1})
	if err == nil && role == "import" {
		_, err = tree.ImportDir(ctx, s, os.Getenv(killDir), tree.ImportOptions{ContentOnly: true, Progress: say})
	} else if err == nil {
		var root content.Root
		if root, err = content.ParseRoot(os.Getenv(killRoot)); err == nil {
			err = tree.Checkout(ctx, s, root, os.Getenv(killDir), tree.CheckoutOptions{KeepOwner: true, Progress: say})
		}
	}
	if err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
	os.Exit(0)
}

// killAt runs role and kills it with SIGKILL at its n-th step.
func killAt(t *testing.T, n int, role, store, dir, root string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), killRole+"="+role, killStore+"="+store, killDir+"="+dir, killRoot+"="+root)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	lines := bufio.NewScanner(out)
	for i := 0; i < n && lines.Scan(); i++ {
	}
	must(t, cmd.Process.Kill())
	for lines.Scan() { // to the end, so that Wait does not cut it
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the process ended by itself: %v: %s", err, stderr.String())
	}
}

func killSource(t *testing.T) string {
	list := map[string]string{}
	for i := range 40 {
		list["part/"+strings.Repeat("x", i+1)] = random(3*content.ChunkSize + i)
	}
	return files(t, list)
}

// Kill -9 in the middle of imports: nothing torn is ever read, no tree is
// listed, and the next import goes on.
func TestKillDuringImport(t *testing.T) {
	dir, src := filepath.Join(t.TempDir(), "store"), killSource(t)
	for _, step := range []int{1, 7, 20, 50} {
		killAt(t, step, "import", dir, src, "")
		s, err := blocks.Open(dir, blocks.Options{FloorBytes: -1})
		must(t, err)
		if got := s.Roots(); len(got) != 0 {
			t.Fatalf("a tree is listed after a kill at step %d", step)
		}
		st, err := s.Scrub(ctx)
		if err != nil || st.Damaged != 0 {
			t.Errorf("after a kill at step %d: %+v, %v", step, st, err)
		}
		if left, _ := os.ReadDir(filepath.Join(dir, "tmp")); len(left) != 0 {
			t.Errorf("%d temporary files left", len(left))
		}
		must(t, s.Close())
	}
	s, err := blocks.Open(dir, blocks.Options{FloorBytes: -1})
	must(t, err)
	defer s.Close()
	info := importDir(t, s, src, tree.ImportOptions{ContentOnly: true})
	dst := t.TempDir()
	must(t, tree.Checkout(ctx, s, info.Root, dst, tree.CheckoutOptions{KeepOwner: true}))
	if again := importDir(t, s, dst, tree.ImportOptions{ContentOnly: true}); again.Root != info.Root {
		t.Error("other content came out")
	}
}

// Kill -9 in the middle of a checkout: the store is unharmed, and writing once
// more over what is left gives the tree.
func TestKillDuringCheckout(t *testing.T) {
	dir, src, dst := filepath.Join(t.TempDir(), "store"), killSource(t), t.TempDir()
	s, err := blocks.Open(dir, blocks.Options{FloorBytes: -1})
	must(t, err)
	info := importDir(t, s, src, tree.ImportOptions{ContentOnly: true})
	must(t, s.Close())
	killAt(t, 25, "checkout", dir, dst, info.Root.String())
	s, err = blocks.Open(dir, blocks.Options{FloorBytes: -1})
	must(t, err)
	defer s.Close()
	must(t, tree.Checkout(ctx, s, info.Root, dst, tree.CheckoutOptions{KeepOwner: true}))
	if again := importDir(t, s, dst, tree.ImportOptions{ContentOnly: true}); again.Root != info.Root {
		t.Error("other content came out")
	}
}
