package containerd

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"sync"

	"github.com/containerd/containerd/v2/cmd/containerd/server"
	srvconfig "github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/metadata"
	ctrdruntime "github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/containerd/v2/version"
	"github.com/containerd/log"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
)

// ctrdNamespace is containerd's own notion of a namespace; we need just one.
const ctrdNamespace = "beam"

// daemon is the embedded containerd: its task runner and the store of
// container records that the runner consults. Nothing is served but the ttrpc
// socket on which shims report events.
type daemon struct {
	server  *server.Server
	tasks   ctrdruntime.PlatformRuntime
	records containers.Store
}

const doorID = "io.beammesh.v1.door"

var (
	doorOnce sync.Once
	doorMu   sync.Mutex
	doors    = map[string]*daemon{} // by the plugin's state folder, while New runs
)

// registerDoor adds a plugin whose only work is to hand out the services of
// the server that initialises it. The registry is process-wide and its
// InitFn gets no value of ours, hence the table.
func registerDoor() {
	registry.Register(&plugin.Registration{
		Type: "io.beammesh.v1", ID: "door",
		Requires: []plugin.Type{plugins.RuntimePluginV2, plugins.MetadataPlugin},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			doorMu.Lock()
			d := doors[ic.Properties[plugins.PropertyStateDir]]
			doorMu.Unlock()
			if d == nil {
				return nil, plugin.ErrSkipPlugin
			}
			t, err := ic.GetByID(plugins.RuntimePluginV2, "task")
			if err != nil {
				return nil, err
			}
			m, err := ic.GetSingle(plugins.MetadataPlugin)
			if err != nil {
				return nil, err
			}
			d.tasks = t.(ctrdruntime.PlatformRuntime)
			d.records = metadata.NewContainerStore(m.(*metadata.DB))
			return d, nil
		},
	})
	// Both write to the process's standard error otherwise.
	_ = log.SetLevel("error")
	log.L.Logger.SetOutput(io.Discard)
}

// startDaemon starts containerd in this process. Root and state are below
// Config.State: container records do not outlive a restart of the node, so
// syncing them to disk would only cost time.
func startDaemon(ctx context.Context, c *Config) (*daemon, error) {
	doorOnce.Do(registerDoor)
	d := &daemon{}
	state := c.daemonState()
	key := filepath.Join(state, doorID)
	doorMu.Lock()
	doors[key] = d
	doorMu.Unlock()
	defer func() {
		doorMu.Lock()
		delete(doors, key)
		doorMu.Unlock()
	}()
	cfg := &srvconfig.Config{
		Version: version.ConfigVersion,
		Root:    c.daemonRoot(),
		State:   state,
		Plugins: map[string]any{
			"io.containerd.server.v1.grpc":   map[string]any{"address": filepath.Join(c.State, "g")},
			"io.containerd.server.v1.ttrpc":  map[string]any{"address": filepath.Join(c.State, "t")},
			"io.containerd.shim.v1.manager":  map[string]any{"socket_dir": c.shimSockets()},
			"io.containerd.metadata.v1.bolt": map[string]any{"no_sync": true},
		},
		RequiredPlugins: []string{doorID, "io.containerd.server.v1.ttrpc"},
	}
	if err := server.CreateTopLevelDirectories(cfg); err != nil {
		return nil, fmt.Errorf("start containerd: %w", err)
	}
	s, err := server.New(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("start containerd: %w", err)
	}
	if err := s.Start(ctx); err != nil {
		s.Stop()
		return nil, fmt.Errorf("start containerd: %w", err)
	}
	s.Wait()
	d.server = s
	return d, nil
}

func (d *daemon) stop() { d.server.Stop() }
