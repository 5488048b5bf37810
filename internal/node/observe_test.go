package node

import (
	"testing"

	"github.com/hashicorp/raft"
)

// TestLeadersAreCountedOnce: raft reports a leader again after it was away for a while.
func TestLeadersAreCountedOnce(t *testing.T) {
	o := newObserved()
	for _, step := range []struct {
		name   string
		leader raft.ServerID
		term   uint64
		want   uint64
	}{
		{name: "none yet", leader: "", term: 1, want: 0},
		{name: "the first", leader: "n1", term: 2, want: 1},
		{name: "not heard for a while", leader: "", term: 2, want: 1},
		{name: "heard again", leader: "n1", term: 2, want: 1},
		{name: "an election without a leader", leader: "", term: 3, want: 1},
		{name: "another", leader: "n2", term: 4, want: 2},
		{name: "elected again", leader: "n2", term: 5, want: 3},
	} {
		if o.leads(step.leader, step.term); o.leaderChanges.Load() != step.want {
			t.Errorf("%s: got %d, want %d", step.name, o.leaderChanges.Load(), step.want)
		}
	}
}

// TestViewsAreOfMembers: a member that was taken out is forgotten, and all are when the node leads no more.
func TestViewsAreOfMembers(t *testing.T) {
	o := newObserved()
	n2, n3 := raft.Server{ID: "n2"}, raft.Server{ID: "n3"}
	for _, s := range []raft.Server{n2, n3} {
		o.compared(comparison{server: s, info: &Info{AppliedIndex: 7}, state: Equal}, 10)
	}
	if got := o.members["n3"]; !got.Up || got.Lag != 3 || got.Last.IsZero() {
		t.Errorf("n3: got %+v, want it up and 3 entries behind", got)
	}
	o.keep(true, []raft.Server{n2})
	if _, ok := o.members["n2"]; !ok || len(o.members) != 1 {
		t.Errorf("without n3: got %v, want n2 alone", o.members)
	}
	o.keep(false, []raft.Server{n2})
	if len(o.members) != 0 {
		t.Errorf("on a follower: got %v, want none", o.members)
	}
}
