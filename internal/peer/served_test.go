package peer

import (
	"math"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// TestServed: the entries that the member furthest behind needs are known until it has taken nothing for a while.
func TestServed(t *testing.T) {
	var s served
	if got := s.least(); got != math.MaxUint64 {
		t.Errorf("no member: got %d, want none", got)
	}
	s.serve("n2", 50)
	s.serve("n3", 20)
	if got := s.least(); got != 20 {
		t.Errorf("two members: got %d, want 20", got)
	}
	s.serve("n3", 60)
	if got := s.least(); got != 50 {
		t.Errorf("n3 has caught up: got %d, want 50", got)
	}
	s.needs["n2"] = need{after: 50, until: time.Now().Add(-time.Second)}
	if got := s.least(); got != 60 {
		t.Errorf("n2 is away: got %d, want 60", got)
	}
}

// TestCommitIndexOfAnAppend: a follower must not take for committed what it has behind the entries of a call.
func TestCommitIndexOfAnAppend(t *testing.T) {
	large := &raft.Log{Data: make([]byte, maxAppendBytes)}
	for _, test := range []struct {
		name         string
		entries      []*raft.Log
		commit, want uint64
	}{
		{name: "behind the last entry", entries: []*raft.Log{large}, commit: 10, want: 10},
		{name: "beyond the last entry", entries: []*raft.Log{{}, {}}, commit: 20, want: 12},
		{name: "beyond what is left of the entries", entries: []*raft.Log{large, large, large}, commit: 13, want: 11},
		{name: "no entries", commit: 11, want: 10},
	} {
		args := &raft.AppendEntriesRequest{PrevLogEntry: 10, Entries: test.entries, LeaderCommitIndex: test.commit}
		shorten(args)
		if args.LeaderCommitIndex != test.want {
			t.Errorf("%s: got commit index %d, want %d", test.name, args.LeaderCommitIndex, test.want)
		}
	}
}
