package gpu

import (
	"io/fs"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Edits are changes to a container's OCI spec. There are never hooks among
// them: hooks run as root outside of the container.
type Edits struct {
	Env     []string     `json:"env,omitempty"`
	Mounts  []Mount      `json:"mounts,omitempty"`
	Devices []DeviceNode `json:"devices,omitempty"`
}

// Mount is a bind mount from the host.
type Mount struct {
	Source  string   `json:"source"`
	Target  string   `json:"target"`
	Options []string `json:"options,omitempty"`
}

// DeviceNode is a device file; HostPath and Path differ only when the driver
// lies below another root.
type DeviceNode struct {
	Path     string `json:"path"`
	HostPath string `json:"host_path,omitempty"`
	Type     string `json:"type"` // "c"
	Major    int64  `json:"major"`
	Minor    int64  `json:"minor"`
	Access   string `json:"access"` // for the devices cgroup: "rw"
}

// Apply adds the edits to a spec. A node of another host path is bound there,
// because a runtime inside a user namespace cannot make device files.
func (e Edits) Apply(s *specs.Spec) {
	if s.Process == nil {
		s.Process = &specs.Process{}
	}
	s.Process.Env = append(s.Process.Env, e.Env...)
	for _, m := range e.Mounts {
		s.Mounts = append(s.Mounts, specs.Mount{Source: m.Source, Destination: m.Target, Type: "bind", Options: slices.Clone(m.Options)})
	}
	if len(e.Devices) == 0 {
		return
	}
	if s.Linux == nil {
		s.Linux = &specs.Linux{}
	}
	if s.Linux.Resources == nil {
		s.Linux.Resources = &specs.LinuxResources{}
	}
	for _, d := range e.Devices {
		if d.HostPath == "" || d.HostPath == d.Path {
			mode := fs.FileMode(0o666)
			s.Linux.Devices = append(s.Linux.Devices, specs.LinuxDevice{
				Path: d.Path, Type: d.Type, Major: d.Major, Minor: d.Minor, FileMode: &mode})
		} else {
			s.Mounts = append(s.Mounts, specs.Mount{Source: d.HostPath, Destination: d.Path, Type: "bind",
				Options: []string{"bind", "rw", "nosuid", "noexec"}})
		}
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{
			Allow: true, Type: d.Type, Major: &d.Major, Minor: &d.Minor, Access: d.Access})
	}
}
