package node

import (
	"strings"
	"testing"

	"github.com/beammesh/beammesh/proto/fault"
)

func TestZonesHavePlainNames(t *testing.T) {
	for zone, ok := range map[string]bool{"": true, "lab-2": true, "eu.west": true, "Lab": false, "a/b": false, "a b": false, strings.Repeat("x", 33): false} {
		if err := checkZone(zone); (err == nil) != ok || !ok && fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%q: %v", zone, err)
		}
	}
}
