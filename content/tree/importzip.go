package tree

import (
	"archive/zip"
	"compress/flate"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/beammesh/beammesh/content"
	"github.com/beammesh/beammesh/proto/fault"
)

// ZipLimits bounds an archive. Zero fields take the defaults.
type ZipLimits struct {
	MaxArchive int64 // bytes of the archive; default 1 GiB
	MaxBytes   int64 // bytes unpacked; default 4 GiB
	MaxFile    int64 // bytes of one file; default 2 GiB
	MaxEntries int   // default 100,000
	MaxRatio   int64 // unpacked/packed above the first 64 MiB; default 200
}

func (l *ZipLimits) defaults() {
	set := func(v *int64, d int64) {
		if *v <= 0 {
			*v = d
		}
	}
	set(&l.MaxArchive, 1<<30)
	set(&l.MaxBytes, 4<<30)
	set(&l.MaxFile, 2<<30)
	set(&l.MaxRatio, 200)
	if l.MaxEntries <= 0 {
		l.MaxEntries = 100_000
	}
}

// ratioFree is what any archive may unpack to, however small it is.
const ratioFree = 64 << 20

// ImportZip puts a code archive into store as a content-only tree (see
// ImportOptions.ContentOnly) and commits its root. Absolute names, "..", links
// out of the tree, duplicates and archives above the limits are refused with
// a *fault.Error that wraps content.ErrUnsafe, ErrLimit or ErrMalformed.
func ImportZip(ctx context.Context, store content.Blocks, r io.ReaderAt, size int64, limits ZipLimits) (Info, error) {
	limits.defaults()
	if size > limits.MaxArchive {
		return Info{}, tooLarge("code archive has %d bytes, the limit is %d", size, limits.MaxArchive)
	}
	budget := &budgetReader{r: r}
	budget.left.Store(1<<20 + int64(limits.MaxEntries)*directoryEntry)
	z, err := zip.NewReader(budget, size)
	if err != nil && budget.left.Load() < 0 {
		return Info{}, tooLarge("code archive has far more than %d entries", limits.MaxEntries)
	}
	if err != nil {
		return Info{}, damaged(err)
	}
	budget.left.Store(1<<63 - 1) // the contents have limits of their own
	if len(z.File) > limits.MaxEntries {
		return Info{}, tooLarge("code archive has %d entries, the limit is %d", len(z.File), limits.MaxEntries)
	}
	maxBytes := min(limits.MaxBytes, max(ratioFree, size*limits.MaxRatio))
	w := &zipWalk{limits: limits, maxBytes: maxBytes, paths: map[string]*Entry{}}
	w.b = &builder{store: store, maxBytes: maxBytes}
	w.add(&Entry{Kind: Dir, Mode: 0o755})
	for _, f := range z.File {
		if err := w.file(f); err != nil {
			return Info{}, err
		}
	}
	if err := w.checkLinks(); err != nil {
		return Info{}, err
	}
	slices.SortFunc(w.b.entries, func(a, b *Entry) int { return comparePaths(a.Path, b.Path) })
	info, err := w.b.build(ctx, 0)
	return info, zipError(err)
}

// directoryEntry is the mean length of an entry in the archive's directory that
// is allowed for: 46 bytes, a long name and some attributes.
const directoryEntry = 256

// budgetReader bounds what zip reads into memory before it tells the number of
// entries (the number in the archive's header may be a lie).
type budgetReader struct {
	r    io.ReaderAt
	left atomic.Int64
}

func (b *budgetReader) ReadAt(p []byte, off int64) (int, error) {
	if b.left.Add(-int64(len(p))) < 0 {
		return 0, content.ErrLimit
	}
	return b.r.ReadAt(p, off)
}

type zipWalk struct {
	limits   ZipLimits
	maxBytes int64
	b        *builder
	paths    map[string]*Entry
	declared int64
}

func (w *zipWalk) add(e *Entry) {
	w.paths[e.Path] = e
	w.b.entries = append(w.b.entries, e)
}

func (w *zipWalk) file(f *zip.File) error {
	path := strings.TrimPrefix(f.Name, "./")
	mode := f.Mode()
	if mode.IsDir() {
		path = strings.TrimSuffix(path, "/")
		if path == "" || path == "." {
			return nil
		}
	}
	if err := CheckPath(path); err != nil {
		return unsafe(err, "code archive holds %.200q, which is not a path inside of it", f.Name)
	}
	if f.Flags&1 != 0 {
		return fault.Newf(fault.Unsupported, "code archive is encrypted (%.200q)", f.Name)
	}
	if err := w.parents(path); err != nil {
		return err
	}
	e := &Entry{Path: path, Mode: contentMode(File, uint32(mode.Perm()))}
	switch kind := mode.Type(); {
	case kind.IsDir():
		e.Kind, e.Mode = Dir, 0o755
	case kind == fs.ModeSymlink:
		target, err := w.linkText(f)
		if err != nil {
			return err
		}
		e.Kind, e.Mode, e.Target = Symlink, 0o777, target
	case kind == 0:
		e.Kind = File
	default:
		return unsafe(content.ErrUnsafe, "code archive holds %.200q, which is neither file, folder nor link", f.Name)
	}
	if old, ok := w.paths[path]; ok {
		if old.Kind == Dir && e.Kind == Dir {
			return nil
		}
		return unsafe(content.ErrUnsafe, "code archive holds %.200q twice", f.Name)
	}
	w.add(e)
	if e.Kind != File {
		return nil
	}
	size := int64(min(f.UncompressedSize64, 1<<62))
	if size > w.limits.MaxFile {
		return tooLarge("%.200q in the code archive has %d bytes, the limit is %d", f.Name, size, w.limits.MaxFile)
	}
	if w.declared += size; w.declared > w.maxBytes {
		return tooLarge("code archive unpacks to more than %d bytes", w.maxBytes)
	}
	w.b.addFile(e, size, f.Open)
	return nil
}

// parents adds the folders above path that the archive does not name.
func (w *zipWalk) parents(path string) error {
	for i := range len(path) {
		if path[i] != '/' {
			continue
		}
		switch e, ok := w.paths[path[:i]]; {
		case !ok:
			w.add(&Entry{Path: path[:i], Kind: Dir, Mode: 0o755})
		case e.Kind == Symlink:
			return unsafe(content.ErrUnsafe, "code archive holds %.200q below the link %.200q", path, e.Path)
		case e.Kind != Dir:
			return unsafe(content.ErrUnsafe, "code archive holds %.200q below the file %.200q", path, e.Path)
		}
		// Every folder counts, named or not: a deep path makes many.
		if len(w.b.entries) > 2*w.limits.MaxEntries {
			return tooLarge("code archive has more than %d folders and files", 2*w.limits.MaxEntries)
		}
	}
	return nil
}

func (w *zipWalk) linkText(f *zip.File) (string, error) {
	r, err := f.Open()
	if err != nil {
		return "", zipError(err)
	}
	defer r.Close()
	text, err := io.ReadAll(io.LimitReader(r, MaxPath+1))
	if err != nil {
		return "", zipError(err)
	}
	if len(text) == 0 || len(text) > MaxPath || slices.Contains(text, 0) {
		return "", unsafe(content.ErrUnsafe, "link %.200q in the code archive has no usable target", f.Name)
	}
	return string(text), nil
}

// checkLinks refuses links that lead out of the tree, by whatever detour over
// other links.
func (w *zipWalk) checkLinks() error {
	for _, e := range w.b.entries {
		if e.Kind == Symlink && !w.staysInside(e) {
			return unsafe(content.ErrUnsafe, "link %.200q in the code archive leads to %.200q, outside of it", e.Path, e.Target)
		}
	}
	return nil
}

// maxHops is the kernel's own bound for links in one path.
const maxHops = 40

func (w *zipWalk) staysInside(link *Entry) bool {
	at, _ := splitPath(link.Path)
	todo := []string{link.Target}
	for hops := 0; len(todo) > 0; {
		text := todo[len(todo)-1]
		if strings.HasPrefix(text, "/") {
			return false
		}
		name, rest, _ := strings.Cut(text, "/")
		todo = todo[:len(todo)-1]
		if rest = strings.TrimLeft(rest, "/"); rest != "" {
			todo = append(todo, rest)
		}
		switch name {
		case "", ".":
			continue
		case "..":
			if at == "" {
				return false
			}
			at, _ = splitPath(at)
			continue
		}
		next := name
		if at != "" {
			next = at + "/" + name
		}
		e := w.paths[next]
		if e == nil || e.Kind != Symlink {
			at = next
			continue
		}
		if hops++; hops > maxHops {
			return false
		}
		todo = append(todo, e.Target)
	}
	return true
}

func unsafe(err error, format string, args ...any) error {
	return fault.Wrap(fault.Invalid, err, fmt.Sprintf(format, args...),
		"zip the project folder itself, with plain files and links inside of it only")
}

func tooLarge(format string, args ...any) error {
	return fault.Wrap(fault.TooLarge, content.ErrLimit, fmt.Sprintf(format, args...),
		"leave data out with a .beamignore file and use a volume for it")
}

func damaged(err error) error {
	return fault.Wrap(fault.Invalid, fmt.Errorf("%w: %w", content.ErrMalformed, err),
		"code archive is not a readable zip file", "send it again; if it stays so, zip the project folder anew")
}

// zipError makes what reading an archive can give a fault; our own pass.
func zipError(err error) error {
	var f *fault.Error
	var corrupt flate.CorruptInputError
	switch {
	case err == nil, errors.As(err, &f):
		return err
	case errors.Is(err, content.ErrLimit):
		return fault.Wrap(fault.TooLarge, err, "code archive unpacks to more than it may",
			"leave data out with a .beamignore file and use a volume for it")
	case errors.Is(err, content.ErrDiskFull):
		return fault.Wrap(fault.DiskFull, err, "the node has no room for the code", "free disk space on it or use another node")
	case errors.Is(err, zip.ErrFormat), errors.Is(err, zip.ErrAlgorithm), errors.Is(err, zip.ErrChecksum),
		errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &corrupt):
		return damaged(err)
	}
	return err
}
