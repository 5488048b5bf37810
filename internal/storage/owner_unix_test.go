//go:build unix

package storage

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestOwner: a volume with another user's files in it is refused with the command that mends it.
func TestOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files to another user")
	}
	dir, _ := testVolume(t, 3)
	if _, err := IsNew(dir); err != nil {
		t.Fatalf("own: got %v, want nil", err)
	}
	if out, err := exec.Command("chown", "65534", boltPath(dir)).CombinedOutput(); err != nil {
		t.Fatalf("chown: %v %s", err, out)
	}
	_, err := IsNew(dir)
	if err == nil || !strings.Contains(err.Error(), "raft.db belongs to user ") ||
		!strings.HasSuffix(err.Error(), "give it the volume: chown -R root '"+dir+"'") {
		t.Errorf("another user's: got %v, want the chown that mends it", err)
	}
}

// TestPrivate: a volume of former versions, whose files all users may read, is its user's alone after it was opened.
func TestPrivate(t *testing.T) {
	dir, _ := testVolume(t, 3)
	snapshot := filepath.Join(dir, "snapshots", "1-1-1700000000000")
	other := filepath.Join(dir, "lost+found")
	for _, path := range []string{snapshot, other} {
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{filepath.Join(snapshot, "meta.json"), filepath.Join(snapshot, "state.bin"),
		filepath.Join(dir, RecoveryFile)} {
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{dir, filepath.Join(dir, "snapshots"), snapshot, other} {
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(boltPath(dir), 0o664); err != nil { // of a user with a group of its own, as some systems have them
		t.Fatal(err)
	}
	if _, err := IsNew(dir); err != nil {
		t.Fatal(err)
	}
	seen := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == other {
			return err
		}
		info, err := d.Info()
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		}
		if seen++; err == nil && info.Mode().Perm() != want {
			t.Errorf("%s: got mode %04o, want %04o", path, info.Mode().Perm(), want)
		}
		return err
	})
	if err != nil || seen < 7 {
		t.Errorf("%d files, %v, want 7 at least", seen, err)
	}
	if info, err := os.Stat(other); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("%s, which is none of the node's: got %v, %v, want mode 0755", other, info.Mode(), err)
	}
}

// TestDangerousVolumes: a volume that others may have changed is refused, with the command that mends it, and nothing in
// it is touched.
func TestDangerousVolumes(t *testing.T) {
	root := os.Geteuid() == 0
	for _, test := range []struct {
		name  string
		do    func(dir, elsewhere string) error
		want  []string
		mends string // the end of the line, behind which the path of the volume stands; empty: not looked at
		root  bool   // only root can have it
	}{
		{name: "written by all", do: func(dir, _ string) error { return os.Chmod(dir, 0o777) },
			want: []string{"may be written by other users (mode 0777)"}, mends: "chmod -R go-rwx '"},
		{name: "with a sticky bit", do: func(dir, _ string) error { return os.Chmod(dir, 0o777|fs.ModeSticky) },
			want: []string{"may be written by other users"}, mends: "chmod -R go-rwx '"},
		{name: "a log written by all", do: func(dir, _ string) error { return os.Chmod(boltPath(dir), 0o666) },
			want: []string{"raft.db may be written by other users (mode 0666)"}, mends: "chmod -R go-rwx '"},
		{name: "written by another group", do: func(dir, _ string) error {
			return errors.Join(os.Chown(dir, 0, 65534), os.Chmod(dir, 0o770))
		}, want: []string{"may be written by other users (mode 0770)"}, root: true},
		{name: "another user's", do: func(dir, _ string) error { return os.Chown(dir, 65534, -1) },
			want: []string{"belongs to user "}, mends: "chown -R root '", root: true},
		{name: "another user's snapshots", do: func(dir, _ string) error {
			return errors.Join(os.Mkdir(filepath.Join(dir, "snapshots"), 0o700), os.Chown(filepath.Join(dir, "snapshots"), 65534, -1))
		}, want: []string{"snapshots belongs to user "}, mends: "chown -R root '", root: true},
		{name: "snapshots elsewhere", do: func(dir, elsewhere string) error {
			return os.Symlink(elsewhere, filepath.Join(dir, "snapshots"))
		}, want: []string{"snapshots is a symbolic link", "rm '", "mv '"}},
		{name: "a log elsewhere", do: func(dir, elsewhere string) error {
			return errors.Join(os.Rename(boltPath(dir), filepath.Join(elsewhere, "raft.db")),
				os.Symlink(filepath.Join(elsewhere, "raft.db"), boltPath(dir)))
		}, want: []string{"raft.db is a symbolic link", "rm '", "mv '"}},
		{name: "a state elsewhere", do: func(dir, elsewhere string) error {
			snapshot := filepath.Join(dir, "snapshots", "1-1-1700000000000")
			return errors.Join(os.MkdirAll(snapshot, 0o700),
				os.Symlink(filepath.Join(elsewhere, "nothing"), filepath.Join(snapshot, "state.bin")))
		}, want: []string{"state.bin is a symbolic link", "rm '"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.root && !root {
				t.Skip("only root can make it")
			}
			dir, _ := testVolume(t, 3)
			_ = os.RemoveAll(filepath.Join(dir, "snapshots"))
			elsewhere := t.TempDir()
			left := filepath.Join(elsewhere, "1-1-1700000000000.tmp")
			if err := os.Mkdir(left, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := test.do(dir, elsewhere); err != nil {
				t.Fatal(err)
			}
			_, err := IsNew(dir)
			if err == nil {
				t.Fatal("it was taken")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %q, want %q in it", err, want)
				}
			}
			if strings.Contains(err.Error(), "\n") || test.mends != "" && !strings.HasSuffix(err.Error(), test.mends+dir+"'") {
				t.Errorf("got %q, want one line with %q at its end", err, test.mends)
			}
			if info, err := os.Stat(left); err != nil || info.Mode().Perm() != 0o755 {
				t.Errorf("what a link leads to: got %v, want that it is as it was", err)
			}
		})
	}
	t.Run("itself a link", func(t *testing.T) {
		dir, _ := testVolume(t, 3)
		link := filepath.Join(t.TempDir(), "volume")
		if err := os.Symlink(dir, link); err != nil {
			t.Fatal(err)
		}
		if _, err := IsNew(link); err != nil {
			t.Error(err)
		}
	})
}

// TestVolumeOfAGroup: a disk whose root belongs to root and to a group of the node, as Kubernetes gives it (fsGroup), is
// taken as it is; one that belongs to another group is not.
func TestVolumeOfAGroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user")
	}
	const user, group = 65534, 65533
	dir := t.TempDir()
	if err := errors.Join(os.Chown(dir, 0, group), os.Chmod(dir, 0o775|fs.ModeSetgid),
		os.Chmod(filepath.Dir(dir), 0o755)); err != nil {
		t.Fatal(err)
	}
	as := func(gid int) error {
		if err := errors.Join(syscall.Setregid(-1, gid), syscall.Setreuid(-1, user)); err != nil {
			t.Fatal(err)
		}
		_, err := IsNew(dir)
		if err := errors.Join(syscall.Setreuid(-1, 0), syscall.Setregid(-1, 0)); err != nil {
			t.Fatal(err)
		}
		return err
	}
	if err := as(group); err != nil {
		t.Errorf("of the group: got %v, want nil", err)
	}
	if err := as(user); err == nil || !strings.Contains(err.Error(), "may be written by other users") {
		t.Errorf("of another group: got %v, want that it is refused", err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o775 {
		t.Errorf("got %v, %v, want the mode as it was", info.Mode(), err)
	}
}
