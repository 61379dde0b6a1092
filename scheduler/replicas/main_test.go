package replicas

import (
	"flag"
	"os"
	"testing"
)

// TestMain makes the property tests the same in every run. For other cases give
// -rapid.seed, and more of them with -rapid.checks.
func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("rapid.seed"); f != nil && f.Value.String() == "0" {
		if err := f.Value.Set("1"); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}
