package storage

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// addSnapshot gives the volume in dir a snapshot, and returns the name of its directory.
func addSnapshot(t *testing.T, dir string) (name string) {
	t.Helper()
	v := mustOpen(t, dir)
	servers := raft.Configuration{Servers: []raft.Server{{ID: "n1", Address: "127.0.0.1:9000"}}}
	_, transport := raft.NewInmemTransport("127.0.0.1:9000")
	sink, err := v.Snapshots.Create(1, 10, 2, servers, 1, transport)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sink.Write([]byte("state")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(sink.Close(), v.Close()); err != nil {
		t.Fatal(err)
	}
	return sink.ID()
}

func mustMkdir(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
}

// TestStrangersInSnapshots: what turns up beside the snapshots and is none is left alone; it is not damage.
func TestStrangersInSnapshots(t *testing.T) {
	dir, _ := testVolume(t, 20)
	addSnapshot(t, dir)
	snapshots := filepath.Join(dir, "snapshots")
	strangers := []string{"lost+found", ".snapshot", "a-b-c", "x.tmp", "1-2-3-4"}
	for _, name := range strangers {
		mustMkdir(t, filepath.Join(snapshots, name))
	}
	if err := os.WriteFile(filepath.Join(snapshots, "README"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	v := mustOpen(t, dir)
	if metas, err := v.Snapshots.List(); len(metas) != 1 || err != nil {
		t.Errorf("got %d snapshots, %v, want 1", len(metas), err)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range append(strangers, "README") {
		if _, err := os.Stat(filepath.Join(snapshots, name)); err != nil {
			t.Errorf("%s: %v, want that it is left alone", name, err)
		}
	}
}

// TestCopyInSnapshots: raft would list a copy under the name of its original, and remove that one in its place. It is
// refused, with what to do; the volume is not called damaged, which it is not.
func TestCopyInSnapshots(t *testing.T) {
	for _, suffix := range []string{".bak", "-copy"} {
		dir, _ := testVolume(t, 20)
		name := addSnapshot(t, dir)
		original := filepath.Join(dir, "snapshots", name)
		if err := os.CopyFS(original+suffix, os.DirFS(original)); err != nil {
			t.Fatal(err)
		}
		_, err := Open(dir, Options{NodeID: "n1", Logger: hclog.NewNullLogger()})
		if err == nil || errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), original+suffix+" is a copy") {
			t.Errorf("%s: got %v, want that it is a copy, and no damage", suffix, err)
		}
	}
}

// TestSnapshotsOnADiskOfTheirOwn: a new volume may find lost+found there, and keeps it.
func TestSnapshotsOnADiskOfTheirOwn(t *testing.T) {
	dir := t.TempDir()
	lost := filepath.Join(dir, "snapshots", "lost+found")
	mustMkdir(t, lost)
	if fresh, err := IsNew(dir); !fresh || err != nil {
		t.Errorf("IsNew: got %v, %v, want true", fresh, err)
	}
	mustMkdir(t, filepath.Join(dir, "snapshots", "2-9-1700000000000"))
	if fresh, err := IsNew(dir); fresh || !errors.Is(err, ErrCorrupt) {
		t.Errorf("IsNew with a snapshot and no raft.db: got %v, %v, want ErrCorrupt", fresh, err)
	}
	if err := Create(dir, "n1", ClusterID{1}, nil); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(filepath.Join(dir, "snapshots"))
	if err != nil || len(left) != 1 || left[0].Name() != "lost+found" {
		t.Errorf("after Create: got %v, %v, want lost+found alone", left, err)
	}
}

// TestBracketsInThePath: the path of a volume is not a pattern, and what belongs to another node stays.
func TestBracketsInThePath(t *testing.T) {
	parent := t.TempDir()
	dir, others := filepath.Join(parent, "vol[12]"), filepath.Join(parent, "vol1", "snapshots", "2-10-1.tmp")
	mustMkdir(t, dir)
	mustMkdir(t, others)
	if fresh, err := IsNew(dir); !fresh || err != nil {
		t.Errorf("IsNew: got %v, %v, want true", fresh, err)
	}
	if err := Create(dir, "n1", ClusterID{1}, nil); err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(dir, "snapshots", "2-10-1.tmp")
	mustMkdir(t, own)
	if err := mustOpen(t, dir).Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(others); err != nil {
		t.Errorf("the other node's unfinished snapshot: %v, want that it is there", err)
	}
	if _, err := os.Stat(own); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its own unfinished snapshot: got %v, want that it was removed", err)
	}
	if err := errors.Join(os.Remove(filepath.Join(dir, "raft.db")), os.MkdirAll(own, 0o755)); err != nil {
		t.Fatal(err)
	}
	if fresh, err := IsNew(dir); fresh || !errors.Is(err, ErrCorrupt) {
		t.Errorf("IsNew without raft.db: got %v, %v, want ErrCorrupt", fresh, err)
	}
}
