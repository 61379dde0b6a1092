package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/node/service/image"
	"github.com/beammesh/beammesh/proto/fault"
)

// protoBuild has a worker build an image for a node that runs no containers:
// one JSON awayRequest, then awayReply lines, the last with Done.
const protoBuild = "build/1"

const (
	awayBytes     = 1 << 20 // of a request: a spec is at most 64 KiB of steps, and its env
	awayKeepalive = 10 * time.Second
	// awaySilence without a line or keepalive ends the wait for a worker.
	awaySilence = 30 * time.Second
)

type awayRequest struct {
	Workspace string     `json:"workspace"`
	Spec      image.Spec `json:"spec"`
	Force     bool       `json:"force,omitempty"`
}

type awayReply struct {
	Line    string     `json:"line,omitempty"`
	Done    bool       `json:"done,omitempty"`
	Code    fault.Code `json:"code,omitempty"`
	Message string     `json:"message,omitempty"`
	Hint    string     `json:"hint,omitempty"`
}

// awayTries is how many workers are asked in turn: one that stops answering
// says nothing against the others.
const awayTries = 3

// away builds an image on the nearest worker, or on the next when that is lost.
func (i *images) away(ctx context.Context, workspace string, s image.Spec, say func(string)) error {
	workers := i.n.workersByDistance()
	if len(workers) == 0 {
		return fault.New(fault.NoCapacity, "no worker is connected that could build the image", "start a node as root: sudo beam node up")
	}
	return buildAway(ctx, i.n.dialer, workers, awayRequest{Workspace: workspace, Spec: s, Force: s.Force}, say)
}

// buildAway asks workers in turn until one has an answer, good or bad.
func buildAway(ctx context.Context, dialer mesh.Dialer, workers []mesh.Member, req awayRequest, say func(string)) error {
	say("this node runs no containers: " + workers[0].Name + " builds the image")
	for k, w := range workers {
		answered, err := buildAt(ctx, dialer, w, req, say)
		if answered || ctx.Err() != nil || k+1 == min(len(workers), awayTries) {
			return err
		}
		say(fault.From(err).Message + ": " + workers[k+1].Name + " builds it")
	}
	return nil // workers has one at least
}

// buildAt asks one worker; answered tells its own word from its loss.
func buildAt(ctx context.Context, dialer mesh.Dialer, at mesh.Member, req awayRequest, say func(string)) (answered bool, err error) {
	stream, err := dialer.Open(ctx, at.ID, protoBuild)
	if err != nil {
		return false, fault.Wrap(fault.Unreachable, err, at.Name+" cannot be reached to build the image", "try again")
	}
	defer stream.Close()
	stop := context.AfterFunc(ctx, func() { _ = stream.Reset() })
	defer stop()
	if err := json.NewEncoder(stream).Encode(req); err != nil {
		return false, fault.Wrap(fault.Unreachable, err, at.Name+" cannot be reached to build the image", "try again")
	}
	dec := json.NewDecoder(stream)
	for {
		_ = stream.SetReadDeadline(time.Now().Add(awaySilence))
		var r awayReply
		if err := dec.Decode(&r); err != nil {
			if ctx.Err() != nil {
				return false, ctx.Err()
			}
			return false, fault.Wrap(fault.Unreachable, err, at.Name+" stopped answering during the build", "try again: finished steps are kept")
		}
		switch {
		case r.Done && r.Code != "":
			return true, fault.New(r.Code, r.Message, r.Hint)
		case r.Done:
			return true, nil
		case r.Line != "":
			say(r.Line)
		}
	}
}

// workersByDistance are the connected workers, the shortest round trip first.
func (n *Node) workersByDistance() []mesh.Member {
	var workers []mesh.Member
	for _, m := range n.mesh.Members() {
		if ad, ok := n.adverts.of(m.ID); ok && m.Connected && m.ID != n.mesh.PeerID() && ad.Capacity.Total.CPUMillis > 0 && !ad.Capacity.Draining {
			workers = append(workers, m)
		}
	}
	slices.SortStableFunc(workers, func(a, b mesh.Member) int { return cmp.Compare(a.RTT, b.RTT) })
	return workers
}

// serveBuild is the mesh handler of protoBuild.
func (n *Node) serveBuild(ctx context.Context, s mesh.Stream) {
	defer s.Close()
	_ = s.SetReadDeadline(time.Now().Add(delegateLimit))
	var req awayRequest
	err := json.NewDecoder(io.LimitReader(s, awayBytes)).Decode(&req)
	if err == nil {
		err = req.Spec.Check()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lines := make(chan awayReply, 64)
	send := func(r awayReply) {
		select {
		case lines <- r:
		case <-ctx.Done():
		}
	}
	go func() {
		defer close(lines)
		end := awayReply{Done: true}
		if err == nil && n.builder == nil {
			err = errors.New("this node runs no containers either")
		}
		if err == nil {
			req.Spec.Force = req.Force
			_, err = n.images.Build(ctx, req.Workspace, req.Spec, func(l string) { send(awayReply{Line: l}) })
		}
		if err != nil {
			f := fault.From(err)
			end.Code, end.Message, end.Hint = f.Code, f.Message, f.Hint
		}
		send(end)
	}()
	go func() { // the asker hangs up: nobody listens to this build any more
		_ = s.SetReadDeadline(time.Time{})
		_, _ = io.Copy(io.Discard, s)
		cancel()
	}()
	enc := json.NewEncoder(s)
	alive := time.NewTicker(awayKeepalive)
	defer alive.Stop()
	for {
		r, ok := awayReply{}, true
		select {
		case r, ok = <-lines:
		case <-alive.C:
		}
		if !ok {
			return
		}
		if err := enc.Encode(r); err != nil {
			n.log.Debug("build for another node", "peer", s.Peer(), "err", fmt.Errorf("send: %w", err))
			return
		}
		if r.Done {
			return
		}
	}
}
