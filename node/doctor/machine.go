package doctor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Differences of clocks: certificates and tokens bear 15 minutes; logs and
// listings of several nodes get confusing much earlier.
const (
	maxSkew  = 15 * time.Minute
	fairSkew = 5 * time.Second
)

func clock(_ context.Context, c Config) Check {
	const fix = "timedatectl set-ntp true (or install chrony) here and there"
	var off []string
	worst := time.Duration(0)
	for peer, d := range c.Skews {
		if d.Abs() > worst {
			worst = d.Abs()
		}
		if d.Abs() > fairSkew {
			off = append(off, fmt.Sprintf("%s is %s %s", peer, d.Abs().Round(time.Second), map[bool]string{true: "ahead", false: "behind"}[d > 0]))
		}
	}
	slices.Sort(off)
	switch {
	case time.Now().Year() < 2025:
		return fail(fix, "this machine believes it is %s", time.Now().Format("2006-01-02"))
	case worst > maxSkew:
		return fail(fix, "%s: above 15 minutes certificates and tokens are refused", strings.Join(off, ", "))
	case len(off) > 0:
		return warn(fix, "%s", strings.Join(off, ", "))
	}
	text := "agrees with peers"
	if len(c.Skews) == 0 {
		text = "no peer to compare with"
	}
	var tx unix.Timex
	if _, err := unix.Adjtimex(&tx); err == nil && tx.Status&unix.STA_UNSYNC != 0 {
		text += "; not kept by a time service"
	}
	return ok("%s", text)
}

// gpu tells NVIDIA hardware without a driver from a machine without any.
func gpu(context.Context, Config) Check {
	cards := nvidiaCards("/sys/bus/pci/devices")
	driver, err := os.ReadFile("/proc/driver/nvidia/version")
	switch {
	case err == nil:
		line, _, _ := strings.Cut(string(driver), "\n")
		line = strings.Join(strings.Fields(strings.TrimPrefix(line, "NVRM version:")), " ")
		if nodes, _ := filepath.Glob("/dev/nvidia[0-9]*"); len(nodes) == 0 {
			return fail("nvidia-modprobe -c0 -u, or start nvidia-persistenced", "driver loaded (%s) but there is no /dev/nvidia0", line)
		}
		return ok("%s", line)
	case cards > 0:
		return fail("install the NVIDIA driver and reboot; on Debian: apt-get install nvidia-driver", "%d NVIDIA devices and no driver", cards)
	}
	return ok("no NVIDIA GPU: this node takes CPU work")
}

// nvidiaCards counts display controllers of NVIDIA on the PCI bus.
func nvidiaCards(root string) int {
	n := 0
	devices, err := filepath.Glob(filepath.Join(root, "*"))
	if err != nil {
		return 0
	}
	for _, d := range devices {
		vendor, err1 := os.ReadFile(filepath.Join(d, "vendor"))
		class, err2 := os.ReadFile(filepath.Join(d, "class"))
		if err1 == nil && err2 == nil && strings.TrimSpace(string(vendor)) == "0x10de" && strings.HasPrefix(string(class), "0x03") {
			n++
		}
	}
	return n
}
