package client

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// What was read and saved reads the same again, for every file that parses.
func FuzzConfig(f *testing.F) {
	f.Add("[default]\ntoken = t\ngateway_host = h\ngateway_port = 1993\n")
	f.Add("# c\n[a]\nk: v\n[b]\nx=\n[a]\nk = w = z\n")
	f.Add("[]\n")
	f.Add("[ ]\n")
	f.Add("k = v\n")
	f.Fuzz(func(t *testing.T, text string) {
		path := filepath.Join(t.TempDir(), "config.ini")
		c := &Config{path: path}
		if c.parse([]byte(text)) != nil {
			return
		}
		if err := c.Save(); err != nil {
			t.Fatal(err)
		}
		again, err := LoadConfig(path)
		if err != nil {
			t.Fatalf("%q was saved as something unreadable: %v", text, err)
		}
		if !reflect.DeepEqual(c.Contexts(), again.Contexts()) {
			t.Fatalf("%q: saved %v, read %v", text, c.Contexts(), again.Contexts())
		}
	})
}

func TestPutRefusesWhatWouldBreakTheFile(t *testing.T) {
	c := &Config{}
	for _, x := range []Context{{Name: ""}, {Name: "a]"}, {Name: "a\nb"}, {Name: "a", Token: "t\n[default]"}, {Name: "a", Host: "h\r"}} {
		if c.Put(x) == nil {
			t.Errorf("%+v was accepted", x)
		}
	}
}

// A crash while saving leaves no half file: the temporary one is gone and the
// old one whole when the folder cannot take the new one.
func TestSaveLeavesNothingBehind(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "config.ini")
	if err := os.Mkdir(path, 0o700); err != nil { // a folder where the file should be: rename fails
		t.Fatal(err)
	}
	c := &Config{path: path}
	if err := c.Put(Context{Name: "a", Token: "t"}); err != nil {
		t.Fatal(err)
	}
	if c.Save() == nil {
		t.Fatal("saved over a folder")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Fatalf("left behind: %v, %v", entries, err)
	}
}

func TestDeleteNode(t *testing.T) {
	c := &Config{path: filepath.Join(t.TempDir(), "config.ini")}
	for _, x := range []Context{{Name: "default", Token: "a", Host: "here"}, {Name: "same", Token: "b", Host: "here", Port: 1993},
		{Name: "port", Token: "c", Host: "here", Port: 2000}, {Name: "lab", Token: "d", Host: "there", Port: 1993}} {
		if err := c.Put(x); err != nil {
			t.Fatal(err)
		}
	}
	if got := fmt.Sprint(c.DeleteNode("here", 1993)); got != "[default same]" {
		t.Errorf("deleted %s", got)
	}
	if left := c.Contexts(); len(left) != 2 || left[0].Name != "lab" || left[1].Name != "port" {
		t.Errorf("left are %v", left)
	}
}

func TestResolvePrecedence(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.ini")
	c := &Config{path: path}
	for _, x := range []Context{{Name: "default", Token: "td", Host: "hd", Port: 10}, {Name: "lab", Token: "tl", Host: "hl", Port: 20}, {Name: "bare", Token: "tb"}} {
		if err := c.Put(x); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Save(); err != nil {
		t.Fatal(err)
	}
	env := func(kvs ...string) func(string) string {
		return func(k string) string {
			for _, kv := range kvs {
				if v, ok := strings.CutPrefix(kv, k+"="); ok {
					return v
				}
			}
			return ""
		}
	}
	for _, c := range []struct {
		name string
		src  Source
		want string // host:port token
	}{
		{"nothing", Source{}, "127.0.0.1:1993 "},
		{"default context", Source{ConfigPath: path}, "hd:10 td"},
		{"environment wins", Source{ConfigPath: path, Getenv: env("GATEWAY_HOST=he", "BEAM_TOKEN=te")}, "he:10 te"},
		{"chosen by environment", Source{ConfigPath: path, Getenv: env("BEAM_CONTEXT=lab")}, "hl:20 tl"},
		{"named context wins over environment", Source{ConfigPath: path, Context: "lab", Getenv: env("GATEWAY_HOST=he", "GATEWAY_PORT=30", "BEAM_TOKEN=te")}, "hl:20 tl"},
		{"named context without an address", Source{ConfigPath: path, Context: "bare"}, "127.0.0.1:1993 tb"},
		{"flags win", Source{ConfigPath: path, Context: "lab", Host: "hf", Port: "40", Token: "tf"}, "hf:40 tf"},
		{"v6", Source{Host: "::1"}, "[::1]:1993 "},
	} {
		s, err := Resolve(c.src)
		if got := s.Address() + " " + s.Token; err != nil || got != c.want {
			t.Errorf("%s: got %q, %v, want %q", c.name, got, err, c.want)
		}
	}
	for _, port := range []int{443, 1993} { // proxies only outwards
		s := Settings{Host: "h", Port: port}
		if got := New(s).transport.Proxy != nil; got != s.TLS() {
			t.Errorf("port %d: uses a proxy: %v, want %v", port, got, s.TLS())
		}
	}
	for port, tls := range map[int]bool{443: true, 8443: true, 1993: false, 4430: false} {
		if s := (Settings{Host: "h", Port: port}); s.TLS() != tls || strings.HasPrefix(s.URL(), "https") != tls {
			t.Errorf("port %d: TLS %v, want %v", port, s.TLS(), tls)
		}
	}
	for _, host := range []string{"localhost", "127.0.0.1", "::1"} { // a port that the kernel chose
		if (Settings{Host: host, Port: 44443}).TLS() {
			t.Errorf("TLS to a node at %s", host)
		}
	}
}
