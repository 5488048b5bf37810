package node

import (
	"context"
	"strings"
	"testing"
)

// TestServing: what follows the changes at a node learns when that node no longer does.
func TestServing(t *testing.T) {
	nodes := openCluster(t, 3)
	leader := leaderOf(t, nodes...)
	var others []*testNode
	for _, n := range nodes {
		if n != leader {
			others = append(others, n)
		}
	}
	out, alone := others[0], others[1]
	wantEnd := func(what string, ctx context.Context, reason string) {
		t.Helper()
		waitFor(t, what, func() bool { return ctx.Err() != nil })
		if got := context.Cause(ctx); !strings.Contains(got.Error(), reason) {
			t.Errorf("%s: got %v, want %q in it", what, got, reason)
		}
	}

	fresh, stale := out.Serving(false), out.Serving(true)
	if fresh.Err() != nil || stale.Err() != nil {
		t.Fatalf("a follower: got %v %v, want that it serves", context.Cause(fresh), context.Cause(stale))
	}
	if _, err := leader.Leave(t.Context(), out.config.ID); err != nil {
		t.Fatal(err)
	}
	wantEnd("removed", fresh, "removed")
	wantEnd("removed, stale", stale, "removed")
	leader.join(t, out)
	waitFor(t, "it serves again", func() bool { return out.Serving(false).Err() == nil && out.Serving(true).Err() == nil })
	checkReplicas(t, nodes...)

	fresh, stale = alone.Serving(false), alone.Serving(true)
	out.stop()
	leader.stop()
	wantEnd("no leader", fresh, "no leader for")
	if stale.Err() != nil {
		t.Errorf("no leader, stale: got %v, want that it serves", context.Cause(stale))
	}
	alone.stop()
	wantEnd("shut down", stale, "shutting down")
}
