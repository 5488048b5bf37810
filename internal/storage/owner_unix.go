//go:build unix

package storage

import (
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// checkOwner returns an error if raft.db or something in snapshots/ is another user's. A node that root has started
// once, by mistake, leaves files that the node's own user can't remove or write to; it would go on until it has to.
func checkOwner(dir string) error {
	check := func(path string, info fs.FileInfo) error {
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok || int(stat.Uid) == os.Geteuid() {
			return nil
		}
		return fmt.Errorf("%s belongs to user %s, and this node runs as %s: start it as that user, or give it the volume: "+
			"chown -R %[3]s '%s'", path, userName(int(stat.Uid)), userName(os.Geteuid()), dir)
	}
	if info, err := os.Lstat(boltPath(dir)); err == nil {
		if err := check(boltPath(dir), info); err != nil {
			return err
		}
	}
	snapshots := filepath.Join(dir, "snapshots")
	found, err := scanSnapshots(snapshots)
	if err != nil {
		return err
	}
	for _, name := range append(found.finished, found.unfinished...) {
		path := filepath.Join(snapshots, name)
		info, err := os.Lstat(path)
		if err == nil {
			err = check(path, info)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// userName returns the name of a user, or the number if it has none.
func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return strconv.Itoa(uid)
}
