package network

import (
	"net/netip"
	"slices"
	"testing"
)

func prefixes(l ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range l {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestFreeSubnet(t *testing.T) {
	pool := prefixes("10.213.0.0/16", "172.29.0.0/16")
	for name, c := range map[string]struct {
		seed  uint32
		taken []netip.Prefix
		want  string
	}{
		"first":                   {0, nil, "10.213.0.0/20"},
		"seed moves the start":    {18, nil, "10.213.32.0/20"},
		"inside a taken one":      {0, prefixes("10.213.0.0/19"), "10.213.32.0/20"},
		"around a taken one":      {0, prefixes("10.213.3.0/24"), "10.213.16.0/20"},
		"a whole pool is in use":  {5, prefixes("10.0.0.0/8"), "172.29.80.0/20"},
		"a host route blocks one": {0, prefixes("10.213.15.255/32"), "10.213.16.0/20"},
	} {
		got, ok := freeSubnet(pool, 20, c.seed, c.taken)
		if !ok || got.String() != c.want {
			t.Errorf("%s: %v %v, want %s", name, got, ok, c.want)
		}
	}
	if got, ok := freeSubnet(pool, 20, 3, prefixes("0.0.0.0/1", "128.0.0.0/1")); ok {
		t.Errorf("everything taken: got %s", got)
	}
}

func TestMerge(t *testing.T) {
	for name, c := range map[string]struct {
		in   []netip.Prefix
		want []span
	}{
		"inside":      {prefixes("10.0.0.0/8", "10.1.0.0/16"), []span{{10 << 24, 11<<24 - 1}}},
		"touching":    {prefixes("10.0.0.0/9", "10.128.0.0/9"), []span{{10 << 24, 11<<24 - 1}}},
		"apart":       {prefixes("11.0.0.0/8", "9.0.0.0/8"), []span{{9 << 24, 10<<24 - 1}, {11 << 24, 12<<24 - 1}}},
		"ipv6 left":   {prefixes("fd00::/8"), nil},
		"to the end":  {prefixes("240.0.0.0/4", "224.0.0.0/4"), []span{{224 << 24, 1<<32 - 1}}},
		"all":         {prefixes("0.0.0.0/0", "1.2.3.4/32"), []span{{0, 1<<32 - 1}}},
		"one address": {prefixes("1.2.3.4/32"), []span{{0x01020304, 0x01020304}}},
	} {
		if got := merge(c.in); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestParseResolvConf(t *testing.T) {
	got := parseResolvConf([]byte("# a comment\nnameserver 10.0.0.53\nsearch x\nnameserver  fd00::1 \nnameserver bad\nnameserver 9.9.9.9\nnameserver 8.8.8.8\n"))
	if want := []string{"10.0.0.53:53", "[fd00::1]:53", "9.9.9.9:53"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
