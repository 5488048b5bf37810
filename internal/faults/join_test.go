package faults

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"raftkv/internal/testkit"
)

var joins = flag.Int("joins", 3, "how many times five nodes with RAFT_JOIN start at once")

// TestFiveAtOnce starts five nodes with empty volumes and RAFT_JOIN, again and again, in any order,
// while they are killed, paused and cut off from each other: always one cluster comes of it, of all
// five, and no second one was ever begun.
func TestFiveAtOnce(t *testing.T) {
	if testing.Short() {
		t.Skip("takes several seconds: not with -short")
	}
	const size = 5
	random := rand.New(rand.NewPCG(*seed, 5))
	dir := t.TempDir()
	var nodes []*node
	var list []string
	for k := range size {
		n := newNode(t, k+1, dir, fmt.Sprintf("RAFT_ELECTION_TIMEOUT=%v", electionTimeout))
		nodes, list = append(nodes, n), append(list, net.JoinHostPort(n.host, n.raft))
	}
	for _, n := range nodes {
		n.env = append(n.env, "RAFT_JOIN="+strings.Join(list, ","))
	}
	began := time.Now()
	for round := range *joins {
		fiveAtOnce(t, random, round, nodes)
		if t.Failed() {
			for _, n := range nodes {
				t.Logf("%s:\n%s", n.id, n.console())
			}
			return
		}
	}
	t.Logf("one cluster %d times of %d, in %v", *joins, *joins, time.Since(began).Round(time.Second))
}

func fiveAtOnce(t *testing.T, random *rand.Rand, round int, nodes []*node) {
	for _, n := range nodes {
		n.kill()
		if err := os.RemoveAll(n.volume); err != nil {
			t.Fatal(err)
		}
		_ = os.Truncate(n.log, 0) // it is not there at first
	}
	for _, k := range random.Perm(len(nodes)) {
		nodes[k].start()
		time.Sleep(time.Duration(random.IntN(300)) * time.Millisecond)
	}
	for range 3 + random.IntN(5) {
		a, b := nodes[random.IntN(len(nodes))], nodes[random.IntN(len(nodes))]
		switch random.IntN(4) {
		case 0:
			a.kill()
			time.Sleep(time.Duration(random.IntN(500)) * time.Millisecond)
			a.start()
		case 1:
			a.signal(syscall.SIGSTOP)
			time.Sleep(time.Duration(random.IntN(3000)) * time.Millisecond)
			a.signal(syscall.SIGCONT)
		default:
			if wires != nil && a != b {
				wires.set(a.number, b.number, link{cut: true})
				if random.IntN(2) == 0 {
					wires.set(b.number, a.number, link{cut: true})
				}
			}
		}
		time.Sleep(time.Duration(random.IntN(300)) * time.Millisecond)
	}
	if wires != nil {
		wires.heal()
	}
	err := testkit.Poll(2*bound, func() error {
		all, err := testkit.Statuses(nodes...)
		if err != nil {
			return err
		}
		for _, s := range all {
			voters := 0
			for _, m := range s.Members {
				if m.Suffrage == "Voter" {
					voters++
				}
			}
			if s.ClusterID != all[0].ClusterID || voters != len(nodes) || s.Leader == "" {
				return fmt.Errorf("%s: cluster %s with %d voters, leader %q", s.NodeID, s.ClusterID, voters, s.Leader)
			}
		}
		return nil
	})
	begun := 0
	for _, n := range nodes {
		begun += strings.Count(n.console(), "as a cluster of one, cluster ID")
	}
	if err != nil || begun > 1 {
		t.Errorf("seed %d, round %d: %d clusters were begun, want 1; %v", *seed, round, begun, err)
		return
	}
	for _, n := range nodes {
		err := testkit.Poll(bound, func() error { _, err := n.ask(bound, "/readyz", nil); return err })
		if err != nil {
			t.Errorf("seed %d, round %d: %v", *seed, round, err)
		}
	}
	replicas, err := testkit.Replicas(bound, nodes...)
	if err == nil {
		err = testkit.Compare(replicas)
	}
	if err != nil {
		t.Errorf("seed %d, round %d: %v", *seed, round, err)
	}
}
