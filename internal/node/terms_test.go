package node

import (
	"testing"

	"github.com/hashicorp/raft"
)

// TestTerms: each change is one, and a leader that goes and comes back is two.
func TestTerms(t *testing.T) {
	var seen terms
	for i, step := range []struct {
		term   uint64
		leader string
		want   bool
	}{{1, "", true}, {2, "n1", true}, {2, "n1", false}, {2, "", true}, {2, "", false}, {2, "n1", true}, {3, "n1", true}} {
		if got := seen.changed(step.term, raft.ServerID(step.leader)); got != step.want {
			t.Errorf("step %d, %+v: got %t", i, step, got)
		}
	}
}
