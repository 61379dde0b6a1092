package containerd

// The plugins of the embedded containerd: what a task runner needs and nothing
// else. They register themselves process-wide when imported, which is why the
// shim is a separate binary: it would initialise all of them.
import (
	_ "github.com/containerd/containerd/v2/core/runtime/v2"
	_ "github.com/containerd/containerd/v2/plugins/content/local/plugin"
	_ "github.com/containerd/containerd/v2/plugins/events"
	_ "github.com/containerd/containerd/v2/plugins/metadata"
	_ "github.com/containerd/containerd/v2/plugins/mount"
	_ "github.com/containerd/containerd/v2/plugins/server/ttrpc"
	_ "github.com/containerd/containerd/v2/plugins/services/events"
	_ "github.com/containerd/containerd/v2/plugins/services/warning"
	// The metadata plugin wants a snapshotter to look after. Ours is not for
	// it (see layers.go), so it gets the simplest one, which stays empty.
	_ "github.com/containerd/containerd/v2/plugins/snapshots/native/plugin"
)
