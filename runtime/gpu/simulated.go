package gpu

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/beammesh/beammesh/proto/fault"
)

// maxSimulated bounds what a flag can ask for.
const maxSimulated = 64

// figures of well-known models; others are given 24 GiB.
var figures = map[string]struct {
	memoryMiB int64
	compute   string
}{
	"T4": {15360, "7.5"}, "V100": {16384, "7.0"}, "V100-32": {32768, "7.0"}, "L4": {23034, "8.9"}, "L40S": {46068, "8.9"},
	"A10": {23028, "8.6"}, "A10G": {23028, "8.6"}, "A30": {24576, "8.0"}, "A40": {46068, "8.6"}, "A6000": {49140, "8.6"},
	"A100-40": {40960, "8.0"}, "A100-80": {81920, "8.0"}, "H100": {81559, "9.0"}, "H200": {143771, "9.0"},
	"B200": {183359, "10.0"}, "RTX4090": {24564, "8.9"}, "RTX5090": {32607, "12.0"},
}

// simulated is an Inventory of devices that do not exist.
type simulated []Device

var _ Inventory = simulated(nil)

// Simulated returns an inventory of made-up devices, "H100:2,RTX4090:1", for
// trying the mesh out where there are none. Every device is marked Simulated,
// and a container that gets one finds a file /dev/nvidia<n>-simulated and no
// GPU.
func Simulated(list string) (Inventory, error) {
	var s simulated
	bad := func(why string) error {
		return fault.New(fault.Invalid, fmt.Sprintf("simulated GPUs %q: %s", list, why), `write MODEL:COUNT, separated by commas: "H100:2,RTX4090:1"`)
	}
	for part := range strings.SplitSeq(list, ",") {
		name, num, found := strings.Cut(strings.TrimSpace(part), ":")
		n := 1
		if found {
			var err error
			if n, err = strconv.Atoi(num); err != nil || n < 1 {
				return nil, bad(fmt.Sprintf("%q is no count", num))
			}
		}
		model, ok := canonical(name)
		if !ok {
			return nil, bad(fmt.Sprintf("%q is no model", name))
		}
		if len(s)+n > maxSimulated {
			return nil, bad(fmt.Sprintf("more than %d devices", maxSimulated))
		}
		f, ok := figures[model]
		if !ok {
			f.memoryMiB = 24 << 10
		}
		for range n {
			s = append(s, Device{ID: fmt.Sprintf("SIM-%d-%s", len(s), model), Model: model, Product: "simulated " + model,
				MemoryMiB: f.memoryMiB, Compute: f.compute, Simulated: true})
		}
	}
	return s, nil
}

// canonical spells a known model as users know it and takes others as they are.
func canonical(name string) (string, bool) {
	if name == "" || len(name) > 32 || strings.Trim(strings.ToLower(name), "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return "", false
	}
	if strings.EqualFold(name, "A100") {
		return "A100-80", true
	}
	for m := range figures {
		if strings.EqualFold(m, name) {
			return m, true
		}
	}
	for _, m := range models {
		if strings.EqualFold(m, name) {
			return m, true
		}
	}
	return name, true
}

func (s simulated) List(context.Context) ([]Device, error) { return slices.Clone(s), nil }

func (s simulated) Watch(ctx context.Context) <-chan []Device {
	c := make(chan []Device, 1)
	c <- slices.Clone(s)
	context.AfterFunc(ctx, func() { close(c) })
	return c
}

// Edits makes each grant visible in the spec and inside, harmlessly.
func (s simulated) Edits(_ context.Context, ids []string) (Edits, error) {
	var e Edits
	if len(ids) == 0 {
		return e, nil
	}
	for _, id := range ids {
		i := slices.IndexFunc(s, func(d Device) bool { return d.ID == id })
		if i < 0 {
			return Edits{}, fmt.Errorf("%w: %s", ErrNoDevice, id)
		}
		e.Mounts = append(e.Mounts, Mount{Source: "/dev/null", Target: fmt.Sprintf("/dev/nvidia%d-simulated", i),
			Options: []string{"bind", "rw", "nosuid", "noexec"}})
	}
	e.Env = []string{"NVIDIA_VISIBLE_DEVICES=void", "BEAM_SIMULATED_GPU=" + strings.Join(ids, ",")}
	return e, nil
}

func (s simulated) Close() error { return nil }
