package node

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"raftkv/internal/peer"
)

func newLife() *life {
	l := new(life)
	l.init()
	return l
}

// TestProposalWhileReplacing: it waits for the end of it, but no longer than its context;
// it used to wait for a lock before it looked at that.
func TestProposalWhileReplacing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLife()
		if was, ok := l.pause(); was != running || !ok {
			t.Fatalf("pause: got %v, %v, want running", was, ok)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := l.beginProposal(ctx); !errors.Is(err, ErrNotApplied) {
			t.Errorf("at the end of its context: got %v, want ErrNotApplied", err)
		}
		begun := make(chan error, 1)
		go func() { begun <- l.beginProposal(context.Background()) }()
		synctest.Wait()
		if len(begun) > 0 {
			t.Errorf("it began while the instance is replaced: %v", <-begun)
		}
		l.resume(running)
		if err := <-begun; err != nil {
			t.Errorf("after that: got %v, want no error", err)
		}
	})
}

// TestPauseWaitsForProposals: those that are under way keep the instance.
func TestPauseWaitsForProposals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLife()
		for range 2 {
			if err := l.beginProposal(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		paused := make(chan bool, 1)
		go func() { _, ok := l.pause(); paused <- ok }()
		l.endProposal()
		synctest.Wait()
		if len(paused) > 0 {
			t.Error("it did not wait for the second proposal")
		}
		l.endProposal()
		if !<-paused {
			t.Error("it was refused")
		}
	})
}

// TestStates has every move of a node from one state to the next.
func TestStates(t *testing.T) {
	l := newLife()
	want := func(what string, state state, err error) {
		t.Helper()
		if got := l.now(); got != state {
			t.Errorf("%s: got state %v, want %v", what, got, state)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		got := l.beginProposal(ctx)
		if !errors.Is(got, err) {
			t.Errorf("%s: a proposal got %v, want %v", what, got, err)
		}
		if got == nil {
			l.endProposal()
		}
	}
	want("after Open", running, nil)
	l.pause()
	want("pause", replacing, context.Canceled)
	l.resume(removed)
	want("removed", removed, errRemoved)
	if was, ok := l.pause(); was != removed || !ok {
		t.Errorf("pause: got %v, %v, want removed", was, ok)
	}
	l.resume(running)
	want("joined again", running, nil)
	l.pause()
	l.end(closing)
	want("Close while it is replaced", closing, errClosing)
	l.resume(running)
	want("and the end of that", closing, errClosing)
	if _, ok := l.pause(); ok {
		t.Error("pause of a node that is being closed: want that it is refused")
	}
	l.end(closed)
	l.end(closing)
	want("closed", closed, errClosing)
}

// TestAdoptionIsSeenWhole: while the raft port belongs already to the next instance, a node
// gives no term, and what it reports is all of the one or all of the other.
func TestAdoptionIsSeenWhole(t *testing.T) {
	n := openNode(t, "n1", t.TempDir())
	n.waitLeader(t)
	before, next := n.Info(), peer.ClusterID{9}
	if n.term("n1") != before.Term {
		t.Fatalf("got term %d, want %d", n.term("n1"), before.Term)
	}
	checked := false
	check := func() {
		checked = true
		if term := n.term("n1"); term != 0 {
			t.Errorf("got term %d while the instance is replaced, want 0", term)
		}
		if got := n.Info(); got.ClusterID != before.ClusterID {
			t.Errorf("got cluster %s with the log of %s", got.ClusterID, before.ClusterID)
		}
		if _, err := n.Freshness(); !errors.Is(err, ErrNotLinearizable) {
			t.Errorf("a stale read: got %v, want ErrNotLinearizable", err)
		}
		if n.port.ClusterID() != next {
			t.Errorf("the port has cluster %s: the test shows nothing", n.port.ClusterID())
		}
	}
	n.machine.reset.Store(&check)
	if err := n.handleAdopt(next); err != nil {
		t.Fatal(err)
	}
	n.machine.reset.Store(nil)
	if got := n.Info(); !checked || got.ClusterID != next.String() || got.LastIndex != 0 {
		t.Errorf("after the adoption: got %+v, want an empty node of %s", got, next)
	}
}
