package assets

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/klauspost/compress/zstd"
)

const tmpPrefix = ".part-"

func extract(src fs.FS, dir string) (Paths, error) {
	m, hash, err := readManifest(src)
	if err != nil {
		return Paths{}, err
	}
	p, err := m.paths(filepath.Join(dir, hash))
	if err != nil {
		return Paths{}, err
	}
	if _, err := os.Stat(p.Root); err == nil {
		return p, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Paths{}, fmt.Errorf("extract assets: %w", err)
	}
	unlock, err := lock(filepath.Join(dir, ".lock"))
	if err != nil {
		return Paths{}, fmt.Errorf("extract assets: %w", err)
	}
	defer unlock()
	if _, err := os.Stat(p.Root); err == nil {
		return p, nil
	}
	if err := sweep(dir); err != nil {
		return Paths{}, fmt.Errorf("extract assets: %w", err)
	}
	tmp, err := os.MkdirTemp(dir, tmpPrefix)
	if err != nil {
		return Paths{}, fmt.Errorf("extract assets: %w", err)
	}
	defer os.RemoveAll(tmp) // nothing is there after the rename
	for _, a := range m.Assets {
		if err := extractOne(src, a, filepath.Join(tmp, a.Name)); err != nil {
			return Paths{}, fmt.Errorf("extract asset %s: %w", a.Name, err)
		}
	}
	// The bundle is read by users who are nobody here.
	if err := os.Chmod(tmp, 0o755); err != nil {
		return Paths{}, fmt.Errorf("extract assets: %w", err)
	}
	if err := errors.Join(syncDir(tmp), os.Rename(tmp, p.Root), syncDir(dir)); err != nil {
		return Paths{}, fmt.Errorf("extract assets: %w", err)
	}
	return p, nil
}

// lock waits for the only right to extract below a folder. A killed holder's
// lock is gone with it.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, &os.PathError{Op: "lock", Path: path, Err: err}
	}
	return func() { f.Close() }, nil
}

// sweep removes what killed extractions left; the lock is held.
func sweep(dir string) error {
	list, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		if strings.HasPrefix(e.Name(), tmpPrefix) {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func extractOne(src fs.FS, a Asset, to string) error {
	f, err := src.Open(a.Name + ".zst")
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return err
	}
	defer z.Close()
	in := &checked{r: io.LimitReader(z, a.Size+1), h: sha256.New()}
	if a.Tar {
		err = untar(in, to)
	} else {
		err = writeFile(to, in, 0o755)
	}
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, in); err != nil { // a tar's padding
		return err
	}
	if got := hex.EncodeToString(in.h.Sum(nil)); got != a.SHA256 {
		return fmt.Errorf("content is %s, want %s", got, a.SHA256)
	}
	return nil
}

// checked hashes what is read through it.
type checked struct {
	r io.Reader
	h hash.Hash
}

func (c *checked) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.h.Write(p[:n])
	return n, err
}

// untar unpacks folders and plain files, which is all that a bundle has.
func untar(r io.Reader, to string) error {
	if err := os.Mkdir(to, 0o755); err != nil {
		return err
	}
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if err == io.EOF {
			return syncDir(to)
		}
		if err != nil {
			return err
		}
		if !filepath.IsLocal(h.Name) {
			return fmt.Errorf("tar entry %q leads out", h.Name)
		}
		at := filepath.Join(to, h.Name)
		switch h.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(at, 0o755)
		case tar.TypeReg:
			if err = os.MkdirAll(filepath.Dir(at), 0o755); err == nil {
				err = writeFile(at, t, 0o644)
			}
		default:
			err = fmt.Errorf("tar entry %q is of type %q", h.Name, h.Typeflag)
		}
		if err != nil {
			return err
		}
	}
}

// writeFile writes a file through to the disk: the folder's name promises
// that it is complete, also after a power cut.
func writeFile(path string, r io.Reader, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if err == nil {
		err = f.Chmod(mode) // whatever the umask is
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
