//go:build unix

package storage

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
)

// flockDir locks the directory itself, as all versions of the program did before Lock took a library for it. It
// returns EWOULDBLOCK if somebody else has the lock.
func flockDir(t *testing.T, dir string) error {
	t.Helper()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return syscall.Flock(int(d.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
}

// TestLockIsThatOfOlderVersions: whichever of two versions is started first on a volume, the other one is refused.
func TestLockIsThatOfOlderVersions(t *testing.T) {
	t.Run("the newer one first", func(t *testing.T) {
		dir, _ := testVolume(t, 3)
		lock, err := Lock(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := Create(dir, "n1", ClusterID{4}, nil); err != nil { // puts another raft.db in its place
			t.Fatal(err)
		}
		if err := flockDir(t, dir); !errors.Is(err, syscall.EWOULDBLOCK) {
			t.Errorf("an older version: got %v, want %v", err, syscall.EWOULDBLOCK)
		}
		if other, err := Lock(dir); err == nil || !strings.Contains(err.Error(), "open in another process") {
			t.Errorf("a second lock: got %v, %v, want that the volume is open in another process", other, err)
		}
		if err := lock.Close(); err != nil {
			t.Fatal(err)
		}
		if err := flockDir(t, dir); err != nil {
			t.Errorf("an older version, once the lock is closed: got %v, want none", err)
		}
	})
	t.Run("the older one first", func(t *testing.T) {
		dir, _ := testVolume(t, 3)
		if err := flockDir(t, dir); err != nil {
			t.Fatal(err)
		}
		if lock, err := Lock(dir); err == nil || !strings.Contains(err.Error(), "open in another process") {
			t.Errorf("got %v, %v, want that the volume is open in another process", lock, err)
		}
	})
}
