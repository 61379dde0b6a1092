package containerd

import (
	"fmt"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/beammesh/beammesh/runtime"
	"github.com/beammesh/beammesh/runtime/cgroup"
	"github.com/beammesh/beammesh/runtime/gpu"
)

const (
	defaultPIDs = 4096
	// initMemory comes on top of what the user asked for, init's own processes
	// on top of the user's.
	initMemory = 8 << 20
	initPIDs   = 32 // threads of init

	initTarget = "/.beam/init" // where init is mounted
	runTarget  = "/run/beam"   // where the folder with the sockets is mounted
)

// capabilities are what root keeps in a container: what package managers and
// servers need, over its own ids only. Not NET_RAW (spoofing), not MKNOD.
var capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
	"CAP_NET_BIND_SERVICE", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// specInput is what ociSpec needs besides the caller's Spec.
type specInput struct {
	spec       runtime.Spec
	rootfs     string
	hosts      string // files and folders on the host
	hostname   string
	resolv     string
	run        string
	init       string
	cgroupPath string
	cgroups    *cgroup.Hierarchy
	userNS     string
	netNS      string
	edits      gpu.Edits
	devices    []deviceNode    // edits.Devices, ready to be mounted
	mounts     []runtime.Mount // the caller's, their sources already idmapped
}

// ociSpec is written by hand, so that nothing gets in by a default of someone
// else's. Inheritable and ambient capabilities stay empty.
func ociSpec(in specInput) *specs.Spec {
	s := &specs.Spec{
		Version:  specs.Version,
		Hostname: in.spec.Hostname,
		Root:     &specs.Root{Path: in.rootfs},
		Process: &specs.Process{
			Args: []string{initTarget},
			Env: append([]string{
				"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
				"HOME=/root", "HOSTNAME=" + in.spec.Hostname,
			}, slices.Concat(in.edits.Env, in.spec.Env)...),
			Cwd:             "/",
			NoNewPrivileges: true,
			Capabilities:    &specs.LinuxCapabilities{Bounding: capabilities, Effective: capabilities, Permitted: capabilities},
			Rlimits:         []specs.POSIXRlimit{fileLimit(), {Type: "RLIMIT_CORE"}},
		},
		Mounts: standardMounts(in),
		Linux: &specs.Linux{
			CgroupsPath: in.cgroupPath,
			// The user namespace brings its mapping along: giving both is an error.
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.UserNamespace, Path: in.userNS},
				{Type: specs.NetworkNamespace, Path: in.netNS},
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
				{Type: specs.MountNamespace}, {Type: specs.CgroupNamespace},
			},
			Resources:         resources(in.spec.Limits, in.cgroups, filepath.Dir(in.cgroupPath)),
			RootfsPropagation: "private",
			MaskedPaths: []string{"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
				"/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
				"/sys/devices/virtual/powercap", "/sys/firmware"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
	for _, n := range in.devices {
		addDevice(s, n)
	}
	for _, m := range in.edits.Mounts {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: m.Target, Type: "bind", Source: m.Source, Options: m.Options})
	}
	for _, m := range in.mounts {
		s.Mounts = append(s.Mounts, bind(m.Source, m.Target, m.ReadOnly))
	}
	s.Linux.Seccomp = seccomp.DefaultProfile(s) // knows what the capabilities allow
	return s
}

// fileLimit is high enough for servers, but no higher than this process may
// grant. A soft limit of a million makes old programs close as many files.
func fileLimit() specs.POSIXRlimit {
	hard := uint64(1 << 20)
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err == nil {
		hard = min(hard, r.Max)
	}
	return specs.POSIXRlimit{Type: "RLIMIT_NOFILE", Soft: min(65536, hard), Hard: hard}
}

func standardMounts(in specInput) []specs.Mount {
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		// Shared memory counts against the memory limit; a size of its own
		// would only break data loaders.
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "nodev", "mode=1777"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
		bind(in.hosts, "/etc/hosts", true),
		bind(in.hostname, "/etc/hostname", true),
		bind(in.resolv, "/etc/resolv.conf", true),
		bind(in.run, runTarget, true),
		bind(in.init, initTarget, true),
	}
}

func bind(source, target string, readOnly bool) specs.Mount {
	o := []string{"rbind", "rprivate", "nosuid", "nodev"}
	if readOnly {
		o = append(o, "ro")
	}
	return specs.Mount{Destination: target, Type: "bind", Source: source, Options: o}
}

// addDevice lets the container see and use a node, and nothing else of the
// same kind. In a user namespace nobody can make nodes, so it is mounted.
func addDevice(s *specs.Spec, n deviceNode) {
	s.Mounts = append(s.Mounts, specs.Mount{Destination: n.Path, Type: "bind", Source: n.source, Options: []string{"bind", "rprivate", "nosuid", "noexec"}})
	s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: n.Type, Major: &n.Major, Minor: &n.Minor, Access: n.Access})
}

// effective are the limits of the group: the user's and init's share.
func effective(l runtime.Limits) cgroup.Limits {
	out := cgroup.Limits{CPUMillis: l.CPUMillis, PIDs: l.PIDs}
	if out.PIDs == 0 {
		out.PIDs = defaultPIDs
	}
	out.PIDs += initPIDs
	if l.MemoryBytes > 0 {
		out.MemoryBytes = l.MemoryBytes + initMemory
	}
	return out
}

func resources(l runtime.Limits, h *cgroup.Hierarchy, around string) *specs.LinuxResources {
	e := effective(l)
	r := &specs.LinuxResources{
		Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}, // runc adds null, zero, tty and so on
		Pids:    &specs.LinuxPids{Limit: &e.PIDs},
	}
	if e.CPUMillis > 0 {
		shares, quota, period := cgroup.Shares(e.CPUMillis), h.Group(around).QuotaIn(e.CPUMillis).Microseconds(), uint64(cgroup.Period.Microseconds())
		r.CPU = &specs.LinuxCPU{Shares: &shares, Quota: &quota, Period: &period}
	}
	if e.MemoryBytes > 0 {
		r.Memory = &specs.LinuxMemory{Limit: &e.MemoryBytes}
		if h.SwapAccounting() {
			r.Memory.Swap = &e.MemoryBytes // memory and swap together: no swap
		}
	}
	return r
}

// validID is what Spec.ID may be: it becomes a folder's and a cgroup's name.
func validID(id string) bool {
	if len(id) < 1 || len(id) > 64 {
		return false
	}
	for _, r := range id {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
			return false
		}
	}
	return true
}

func checkMount(m runtime.Mount) error {
	if !filepath.IsAbs(m.Source) || !filepath.IsAbs(m.Target) || filepath.Clean(m.Target) == "/" {
		return fmt.Errorf("mount of %q on %q: not absolute paths", m.Source, m.Target)
	}
	return nil
}
