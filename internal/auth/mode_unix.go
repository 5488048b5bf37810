//go:build unix

package auth

import (
	"fmt"
	"os"
	"syscall"
)

// checkMode returns an error if somebody else than this user, and root, may read or replace what is in a file. A group
// may read one that root owns: so a secret arrives that an orchestrator hands to one group.
func checkMode(path string, info os.FileInfo) error {
	s, ok := info.Sys().(*syscall.Stat_t)
	others := os.FileMode(0o077)
	if ok && s.Uid == 0 {
		others = 0o037
	}
	if mode := info.Mode().Perm(); mode&others != 0 {
		return fmt.Errorf("its mode is %04o, so that others may use it; chmod 600 '%s'", mode, path)
	}
	if ok && s.Uid != 0 && int(s.Uid) != os.Geteuid() {
		return fmt.Errorf("it belongs to user %d, and the node runs as %d; chown %d '%s'", s.Uid, os.Geteuid(), os.Geteuid(),
			path)
	}
	return nil
}
