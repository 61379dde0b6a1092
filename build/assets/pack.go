package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/beammesh/beammesh/runtime/assets"
)

// The Python packages of the bundle beside our own: pure Python, and of
// versions that run on every Python from 3.8 on.
var requirements = []string{"cloudpickle==3.1.1", "pathspec==0.12.1"}

// packRunner installs the requirements into a folder of their own, has the SDK
// assemble the bundle and packs it so that equal files give equal bytes.
func packRunner(sdk, work, to string) error {
	deps := filepath.Join(work, "python-"+strings.NewReplacer("==", "-", " ", "").Replace(strings.Join(requirements, "_")))
	if _, err := os.Stat(deps); err != nil {
		part := deps + ".part"
		if err := os.RemoveAll(part); err != nil {
			return err
		}
		args := append([]string{"-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
			"--only-binary=:all:", "--no-compile", "--target", part}, requirements...)
		if err := runQuiet(exec.Command("python3", args...)); err != nil {
			return fmt.Errorf("%w\nhint: pip must work: sudo apt-get install -y python3-pip, or set its index", err)
		}
		if err := os.Rename(part, deps); err != nil {
			return err
		}
	}
	script, err := filepath.Abs(filepath.Join(sdk, "bundle.py"))
	if err != nil {
		return err
	}
	bundle := filepath.Join(work, "bundle")
	cmd := exec.Command("python3", script, bundle)
	cmd.Env = append(os.Environ(), "PYTHONPATH="+deps, "PYTHONDONTWRITEBYTECODE=1")
	if err := runQuiet(cmd); err != nil {
		return err
	}
	b, err := packDir(os.DirFS(bundle))
	if err != nil {
		return err
	}
	return writeIfChanged(to, b)
}

// packDir packs plain files in name order, without owners or times.
func packDir(dir fs.FS) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := fs.WalkDir(dir, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if !d.Type().IsRegular() {
			return fmt.Errorf("%s is no plain file", path)
		}
		text, err := fs.ReadFile(dir, path)
		if err != nil {
			return err
		}
		h := &tar.Header{Name: path, Size: int64(len(text)), Mode: 0o644, Typeflag: tar.TypeReg, Format: tar.FormatUSTAR}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		_, err = w.Write(text)
		return err
	})
	if err == nil {
		err = w.Close()
	}
	return b.Bytes(), err
}

// compress writes from to out/<name>.zst unless what is there is of the same
// content, which a small file beside from remembers.
func compress(name, from, out string) (assets.Asset, error) {
	b, err := os.ReadFile(from)
	if err != nil {
		return assets.Asset{}, err
	}
	sum := sha256.Sum256(b)
	a := assets.Asset{Name: name, SHA256: hex.EncodeToString(sum[:]), Size: int64(len(b))}
	to, mark := filepath.Join(out, name+".zst"), from+".compressed"
	if was, err := os.ReadFile(mark); err == nil && string(was) == a.SHA256 {
		if _, err := os.Stat(to); err == nil {
			return a, nil
		}
	}
	_ = os.Remove(mark)
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return a, err
	}
	if err := writeIfChanged(to, enc.EncodeAll(b, nil)); err != nil {
		return a, err
	}
	return a, os.WriteFile(mark, []byte(a.SHA256), 0o644)
}

// writeIfChanged leaves an equal file's time alone, so that nothing that
// depends on it is built again.
func writeIfChanged(path string, b []byte) error {
	if was, err := os.ReadFile(path); err == nil && bytes.Equal(was, b) {
		return nil
	}
	tmp := path + ".part"
	if err := os.WriteFile(tmp, b, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
