package containerd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/beammesh/beammesh/runtime"
)

// layerStore keeps unpacked layers as snapshots. A snapshot's name is the hash
// of the chain below it, the layer's root and its prefix, so images that share
// their first layers share the snapshots. The snapshotter is used directly,
// not through containerd's metadata: its garbage collector never sees the
// snapshots, and collect alone decides what goes.
type layerStore struct {
	sn     snapshots.Snapshotter
	dir    string
	writer runtime.LayerWriter
	budget int64
	boot   string
	log    *slog.Logger
	wg     sync.WaitGroup

	mu      sync.Mutex
	pins    map[string]int       // containers and calls that use a snapshot
	used    map[string]time.Time // last use
	lower   map[string][]string  // a chain's folders, topmost first
	flights map[string]*flight
	leaving map[string]chan struct{} // being removed; closed when gone
	serial  int
}

// flight is a snapshot being made, which any number of callers wait for.
type flight struct {
	done    chan struct{}
	err     error
	waiters int
	cancel  context.CancelFunc
}

const (
	labelGC     = "containerd.io/gc.root" // should containerd's collector ever look
	labelBoot   = "beammesh.dev/boot"     // the boot that wrote the layer
	labelSynced = "beammesh.dev/synced"   // its files are on disk
	labelUsed   = "beammesh.dev/used"     // last use, to the hour
	building    = "build-"
)

func openLayers(ctx context.Context, c *Config) (*layerStore, error) {
	sn, err := overlay.NewSnapshotter(c.layers())
	if err != nil {
		return nil, fmt.Errorf("open layers: %w", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("open layers: %w", err)
	}
	s := &layerStore{sn: sn, dir: c.layers(), writer: c.LayerWriter, budget: c.LayerBytes, log: c.Log,
		boot: strings.TrimSpace(string(boot)), pins: map[string]int{}, used: map[string]time.Time{},
		lower: map[string][]string{}, flights: map[string]*flight{}, leaving: map[string]chan struct{}{}}
	if s.budget == 0 {
		var st unix.Statfs_t
		if err := unix.Statfs(c.layers(), &st); err != nil {
			return nil, fmt.Errorf("open layers: %w", err)
		}
		s.budget = int64(st.Blocks) * st.Bsize / 2
	}
	if err := errors.Join(makeSkeleton(filepath.Join(s.dir, skeletonName)), s.clean(ctx)); err != nil {
		sn.Close()
		return nil, fmt.Errorf("open layers: %w", err)
	}
	return s, nil
}

// snapshotDir is where the overlay snapshotter keeps "<number>/fs".
func (s *layerStore) snapshotDir() string { return filepath.Join(s.dir, "snapshots") }

// clean removes what an earlier process left half done, and layers whose files
// a power cut may have taken although the snapshotter's own record is synced.
func (s *layerStore) clean(ctx context.Context) error {
	infos, children, err := s.walk(ctx)
	if err != nil {
		return err
	}
	var remove func(name string) error
	remove = func(name string) error {
		for _, c := range children[name] {
			if err := remove(c); err != nil {
				return err
			}
		}
		delete(infos, name)
		if err := s.sn.Remove(ctx, name); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove layer %s: %w", name, err)
		}
		return nil
	}
	for name, i := range infos {
		lost := i.Labels[labelBoot] != s.boot && i.Labels[labelSynced] == ""
		if i.Kind != snapshots.KindCommitted || lost {
			if err := remove(name); err != nil {
				return err
			}
		}
	}
	for name, i := range infos {
		s.used[name] = i.Updated
		if t, err := time.Parse(time.RFC3339, i.Labels[labelUsed]); err == nil {
			s.used[name] = t
		}
	}
	return s.orphans(ctx)
}

// orphans removes folders that the snapshotter does not know: a process was
// killed after it had made one and before that was recorded.
func (s *layerStore) orphans(ctx context.Context) error {
	c, ok := s.sn.(snapshots.Cleaner)
	if !ok {
		return nil
	}
	err := c.Cleanup(ctx)
	if !errdefs.IsNotFound(err) {
		return err
	}
	// Nothing was ever recorded, and in that state the snapshotter cannot clean.
	l, err := os.ReadDir(s.snapshotDir())
	if err != nil {
		return err
	}
	for _, e := range l {
		if err := os.RemoveAll(filepath.Join(s.snapshotDir(), e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (s *layerStore) walk(ctx context.Context) (map[string]snapshots.Info, map[string][]string, error) {
	infos, children := map[string]snapshots.Info{}, map[string][]string{}
	err := s.sn.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		infos[i.Name] = i
		if i.Parent != "" {
			children[i.Parent] = append(children[i.Parent], i.Name)
		}
		return nil
	})
	if errdefs.IsNotFound(err) {
		err = nil // the first layer is yet to come
	}
	return infos, children, err
}

// chainNames are the snapshots' names of a list of layers, lowest first.
func chainNames(layers []runtime.Layer) []string {
	out := make([]string, len(layers))
	parent := ""
	for i, l := range layers {
		h := sha256.Sum256(fmt.Appendf(nil, "%q %q %q", parent, l.Root, l.Prefix))
		parent = hex.EncodeToString(h[:20])
		out[i] = parent
	}
	return out
}

// ensure makes the chain of layers and pins it. It returns the layers' folders
// below dir, topmost first; release gives the pin back.
func (s *layerStore) ensure(ctx context.Context, layers []runtime.Layer) (lower []string, release func(), err error) {
	if len(layers) == 0 {
		return nil, nil, errors.New("no layers")
	}
	names := chainNames(layers)
	s.pin(names, 1)
	release = sync.OnceFunc(func() { s.pin(names, -1) })
	top := names[len(names)-1]
	s.mu.Lock()
	lower = s.lower[top]
	s.mu.Unlock()
	if lower != nil {
		return lower, release, nil
	}
	parent := ""
	for i, l := range layers {
		if err := s.ensureOne(ctx, parent, names[i], l); err != nil {
			release()
			return nil, nil, err
		}
		parent = names[i]
	}
	lower, err = s.folders(ctx, top)
	if err != nil {
		release()
		return nil, nil, err
	}
	s.mu.Lock()
	s.lower[top] = lower
	s.mu.Unlock()
	return lower, release, nil
}

func (s *layerStore) pin(names []string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for _, c := range names {
		s.used[c] = now
		if s.pins[c] += n; s.pins[c] == 0 {
			delete(s.pins, c)
		}
	}
}

// ensureOne makes one snapshot unless it exists; callers of the same one wait
// for the first. The work goes on until its last caller has left.
func (s *layerStore) ensureOne(ctx context.Context, parent, name string, l runtime.Layer) error {
	s.mu.Lock()
	leaving := s.leaving[name] // chosen before we pinned it
	s.mu.Unlock()
	if leaving != nil {
		<-leaving
	}
	if i, err := s.sn.Stat(ctx, name); err == nil {
		s.noteUse(ctx, i)
		return nil
	} else if !errdefs.IsNotFound(err) {
		return fmt.Errorf("look up layer %s: %w", l.Root, err)
	}
	s.mu.Lock()
	f := s.flights[name]
	if f == nil {
		bctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		f = &flight{done: make(chan struct{}), cancel: cancel}
		s.flights[name] = f
		s.wg.Add(1)
		go func() {
			defer s.wg.Done()
			f.err = s.build(bctx, parent, name, l)
			cancel()
			s.mu.Lock()
			if s.flights[name] == f {
				delete(s.flights, name)
			}
			s.mu.Unlock()
			close(f.done)
		}()
	}
	f.waiters++
	s.mu.Unlock()
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
	}
	s.mu.Lock()
	f.waiters--
	last := f.waiters == 0
	if last && s.flights[name] == f {
		delete(s.flights, name) // who comes now starts afresh
	}
	s.mu.Unlock()
	if last {
		f.cancel()
		<-f.done
	}
	return fmt.Errorf("unpack layer %s: %w", l.Root, ctx.Err())
}

// key names an active snapshot; clean removes those of an earlier process.
func (s *layerStore) key(name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serial++
	return fmt.Sprintf("%s%s-%d", building, name, s.serial)
}

// build writes one snapshot.
func (s *layerStore) build(ctx context.Context, parent, name string, l runtime.Layer) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("unpack layer %s: %w", l.Root, err)
		}
	}()
	if _, err := s.sn.Stat(ctx, name); err == nil {
		return nil // a flight ended between the caller's look and its own flight
	}
	key := s.key(name)
	mounts, err := s.sn.Prepare(ctx, key, parent)
	if err != nil {
		return err
	}
	done := false
	defer func() {
		if !done {
			err = errors.Join(err, s.sn.Remove(context.WithoutCancel(ctx), key))
		}
	}()
	dir, err := os.MkdirTemp(s.dir, "mnt-")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	if err := mount.All(mounts, dir); err != nil {
		return err
	}
	werr := s.write(ctx, l, dir)
	if err := errors.Join(werr, unmount(dir)); err != nil {
		return err
	}
	err = s.sn.Commit(ctx, name, key, snapshots.WithLabels(map[string]string{
		labelGC: time.Now().UTC().Format(time.RFC3339), labelBoot: s.boot}))
	if errdefs.IsAlreadyExists(err) {
		return nil // an abandoned flight got there first
	}
	if err != nil {
		return err
	}
	done = true
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		s.settle(context.WithoutCancel(ctx), name)
	}()
	return nil
}

func (s *layerStore) write(ctx context.Context, l runtime.Layer, dir string) error {
	if l.Prefix != "" {
		if !filepath.IsLocal(l.Prefix) {
			return fmt.Errorf("prefix %q leaves the root filesystem", l.Prefix)
		}
		// The layers below are not trusted: no link of theirs may lead out.
		r, err := os.OpenRoot(dir)
		if err != nil {
			return err
		}
		defer r.Close()
		at := ""
		for part := range strings.SplitSeq(filepath.Clean(l.Prefix), "/") {
			at = filepath.Join(at, part)
			if err := r.Mkdir(at, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
				return err
			}
			if fi, err := r.Lstat(at); err != nil || !fi.IsDir() {
				return fmt.Errorf("prefix %q: %q is not a folder in the layers below", l.Prefix, at)
			}
		}
		dir = filepath.Join(dir, l.Prefix)
	}
	return s.writer.WriteLayer(ctx, l.Root, dir)
}

// settle brings a new layer's files to the disk without anybody waiting, notes
// that, and makes room.
func (s *layerStore) settle(ctx context.Context, name string) {
	d, err := os.Open(s.dir)
	if err == nil {
		err = unix.Syncfs(int(d.Fd()))
		d.Close()
	}
	if err == nil {
		_, err = s.sn.Update(ctx, snapshots.Info{Name: name, Labels: map[string]string{labelSynced: "1"}}, "labels."+labelSynced)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		s.log.Warn("sync layer", "layer", name, "err", err)
	}
	if err := s.collect(ctx); err != nil {
		s.log.Warn("drop unused layers", "err", err)
	}
}

// noteUse writes down the use, at most once an hour.
func (s *layerStore) noteUse(ctx context.Context, i snapshots.Info) {
	if t, err := time.Parse(time.RFC3339, i.Labels[labelUsed]); err == nil && time.Since(t) < time.Hour {
		return
	}
	_, err := s.sn.Update(ctx, snapshots.Info{Name: i.Name, Labels: map[string]string{labelUsed: time.Now().UTC().Format(time.RFC3339)}}, "labels."+labelUsed)
	if err != nil && !errdefs.IsNotFound(err) {
		s.log.Warn("note use of layer", "layer", i.Name, "err", err)
	}
}

// folders finds out where the snapshotter keeps a chain.
func (s *layerStore) folders(ctx context.Context, name string) ([]string, error) {
	key := s.key(name)
	mounts, err := s.sn.View(ctx, key, name)
	if err != nil {
		return nil, fmt.Errorf("find folders of layer %s: %w", name, err)
	}
	defer s.sn.Remove(context.WithoutCancel(ctx), key)
	if len(mounts) != 1 {
		return nil, fmt.Errorf("find folders of layer %s: %d mounts", name, len(mounts))
	}
	paths := []string{mounts[0].Source} // one layer is a bind mount
	if mounts[0].Type == "overlay" {
		for _, o := range mounts[0].Options {
			if l, ok := strings.CutPrefix(o, "lowerdir="); ok {
				paths = strings.Split(l, ":")
			}
		}
	}
	for i, p := range paths {
		if paths[i], err = filepath.Rel(s.dir, p); err != nil || !filepath.IsLocal(paths[i]) {
			return nil, fmt.Errorf("find folders of layer %s: unexpected path %s", name, p)
		}
	}
	return paths, nil
}

// close waits for work under way.
func (s *layerStore) close() error {
	s.mu.Lock()
	for _, f := range s.flights {
		f.cancel()
	}
	s.mu.Unlock()
	s.wg.Wait()
	return s.sn.Close()
}
