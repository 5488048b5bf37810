package node

import (
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// TestReplayIsReadInPieces: after a start, raft has read no more of the log than the state machine has applied, and a
// bounded number of bytes beyond that.
func TestReplayIsReadInPieces(t *testing.T) {
	n := openNode(t, "n1", t.TempDir())
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
