package node

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// TestReplayIsReadInPieces: after a start, raft has read no more of the log than the state machine has applied, and a
// bounded number of bytes beyond that.
func TestReplayIsReadInPieces(t *testing.T) {
	n := openNode(t, "n1", t.TempDir(), func(c *Config) { c.SnapshotBytes = 1 << 30 })
	n.waitLeader(t)
	value := strings.Repeat("v", 256<<10)
	for range 300 { // 75 MiB, in no snapshot
		n.set(t, "key", value)
	}
	want, at := n.applied(), n.RaftAddress()
	n.stop()

	gate := make(chan struct{})
	again := newMachine()
	again.gate.Store(&gate)
	config := n.config
	config.RaftAddress = at
	var most uint64 // index that was read; by raft's goroutines, one after the other
	second, err := Open(config, again)
	if err != nil {
		t.Fatal(err)
	}
	restarted := &testNode{Node: second, machine: again, log: n.log}
	t.Cleanup(restarted.stop)
	log := second.current.Load().volume.Log
	reads := make(chan uint64, 10000)
	log.OnRead(func(index uint64) error { reads <- index; return nil })
	var stopped <-chan time.Time
	for waiting := true; waiting; {
		select {
		case index := <-reads:
			most = max(most, index)
			stopped = time.After(replayStall / 2)
		case <-stopped: // it reads no more: it waits for the state machine
			waiting = false
		}
	}
	const entries = (replayBytes + 2<<20) / (256 << 10)
	if most < 16 || most > entries {
		t.Errorf("nothing is applied, and raft has read up to entry %d, want %d at most", most, entries)
	}
	again.gate.Store(nil)
	close(gate)
	waitFor(t, "all is applied", func() bool { return restarted.applied() >= want })
}

// TestReplayNeverStalls: a state machine that applies nothing, because there is nothing to apply, holds no read up for
// longer than replayStall, and entries that are not committed are read at once.
func TestReplayNeverStalls(t *testing.T) {
	n := openNode(t, "n1", t.TempDir())
	n.waitLeader(t)
	for range 8 {
		n.set(t, "key", strings.Repeat("v", 1<<20))
	}
	i := n.current.Load()
	r := &replay{Log: i.volume.Log, machine: newMachine(), limit: 1 << 20}
	r.raft.Store(i.raft)
	began := time.Now()
	if err := r.GetLog(n.applied(), new(raft.Log)); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took < replayStall {
		t.Errorf("it read 8 MiB ahead after %v, want that it waits for %v", took, replayStall)
	}
	uncommitted := &replay{Log: i.volume.Log, machine: newMachine(), limit: 1 << 20} // of no raft yet
	if err := uncommitted.GetLog(n.applied(), new(raft.Log)); err != nil {
		t.Error(err)
	}
}

// TestInstalledSnapshotHasItsLastEntry: the entry that the newest snapshot ends with is there, whatever the log has.
func TestInstalledSnapshotHasItsLastEntry(t *testing.T) {
	below := raft.NewInmemStore()
	for index := uint64(5); index <= 9; index++ {
		if err := below.StoreLog(&raft.Log{Index: index, Term: 2, Type: raft.LogCommand, Data: []byte("d")}); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name           string
		index, term    uint64 // of the newest snapshot
		read, wantTerm uint64
		wantData       string
		wantErr        error
	}{
		{name: "its own", index: 7, term: 2, read: 7, wantTerm: 2, wantData: "d"},
		{name: "another entry there", index: 7, term: 3, read: 7, wantTerm: 3},
		{name: "none there", index: 12, term: 3, read: 12, wantTerm: 3},
		{name: "an entry after it", index: 7, term: 3, read: 8, wantTerm: 2, wantData: "d"},
		{name: "a missing entry", index: 12, term: 3, read: 11, wantErr: raft.ErrLogNotFound},
		{name: "no snapshot", read: 1, wantErr: raft.ErrLogNotFound},
	} {
		l := &installed{LogStore: below, newest: func() (uint64, uint64) { return test.index, test.term }}
		var got raft.Log
		if err := l.GetLog(test.read, &got); !errors.Is(err, test.wantErr) {
			t.Errorf("%s: got error %v, want %v", test.name, err, test.wantErr)
		} else if err == nil && (got.Index != test.read || got.Term != test.wantTerm || string(got.Data) != test.wantData) {
			t.Errorf("%s: got %+v, want term %d, data %q", test.name, got, test.wantTerm, test.wantData)
		}
	}
}

// TestStandinIsNotSent: a leader that has no more of an entry than a snapshot that ends with it sends that, and not the
// entry that stands for it: the member would have another one than all others.
func TestStandinIsNotSent(t *testing.T) {
	small := func(c *Config) { c.SnapshotBytes, c.SnapshotThreshold = 1, 1 }
	n1 := openNode(t, "n1", t.TempDir(), small)
	n1.waitLeader(t)
	n1.set(t, "k", "v")
	i := n1.current.Load()
	waitFor(t, "the log has nothing but what is behind the snapshot", func() bool {
		n1.boundLog()
		first, err := i.volume.Log.FirstIndex()
		at, _ := i.volume.Snapshots.NewestEntry()
		if err == nil && first <= at {
			n1.set(t, "k", "v")
		}
		return err == nil && first > at && at > 0
	})
	at, _ := i.volume.Snapshots.NewestEntry()
	if err := i.log.GetLog(at, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
		t.Errorf("the leader shows raft entry %d: got %v, want %v", at, err, raft.ErrLogNotFound)
	}
	n2 := openNode(t, "n2", t.TempDir(), small)
	n1.join(t, n2)
	checkReplicas(t, n1, n2)
}

func TestHiddenUpTo(t *testing.T) {
	for _, test := range []struct {
		name                             string
		after, newest, served, was, want uint64
	}{
		{name: "nobody is served", after: 50, newest: 60, served: math.MaxUint64, want: 50},
		{name: "the snapshot ends before", after: 50, newest: 40, served: math.MaxUint64, want: 40},
		{name: "a member is served from there", after: 50, newest: 60, served: 20, want: 20},
		{name: "and goes on", after: 50, newest: 60, served: 30, was: 20, want: 30},
		{name: "a member takes what was retried", after: 50, newest: 60, served: 10, was: 45, want: 45},
	} {
		if got := hiddenUpTo(test.after, test.newest, test.served, test.was); got != test.want {
			t.Errorf("%s: got %d, want %d", test.name, got, test.want)
		}
	}
}

// TestMemberGetsWhatIsLess: a member that was away while one key was set again and again gets the snapshot, though the
// log has all that it lacks.
func TestMemberGetsWhatIsLess(t *testing.T) {
	calm := func(c *Config) { c.ElectionTimeout = 3 * time.Second } // no other leader comes in between
	nodes := []*testNode{openNode(t, "n1", t.TempDir(), calm), openNode(t, "n2", t.TempDir(), calm)}
	nodes[0].waitLeader(t)
	nodes[0].join(t, nodes[1])
	third := openNode(t, "n3", t.TempDir(), calm)
	nodes[0].join(t, third)
	checkReplicas(t, nodes[0], nodes[1], third) // so that nothing more than away comes to its log
	dir, address, away := third.config.Dir, third.RaftAddress(), third.current.Load().volume.Log.Last()
	third.stop()
	for k := range 40 {
		nodes[0].set(t, "key", fmt.Sprint(k, strings.Repeat("v", 256<<10)))
	}
	i := nodes[0].current.Load()
	if err := i.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	if first, err := i.volume.Log.FirstIndex(); err != nil || first > away {
		t.Fatalf("the log begins at %d, %v: want that it has what n3 lacks, from %d on", first, err, away+1)
	}
	waitFor(t, "n3 is not served any more", func() bool {
		nodes[0].boundLog()
		return i.log.hidden.Load() > away
	})
	again := openNode(t, "n3", dir, calm, func(c *Config) { c.RaftAddress = address })
	checkReplicas(t, nodes[0], nodes[1], again)
	if got := again.current.Load().volume.Snapshots.Written(); got == 0 {
		t.Error("n3 was sent 10 MiB of entries, want the snapshot of 256 KiB")
	}
}
