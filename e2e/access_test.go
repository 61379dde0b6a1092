package e2e

import (
	"bytes"
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/beammesh/beammesh/cli/dev"
)

// with is env with variables replaced.
func with(env []string, kvs ...string) []string {
	out := append([]string(nil), env...)
	return append(out, kvs...) // the last one counts
}

const known = `
import os, sys
from beam import function

@function(cpu=0.2, memory=128, name="known")
def known(x):
    return x + 1

if __name__ == "__main__":
    print(known.remote(1))
`

// The founder keeps the ledger, but what is known works without it: tokens are
// checked by signature, and code and image lie on other nodes.
func TestFounderMayBeDown(t *testing.T) {
	m := ownMesh(t, dev.Options{Nodes: 3})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var made, doomed struct{ ID, Token string }
	m.beamJSON(1, &made, "token", "create")
	m.beamJSON(1, &doomed, "token", "create")

	// The program is the same file each time, as a user's would be.
	dir := t.TempDir()
	write(t, dir, "app.py", known)
	run := func(i int, env ...string) (string, string, int) {
		return m.exec(dir, with(m.env(i), env...), python(), "app.py")
	}
	// One run at each node, so that its clients' registrations are known there;
	// nodes 2 and 3 also get the image and code.
	for i := 1; i <= 3; i++ {
		if out, errs, code := run(i); code != 0 || strings.TrimSpace(out) != "2" {
			t.Fatalf("from node%d: exit %d\n%s%s", i, code, out, errs)
		}
	}
	if _, errs, code := m.beam(1, "node", "drain"); code != 0 { // so others run it
		t.Fatal(errs)
	}
	for i := 2; i <= 3; i++ {
		if out, errs, code := run(i); code != 0 || strings.TrimSpace(out) != "2" {
			t.Fatalf("from node%d with node1 drained: exit %d\n%s%s", i, code, out, errs)
		}
	}
	// A revocation reaches every node, and needs nobody once it is there.
	if _, errs, code := m.exec(dir, with(m.env(3), "BEAM_TOKEN="+doomed.Token), binary(), "node", "ls"); code != 0 {
		t.Fatalf("the token before it is revoked: %s", errs)
	}
	if _, errs, code := m.beam(1, "token", "delete", "--yes", doomed.ID); code != 0 {
		t.Fatalf("token delete: exit %d: %s", code, errs)
	}
	for i := 1; i <= 3; i++ {
		m.refuses(i, doomed.Token, "revoked")
	}

	if err := dev.Kill(ctx, m.root, 1); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if out, errs, code := run(3, "BEAM_TOKEN="+made.Token); code != 0 || strings.TrimSpace(out) != "2" {
		t.Errorf("a token of node1 at node3, node1 down: exit %d after %s\n%s%s", code, time.Since(began), out, errs)
	}
	t.Logf("node3 with a token of node1, which is down: %s", time.Since(began))
	began = time.Now()
	if out, errs, code := run(2); code != 0 || strings.TrimSpace(out) != "2" {
		t.Errorf("from node2, the founder down: exit %d\n%s%s", code, out, errs)
	}
	t.Logf("node2 with the founder down: %s", time.Since(began))
	m.refuses(2, doomed.Token, "revoked")
	// What is new needs the founder.
	began = time.Now()
	_, errs, code := m.python(2, strings.ReplaceAll(known, "known", "fresh"))
	if code != 1 || !strings.Contains(errs, "UnreachableError") || !strings.Contains(errs, "hint: ") {
		t.Errorf("a new function with the founder down: exit %d after %s\n%s", code, time.Since(began), errs)
	}
	t.Logf("a new function was refused after %s: %s", time.Since(began), lastLines(errs, 2))
	found := false
	for _, tr := range m.status(2).Troubles {
		found = found || tr.Code == "founder_unreachable" && tr.Hint != ""
	}
	if !found {
		t.Errorf("node status says nothing of the founder: %+v", m.status(2))
	}
	began = time.Now()
	// It comes back: what was refused works.
	if err := dev.Start(ctx, m.root, 1); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, func() string {
		out, errs, code := m.python(2, strings.ReplaceAll(known, "known", "fresh"))
		if code != 0 || strings.TrimSpace(out) != "2" {
			return "after the founder is back: " + out + errs
		}
		return ""
	})
	t.Logf("a new function worked %s after the founder was started", time.Since(began))
}

// refuses waits until node i does not take a token (gossip takes a moment).
func (m *mesh) refuses(i int, token, says string) {
	m.t.Helper()
	eventually(m.t, patience, func() string {
		_, errs, code := m.exec(m.t.TempDir(), with(m.env(i), "BEAM_TOKEN="+token), binary(), "task", "list")
		if code != 4 || !strings.Contains(errs, says) || !strings.Contains(errs, "hint: ") {
			return "the token is not refused: " + errs
		}
		return ""
	})
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func TestTokensAreNeededEverywhere(t *testing.T) {
	m := sharedMesh(t)
	env := m.env(1)
	for token, says := range map[string]string{
		"":              "no API token",
		"garbage":       "token is malformed or altered",
		"v4.public.AAA": "token is malformed or altered",
	} {
		// Both the command line and the SDK say so, with what to do.
		for _, args := range [][]string{{binary(), "task", "list"}, {python(), "-c", "from beam import Image; Image().build()"}} {
			_, errs, code := m.exec(t.TempDir(), with(env, "BEAM_TOKEN="+token), args[0], args[1:]...)
			cli := args[0] == binary()
			if token == "" {
				says = "token"
			}
			if cli && code != 4 || code == 0 || !strings.Contains(errs, says) || !strings.Contains(errs, "hint: ") {
				t.Errorf("token %q, %v: exit %d: %s", token, args[1:], code, errs)
			}
			if !cli && !strings.Contains(errs, "AuthError") {
				t.Errorf("token %q in the SDK: %s", token, errs)
			}
		}
	}
	// The loopback address is no way around.
	for _, path := range []string{"beammesh.v1.NodeService/ListNodes", "gateway.GatewayService/ListTasks", "beammesh.v1.NodeService/Invite"} {
		resp, err := http.Post("http://"+m.dev.GRPC+"/"+path, "application/json", bytes.NewReader([]byte("{}")))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s without a token at %s: %s", path, m.dev.GRPC, resp.Status)
		}
	}
	// A token with fewer rights has just those.
	var weak struct{ Token string }
	m.beamJSON(1, &weak, "token", "create", "--scope", "read")
	if _, errs, code := m.exec(t.TempDir(), with(env, "BEAM_TOKEN="+weak.Token), binary(), "task", "list"); code != 0 {
		t.Errorf("reading with a token for reading: %s", errs)
	}
	if _, errs, code := m.exec(t.TempDir(), with(env, "BEAM_TOKEN="+weak.Token), binary(), "token", "create"); code != 4 || !strings.Contains(errs, "hint: ") {
		t.Errorf("making tokens with one for reading: exit %d: %s", code, errs)
	}
}
