//go:build unix

package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// PrivateFiles has all files that this process makes from now on be its user's alone.
func PrivateFiles() { syscall.Umask(0o077) }

// protect takes the rights of other users to what the node has in dir away, as versions of before left some: modes 0700
// and 0600. It returns an error, with the command that mends it, if something there is another user's, so that the node
// could not replace it, or may have been changed by others: it may be written by every user, or is a symbolic link. Dir
// itself may be a link. What else is in dir is none of the node's.
func protect(dir string) error {
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = protectFile(dir, dir, info)
	}
	if err != nil {
		return err
	}
	snapshots := filepath.Join(dir, "snapshots")
	names := []string{boltPath(dir), boltPath(dir) + ".new", journalPath(dir), filepath.Join(dir, RecoveryFile),
		filepath.Join(dir, RecoveryFile+".used"), snapshots}
	for _, path := range names {
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = protectFile(dir, path, info)
		}
		if err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(snapshots)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, entry := range entries {
		if _, err := snapshotIndex(strings.TrimSuffix(entry.Name(), ".tmp")); err != nil {
			continue
		}
		err := filepath.WalkDir(filepath.Join(snapshots, entry.Name()), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			return protectFile(dir, path, info)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// protectFile is protect of one file or directory below dir, or of dir.
func protectFile(dir, path string, info fs.FileInfo) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	mode, uid, gid := info.Mode(), int(stat.Uid), int(stat.Gid)
	if mode&fs.ModeSymlink != 0 {
		target, err := filepath.EvalSymlinks(path)
		if err != nil {
			return fmt.Errorf("%s is a symbolic link, and a volume has none: rm '%[1]s'", path)
		}
		return fmt.Errorf("%s is a symbolic link, and a volume has none: put what it leads to in its place: rm '%[1]s' && "+
			"mv '%s' '%[1]s'", path, target)
	}
	own, ownGroup := uid == os.Geteuid(), gid == os.Getegid()
	if !own && uid == 0 {
		// What root has made is no stranger's: the root of a disk, or a peers.json. An orchestrator gives it to a group
		// of this process (fsGroup of Kubernetes), which may be any of its groups.
		groups, _ := os.Getgroups()
		own, ownGroup = true, ownGroup || slices.Contains(groups, gid)
	}
	if !own {
		return fmt.Errorf("%s belongs to user %s, and this node runs as %s: start it as that user, or give it the volume: "+
			"chown -R %[3]s '%s'", path, userName(uid), userName(os.Geteuid()), dir)
	}
	if perm := mode.Perm(); perm&0o002 != 0 || perm&0o020 != 0 && !ownGroup {
		return fmt.Errorf("%s may be written by other users (mode %04o), and may have been: if not, take that right away: "+
			"chmod -R go-rwx '%s'", path, perm, dir)
	}
	private := fs.FileMode(0o600)
	if mode.IsDir() {
		private = 0o700
	}
	if mode.Perm()&^private != 0 {
		_ = os.Chmod(path, private) // not where it is root's, nor on a file system without modes
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
