package dev

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/beammesh/beammesh/proto/fault"
)

// invite asks node 1 for another ticket, as a person would.
func (m *Mesh) invite(ctx context.Context) (string, error) {
	n := m.Nodes[0]
	host, port, err := net.SplitHostPort(n.GRPC)
	if err != nil {
		return "", fault.Wrap(fault.Internal, err, "address of "+n.Name, "")
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, m.Binary, "node", "invite", "--tier", "own")
	cmd.Env = append(cleanEnv(), "GATEWAY_HOST="+host, "GATEWAY_PORT="+port, "BEAM_TOKEN="+n.Token)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		if ctx.Err() != nil {
			return "", fault.From(ctx.Err())
		}
		return "", fault.Wrap(fault.Failed, err, "get a ticket from "+n.Name+": "+strings.TrimSpace(stderr.String()), "see "+n.Log)
	}
	return strings.TrimSpace(string(out)), nil
}

// cleanEnv is our environment without what points clients at some mesh.
func cleanEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool {
		k, _, _ := strings.Cut(kv, "=")
		switch k {
		case "GATEWAY_HOST", "GATEWAY_PORT", "API_HOST", "API_PORT", "BEAM_TOKEN", "BEAM_CONTEXT":
			return true
		}
		return false
	})
}

// startNode starts a node and waits until it is ready.
func (m *Mesh) startNode(ctx context.Context, n *Node, limit time.Duration, verb ...string) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	procs, err := makeCgroup(n.Cgroup)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "make the cgroup of "+n.Name, "'beam node doctor' tests cgroups")
	}
	if err := os.MkdirAll(n.Dir, 0o700); err != nil {
		return fault.Wrap(fault.Internal, err, "make the folder of "+n.Name, "")
	}
	log, err := os.OpenFile(n.Log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "open the log of "+n.Name, "")
	}
	defer func() { _ = log.Close() }()
	ready, readyW, err := os.Pipe()
	if err != nil {
		return fault.Wrap(fault.Internal, err, "make a pipe", "")
	}
	defer func() { _ = ready.Close() }()

	// The shell puts itself into the cgroup and then becomes the node, so that
	// not one process of the node is ever outside.
	args := append([]string{"-c", `while [ "$1" != -- ]; do echo $$ > "$1" || exit 97; shift; done; shift; exec "$@"`, "sh"}, procs...)
	args = append(args, "--", m.Binary, "node")
	args = append(args, verb...)
	args = append(args, n.Args...)
	args = append(args, "--ready-fd", "3")
	cmd := exec.Command("/bin/sh", args...)
	cmd.Dir = "/"
	cmd.Env = append(cleanEnv(), n.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{readyW}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C here is not for it
	err = startIn(n.NetNS, cmd)
	_ = readyW.Close()
	if err != nil {
		return fault.Wrap(fault.Internal, err, "start "+n.Name, "")
	}
	if err := m.locked(func() error { n.PID, n.Start = cmd.Process.Pid, startTime(cmd.Process.Pid); return nil }); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return err
	}
	go func() { _ = cmd.Wait() }() // reaps it, should it end while we live; else init does

	defer context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Unix(1, 0)) })()
	line, err := bufio.NewReaderSize(ready, 64<<10).ReadSlice('\n')
	if err != nil {
		switch {
		case ctx.Err() == nil:
			return m.nodeErr(n, fault.Failed, n.Name+" ended before it was ready")
		case errors.Is(ctx.Err(), context.DeadlineExceeded):
			return m.nodeErr(n, fault.Timeout, fmt.Sprintf("%s was not ready within %s", n.Name, limit))
		}
		return fault.From(ctx.Err())
	}
	return m.noteReady(ctx, n, line)
}

// noteReady takes the line a node wrote and checks that its API answers there.
func (m *Mesh) noteReady(ctx context.Context, n *Node, line []byte) error {
	var r struct {
		ID     string `json:"id"`
		Peer   string `json:"peer"`
		Ticket string `json:"ticket"`
		Token  string `json:"token"`
		GRPC   string `json:"grpc"`
		HTTP   string `json:"http"`
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return m.nodeErr(n, fault.Internal, n.Name+" said something else than that it is ready")
	}
	grpc, http := fmt.Sprint(n.Addr, ":", grpcPort), fmt.Sprint(n.Addr, ":", httpPort)
	if a, err := netip.ParseAddrPort(r.GRPC); err == nil && !a.Addr().IsLoopback() && !a.Addr().IsUnspecified() {
		grpc = r.GRPC
	}
	if a, err := netip.ParseAddrPort(r.HTTP); err == nil && !a.Addr().IsLoopback() && !a.Addr().IsUnspecified() {
		http = r.HTTP
	}
	for _, addr := range []string{grpc, http} {
		c, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", addr)
		if err != nil {
			return fault.Wrap(fault.Unreachable, err, n.Name+" is ready but does not answer at "+addr, "see "+n.Log)
		}
		_ = c.Close()
	}
	return m.locked(func() error {
		n.Started = json.RawMessage(bytes.Clone(bytes.TrimSpace(line)))
		n.GRPC, n.HTTP, n.ID = grpc, http, r.ID
		if n.ID == "" {
			n.ID = r.Peer
		}
		if r.Ticket != "" {
			n.Ticket = r.Ticket
		}
		if r.Token != "" {
			n.Token = r.Token
		}
		return nil
	})
}

// nodeErr is an error with the end of the node's log.
func (m *Mesh) nodeErr(n *Node, code fault.Code, text string) error {
	if tail := logTail(n.Log, 20); tail != "" {
		text += "; its last lines:\n" + tail
	}
	return fault.New(code, text, "'beam node doctor' tests what a node needs")
}

// logTail gives the last lines of a file, from at most 16 KiB of it.
func logTail(path string, lines int) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return ""
	}
	b := make([]byte, min(st.Size(), 16<<10))
	if _, err := f.ReadAt(b, st.Size()-int64(len(b))); err != nil {
		return ""
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(len(all)-lines, 0):], "\n")
}
