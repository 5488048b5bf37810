package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestLogIsBoundedInBytes: one key that is set again and again takes the disk of a snapshot and of the bytes behind it,
// not of all that it ever was: raft.db stays within 4 times Config.SnapshotBytes, and 16 MiB by which bbolt lets it grow.
// So do the followers', and a start reads no more.
func TestLogIsBoundedInBytes(t *testing.T) {
	bounded := func(c *Config) { c.SnapshotBytes, c.ElectionTimeout = 8<<20, 3*time.Second } // no other leader comes
	nodes := []*testNode{openNode(t, "n1", t.TempDir(), bounded), openNode(t, "n2", t.TempDir(), bounded)}
	nodes[0].waitLeader(t)
	nodes[0].join(t, nodes[1])
	value := strings.Repeat("v", 256<<10)
	for k := range 480 { // 120 MiB
		nodes[0].set(t, "key", fmt.Sprint(k, value))
	}
	for _, n := range nodes {
		waitFor(t, n.config.ID+" has dropped what it need not keep", func() bool {
			n.boundLog()
			return n.current.Load().volume.Log.BytesAbove(0) < 30<<20
		})
		if info, err := os.Stat(filepath.Join(n.config.Dir, "raft.db")); err != nil || info.Size() > (4*8+16)<<20 {
			t.Errorf("%s: raft.db: got %v, %d MiB, want 48 of the 120 that were written",
				n.config.ID, err, info.Size()>>20)
		}
	}
	checkReplicas(t, nodes...)
	address := nodes[1].RaftAddress()
	nodes[1].stop()
	again := openNode(t, "n2", nodes[1].config.Dir, bounded, func(c *Config) { c.RaftAddress = address })
	nodes[0].set(t, "key", "last")
	checkReplicas(t, nodes[0], again)
	if got := again.current.Load().volume.Log.BytesAbove(0); got > 30<<20 {
		t.Errorf("after a restart it counts %d MiB, want what is there", got>>20)
	}
}
