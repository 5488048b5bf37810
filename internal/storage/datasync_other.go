//go:build !linux

package storage

import "os"

// datasync makes the content of a file durable.
func datasync(file *os.File) error { return file.Sync() }
