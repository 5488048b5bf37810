package node

import (
	"context"
	"strings"
	"testing"

	"raftkv/internal/kv"
)

// TestReplicasThatDiffer has a follower whose state machine was given another entry
// than the log has: leader and follower say so, and the third node has nothing to say.
func TestReplicasThatDiffer(t *testing.T) {
	nodes := openCluster(t, 3)
	nodes[0].set(t, "x", "1")
	checkReplicas(t, nodes...)
	status := func() Replicas {
		t.Helper()
		status, err := nodes[0].Status(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		return status.Replicas
	}
	chain := func(n *testNode) string { return n.Info().Chain }
	waitFor(t, "equal replicas in the status", func() bool {
		got := status()
		return got.Equal && got.Chain != "" && got.Chain == chain(nodes[0]) && got.Chain == chain(nodes[2])
	})

	wrong := nodes[2]
	index, term := wrong.machine.store.Applied()
	wrong.machine.store.Update(index, term, []byte("not of the log"), func(*kv.Tx) {})
	nodes[0].set(t, "x", "2")
	for _, n := range []*testNode{nodes[0], wrong} {
		waitFor(t, n.config.ID+" to say that the replicas differ", func() bool {
			said := n.Health().Replicas
			return strings.HasPrefix(said, "the replicas differ: n1 and n3 came to index ") && strings.Count(n.log.String(), said) == 1
		})
	}
	waitFor(t, "the status to say so", func() bool { return !status().Equal })
	if got := nodes[1].Health(); got != (Health{}) {
		t.Errorf("n2: got %+v, want nothing", got)
	}

	// What has no chain, from before there were any, is nothing to compare with.
	unknown := Info{AppliedIndex: nodes[0].applied()}
	if !nodes[0].sameAs(context.Background(), &unknown) {
		t.Error("a member without a chain: got a difference, want none")
	}
}

// TestLowSpace: a node warns once when the disk of its volume is nearly full.
func TestLowSpace(t *testing.T) {
	n := openNode(t, "n1", t.TempDir(), func(c *Config) { c.lowSpace = 1 << 62 })
	waitFor(t, "a warning", func() bool { return strings.Contains(n.Health().Space, " MiB left: make room") })
	waitFor(t, "the same in the log", func() bool { return strings.Contains(n.log.String(), n.Health().Space) })
	if got := n.Info().Health.Space; got == "" {
		t.Error("status: got nothing, want the same")
	}
	plenty := openNode(t, "n2", t.TempDir(), func(c *Config) { c.lowSpace = 1 })
	plenty.checkSpace()
	if got := plenty.Health().Space; got != "" {
		t.Errorf("with room: got %q, want nothing", got)
	}
}
