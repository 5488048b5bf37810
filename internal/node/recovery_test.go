package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"raftkv/internal/storage"
)

// TestRecoveredTwice: two recoveries from the same copy of a volume, with the same file, are two
// clusters, so that a survivor of the one can't be taken for a member of the other.
func TestRecoveredTwice(t *testing.T) {
	nodes := openCluster(t, 3)
	nodes[0].set(t, "a", "1")
	checkReplicas(t, nodes...)
	former := nodes[0].Info().ClusterID
	for _, n := range nodes {
		n.stop()
	}
	again := copyVolume(t, nodes[0].config.Dir)
	first := recoverWith(t, nodes[:2]...)
	leaderOf(t, first...).setSoon(t, "b", "of the first recovery")
	checkReplicas(t, first...)
	id := first[0].Info().ClusterID
	if got := first[1].Info(); got.ClusterID != id || got.RecoveredFrom != former {
		t.Errorf("n2: got cluster %s, recovered from %s, want %s, %s", got.ClusterID, got.RecoveredFrom, id, former)
	}
	for _, n := range first {
		n.stop()
	}

	again()
	second := recoverWith(t, first[0])[0]
	if got := second.Info(); got.ClusterID == id || got.RecoveredFrom != former {
		t.Errorf("n1, recovered again: got cluster %s, recovered from %s, want another than %s, from %s",
			got.ClusterID, got.RecoveredFrom, id, former)
	}
	n2 := first[1].reopen(t) // of the first recovery
	if got := n2.Info().ClusterID; got != id {
		t.Errorf("n2: got cluster %s, want that of the first recovery, %s", got, id)
	}
	if _, err := n2.members.askMember(t.Context(), n2.current.Load().servers()[0]); err == nil {
		t.Error("n2 takes n1 for a member of its cluster")
	}
}

// TestRecoveryWaits: a survivor takes no ID but that of the one that makes it, waits for it within
// bounds, and is not recovered with a file that the other one did not have.
func TestRecoveryWaits(t *testing.T) {
	nodes := openCluster(t, 3)
	nodes[0].set(t, "a", "1")
	checkReplicas(t, nodes...)
	for _, n := range nodes {
		n.stop()
	}
	address := func(k int) func(*Config) {
		return func(c *Config) { c.RaftAddress = nodes[k].RaftAddress() }
	}
	file := func(k int, members ...int) {
		t.Helper()
		var list []string
		for _, m := range members {
			list = append(list, fmt.Sprintf(`{"id": "n%d", "address": "%s", "non_voter": false}`, m+1, nodes[m].RaftAddress()))
		}
		path := filepath.Join(nodes[k].config.Dir, storage.RecoveryFile)
		if err := os.WriteFile(path, fmt.Appendf(nil, "[%s]", strings.Join(list, ",")), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	file(1, 0, 1)
	short := func(c *Config) { c.recovery = 300 * time.Millisecond }
	_, err := tryOpen(t, "n2", nodes[1].config.Dir, address(1), short)
	if err == nil || !strings.Contains(err.Error(), "n1 at "+nodes[0].RaftAddress()+" has made no cluster") {
		t.Fatalf("without n1: got %v, want that it has made no cluster", err)
	}
	aborted := errors.New("aborted")
	_, err = tryOpen(t, "n2", nodes[1].config.Dir, address(1), func(c *Config) {
		c.Progress = func(fraction float64) error {
			if fraction < verifiedAt {
				return nil
			}
			return aborted
		}
	})
	if !errors.Is(err, aborted) {
		t.Fatalf("aborted while it waits: got %v, want the error", err)
	}

	file(0, 0, 2)
	n1 := openNode(t, "n1", nodes[0].config.Dir, address(0))
	_, err = tryOpen(t, "n2", nodes[1].config.Dir, address(1))
	if err == nil || !strings.Contains(err.Error(), "does not name n2: give all survivors the same") {
		t.Fatalf("another file: got %v, want that it does not name n2", err)
	}
	file(2, 0, 2)
	n3 := openNode(t, "n3", nodes[2].config.Dir, address(2))
	leaderOf(t, n1, n3).setSoon(t, "b", "2")
	checkReplicas(t, n1, n3)
}
