package ledger

import (
	"context"
	"time"

	"github.com/beammesh/beammesh/proto/fault"
)

// Get reads one record of type T. See Reader.Get for maxAge.
func Get[T Body](ctx context.Context, r Reader, workspace, id string, maxAge time.Duration) (T, Answer, error) {
	var zero T
	ans, err := r.Get(ctx, Key{zero.Kind(), workspace, id}, maxAge)
	if err != nil {
		return zero, Answer{}, err
	}
	t, ok := ans.Body.(T)
	if !ok {
		return zero, Answer{}, fault.Newf(fault.Internal, "record %s holds a %T", id, ans.Body)
	}
	return t, ans, nil
}

// Each calls fn for every record of type T of a workspace, page by page, until
// it returns false. It gives the revision of the first page, from which a
// Watch misses nothing.
func Each[T Body](ctx context.Context, r Reader, workspace string, fn func(T, Record) bool) (uint64, error) {
	var zero T
	q := Query{Kind: zero.Kind(), Workspace: workspace}
	var rev uint64
	for first := true; ; first = false {
		p, err := r.List(ctx, q)
		if err != nil {
			return 0, err
		}
		if first {
			rev = p.Revision
		}
		for _, rec := range p.Records {
			t, ok := rec.Body.(T)
			if !ok {
				return 0, fault.Newf(fault.Internal, "record %s holds a %T", rec.ID, rec.Body)
			}
			if !fn(t, rec) {
				return rev, nil
			}
		}
		if p.Next == "" {
			return rev, nil
		}
		q.After = p.Next
	}
}

// FindImage looks for an image in the workspace, then in MeshScope. Equal ids
// mean equal images, so when the voter cannot say whether the workspace has its
// own, a known one of the mesh is as good.
func FindImage(ctx context.Context, r Reader, workspace, id string, maxAge time.Duration) (Image, Answer, error) {
	img, ans, err := Get[Image](ctx, r, workspace, id, maxAge)
	code := fault.CodeOf(err)
	if code != fault.NotFound && code != fault.Unreachable {
		return img, ans, err
	}
	shared, sans, serr := Get[Image](ctx, r, MeshScope, id, maxAge)
	if serr == nil {
		return shared, sans, nil
	}
	if code == fault.Unreachable || fault.CodeOf(serr) == fault.NotFound {
		return img, ans, err
	}
	return shared, sans, serr
}
