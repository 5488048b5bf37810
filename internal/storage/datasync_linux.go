package storage

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// datasync makes the content of a file durable that has the size that it had. It leaves the times of the file to the
// kernel: with them, each call would commit a transaction of the file system's own journal.
func datasync(file *os.File) error {
	for {
		err := syscall.Fdatasync(int(file.Fd()))
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, syscall.EINTR):
			return &fs.PathError{Op: "fdatasync", Path: file.Name(), Err: err}
		}
	}
}
