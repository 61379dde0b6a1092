package e2e

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/beammesh/beammesh/cli/dev"
)

// A copied data folder makes no second node: the mesh refuses it and it says why.
func TestCopiedIdentityIsRefused(t *testing.T) {
	m := sharedMesh(t)
	original := m.dev.Nodes[2]
	data := t.TempDir()
	for _, part := range []string{"mesh", "tokens"} { // cp keeps the modes, which keys insist on
		if out, err := exec.Command("cp", "-a", filepath.Join(original.Dir, part), filepath.Join(data, part)).CombinedOutput(); err != nil {
			t.Fatalf("cp: %v: %s", err, out)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	grpc := l.Addr().String()
	l.Close()
	home := t.TempDir()
	env := append(os.Environ(), "HOME="+home, "NO_COLOR=1")
	host := m.dev.Subnet.Masked().Addr().Next().String()
	p := m.start("/", env, binary(), "node", "up", "--data", data, "--name", "copy", "--listen", host+":0", "--grpc", grpc, "--http", "127.0.0.1:0", "--no-mdns")
	defer func() { // in order, or its containers' network stays
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		p.wait()
	}()
	// It can make no token of its own, but one of the mesh is good offline.
	_, port, err := net.SplitHostPort(grpc)
	if err != nil {
		t.Fatal(err)
	}
	env = append(env, "GATEWAY_HOST=127.0.0.1", "GATEWAY_PORT="+port, "BEAM_TOKEN="+original.Token)
	const says = "this identity already runs at"
	eventually(t, patience, func() string {
		out, errs, code := m.exec(home, env, binary(), "node", "status")
		if code == 0 && strings.Contains(out, says) && strings.Contains(out, "stop one of the two") {
			return ""
		}
		return fmt.Sprintf("its status does not say that it was refused: exit %d\n%s%s", code, out, errs)
	})
	if text := p.err.String(); !strings.Contains(text, says) {
		t.Errorf("its log does not say why:\n%s", lastLines(text, 20))
	}
	if out, errs, code := m.exec(home, env, binary(), "node", "ls"); code != 0 || !strings.Contains(out, "unreachable") || strings.Contains(out, "direct") {
		t.Errorf("what the copy sees of the mesh: exit %d\n%s%s", code, out, errs)
	}
	for i := 1; i <= 3; i++ {
		m.node(i, "node3", "ready")
	}
	if got := m.mustPython(3, square); !strings.Contains(got, "144") {
		t.Errorf("node3 after its copy came: %s", got)
	}
}

// A node that leaves is not missed: the others do not list it, its own command
// line does not keep a token for it.
func TestLeave(t *testing.T) {
	m := ownMesh(t, dev.Options{Nodes: 3})
	home := t.TempDir()
	host, port, err := net.SplitHostPort(m.dev.Nodes[2].GRPC)
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(home, ".beam", "config.ini")
	if err := os.Mkdir(filepath.Dir(config), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Dir(config), "config.ini", fmt.Sprintf("[default]\ntoken = %s\ngateway_host = %s\ngateway_port = %s\n\n[lab]\ntoken = %s\ngateway_host = lab\ngateway_port = 1993\n",
		m.dev.Nodes[2].Token, host, port, strings.Repeat("x", 64)))
	out, errs, code := m.exec(home, []string{"HOME=" + home, "PATH=" + os.Getenv("PATH"), "NO_COLOR=1"}, binary(), "node", "leave", "--yes")
	if code != 0 || !strings.Contains(errs, "left the mesh") {
		t.Fatalf("leave: exit %d\n%s%s", code, out, errs)
	}
	for i := 1; i <= 2; i++ {
		eventually(t, patience, func() string {
			var all []nodeJSON
			m.beamJSON(i, &all, "node", "ls")
			for _, n := range all {
				if n.Name == "node3" {
					return fmt.Sprintf("node%d still lists it as %s", i, n.State)
				}
			}
			return ""
		})
	}
	if b, err := os.ReadFile(config); err != nil || bytes.Contains(b, []byte(m.dev.Nodes[2].Token)) || !bytes.Contains(b, []byte("[lab]")) {
		t.Errorf("the configuration after leaving: %v\n%s", err, b)
	}
	eventually(t, patience, func() string {
		if m.dev.Nodes[2].Alive() {
			return "the process of a node that left does not end"
		}
		return ""
	})
	if got := m.mustPython(2, square); !strings.Contains(got, "144") {
		t.Errorf("the mesh without it: %s", got)
	}
	// Those that stay do not learn of it again from one another.
	m.restart(2)
	for i := 1; i <= 2; i++ {
		var all []nodeJSON
		m.beamJSON(i, &all, "node", "ls")
		if len(all) != 2 {
			t.Errorf("node%d lists %+v", i, all)
		}
	}
}
