package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestReadIndexSeesEveryAcknowledgedWrite: on every node, while writes go on.
func TestReadIndexSeesEveryAcknowledgedWrite(t *testing.T) {
	nodes := openCluster(t, 3)
	var acknowledged atomic.Int64
	stop := make(chan struct{})
	var work sync.WaitGroup
	work.Go(func() {
		for i := int64(1); ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if _, _, err := nodes[0].Propose(context.Background(), setting("x", fmt.Sprint(i))); err == nil {
				acknowledged.Store(i)
			}
		}
	})
	var reads sync.WaitGroup
	for i := range 12 {
		n := nodes[i%3]
		reads.Go(func() {
			for range 50 {
				before := acknowledged.Load()
				if err := n.ReadIndex(context.Background()); err != nil {
					t.Errorf("read at %s: %v", n.config.ID, err)
					return
				}
				item, _ := n.machine.store.Get("x")
				var got int64
				_, _ = fmt.Sscan(item.Value, &got)
				if got < before {
					t.Errorf("read at %s: got %d, want %d or later, which was acknowledged before", n.config.ID, got, before)
				}
			}
		})
	}
	reads.Wait()
	close(stop)
	work.Wait()
	checkReplicas(t, nodes...)
}

// TestReadWaitsForTheStateMachine: what is committed is not yet what the state
// machine holds.
func TestReadWaitsForTheStateMachine(t *testing.T) {
	nodes := openCluster(t, 3)
	nodes[0].set(t, "x", "old")
	for _, n := range nodes[:2] { // the leader and a follower
		if err := n.ReadIndex(context.Background()); err != nil {
			t.Fatal(err)
		}
		gate := make(chan struct{})
		n.machine.gate.Store(&gate)
		value := "after the gate of " + n.config.ID
		written := make(chan error, 1)
		go func() {
			_, _, err := nodes[0].Propose(context.Background(), setting("x", value))
			written <- err
		}()
		waitFor(t, "it is committed, and not applied", func() bool {
			i := nodes[0].Info()
			return i.CommitIndex == i.LastIndex && n.applied() < i.CommitIndex
		})
		if err := n.ReadIndex(context.Background()); !errors.Is(err, ErrNoRead) {
			t.Errorf("read at %s before it is applied: got %v, want ErrNoRead", n.config.ID, err)
		}
		close(gate)
		if err := n.ReadIndex(context.Background()); err != nil {
			t.Errorf("read at %s after it is applied: %v", n.config.ID, err)
		}
		if item, _ := n.machine.store.Get("x"); item.Value != value {
			t.Errorf("read at %s: got %q, want %q", n.config.ID, item.Value, value)
		}
		if err := <-written; err != nil {
			t.Error(err)
		}
		n.machine.gate.Store(nil)
	}
	checkReplicas(t, nodes...)
}

// TestReadNeverJoinsARoundThatBegan: its confirmation could be older than the read.
func TestReadNeverJoinsARoundThatBegan(t *testing.T) {
	var rs rounds
	began, proceed := make(chan uint64), make(chan struct{})
	var count uint64 // rounds run one after the other
	run := func(context.Context) (uint64, error) {
		count++
		began <- count
		<-proceed
		return count, nil
	}
	read := func() chan uint64 {
		result := make(chan uint64, 1)
		go func() {
			index, _ := rs.next(context.Background(), run)
			result <- index
		}()
		return result
	}
	first := read()
	<-began
	second := read() // while the first round runs
	waitFor(t, "the second read waits", func() bool {
		rs.mu.Lock()
		defer rs.mu.Unlock()
		return rs.waiting != nil
	})
	proceed <- struct{}{}
	<-began
	proceed <- struct{}{}
	if got := <-first; got != 1 {
		t.Errorf("the first read got round %d, want 1", got)
	}
	if got := <-second; got != 2 {
		t.Errorf("the second read got round %d, want 2", got)
	}
}

// TestReadWithoutAQuorum: it ends in time, and never with an answer.
func TestReadWithoutAQuorum(t *testing.T) {
	nodes := openCluster(t, 3)
	nodes[0].set(t, "a", "1")
	nodes[1].stop()
	nodes[2].stop()
	if err := nodes[0].ReadIndex(context.Background()); !errors.Is(err, ErrNoRead) {
		t.Errorf("got %v, want ErrNoRead", err)
	}
}

// TestMajorityMustSayTheTerm: a leader of a term that is over gets no majority for
// it, whatever it takes itself for.
func TestMajorityMustSayTheTerm(t *testing.T) {
	nodes := openCluster(t, 3)
	r := nodes[0].current.Load().raft
	if err := nodes[0].majorityAt(context.Background(), r, r.CurrentTerm()); err != nil {
		t.Errorf("the present term: %v", err)
	}
	if err := nodes[0].majorityAt(context.Background(), r, r.CurrentTerm()-1); err == nil {
		t.Error("a majority confirmed a term that is over")
	}
	nodes[1].stop()
	nodes[2].stop()
	if err := nodes[0].majorityAt(context.Background(), r, r.CurrentTerm()); err == nil {
		t.Error("one of three is no majority")
	}
}

// TestFollowerReadsAfterAWrite: on an idle cluster the read brings the follower what
// raft would tell it only with its next AppendEntries.
func TestFollowerReadsAfterAWrite(t *testing.T) {
	nodes := openCluster(t, 3)
	var took []time.Duration
	for i := range 30 {
		nodes[0].set(t, "x", fmt.Sprint(i))
		begin := time.Now()
		if err := nodes[1].ReadIndex(context.Background()); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(begin))
		if item, _ := nodes[1].machine.store.Get("x"); item.Value != fmt.Sprint(i) {
			t.Fatalf("got %q, want %d", item.Value, i)
		}
	}
	t.Logf("reads took %v", took)
}
