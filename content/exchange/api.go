package exchange

import (
	"context"
	"errors"
	"io"

	"github.com/beammesh/beammesh/content"
)

// Server answers block requests of peers.
type Server struct{}

// NewServer makes a Server of store.
func NewServer(store content.Blocks, o ServerOptions) *Server { return nil }

// Serve answers requests on s until the peer closes it, it breaks a rule or
// ctx ends; it closes s. A clean end gives nil.
func (s *Server) Serve(ctx context.Context, peer string, rw io.ReadWriteCloser) error {
	return errors.ErrUnsupported
}

// Metrics copies the counters.
func (s *Server) Metrics() Metrics { return Metrics{} }

// Fetcher fetches trees.
type Fetcher struct{}

// NewFetcher makes a Fetcher into store.
func NewFetcher(store content.Blocks, opener content.Opener, o FetcherOptions) *Fetcher { return nil }

// Fetch brings all blocks of root into the store and commits it. Calls for the
// same root join: sources of later calls are added, the work ends when the
// last caller has given up. It returns at once when nothing is missing.
func (f *Fetcher) Fetch(ctx context.Context, root content.Root, sources []string, progress content.Progress) (Result, error) {
	return Result{}, errors.ErrUnsupported
}

// Metrics copies the counters.
func (f *Fetcher) Metrics() Metrics { return Metrics{} }
