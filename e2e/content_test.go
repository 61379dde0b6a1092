package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/beammesh/beammesh/cli/dev"
)

// received gives the bytes that came to node i over the mesh's network.
func (m *mesh) received(i int) int64 {
	m.t.Helper()
	// What the bridge's end sends is what the node gets.
	b, err := os.ReadFile(filepath.Join("/sys/class/net", m.dev.Nodes[i-1].Veth, "statistics", "tx_bytes"))
	if err != nil {
		m.t.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		m.t.Fatal(err)
	}
	return n
}

// cutOff drops all that node i sends to other places than this mesh, as on a
// machine without internet.
func (m *mesh) cutOff(i int) {
	m.t.Helper()
	n := m.dev.Nodes[i-1]
	rules := fmt.Sprintf(`table inet beam_e2e {
  chain out { type filter hook output priority 0; oifname "eth0" ip daddr != %[1]s drop; }
  chain forward { type filter hook forward priority 0; oifname "eth0" ip daddr != %[1]s drop; }
}
`, m.dev.Subnet)
	cmd := exec.Command("ip", "netns", "exec", n.NetNS, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		m.t.Fatalf("cut %s off: %v: %s", n.Name, err, out)
	}
}

type nodeStatus struct {
	Images   string           `json:"images"`
	Counters map[string]int64 `json:"counters"`
	Troubles []struct {
		Code string `json:"code"`
		Text string `json:"text"`
		Hint string `json:"hint"`
	} `json:"troubles"`
}

func (m *mesh) status(i int) nodeStatus {
	m.t.Helper()
	var s nodeStatus
	m.beamJSON(i, &s, "node", "status")
	return s
}

const onGPU = `
import os, sys
from beam import function

@function(gpu=%q, cpu=0.2, memory=128)
def where(x):
    import json, ssl, decimal, venv
    return x * 2, os.environ["CONTAINER_ID"]

if __name__ == "__main__":
    print(where.remote(21)[0])
`

// Nodes 2 and 3 have neither a base image nor a way to the package mirror:
// everything they run comes over the mesh. One of node 3's two sources sends
// every tenth block with a flipped bit. Nothing comes ahead, so that there are two.
func TestImagesComeOverTheMesh(t *testing.T) {
	m := ownMesh(t, dev.Options{Nodes: 3, GPUs: "H100:1,RTX4090:1", NodeArgs: []string{"--no-prefetch"}, EnvOf: map[int][]string{
		2: {"BEAM_BASE_CACHE=", "BEAM_TEST_CORRUPT_BLOCKS=10"}, 3: {"BEAM_BASE_CACHE="}}})
	m.cutOff(2)
	m.cutOff(3)

	m.runsOverTheMesh(2, "H100")
	if c := m.status(2).Counters["blocks.corrupt"]; c != 0 {
		t.Errorf("node2 counts %d corrupt blocks from a good source", c)
	}
	m.runsOverTheMesh(3, "RTX4090")
	if c := m.status(3).Counters["blocks.corrupt"]; c == 0 {
		t.Errorf("node3 counts no corrupt blocks: %v", m.status(3).Counters)
	}
	if out := m.status(2).Counters["blocks.bytes_out"]; out == 0 {
		t.Error("node2 shared nothing on")
	}
	// What came is right: every file is verified again as a layer is written,
	// and the function used much of the standard library. Once more, now warm.
	if got := strings.TrimSpace(m.mustPython(3, fmt.Sprintf(onGPU, "RTX4090"))); got != "42" {
		t.Errorf("node3 gives %q", got)
	}
}

// runsOverTheMesh runs a function on node i, which alone has the GPU, and wants
// that the base image came to it over the mesh's interface.
func (m *mesh) runsOverTheMesh(i int, gpu string) {
	m.t.Helper()
	before := m.received(i)
	if got := strings.TrimSpace(m.mustPython(1, fmt.Sprintf(onGPU, gpu))); got != "42" {
		m.t.Fatalf("the function on node%d gives %q", i, got)
	}
	came, blocks := m.received(i)-before, m.status(i).Counters["blocks.bytes_in"]
	size := m.imageBytes()
	if blocks < size || came < size {
		m.t.Errorf("node%d got %d bytes of blocks and %d over its interface, the base image has %d", i, blocks, came, size)
	}
	m.t.Logf("node%d: image of %d MiB, %d MiB over the mesh", i, size>>20, came>>20)
}

// imageBytes is the size of the base image's contents, each block once.
func (m *mesh) imageBytes() int64 {
	m.t.Helper()
	// Node 1 made the image: its store holds it, and little else.
	var size int64
	err := filepath.WalkDir(filepath.Join(m.dev.Nodes[0].Dir, "blocks", "data"), func(_ string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Size() > 4<<10 { // leaves the code tree's few out
			size += info.Size()
		}
		return err
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return size
}
