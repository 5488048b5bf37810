package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"raftkv/internal/storage"
)

// faultyDisk fails, or hangs, writes once it is told to.
type faultyDisk struct {
	storage.LogAndStable
	failing atomic.Bool
	hang    atomic.Pointer[chan struct{}] // appends wait until it is closed
	hangs   atomic.Bool                   // one does
	armed   func()                        // called when it is put below a new instance
}

var errDisk = errors.New("no space left on device")

func (d *faultyDisk) fault() error {
	if d.failing.Load() {
		return errDisk
	}
	return nil
}

func (d *faultyDisk) StoreLogs(logs []*raft.Log) error {
	if hang := d.hang.Load(); hang != nil {
		d.hangs.Store(true)
		<-*hang
	}
	if err := d.fault(); err != nil {
		return err
	}
	return d.LogAndStable.StoreLogs(logs)
}

func (d *faultyDisk) Set(key, value []byte) error {
	if err := d.fault(); err != nil {
		return err
	}
	return d.LogAndStable.Set(key, value)
}

func (d *faultyDisk) DeleteRange(low, high uint64) error {
	if err := d.fault(); err != nil {
		return err
	}
	return d.LogAndStable.DeleteRange(low, high)
}

// withDisk puts a faultyDisk under a node.
func withDisk(d *faultyDisk) func(*Config) {
	return func(c *Config) {
		c.disk = func(below storage.LogAndStable) storage.LogAndStable {
			d.LogAndStable = below
			if d.armed != nil {
				d.armed()
			}
			return d
		}
	}
}

// waitFailed waits until n has failed, and returns why.
func waitFailed(t testing.TB, n *testNode) error {
	t.Helper()
	select {
	case err := <-n.Failed():
		return err
	case <-time.After(30 * time.Second):
		t.Fatal("the node goes on")
		return nil
	}
}

// TestFailStopOfALeader: raft as it comes would answer the failed append and lead
// on in the same term. Here nothing is acknowledged, the node says why it ends,
// and after a restart with room everything that was acknowledged is there.
func TestFailStopOfALeader(t *testing.T) {
	disk, dir := new(faultyDisk), t.TempDir()
	n := openNode(t, "n1", dir, withDisk(disk))
	n.waitLeader(t)
	n.set(t, "a", "1")
	disk.failing.Store(true)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if _, err := n.Propose(ctx, setting("b", "2")); !errors.Is(err, ErrUnknown) {
		t.Errorf("Propose on a failed disk: got %v, want ErrUnknown", err)
	}
	if err := waitFailed(t, n); !errors.Is(err, errDisk) || !strings.Contains(err.Error(), "append to the log") {
		t.Errorf("failed with %v, want that appending to the log failed and why", err)
	}
	n.stop()

	n = openNode(t, "n1", dir)
	n.waitLeader(t)
	n.set(t, "c", "3")
	if item, _ := n.machine.store.Get("a"); item.Value != "1" {
		t.Errorf("after the restart a=%q, want 1", item.Value)
	}
}

// TestFailStopOnTheTerm: raft as it comes panics when the term can't be saved.
func TestFailStopOnTheTerm(t *testing.T) {
	disk, dir := new(faultyDisk), t.TempDir()
	n := openNode(t, "n1", dir, withDisk(disk), func(c *Config) { c.ElectionTimeout = time.Second })
	disk.failing.Store(true) // before its first election
	if err := waitFailed(t, n); !errors.Is(err, errDisk) || !strings.Contains(err.Error(), "save CurrentTerm") {
		t.Errorf("failed with %v, want that saving CurrentTerm failed and why", err)
	}
}

// TestFailingDiskAtTheStart: raft saves the term when it is made.
func TestFailingDiskAtTheStart(t *testing.T) {
	disk := new(faultyDisk)
	disk.failing.Store(true)
	if _, err := tryOpen(t, "n1", t.TempDir(), withDisk(disk)); !errors.Is(err, errDisk) {
		t.Errorf("Open: got %v, want %v", err, errDisk)
	}
}

// TestFailStopOfAFollower: a follower that can't append must not hold up the
// others, nor wedge.
func TestFailStopOfAFollower(t *testing.T) {
	disk := new(faultyDisk)
	n1, n2, n3 := openNode(t, "n1", t.TempDir()), openNode(t, "n2", t.TempDir()), openNode(t, "n3", t.TempDir(),
		withDisk(disk))
	for _, n := range []*testNode{n1, n2, n3} {
		n.waitLeader(t)
	}
	n1.join(t, n2)
	n1.join(t, n3)
	n1.set(t, "a", "1")
	disk.failing.Store(true)
	n1.set(t, "b", "2")
	if err := waitFailed(t, n3); !errors.Is(err, errDisk) {
		t.Errorf("failed with %v, want %v", err, errDisk)
	}
	n3.stop()
	n1.set(t, "c", "3")
	checkReplicas(t, n1, n2)
}

// TestFailedLeaderGivesUp: while its disk hangs, a leader heartbeats, and no other would
// ever stand for election. Told to give up, it has one do so at once: of those that have
// all, one whose disk is not nearly full.
func TestFailedLeaderGivesUp(t *testing.T) {
	disk := new(faultyDisk)
	nearlyFull := func(c *Config) { c.lowSpace = math.MaxUint64 }
	nodes := []*testNode{openNode(t, "n1", t.TempDir(), withDisk(disk)), openNode(t, "n2", t.TempDir(), nearlyFull),
		openNode(t, "n3", t.TempDir())}
	nodes[0].waitLeader(t)
	nodes[0].join(t, nodes[1])
	nodes[0].join(t, nodes[2])
	last := nodes[0].set(t, "a", "1")
	waitFor(t, "all have all", func() bool { return nodes[1].applied() >= last && nodes[2].applied() >= last })
	mend := make(chan struct{})
	disk.hang.Store(&mend)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var proposed sync.WaitGroup
	proposed.Go(func() { _, _ = nodes[0].Propose(ctx, setting("b", "2")) })
	waitFor(t, "its disk hangs", disk.hangs.Load)
	if err := nodes[0].GiveUp(ctx); err != nil {
		t.Errorf("GiveUp: %v", err)
	}
	if leader := leaderOf(t, nodes[1:]...); leader != nodes[2] {
		t.Errorf("%s leads, want n3, which has room", leader.config.ID)
	}
	nodes[2].set(t, "c", "3")
	disk.hang.Store(nil)
	close(mend)
	proposed.Wait()
	checkReplicas(t, nodes...)
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
	metas, err := n.current.Load().volume.Snapshots.List()
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
		"no raft.db":    func(dir string) error { return os.Remove(filepath.Join(dir, "raft.db")) },
		"empty raft.db": func(dir string) error { return os.WriteFile(filepath.Join(dir, "raft.db"), nil, 0o600) },
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
			if !errors.Is(err, storage.ErrCorrupt) || !strings.Contains(fmt.Sprint(err), dir) {
				t.Errorf("got %v, want storage.ErrCorrupt and the path", err)
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
		_, err := n1.Propose(t.Context(), setting("again", "1"))
		return err == nil
	})
	checkReplicas(t, n1, n2)
}

// TestStopInASnapshot: raft waits for the snapshots that it takes, receives and sends when it shuts down. They end at
// their next step, which is no failure of the disk.
func TestStopInASnapshot(t *testing.T) {
	n := openNode(t, "n1", t.TempDir())
	n.waitLeader(t)
	n.set(t, "key", "value") // a leader that has just been elected may have applied nothing yet
	snapshotNow(t, n)
	snapshots := n.current.Load().volume.Snapshots
	sink, err := snapshots.Create(1, 100, 1, raft.Configuration{}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sink.Write(make([]byte, 1024)); err != nil {
		t.Fatal(err)
	}
	metas, err := snapshots.List()
	if err != nil || len(metas) == 0 {
		t.Fatalf("snapshots: %v, %v", metas, err)
	}
	_, state, err := snapshots.Open(metas[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = state.Close() })
	n.stop()
	if _, err := sink.Write(make([]byte, 1024)); err == nil {
		t.Error("a snapshot that is written goes on after the node was stopped")
	}
	if _, err := state.Read(make([]byte, 1)); err == nil {
		t.Error("a snapshot that is read goes on after the node was stopped")
	}
	if err := errors.Join(sink.Cancel(), snapshots.Failure()); err != nil {
		t.Errorf("got %v, want nil", err)
	}
}
