//go:build cgo && linux

// Command nvml is the helper process that talks to the NVIDIA driver; package
// runtime/gpu starts it and holds the protocol. It is the only program of ours
// that loads the driver's library.
package main

import (
	"fmt"
	"os"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

func main() {
	if err := serve(os.Stdin, os.Stdout, &driver{lib: nvml.New(), root: "/"}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
