package marketwire

import (
	"fmt"
	"testing"

	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	"github.com/beammesh/beammesh/scheduler"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

// A small advert says the same as a large one, but for the devices' ids.
func TestSmallAdvert(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ad := adverts.Draw(t, "advert")
		ad.Capacity.Devices = nil
		for range rapid.IntRange(0, scheduler.MaxDevices).Draw(t, "n") {
			ad.Capacity.Devices = append(ad.Capacity.Devices, scheduler.Device{Class: fmt.Sprint("C", rapid.IntRange(0, 3).Draw(t, "class")),
				MemoryMiB: rapid.Int64Range(0, 1).Draw(t, "mem"), FreeMilli: rapid.Int64Range(998, 1000).Draw(t, "free"), Simulated: rapid.Bool().Draw(t, "sim")})
		}
		b, err := proto.Marshal(AdvertSmall(ad))
		if err != nil {
			t.Fatal(err)
		}
		p := new(peerv1.Advert)
		if err := proto.Unmarshal(b, p); err != nil {
			t.Fatal(err)
		}
		got := AdvertIn(p)
		if err := got.Validate(); err != nil {
			t.Fatal(err)
		}
		if len(got.Capacity.Devices) != len(ad.Capacity.Devices) {
			t.Fatalf("%d devices of %d", len(got.Capacity.Devices), len(ad.Capacity.Devices))
		}
		for i, d := range got.Capacity.Devices {
			want := ad.Capacity.Devices[i]
			want.ID = fmt.Sprint("gpu-", i)
			if d != want {
				t.Fatalf("device %d is %+v, want %+v", i, d, want)
			}
		}
	})
}

// What a peer makes up neither fills memory nor passes as an advert.
func TestHostileDeviceRuns(t *testing.T) {
	const most = scheduler.MaxDevices
	for _, c := range []struct {
		name   string
		runs   []*peerv1.DeviceRun
		places []byte
		n      int
	}{
		{"a count beyond reason", []*peerv1.DeviceRun{{Count: 1 << 31}, {Count: 1 << 31}}, nil, most + 1},
		{"many runs", []*peerv1.DeviceRun{{Count: 40}, {Count: 40}, {Count: 40}}, nil, most + 1},
		{"no shares", []*peerv1.DeviceRun{{Count: 2}}, nil, 2},
		{"too many shares", []*peerv1.DeviceRun{{Count: 1, FreeMilli: make([]int64, 9)}}, nil, 1},
		{"a place twice", []*peerv1.DeviceRun{{Count: 2}}, []byte{1, 1}, 2},
		{"a place outside", []*peerv1.DeviceRun{{Count: 2}}, []byte{0, 200}, 2},
		{"a place too many", []*peerv1.DeviceRun{{Count: 2}}, []byte{0, 1, 2}, 2},
		{"nothing", []*peerv1.DeviceRun{nil, {}}, nil, 0},
	} {
		ad := AdvertIn(&peerv1.Advert{Node: string(peer), Capacity: &peerv1.Capacity{DeviceRuns: c.runs, DevicePlaces: c.places}})
		if n := len(ad.Capacity.Devices); n != c.n {
			t.Errorf("%s: %d devices, want %d", c.name, n, c.n)
		}
		if err := ad.Validate(); (err != nil) != (c.n > most) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
