//go:build unix

package certs

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// checkKeyMode returns an error if others than the node's user, and root, may read or change a key. A group may read
// one that root owns, as PostgreSQL has it: so a secret arrives that an orchestrator hands to one group.
func checkKeyMode(path string, info fs.FileInfo) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	if uid := int(stat.Uid); uid != 0 && uid != os.Geteuid() {
		return fmt.Errorf("%s belongs to another user, who may change it: give it to the user of this node with chown", path)
	}
	allowed := fs.FileMode(0o600)
	if stat.Uid == 0 {
		allowed = 0o640
	}
	if info.Mode().Perm()&^allowed&0o077 != 0 {
		return fmt.Errorf("%s may be read or changed by others (mode %04o): chmod 600 '%[1]s'", path, info.Mode().Perm())
	}
	return nil
}
