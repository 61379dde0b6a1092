//go:build !assets

package assets

import "io/fs"

var embedded fs.FS
