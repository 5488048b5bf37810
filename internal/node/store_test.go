package node

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// faultyDisk fails, or hangs, writes once it is told to.
type faultyDisk struct {
	logAndStable
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
	return d.logAndStable.StoreLogs(logs)
}

func (d *faultyDisk) Set(key, value []byte) error {
	if err := d.fault(); err != nil {
		return err
	}
	return d.logAndStable.Set(key, value)
}

func (d *faultyDisk) DeleteRange(low, high uint64) error {
	if err := d.fault(); err != nil {
		return err
	}
	return d.logAndStable.DeleteRange(low, high)
}

// withDisk puts a faultyDisk under a node.
func withDisk(d *faultyDisk) func(*Config) {
	return func(c *Config) {
		c.disk = func(below logAndStable) logAndStable {
			d.logAndStable = below
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
	if _, _, err := n.Propose(ctx, setting("b", "2")); !errors.Is(err, ErrUnknown) {
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
	n1, n2, n3 := openNode(t, "n1", t.TempDir()), openNode(t, "n2", t.TempDir()), openNode(t, "n3", t.TempDir(), withDisk(disk))
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
	nodes := []*testNode{openNode(t, "n1", t.TempDir(), withDisk(disk)), openNode(t, "n2", t.TempDir()), openNode(t, "n3", t.TempDir())}
	nodes[0].waitLeader(t)
	nodes[0].join(t, nodes[1])
	nodes[0].join(t, nodes[2])
	last := nodes[0].set(t, "a", "1")
	waitFor(t, "all have all", func() bool { return nodes[1].applied() >= last && nodes[2].applied() >= last })
	nodes[1].ails(&nodes[1].health.Space, "nearly full")
	mend := make(chan struct{})
	disk.hang.Store(&mend)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var proposed sync.WaitGroup
	proposed.Go(func() { _, _, _ = nodes[0].Propose(ctx, setting("b", "2")) })
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

// TestHungDisk: a write that never returns ends the node (hashicorp/raft issue
// 503: the leader would heartbeat on, and no other could take over).
func TestHungDisk(t *testing.T) {
	failed, release := make(chan error, 1), make(chan struct{})
	disk := &faultyDisk{logAndStable: raft.NewInmemStore()}
	disk.hang.Store(&release)
	s := &store{bolt: disk, fail: func(err error) { failed <- err }, limit: 10 * time.Millisecond, stored: func() {}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.StoreLogs([]*raft.Log{{Index: 1, Term: 1}})
	}()
	if err := <-failed; !strings.Contains(err.Error(), "the disk has not answered") {
		t.Errorf("failed with %v, want that the disk has not answered", err)
	}
	close(release)
	<-done
}

// TestStoreDetectsDamage: a damaged entry or value ends the node, and never
// reaches raft.
func TestStoreDetectsDamage(t *testing.T) {
	newStore := func() (*store, *raft.InmemStore, chan error) {
		below, failed := raft.NewInmemStore(), make(chan error, 1)
		s := &store{bolt: below, fail: func(err error) { failed <- err }, limit: time.Minute, stored: func() {}}
		if err := s.StoreLogs([]*raft.Log{{Index: 1, Term: 7, Data: []byte("data")}}); err != nil {
			t.Fatal(err)
		}
		return s, below, failed
	}
	read := func(f func() error) (err error, returned bool) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			err = f()
			returned = true
		}()
		<-done
		return err, returned
	}
	for name, damage := range map[string]func(l *raft.Log){
		"data":     func(l *raft.Log) { l.Data = []byte("dat4") },
		"term":     func(l *raft.Log) { l.Term = 8 },
		"type":     func(l *raft.Log) { l.Type = raft.LogNoop },
		"checksum": func(l *raft.Log) { l.Extensions = nil },
	} {
		t.Run(name, func(t *testing.T) {
			s, below, failed := newStore()
			var l raft.Log
			if err := below.GetLog(1, &l); err != nil {
				t.Fatal(err)
			}
			damage(&l)
			if err := below.StoreLogs([]*raft.Log{&l}); err != nil {
				t.Fatal(err)
			}
			err, returned := read(func() error { return s.GetLog(1, new(raft.Log)) })
			if returned {
				t.Errorf("GetLog returned %v, want that its goroutine ends", err)
			}
			if err := <-failed; !errors.Is(err, errDamaged) {
				t.Errorf("failed with %v, want errDamaged", err)
			}
		})
	}
	t.Run("stable value", func(t *testing.T) {
		s, below, failed := newStore()
		if err := s.SetUint64(keyCurrentTerm, 9); err != nil {
			t.Fatal(err)
		}
		if got, err := s.GetUint64(keyCurrentTerm); got != 9 || err != nil {
			t.Fatalf("got %d, %v, want 9", got, err)
		}
		if err := below.Set(keyCurrentTerm, []byte("\x00\x00\x00\x00\x00\x00\x00\x0a1234")); err != nil {
			t.Fatal(err)
		}
		if _, returned := read(func() error { _, err := s.GetUint64(keyCurrentTerm); return err }); returned {
			t.Error("GetUint64 returned, want that its goroutine ends")
		}
		if err := <-failed; !errors.Is(err, errDamaged) {
			t.Errorf("failed with %v, want errDamaged", err)
		}
	})
}
