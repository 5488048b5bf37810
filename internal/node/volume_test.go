package node

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"raftkv/internal/peer"
)

// testVolume makes a volume with n entries and returns its directory and what is
// in it.
func testVolume(t testing.TB, n int) (dir string, entries []string) {
	t.Helper()
	dir = t.TempDir()
	servers := raft.Configuration{Servers: []raft.Server{{ID: "n1", Address: "127.0.0.1:9000"}}}
	if err := createVolume(dir, "n1", peer.ClusterID{1, 2, 3}, &servers); err != nil {
		t.Fatal(err)
	}
	v := mustOpen(t, dir)
	var logs []*raft.Log
	for i := range n {
		logs = append(logs, &raft.Log{Index: uint64(i + 2), Term: 2, Type: raft.LogCommand, Data: fmt.Appendf(nil, "key%d=%s", i, strings.Repeat("v", i%50))})
	}
	if err := v.store.StoreLogs(logs); err != nil {
		t.Fatal(err)
	}
	entries = readAll(t, v.store)
	if err := v.close(); err != nil {
		t.Fatal(err)
	}
	return dir, entries
}

func mustOpen(t testing.TB, dir string) *volume {
	t.Helper()
	v, err := openVolume(dir, "n1", hclog.NewNullLogger())
	if err != nil {
		t.Fatalf("openVolume: %v", err)
	}
	v.store.fail = func(err error) { t.Errorf("the store failed: %v", err) }
	v.store.limit = writeLimit
	return v
}

// readAll returns the entries of a log, each as text.
func readAll(t testing.TB, s raft.LogStore) (entries []string) {
	t.Helper()
	first, err := s.FirstIndex()
	if err != nil {
		t.Fatal(err)
	}
	last, err := s.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	for i := first; i <= last; i++ {
		var l raft.Log
		if err := s.GetLog(i, &l); err != nil {
			t.Fatalf("GetLog(%d): %v", i, err)
		}
		entries = append(entries, fmt.Sprintf("%d %d %d %q %q", l.Index, l.Term, l.Type, l.Data, l.Extensions))
	}
	return entries
}

// stride is how far apart the bytes are that TestDamagedLogIsNeverServed flips. 1
// tries every byte, in a minute and a half.
const stride = 97

// TestDamagedLogIsNeverServed flips bytes all over raft.db and cuts it short. The
// volume must be refused, in one line and without a panic, or hold exactly what
// it held.
func TestDamagedLogIsNeverServed(t *testing.T) {
	dir, want := testVolume(t, 120)
	whole, err := os.ReadFile(boltPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	snaps, err := openSnapshots(dir, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	refused, opened := 0, 0
	check := func(what string, damaged []byte, reopen bool) {
		t.Helper()
		if err := os.WriteFile(boltPath(dir), damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		_, _, err := checkVolume(dir, "n1", snaps)
		if err != nil {
			refused++
			if !errors.Is(err, errDamaged) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: got %v, want one line of errDamaged", what, err)
			}
			return
		}
		opened++
		if !reopen {
			return
		}
		v := mustOpen(t, dir)
		if got := readAll(t, v.store); !slices.Equal(got, want) {
			t.Errorf("%s: it opened with\n%v\nwant\n%v", what, got, want)
		}
		if err := v.close(); err != nil {
			t.Error(err)
		}
	}
	for i := 0; i < len(whole); i += stride {
		damaged := bytes.Clone(whole)
		damaged[i] ^= byte(1 << (i % 8))
		check(fmt.Sprintf("bit %d of byte %d flipped", i%8, i), damaged, whole[i] != 0 || i%7 == 0) // zeros are free space, mostly
	}
	if refused == 0 || opened == 0 {
		t.Errorf("%d refused, %d opened: want some of both", refused, opened)
	}
	t.Logf("%d refused, %d opened unchanged", refused, opened)
	before := refused
	for size := 0; size < len(whole); size += 4096 {
		check(fmt.Sprintf("cut to %d bytes", size), whole[:size], true)
	}
	if refused == before {
		t.Error("no truncation was refused")
	}
}

// TestOpenFinishesATruncation: a node that ended between the two steps of
// DeleteRange at the end of the log must not get the truncated entries back.
func TestOpenFinishesATruncation(t *testing.T) {
	dir, entries := testVolume(t, 20)
	v := mustOpen(t, dir)
	if err := appendLogs(v.bolt, nil, 11); err != nil { // the first step alone
		t.Fatal(err)
	}
	if err := v.close(); err != nil {
		t.Fatal(err)
	}
	v = mustOpen(t, dir)
	defer v.close()
	if got := readAll(t, v.store); !slices.Equal(got, entries[:11]) {
		t.Errorf("got %v, want %v", got, entries[:11])
	}
	var l raft.Log
	if err := v.bolt.GetLog(12, &l); !errors.Is(err, raft.ErrLogNotFound) {
		t.Errorf("entry 12: got %v, want ErrLogNotFound", err)
	}
}

func TestDeleteRange(t *testing.T) {
	for _, test := range []struct {
		name                  string
		low, high, floor      uint64
		wantFirst, wantLast   uint64
		wantLength, wantAfter int
	}{
		{"the end", 15, 21, 0, 1, 14, 14, 14},
		{"all", 1, 21, 0, 0, 0, 0, 0},
		{"the beginning", 1, 10, 15, 11, 21, 11, 11},
		{"the beginning, kept for the older snapshot", 1, 10, 5, 6, 21, 16, 16},
		{"the beginning, with no older snapshot", 1, 10, 0, 1, 21, 21, 21},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir, _ := testVolume(t, 20) // entries 1 to 21
			v := mustOpen(t, dir)
			v.store.floor = func() uint64 { return test.floor }
			if err := v.store.DeleteRange(test.low, test.high); err != nil {
				t.Fatal(err)
			}
			first, _ := v.store.FirstIndex()
			last, _ := v.store.LastIndex()
			if first != test.wantFirst || last != test.wantLast {
				t.Errorf("got %d to %d, want %d to %d", first, last, test.wantFirst, test.wantLast)
			}
			if err := v.close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestVolumeOfAnotherNode(t *testing.T) {
	dir, _ := testVolume(t, 1)
	if _, err := openVolume(dir, "n2", hclog.NewNullLogger()); err == nil || !strings.Contains(err.Error(), "volume of node n1, not of n2") {
		t.Errorf("got %v, want that it is n1's", err)
	}
}

func TestVolumeInUse(t *testing.T) {
	dir := t.TempDir()
	openNode(t, "n1", dir)
	if _, err := tryOpen(t, "n1", dir); err == nil || !strings.Contains(err.Error(), "open in another process") {
		t.Errorf("got %v, want that another process has it open", err)
	}
}

// snapshotNow makes n take a snapshot, and returns its directory.
func snapshotNow(t testing.TB, n *testNode) string {
	t.Helper()
	if err := n.current.Load().raft.Snapshot().Error(); err != nil {
		t.Fatalf("snapshot: %v", err)
	}
	metas, err := n.current.Load().volume.snapshots.List()
	if err != nil || len(metas) == 0 {
		t.Fatalf("snapshots: %v, %v", metas, err)
	}
	return filepath.Join(n.config.Dir, "snapshots", metas[0].ID)
}

// snapshotVolume is the volume of a node that has taken two snapshots, with
// entries before, between and after.
func snapshotVolume(t testing.TB) (dir, newest string, want string) {
	t.Helper()
	dir = t.TempDir()
	n := openNode(t, "n1", dir, func(c *Config) { c.SnapshotThreshold = 5 })
	n.waitLeader(t)
	for round := range 3 {
		for i := range 20 {
			n.set(t, fmt.Sprint(i), fmt.Sprint(round))
		}
		if round < 2 {
			newest = snapshotNow(t, n)
		}
	}
	want = fmt.Sprint(content(n.machine.store))
	n.stop()
	return dir, newest, want
}

// TestDamagedSnapshotFallsBack: with the newest snapshot damaged in any of its
// bytes, the node starts from the older one and the log, and has everything.
func TestDamagedSnapshotFallsBack(t *testing.T) {
	source, newest, want := snapshotVolume(t)
	for _, file := range []string{"state.bin", "meta.json"} {
		whole, err := os.ReadFile(filepath.Join(newest, file))
		if err != nil {
			t.Fatal(err)
		}
		damages := [][]byte{whole[:len(whole)/2], {}}
		for i := 0; i < len(whole); i += 1 + len(whole)/5 {
			damaged := bytes.Clone(whole)
			damaged[i] ^= 1
			damages = append(damages, damaged)
		}
		for i, damaged := range damages {
			t.Run(fmt.Sprint(file, " ", i), func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				if err := os.CopyFS(dir, os.DirFS(source)); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, "snapshots", filepath.Base(newest), file), damaged, 0o600); err != nil {
					t.Fatal(err)
				}
				n := openNode(t, "n1", dir)
				n.waitLeader(t)
				n.set(t, "all before is applied", "") // and taken out of the comparison
				got := content(n.machine.store)
				delete(got, "all before is applied")
				if fmt.Sprint(got) != want {
					t.Errorf("got\n%v\nwant\n%v", got, want)
				}
				n.stop()
			})
		}
	}
}

// TestDamageBeyondRepairIsRefused: what no snapshot and log can rebuild must not
// be started from.
func TestDamageBeyondRepairIsRefused(t *testing.T) {
	source, newest, _ := snapshotVolume(t)
	older := func(dir string) string {
		all, err := filepath.Glob(filepath.Join(dir, "snapshots", "*"))
		if err != nil || len(all) != 2 {
			t.Fatalf("snapshots: %v, %v, want 2", all, err)
		}
		if filepath.Base(all[0]) == filepath.Base(newest) {
			return all[1]
		}
		return all[0]
	}
	for name, damage := range map[string]func(dir string) error{
		"both snapshots": func(dir string) error {
			return errors.Join(os.WriteFile(filepath.Join(older(dir), "state.bin"), nil, 0o600),
				os.WriteFile(filepath.Join(dir, "snapshots", filepath.Base(newest), "state.bin"), nil, 0o600))
		},
		"no snapshots":  func(dir string) error { return os.RemoveAll(filepath.Join(dir, "snapshots")) },
		"no raft.db":    func(dir string) error { return os.Remove(boltPath(dir)) },
		"empty raft.db": func(dir string) error { return os.WriteFile(boltPath(dir), nil, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(source)); err != nil {
				t.Fatal(err)
			}
			if err := damage(dir); err != nil {
				t.Fatal(err)
			}
			_, err := tryOpen(t, "n1", dir)
			if !errors.Is(err, errDamaged) || !strings.Contains(fmt.Sprint(err), dir) {
				t.Errorf("got %v, want errDamaged and the path", err)
			}
		})
	}
}

// TestUnfinishedSnapshotIsRemoved: raft itself leaves them for ever.
func TestUnfinishedSnapshotIsRemoved(t *testing.T) {
	dir, _, _ := snapshotVolume(t)
	left := filepath.Join(dir, "snapshots", "2-99-1700000000000.tmp")
	if err := os.MkdirAll(left, 0o755); err != nil {
		t.Fatal(err)
	}
	openNode(t, "n1", dir)
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: got %v, want it gone", left, err)
	}
}

// TestSnapshotInstall: a node that joins after the log was compacted gets the
// snapshot over the wire, headers and sizes right, and can restart from it.
func TestSnapshotInstall(t *testing.T) {
	n1 := openNode(t, "n1", t.TempDir(), func(c *Config) { c.SnapshotThreshold = 5 })
	n1.waitLeader(t)
	for round := range 3 {
		for i := range 20 {
			n1.set(t, fmt.Sprint(i), fmt.Sprint(round))
		}
		snapshotNow(t, n1)
	}
	dir := t.TempDir()
	n2 := openNode(t, "n2", dir)
	n2.waitLeader(t)
	n1.join(t, n2)
	checkReplicas(t, n1, n2)
	if !strings.Contains(n2.log.String(), "Installed remote snapshot") {
		t.Error("n2 did not get a snapshot: the test shows nothing")
	}
	address := n2.RaftAddress()
	n2.stop()
	n2 = openNode(t, "n2", dir, func(c *Config) { c.RaftAddress = address })
	waitFor(t, "n1 reaches n2 again", func() bool {
		_, _, err := n1.Propose(t.Context(), setting("again", "1"))
		return err == nil
	})
	checkReplicas(t, n1, n2)
}
