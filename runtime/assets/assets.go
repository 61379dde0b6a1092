// Package assets holds the helper programs that beam carries inside itself:
// runc, the containerd shim, init, the NVML helper and the bundle of Python
// packages that is mounted into containers.
//
// They are embedded with the build tag "assets" (make build), compressed, and
// laid out on disk once per content:
//
//	paths, err := assets.Extract(filepath.Join(dataDir, "assets"))
//	cmd := exec.Command(paths.Runc, "--version")
//
// A build without the tag compiles, and Extract then says what to do. What the
// tag embeds is made by the program build/assets; Manifest is the agreement
// between the two.
package assets

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/beammesh/beammesh/proto/fault"
)

// The names of the assets.
const (
	Runc   = "runc"
	Shim   = "containerd-shim-runc-v2" // containerd finds it by this name
	Initd  = "initd"
	NVML   = "beam-nvml"
	Runner = "runner" // a folder
)

// Paths says where the assets lie after Extract.
type Paths struct {
	Root   string // folder named by the content of all of them
	Runc   string
	Shim   string
	Initd  string
	NVML   string
	Runner string // folder for PYTHONPATH: beam, beta9, cloudpickle
	// RunnerHash names the content of Runner, equal on all nodes of a version.
	RunnerHash string
}

// Manifest lists what is embedded. Its file is manifest.json beside the assets.
type Manifest struct {
	Assets []Asset `json:"assets"`
}

// Asset is one embedded file, <name>.zst.
type Asset struct {
	Name   string `json:"name"`
	SHA256 string `json:"sha256"` // of the uncompressed bytes
	Size   int64  `json:"size"`   // uncompressed, in bytes
	Tar    bool   `json:"tar"`    // a folder, packed; else an executable
}

// ManifestName is the manifest's file.
const ManifestName = "manifest.json"

// Extract lays the assets out below dir, in a folder named by their content,
// and returns where. What is there already is used: a folder gets its name
// only once it is complete and on disk. Safe for concurrent use, also by
// several processes. Folders of other versions stay, since containers that
// outlived an upgrade still need theirs.
func Extract(dir string) (Paths, error) {
	if embedded == nil {
		return Paths{}, fault.New(fault.Unsupported, "this beam was built without its helper programs", "run make build")
	}
	return extract(embedded, dir)
}

func readManifest(src fs.FS) (Manifest, string, error) {
	var m Manifest
	b, err := fs.ReadFile(src, ManifestName)
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err != nil {
		return m, "", fmt.Errorf("read embedded manifest: %w", err)
	}
	sum := sha256.Sum256(b)
	return m, hex.EncodeToString(sum[:16]), nil
}

func (m Manifest) paths(root string) (Paths, error) {
	p := Paths{Root: root}
	for _, a := range m.Assets {
		at := filepath.Join(root, a.Name)
		switch a.Name {
		case Runc:
			p.Runc = at
		case Shim:
			p.Shim = at
		case Initd:
			p.Initd = at
		case NVML:
			p.NVML = at
		case Runner:
			p.Runner, p.RunnerHash = at, a.SHA256
		default:
			return p, fmt.Errorf("unknown asset %q", a.Name)
		}
	}
	if p.Runc == "" || p.Shim == "" || p.Initd == "" || p.NVML == "" || p.Runner == "" {
		return p, fmt.Errorf("embedded manifest lacks an asset: %+v", m.Assets)
	}
	return p, nil
}
