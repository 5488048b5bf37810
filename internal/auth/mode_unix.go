//go:build unix

package auth

import (
	"fmt"
	"os"
	"syscall"
)

// checkMode returns an error if somebody else than this user may read or replace what is in a file.
func checkMode(path string, info os.FileInfo) error {
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("its mode is %04o, so that others may use it; chmod 600 '%s'", mode, path)
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok && s.Uid != 0 && int(s.Uid) != os.Geteuid() {
		return fmt.Errorf("it belongs to user %d, and the node runs as %d; chown %d '%s'", s.Uid, os.Geteuid(), os.Geteuid(),
			path)
	}
	return nil
}
