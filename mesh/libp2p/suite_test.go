package libp2p

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/mesh/meshtest"
)

// testConfig is a node on loopback with patience for a loaded machine.
func testConfig(t *testing.T, name string) Config {
	t.Helper()
	return Config{DataDir: t.TempDir(), Listen: []string{"127.0.0.1:0"}, Name: name, Version: "1.2.3", NoMDNS: true,
		SilentAfter: 30 * time.Second, RedialWait: 5 * time.Second, Log: slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))}
}

type testLog struct{ t *testing.T }

func (w testLog) Write(b []byte) (int, error) {
	if testing.Verbose() {
		fmt.Print(string(b))
	}
	return len(b), nil
}

// opened is New, closed with the test.
func opened(t *testing.T, cfg Config) *Mesh {
	t.Helper()
	m, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("close %s: %v", cfg.Name, err)
		}
	})
	return m
}

// founded is a started mesh of one.
func founded(t *testing.T, cfg Config, handlers map[string]mesh.Handler) *Mesh {
	t.Helper()
	m := opened(t, cfg)
	if err := m.Found(t.Context()); err != nil {
		t.Fatal(err)
	}
	return started(t, m, handlers)
}

// joined joins at issuer and starts.
func joined(t *testing.T, issuer *Mesh, cfg Config, inv Invitation, handlers map[string]mesh.Handler) *Mesh {
	t.Helper()
	m := opened(t, cfg)
	if err := m.Join(t.Context(), invited(t, issuer, inv)); err != nil {
		t.Fatal(err)
	}
	return started(t, m, handlers)
}

func started(t *testing.T, m *Mesh, handlers map[string]mesh.Handler) *Mesh {
	t.Helper()
	for p, h := range handlers {
		m.Handle(p, h)
	}
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return m
}

func invited(t *testing.T, m *Mesh, inv Invitation) string {
	t.Helper()
	s, err := m.Invite(t.Context(), inv)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func timeout(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), meshtest.Patience)
	t.Cleanup(cancel)
	return ctx
}

func cluster(change func(*Config)) meshtest.Cluster {
	return func(t *testing.T, setups []meshtest.Setup) []mesh.Mesh {
		var out []mesh.Mesh
		var first *Mesh
		for i, s := range setups {
			cfg := testConfig(t, fmt.Sprint("node", i))
			cfg.Hello = s.Hello
			change(&cfg)
			if i == 0 {
				first = founded(t, cfg, s.Handlers)
				out = append(out, first)
				continue
			}
			out = append(out, joined(t, first, cfg, Invitation{}, s.Handlers))
		}
		return out
	}
}

// The whole contract holds with both transports, with UDP only and with TCP only.
func TestSuite(t *testing.T) {
	t.Run("both", func(t *testing.T) { meshtest.TestMesh(t, cluster(func(*Config) {})) })
	t.Run("tcp", func(t *testing.T) { meshtest.TestMesh(t, cluster(func(c *Config) { c.NoQUIC = true })) })
	t.Run("udp", func(t *testing.T) { meshtest.TestMesh(t, cluster(func(c *Config) { c.NoTCP = true })) })
}
