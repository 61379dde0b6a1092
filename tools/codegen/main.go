// Command codegen writes the Go code of every schema under proto/ and a file
// of digests, proto/generated.sum, by which a test notices a schema or a
// generated file that was changed alone.
//
//	go run ./tools/codegen          # needs protoc in PATH
//	go run ./tools/codegen -check   # only compares the digests
//
// The protoc plugins are built from the versions that go.mod pins.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/beammesh/beammesh/tools/codegen/sums"
)

// plugins are the packages whose commands protoc calls, by command name.
var plugins = map[string]string{
	"protoc-gen-go":         "google.golang.org/protobuf/cmd/protoc-gen-go",
	"protoc-gen-connect-go": "connectrpc.com/connect/cmd/protoc-gen-connect-go",
}

const module = "github.com/beammesh/beammesh"

func main() {
	check := flag.Bool("check", false, "only compare proto/generated.sum with the files")
	flag.Parse()
	if err := run(*check); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(check bool) error {
	if check {
		return sums.Check("proto")
	}
	protoc, err := exec.LookPath("protoc")
	if err != nil {
		return fmt.Errorf("protoc is not installed (Debian: apt-get install protobuf-compiler): %w", err)
	}
	bin, err := os.MkdirTemp("", "codegen-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(bin)
	args := []string{"-I", "proto"}
	for name, pkg := range plugins {
		path := filepath.Join(bin, name)
		if err := command("go", "build", "-o", path, pkg); err != nil {
			return fmt.Errorf("build %s: %w", pkg, err)
		}
		args = append(args, "--plugin="+name+"="+path)
	}
	args = append(args,
		"--go_out=.", "--go_opt=module="+module,
		"--connect-go_out=.", "--connect-go_opt=module="+module)
	schemas, err := sums.Schemas("proto")
	if err != nil {
		return err
	}
	args = append(args, schemas...)
	if err := sums.RemoveGenerated("proto"); err != nil {
		return err
	}
	if err := command(protoc, args...); err != nil {
		return fmt.Errorf("protoc: %w", err)
	}
	return sums.Write("proto")
}

func command(name string, args ...string) error {
	c := exec.Command(name, args...)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Run(); err != nil {
		return fmt.Errorf("%w\n%s", err, out.Bytes())
	}
	return nil
}
