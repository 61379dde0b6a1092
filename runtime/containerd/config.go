package containerd

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/beammesh/beammesh/runtime"
	"github.com/beammesh/beammesh/runtime/gpu"
)

// Config is what New needs. Root, State, ShimPath, RuncPath, InitPath and
// LayerWriter are required; the rest has the defaults named here.
type Config struct {
	// Root keeps unpacked layers and writable disks, on a filesystem that
	// can be a layer and be idmapped: ext4, xfs, btrfs.
	Root string
	// State is a short path (<= 38 bytes: unix socket addresses have 108) for
	// what does not outlive a reboot, such as /run/beam/1a2b3c4d.
	State string

	ShimPath string // containerd-shim-runc-v2 of the same containerd version
	RuncPath string // runc >= 1.2
	InitPath string // static init that becomes PID 1 of every container

	LayerWriter runtime.LayerWriter

	// Name tells this node's devices, tables and cgroups from those of other
	// nodes on the machine: [a-z0-9]{1,10}. Default: "bm" and a hash of Root.
	Name string
	// CgroupParent is the cgroup above all containers. Default: "/" + Name.
	CgroupParent string

	// Subnets are the ranges from which a free one is taken for the bridge.
	// Default: private ranges that home routers rarely use.
	Subnets []netip.Prefix
	// Upstream are the DNS servers ("10.0.0.53:53") behind the node's
	// forwarder. Default: what /etc/resolv.conf says, re-read when it changes.
	Upstream []string
	// Reach lists private prefixes that the owner lets containers reach
	// although they are private. The node's own addresses never are.
	Reach []netip.Prefix

	// FirstID is the first of the host's user and group ids given to
	// containers, 65536 for each. Default: chosen by Name above 2^30.
	FirstID uint32
	// Slots bounds the containers at one time. Default 512.
	Slots int
	// Spare is how many namespace pairs wait ready-made. Default 4.
	Spare int

	// LayerBytes is the size at which unused layers are dropped, least
	// recently used first. Default: half of the disk below Root.
	LayerBytes int64

	// DeviceEdits turns device ids into what a container needs to use them: the
	// method Edits of a gpu.Inventory. Without it a Spec with GPUs is refused.
	DeviceEdits func(ctx context.Context, ids []string) (gpu.Edits, error)

	Log *slog.Logger // default: discard
}

const (
	idsPerContainer = 1 << 16
	maxStateLen     = 38 // containerd allows 42 for the shims' folder, ours is State + "/s"
	maxSlots        = 4000
	subnetBits      = 20 // room for maxSlots containers
)

// withDefaults returns a validated copy.
func (c Config) withDefaults() (Config, error) {
	for name, path := range map[string]string{"ShimPath": c.ShimPath, "RuncPath": c.RuncPath, "InitPath": c.InitPath} {
		if !filepath.IsAbs(path) {
			return c, fmt.Errorf("containerd config: %s %q is not an absolute path", name, path)
		}
	}
	if len(c.State) > maxStateLen {
		return c, fmt.Errorf("containerd config: State %q is longer than %d bytes", c.State, maxStateLen)
	}
	if c.LayerWriter == nil {
		return c, errors.New("containerd config: no LayerWriter")
	}
	if err := c.nameDefaults(); err != nil {
		return c, err
	}
	if len(c.Subnets) == 0 {
		c.Subnets = []netip.Prefix{
			netip.MustParsePrefix("10.213.0.0/16"),
			netip.MustParsePrefix("172.29.0.0/16"),
			netip.MustParsePrefix("10.87.0.0/16"),
			netip.MustParsePrefix("192.168.224.0/19"),
		}
	}
	if c.Slots == 0 {
		c.Slots = 512
	}
	if c.Slots < 1 || c.Slots > maxSlots {
		return c, fmt.Errorf("containerd config: Slots %d is not within 1..%d", c.Slots, maxSlots)
	}
	if c.Spare == 0 {
		c.Spare = 4
	}
	c.Spare = min(c.Spare, c.Slots)
	if c.FirstID == 0 {
		// Three ranges of 2^28 ids, far above what useradd and subuid give out.
		c.FirstID = 1<<30 + uint32(c.hash()%3)<<28
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// hash tells the nodes of a machine apart.
func (c *Config) hash() uint64 {
	h := fnv.New64a()
	h.Write([]byte(filepath.Clean(c.Root)))
	return h.Sum64()
}

// nameDefaults fills in what Sweep needs to know too.
func (c *Config) nameDefaults() error {
	if !filepath.IsAbs(c.Root) || !filepath.IsAbs(c.State) || strings.ContainsAny(c.Root+c.State, ":,\\ \t\n") {
		// mount options and the kernel's tables would need escapes
		return fmt.Errorf("containerd config: Root %q and State %q must be absolute and free of blanks, commas and colons", c.Root, c.State)
	}
	c.Root, c.State = filepath.Clean(c.Root), filepath.Clean(c.State)
	if c.Name == "" {
		c.Name = fmt.Sprintf("bm%07x", c.hash()&0xfffffff)
	}
	if !validName(c.Name) {
		return fmt.Errorf("containerd config: Name %q is not [a-z0-9]{1,10}", c.Name)
	}
	if c.CgroupParent == "" {
		c.CgroupParent = "/" + c.Name
	}
	return nil
}

func validName(s string) bool {
	if len(s) < 1 || len(s) > 10 {
		return false
	}
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') {
			return false
		}
	}
	return true
}

// The folders below State and Root.
func (c *Config) shimSockets() string        { return filepath.Join(c.State, "s") }
func (c *Config) runcRoot() string           { return filepath.Join(c.State, "runc") }
func (c *Config) daemonState() string        { return filepath.Join(c.State, "d") }
func (c *Config) daemonRoot() string         { return filepath.Join(c.State, "r") }
func (c *Config) containers() string         { return filepath.Join(c.State, "c") }
func (c *Config) container(id string) string { return filepath.Join(c.containers(), id) }
func (c *Config) layers() string             { return filepath.Join(c.Root, "layers") }
func (c *Config) disks() string              { return filepath.Join(c.Root, "disks") }
func (c *Config) resolv() string             { return filepath.Join(c.State, "resolv.conf") }

func (c *Config) makeDirs() error {
	for _, d := range []struct {
		path string
		mode os.FileMode
	}{
		// Layers hold set-user-id files of root: nobody else may come near.
		{c.Root, 0o700}, {c.layers(), 0o700}, {c.disks(), 0o700},
		// A container's root user must get through to its own folder.
		{c.State, 0o711}, {c.containers(), 0o711}, {c.shimSockets(), 0o700}, {c.runcRoot(), 0o700},
	} {
		if err := os.MkdirAll(d.path, d.mode); err != nil {
			return fmt.Errorf("make folder: %w", err)
		}
		if err := os.Chmod(d.path, d.mode); err != nil {
			return fmt.Errorf("make folder: %w", err)
		}
	}
	return nil
}
