//go:build assets

package assets

import (
	"embed"
	"io/fs"
)

//go:embed embedded
var files embed.FS

var embedded = func() fs.FS {
	sub, err := fs.Sub(files, "embedded")
	if err != nil {
		panic(err) // a constant, valid path
	}
	return sub
}()
