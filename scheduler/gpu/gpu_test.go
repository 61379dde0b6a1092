package gpu

import (
	"slices"
	"strings"
	"testing"
)

func TestNormalise(t *testing.T) {
	for in, want := range map[string]string{
		// What drivers say.
		"NVIDIA A100-PCIE-40GB":                        "A100-40",
		"NVIDIA A100-SXM4-80GB":                        "A100-80",
		"NVIDIA A100 80GB PCIe":                        "A100-80",
		"NVIDIA H100 80GB HBM3":                        "H100",
		"NVIDIA H100 NVL":                              "H100",
		"H200 141GB HBM3e":                             "H200",
		"NVIDIA H20":                                   "H20",
		"NVIDIA GH200 480GB":                           "GH200",
		"NVIDIA B200 180GB HBM3e":                      "B200",
		"A30-PCIE-24GB":                                "A30",
		"NVIDIA A10G":                                  "A10G",
		"NVIDIA A10":                                   "A10",
		"Tesla T4":                                     "T4",
		"Tesla V100-SXM2-16GB":                         "V100",
		"Tesla V100-SXM2-32GB":                         "V100-32",
		"NVIDIA L4":                                    "L4",
		"NVIDIA L40S":                                  "L40S",
		"NVIDIA GeForce RTX 4090":                      "RTX4090",
		"NVIDIA RTX A6000":                             "A6000",
		"Quadro RTX 6000":                              "RTX6000",
		"NVIDIA GeForce RTX 3080 Ti":                   "RTX3080TI",
		"NVIDIA RTX 6000 Ada Generation":               "RTX6000Ada",
		"NVIDIA RTX 4000 SFF Ada Generation":           "RTX4000Ada",
		"NVIDIA RTX PRO 6000 Blackwell Server Edition": "RTXPro6000",
		"NVIDIA RTX A1000":                             "RTXA1000",
		"NVIDIA T400 4GB":                              "T400",
		"AMD Instinct MI300X":                          "MI300X",
		// What users write.
		"any": Any, "ANY": Any, "": "", " - ": "",
		"rtx-4090": "RTX4090", "rtx 3080ti": "RTX3080TI", "geforcertx4090": "RTX4090",
		"a100-80": "A100-80", "a100_40gb": "A100-40", "A100": "A100", "v100-32": "V100-32",
		"gaudi2": "GAUDI2", "h100": "H100", "RTX6000Ada": "RTX6000Ada", "rtxpro6000": "RTXPro6000",
	} {
		if got := Normalise(in); got != want {
			t.Errorf("Normalise(%q) = %q, want %q", in, got, want)
		}
	}
	for _, name := range Known() {
		if got := Normalise(name); got != name {
			t.Errorf("Normalise(%q) = %q: a class must name itself", name, got)
		}
	}
}

func TestClassifyUsesMemory(t *testing.T) {
	for _, c := range []struct {
		product string
		mib     int64
		want    string
	}{
		{"NVIDIA A100-PG509-200", 81920, "A100-80"},
		{"NVIDIA A100", 40960, "A100-40"},
		{"Tesla V100", 32768, "V100-32"},
		{"Tesla V100", 16384, "V100"},
		{"NVIDIA H100 PCIe", 81559, "H100"},
	} {
		if got := Classify(c.product, c.mib); got != c.want {
			t.Errorf("Classify(%q, %d) = %q, want %q", c.product, c.mib, got, c.want)
		}
	}
}

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		want, have string
		ok         bool
	}{
		{"A100", "A100-80", true}, {"A100", "A100-40", true}, {"A100", "A100", true},
		{"A100-80", "A100", false}, {"A100-80", "A100-40", false},
		{"A10", "A100", false}, {"A10", "A10G", false}, {"L4", "L40S", false},
		{Any, "RTX3080TI", true}, {Any, "", false}, {"V100", "V100-32", true},
	} {
		if got := Matches(c.want, c.have); got != c.ok {
			t.Errorf("Matches(%q, %q) = %v", c.want, c.have, got)
		}
	}
}

func TestSuggest(t *testing.T) {
	for _, c := range []struct {
		name   string
		inView []string
		want   string
	}{
		{"RTX4900", nil, "RTX4090"},
		{"H1000", nil, "H100"},
		{"RTX3080", []string{"RTX3090"}, "RTX3090"},
	} {
		if got := Suggest(c.name, c.inView); len(got) == 0 || got[0] != c.want {
			t.Errorf("Suggest(%q, %v) = %v, want %s first", c.name, c.inView, got, c.want)
		}
	}
	if got := Suggest("POTATO", []string{"H100"}); len(got) != 0 {
		t.Errorf("Suggest(POTATO) = %v, want none", got)
	}
	if IsKnown("RTX3080", nil) || !IsKnown("RTX3080", []string{"RTX3080"}) || !IsKnown("H100", nil) {
		t.Error("IsKnown: a name is known when a node has it or it is in the list")
	}
}

func TestParse(t *testing.T) {
	for _, c := range []struct {
		in    string
		count int
		want  []Want
	}{
		{"", 0, nil},
		{"any", 0, []Want{{Any, 1}}},
		{"H100, A100-80:2", 1, []Want{{"H100", 1}, {"A100-80", 2}}},
		{"h100,H100", 4, []Want{{"H100", 4}}},
	} {
		got, err := Parse(c.in, c.count)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("Parse(%q, %d) = %v, %v, want %v", c.in, c.count, got, err, c.want)
		}
	}
	for _, bad := range []string{"H100:0", "H100:x", "H100:65", ":2", "---", strings.Repeat("x", 65)} {
		if got, err := Parse(bad, 1); err == nil {
			t.Errorf("Parse(%q) = %v, want an error", bad, got)
		}
	}
	if _, err := Parse("H100", 65); err == nil {
		t.Error("Parse accepted a count above the limit")
	}
	if s := Format([]Want{{"H100", 1}, {"A100", 2}, {Any, 1}}); s != "H100 or 2x A100 or any GPU" {
		t.Errorf("Format = %q", s)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("H100,A100-80:2", 1)
	f.Add("NVIDIA GeForce RTX 4090", 0)
	f.Add("A100 80 80 40", 3)
	f.Fuzz(func(t *testing.T, s string, count int) {
		wants, err := Parse(s, count)
		if err != nil {
			return
		}
		if len(wants) > MaxChoices {
			t.Fatalf("%d alternatives", len(wants))
		}
		for _, w := range wants {
			if w.Class == "" || w.Count < 1 || w.Count > MaxCount {
				t.Fatalf("bad want %+v", w)
			}
			if again := Normalise(w.Class); again != w.Class {
				t.Fatalf("Normalise is not stable: %q -> %q", w.Class, again)
			}
			Suggest(w.Class, []string{"H100"})
		}
	})
}
