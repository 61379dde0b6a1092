package node

import (
	"testing"
	"time"
)

func TestParseFaults(t *testing.T) {
	if f, err := ParseFaults("", "", ""); err != nil || f != (Faults{}) || f.clock() != nil {
		t.Errorf("nothing set: %+v, %v", f, err)
	}
	f, err := ParseFaults("-10m", "10", "1")
	if err != nil || f.ClockOffset != -10*time.Minute || f.CorruptEvery != 10 || !f.KnownOnly {
		t.Errorf("all set: %+v, %v", f, err)
	}
	if d := time.Until(f.clock()()); d < -11*time.Minute || d > -9*time.Minute {
		t.Errorf("the clock is %s off", d)
	}
	for _, bad := range [][3]string{{"soon"}, {"", "many"}, {"", "0"}, {"", "", "yes"}} {
		if _, err := ParseFaults(bad[0], bad[1], bad[2]); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
