package ledger

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/beammesh/beammesh/proto/fault"
)

func TestRecordRoundTrip(t *testing.T) {
	now := time.UnixMilli(1_700_000_000_123).UTC()
	for _, body := range []Body{
		Workspace{Name: "lab"},
		Token{Name: "ci", Scopes: []string{"read"}, Expires: now, Active: true},
		Stub{Name: "f", Type: "function", Config: []byte{0, 255}},
		Object{Root: "bafy", Size: 3},
		Image{Roots: []string{"a", "b"}, Config: []byte("{}"), Python: "3.11", Signature: []byte{1}},
	} {
		r := Record{Key: Key{body.Kind(), "w", "id"}, Revision: 7, Created: now, Changed: now, Body: body}
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var back Record
		if err := json.Unmarshal(b, &back); err != nil || !reflect.DeepEqual(back, r) {
			t.Errorf("%s: got %+v, want %+v: %v", body.Kind(), back, r, err)
		}
	}
}

func TestRecordOfANewerVersion(t *testing.T) {
	var r Record
	if err := json.Unmarshal([]byte(`{"kind":"moon","workspace":"w","id":"x","rev":3,"created":1,"changed":1,"body":{"phase":"full"}}`), &r); err != nil {
		t.Fatal(err)
	}
	if r.Body != nil || r.ID != "x" || r.Revision != 3 {
		t.Fatalf("%+v", r)
	}
}

func TestCommandOfANewerVersionIsRefused(t *testing.T) {
	for raw, code := range map[string]fault.Code{
		`{"op":"deploy_moon","args":{}}`:                    fault.Unsupported,
		`{"op":"put_object","args":{"moon":1}}`:             fault.Invalid,
		`{"op":"put_object"`:                                fault.Invalid,
		`{"op":"put_object","args":{"workspace":["list"]}}`: fault.Invalid,
	} {
		if _, err := DecodeCommand([]byte(raw)); fault.CodeOf(err) != code {
			t.Errorf("%s: %v", raw, err)
		}
	}
	if _, err := DecodeCommand(make([]byte, MaxCommandBytes+1)); fault.CodeOf(err) != fault.TooLarge {
		t.Errorf("huge command: %v", err)
	}
}

func TestStubIDKeepsWorkspaceAndConfigApart(t *testing.T) {
	if StubID("ab", []byte("c")) == StubID("a", []byte("bc")) {
		t.Fatal("two stubs share an id")
	}
	if got := StubID("w", []byte("x")); len(got) != 36 || got[14] != '8' || got != StubID("w", []byte("x")) {
		t.Fatalf("id %s", got)
	}
}

func TestImageSigningBytesCoverEverything(t *testing.T) {
	base := Image{Roots: []string{"a", "b"}, Config: []byte("c"), Python: "3.11", Builder: "p"}
	seen := map[string]bool{}
	add := func(b []byte) {
		if seen[string(b)] {
			t.Error("two images sign alike")
		}
		seen[string(b)] = true
	}
	add(base.SigningBytes("w", "i"))
	add(base.SigningBytes("w2", "i"))
	add(base.SigningBytes("w", "i2"))
	for _, change := range []func(*Image){
		func(i *Image) { i.Roots = []string{"b", "a"} },
		func(i *Image) { i.Config = []byte("d") },
		func(i *Image) { i.Python = "3.13" },
		func(i *Image) { i.Builder = "q" },
	} {
		i := base
		change(&i)
		add(i.SigningBytes("w", "i"))
	}
}

func TestFilterMatches(t *testing.T) {
	k := Key{KindToken, "w", "abc"}
	for _, c := range []struct {
		f    Filter
		want bool
	}{
		{Filter{}, true}, {Filter{Workspace: AllWorkspaces}, true}, {Filter{Kind: KindToken, Workspace: "w", IDPrefix: "ab"}, true},
		{Filter{Kind: KindStub}, false}, {Filter{Workspace: "v"}, false}, {Filter{IDPrefix: "abcd"}, false},
	} {
		if c.f.Match(k) != c.want {
			t.Errorf("%+v", c.f)
		}
	}
}
