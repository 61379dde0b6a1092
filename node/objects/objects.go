// Package objects takes code archives from clients and makes trees of them.
//
// A client names an archive by its SHA-256, which is only an alias: two archives
// of the same files give the same tree. The alias is kept in the ledger, the
// tree in this node's block store.
package objects

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"regexp"

	"github.com/beammesh/beammesh/content"
	"github.com/beammesh/beammesh/content/tree"
	"github.com/beammesh/beammesh/node/ledger"
	"github.com/beammesh/beammesh/proto/fault"
)

// MaxArchive bounds one upload.
const MaxArchive = 1 << 30

var hashForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Objects is safe for concurrent use.
type Objects struct {
	Blocks content.Blocks
	Ledger ledger.Ledger
	Dir    string // scratch space for uploads
}

// Find gives the tree of an archive, and fault NotFound when it is new here.
func (o *Objects) Find(ctx context.Context, workspace, hash string) (ledger.Object, error) {
	if !hashForm.MatchString(hash) {
		return ledger.Object{}, fault.New(fault.Invalid, "object hash is not the hex SHA-256 of an archive", "")
	}
	obj, _, err := ledger.Get[ledger.Object](ctx, o.Ledger, workspace, hash, 0)
	return obj, err
}

// Put reads an archive of at most MaxArchive bytes, checks its hash and registers
// its tree. It returns after both are durable.
func (o *Objects) Put(ctx context.Context, workspace, hash string, r io.Reader) (ledger.Object, error) {
	if !hashForm.MatchString(hash) {
		return ledger.Object{}, fault.New(fault.Invalid, "object hash is not the hex SHA-256 of an archive", "")
	}
	f, err := os.CreateTemp(o.Dir, "upload-*.zip")
	if err != nil {
		return ledger.Object{}, fmt.Errorf("make upload file: %w", err)
	}
	defer f.Close()
	defer os.Remove(f.Name())
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(r, MaxArchive+1))
	if err != nil {
		return ledger.Object{}, fmt.Errorf("read upload: %w", err)
	}
	if n > MaxArchive {
		return ledger.Object{}, fault.New(fault.TooLarge, fmt.Sprintf("the code archive is above %d GiB", MaxArchive>>30), "list what is not code in .beamignore")
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != hash {
		return ledger.Object{}, fault.New(fault.Invalid, "the uploaded archive does not match its hash", "send it again")
	}
	info, err := tree.ImportZip(ctx, o.Blocks, f, n, tree.ZipLimits{MaxArchive: MaxArchive})
	if err != nil {
		return ledger.Object{}, err
	}
	obj := ledger.Object{Root: info.Root.String(), Size: info.Bytes}
	if _, err := o.Ledger.Propose(ctx, ledger.PutObject{Workspace: workspace, ID: hash, Object: obj}); err != nil {
		return ledger.Object{}, err
	}
	return obj, nil
}
