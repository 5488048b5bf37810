package e2e

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"

	"raftkv/internal/testkit"
)

// selfJoining returns nodes n1, n2 and so on that have RAFT_JOIN with all of their addresses.
func selfJoining(t testing.TB, count int) (nodes []*testkit.Node, list string) {
	t.Helper()
	var addresses []string
	for k := range count {
		n := testkit.NewNode(t, binary(t), fmt.Sprintf("n%d", k+1))
		nodes, addresses = append(nodes, n), append(addresses, net.JoinHostPort("127.0.0.1", n.RaftPort))
	}
	list = strings.Join(addresses, ",")
	for _, n := range nodes {
		n.Env = append(n.Env, "RAFT_JOIN="+list)
	}
	return nodes, list
}

// wantOneCluster waits until all nodes are members of one cluster, and so many of them voters.
func wantOneCluster(t testing.TB, voters int, nodes ...*testkit.Node) {
	t.Helper()
	testkit.Eventually(t, "one cluster", func() error {
		all, err := testkit.Statuses(nodes...)
		if err != nil {
			return err
		}
		for _, s := range all {
			votes := 0
			for _, m := range s.Members {
				if m.Suffrage == "Voter" {
					votes++
				}
			}
			if s.ClusterID != all[0].ClusterID || len(s.Members) != len(nodes) || votes != voters || s.Leader == "" {
				return fmt.Errorf("%s: cluster %s, leader %q, members %v", s.NodeID, s.ClusterID, s.Leader, s.Members)
			}
		}
		return nil
	})
	for _, n := range nodes {
		n.WaitReady(t)
	}
}

// TestClusterWithoutAPerson: three nodes in any order make one cluster, one that comes later joins it, and one whose
// volume is gone serves nobody, says what to do, and is back after that.
func TestClusterWithoutAPerson(t *testing.T) {
	t.Parallel()
	nodes, list := selfJoining(t, 3)
	order := rand.Perm(3)
	for k, i := range order {
		if k == 2 { // two of three wait
			waiting := nodes[order[0]]
			testkit.Eventually(t, waiting.ID+" waits for the third", func() error {
				a, err := testkit.Send(testkit.Direct, waiting.Request(t, http.MethodGet, "/readyz", ""))
				if err == nil && a.Status != http.StatusServiceUnavailable {
					t.Fatalf("/readyz while it waits: got %d %q, want 503", a.Status, a.Body)
				}
				if err == nil {
					err = a.OneLine("waiting for a cluster (RAFT_JOIN)", "127.0.0.1:"+nodes[i].RaftPort)
				}
				return err
			})
			waiting.WaitMessage(t, "Waiting to be joined (RAFT_JOIN): no answer from")
			for _, target := range []string{"/get?key=a", "/get?key=a&consistency=stale", "/list?consistency=stale",
				"/set?key=a&value=1"} {
				if a := waiting.Ask(t, target); a.Status != http.StatusServiceUnavailable {
					t.Errorf("%s while it waits: got %d %q, want 503", target, a.Status, a.Body)
				}
			}
		}
		nodes[i].Run(t)
	}
	wantOneCluster(t, 3, nodes...)
	nodes[0].Set(t, "a", "1")

	later := testkit.NewNode(t, binary(t), "n4", "RAFT_JOIN="+list, "RAFT_SUFFRAGE=nonvoter")
	later.Run(t)
	wantOneCluster(t, 3, append(nodes, later)...)

	wiped := nodes[0]
	wiped.Stop(t, syscall.SIGTERM) // which hands over, if it leads
	if err := os.RemoveAll(wiped.Volume); err != nil {
		t.Fatal(err)
	}
	wiped.Run(t)
	wiped.WaitMessage(t, "/leave?nodeId=n1 first")
	if a := wiped.Ask(t, "/readyz"); a.Status != http.StatusServiceUnavailable || a.OneLine("/leave?nodeId=n1") != nil {
		t.Errorf("/readyz of a wiped member: got %d %q, want 503 with what to do", a.Status, a.Body)
	}
	nodes[1].Definite(t, http.MethodGet, "/leave?nodeId=n1", "")
	wantOneCluster(t, 3, append(nodes, later)...)
	nodes[0].Set(t, "b", "2")
	testkit.CheckReplicas(t, append(nodes, later)...)
}

// TestRestartIsNoJoin: members that are started again with RAFT_JOIN change nothing.
func TestRestartIsNoJoin(t *testing.T) {
	t.Parallel()
	nodes, _ := selfJoining(t, 2)
	for _, n := range nodes {
		n.Run(t)
	}
	wantOneCluster(t, 2, nodes...)
	before := state(t, nodes[0]).ClusterID
	for _, n := range nodes {
		n.Stop(t, syscall.SIGTERM)
	}
	for _, n := range nodes {
		n.Run(t)
	}
	wantOneCluster(t, 2, nodes...)
	if after := state(t, nodes[1]).ClusterID; after != before {
		t.Errorf("cluster: got %s, want %s as before", after, before)
	}
	for _, n := range nodes {
		for _, line := range n.Messages() {
			if strings.Contains(line, "RAFT_JOIN") || strings.Contains(line, "Bootstrapping") {
				t.Errorf("%s: got %q at a second start, want nothing of the kind", n.ID, line)
			}
		}
	}
	testkit.CheckReplicas(t, nodes...)
}
