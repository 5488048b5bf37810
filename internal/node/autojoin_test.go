package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// TestDecide has what a node that waits does after a round of questions.
func TestDecide(t *testing.T) {
	waits := func(address, id, cluster string) seed {
		return seed{address: address, info: Info{NodeID: id, ClusterID: cluster, Waiting: "waiting"}}
	}
	in := func(address, id, leader string) seed {
		return seed{address: address, info: Info{NodeID: id, ClusterID: "c", LeaderAddress: leader}}
	}
	silent := func(address string) seed { return seed{address: address, err: errors.New("refused")} }
	nonvoter := func(s seed) seed { s.info.Nonvoter = true; return s }
	removed := func(s seed) seed { s.info.Removed = true; return s }
	three := []seed{waits("a:1", "n1", "1"), waits("b:1", "n2", "2"), waits("c:1", "n3", "3")}
	all := []string{"a:1 n1 1", "b:1 n2 2", "c:1 n3 3"}
	seeing := func(seen []string, seeds ...seed) []seed {
		seeds = slices.Clone(seeds)
		for k := range seeds {
			seeds[k].info.Seen = seen
		}
		return seeds
	}
	for _, tt := range []struct {
		name, node, cluster string
		seeds               []seed
		leader              string
		bootstrap           bool
		line                string
	}{
		{name: "the first, and all see the same", node: "n1", cluster: "1", seeds: seeing(all, three...), bootstrap: true},
		{name: "not the first", node: "n2", cluster: "2", seeds: seeing(all, three...), line: "n1 at a:1 is to begin"},
		{name: "not in the list", node: "n4", cluster: "4", seeds: seeing(all, three...), line: "n1 at a:1 is to begin"},
		{name: "another node of the first's name", node: "n1", cluster: "9", seeds: seeing(all, three...),
			line: "n1 at a:1 is to begin"},
		{name: "one that does not answer may have a cluster", node: "n1", cluster: "1",
			seeds: append(seeing(all, three[:2]...), silent("c:1")), line: "no answer from c:1 (refused)"},
		{name: "other lists", node: "n1", cluster: "1", seeds: seeing(all[:2], three...),
			line: "n2 at b:1 sees other nodes by its RAFT_JOIN"},
		{name: "others have not asked yet", node: "n1", cluster: "1", seeds: three, line: "n2 at b:1 sees other nodes"},
		{name: "two of a name", node: "n1", cluster: "1",
			seeds: seeing([]string{"a:1 n1 1", "b:1 n1 2"}, waits("a:1", "n1", "1"), waits("b:1", "n1", "2")),
			line:  "two nodes have the name n1"},
		{name: "itself alone", node: "n1", cluster: "1", seeds: seeing(all[:1], three[0]), line: "leads to n1 alone"},
		{name: "itself alone, by two addresses", node: "n1", cluster: "1",
			seeds: seeing([]string{"a:1 n1 1", "b:1 n1 1"}, waits("a:1", "n1", "1"), waits("b:1", "n1", "1")),
			line:  "leads to n1 alone"},
		{name: "the first that is to vote", node: "n2", cluster: "2", bootstrap: true,
			seeds: seeing([]string{"a:1 n1 1 nonvoter", "b:1 n2 2"}, nonvoter(three[0]), three[1])},
		{name: "none is to vote", node: "n1", cluster: "1", seeds: []seed{nonvoter(three[0]), nonvoter(three[1])},
			line: "none of these is to be a voter"},
		{name: "a cluster", node: "n1", cluster: "1",
			seeds: []seed{three[0], in("b:1", "n2", "b:2"), silent("c:1")}, leader: "b:2"},
		{name: "a cluster without a leader", node: "n1", cluster: "1",
			seeds: append(seeing(all, three[:2]...), in("c:1", "n3", "")), line: "the cluster of n3 at c:1 has no leader"},
		{name: "two clusters", node: "n1", cluster: "1", line: "different clusters",
			seeds: []seed{three[0], in("b:1", "n2", "b:2"), {address: "c:1", info: Info{NodeID: "n3", ClusterID: "d",
				LeaderAddress: "c:1"}}}},
		{name: "one was removed", node: "n1", cluster: "1",
			seeds: append(seeing(all, three[:2]...), removed(in("c:1", "n3", ""))), line: "n3 at c:1: removed from a cluster"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := decide(tt.node, tt.cluster, tt.seeds)
			if got.leader != tt.leader || got.bootstrap != tt.bootstrap || !strings.Contains(got.line, tt.line) ||
				(tt.line == "") != (got.line == "") {
				t.Errorf("got %+v, want leader %q, bootstrap %v, line %q", got, tt.leader, tt.bootstrap, tt.line)
			}
		})
	}
}

// joinsByItself returns what makes a node one that joins by itself, at an address of its own.
func joinsByItself(address string, list []string) func(*Config) {
	return func(c *Config) { c.RaftAddress, c.Join = address, list }
}

func addressesFor(t testing.TB, count int) (list []string) {
	for range count {
		list = append(list, freeAddress(t))
	}
	return list
}

// waitMembers waits until all nodes have the same so many members, voters but for nonvoters, and one leader.
func waitMembers(t testing.TB, voters, nonvoters int, nodes ...*testNode) (leader *testNode) {
	t.Helper()
	waitFor(t, fmt.Sprintf("one cluster of %d voters and %d others", voters, nonvoters), func() bool {
		for _, n := range nodes {
			votes := 0
			servers := n.current.Load().servers()
			for _, s := range servers {
				if s.Suffrage == raft.Voter {
					votes++
				}
			}
			if len(servers) != voters+nonvoters || votes != voters || n.Info().ClusterID != nodes[0].Info().ClusterID {
				return false
			}
		}
		return true
	})
	return leaderOf(t, nodes...)
}

// TestJoinByItself: three nodes, one of them late, one later and one wiped make one cluster, and
// a node that has none serves nothing.
func TestJoinByItself(t *testing.T) {
	list := addressesFor(t, 3)
	dirs := []string{t.TempDir(), t.TempDir(), t.TempDir()}
	open := func(k int) *testNode {
		return openNode(t, fmt.Sprintf("n%d", k+1), dirs[k], joinsByItself(list[k], list))
	}
	n3, n2 := open(2), open(1)
	waitFor(t, "n2 waits for n1", func() bool { return strings.Contains(n2.Info().Waiting, "no answer from "+list[0]) })
	for what, err := range map[string]error{
		"ReadIndex": n2.ReadIndex(context.Background()),
		"Freshness": func() error { _, err := n2.Freshness(); return err }(),
		"Leader":    func() error { _, err := n2.Leader(context.Background()); return err }(),
	} {
		wantError(t, what+" while it waits", err, ErrNotApplied, "waiting for a cluster (RAFT_JOIN): no answer from")
	}
	if _, err := n2.Propose(context.Background(), setting("a", "1")); !errors.Is(err, ErrNotLeader) {
		t.Errorf("Propose while it waits: got %v, want ErrNotLeader", err)
	}
	n1 := open(0)
	leader := waitMembers(t, 3, 0, n1, n2, n3)
	leader.setSoon(t, "a", "1")

	n4 := openNode(t, "n4", t.TempDir(), joinsByItself(freeAddress(t), list), func(c *Config) { c.Nonvoter = true })
	waitMembers(t, 3, 1, n1, n2, n3, n4)
	last := leader.Info().LastIndex
	n4.stop()
	n4 = openNode(t, "n4", n4.config.Dir, joinsByItself(n4.RaftAddress(), list), func(c *Config) { c.Nonvoter = true })
	waitFor(t, "n4 is back", func() bool { return n4.ReadIndex(context.Background()) == nil })
	if got := leader.Info().LastIndex; leader.Leads() && got != last {
		t.Errorf("a member that restarts: the log goes to %d, want %d as before", got, last)
	}

	// Not the leader is wiped, so that it is the others that say so.
	wiped := 0
	for k, n := range []*testNode{n1, n2, n3} {
		if n != leader {
			wiped = k
		}
	}
	nodes := []*testNode{n1, n2, n3}
	nodes[wiped].stop()
	if err := os.RemoveAll(dirs[wiped]); err != nil {
		t.Fatal(err)
	}
	nodes[wiped] = open(wiped)
	id := nodes[wiped].config.ID
	waitFor(t, "the wiped node says what to do", func() bool {
		return strings.Contains(nodes[wiped].Info().Waiting, "/leave?nodeId="+id)
	})
	if _, err := leaderOf(t, nodes...).Leave(context.Background(), id); err != nil {
		t.Fatalf("Leave: %v", err)
	}
	waitMembers(t, 3, 1, append(nodes, n4)...)
	leaderOf(t, nodes...).setSoon(t, "b", "2")
	checkReplicas(t, append(nodes, n4)...)
}

// TestOtherLists: nodes that were given other lists make no cluster, let alone two, and say so.
func TestOtherLists(t *testing.T) {
	list := addressesFor(t, 3)
	n1 := openNode(t, "n1", t.TempDir(), joinsByItself(list[0], list[:2]))
	n2 := openNode(t, "n2", t.TempDir(), joinsByItself(list[1], list))
	n3 := openNode(t, "n3", t.TempDir(), joinsByItself(list[2], list[1:]))
	for _, n := range []*testNode{n1, n2, n3} {
		waitFor(t, n.config.ID+" waits", func() bool {
			w := n.Info().Waiting
			return strings.Contains(w, "sees other nodes by its RAFT_JOIN") || strings.Contains(w, "is to begin the cluster")
		})
	}
	ids := make(map[string]bool)
	for _, n := range []*testNode{n1, n2, n3} {
		if servers := n.current.Load().servers(); len(servers) > 0 {
			t.Errorf("%s has the members %v, want none", n.config.ID, servers)
		}
		ids[n.Info().ClusterID] = true
	}
	if len(ids) != 3 {
		t.Errorf("got cluster IDs %v, want one for each node, as none has a cluster", ids)
	}
}

// TestBootstrapTooLate: answers that are old by the time that they would be acted on count no
// more, nor those of a node that has got its members meanwhile.
func TestBootstrapTooLate(t *testing.T) {
	list := addressesFor(t, 2)
	n1 := openNode(t, "n1", t.TempDir(), joinsByItself(list[0], list))
	id := n1.Info().ClusterID
	err := n1.bootstrapFirst(time.Now().Add(-2 * decisionLimit))
	wantError(t, "bootstrap by old answers", err, ErrConflict, "too old")
	if got := n1.Info().ClusterID; got != id {
		t.Errorf("the cluster ID went from %s to %s, want no change", id, got)
	}
	n2 := openNode(t, "n2", t.TempDir(), joinsByItself(list[1], list))
	waitMembers(t, 2, 0, n1, n2)
	id = n2.Info().ClusterID
	if err := n2.bootstrapFirst(time.Now()); !errors.Is(err, ErrConflict) || n2.Info().ClusterID != id {
		t.Errorf("bootstrap of a member: got %v and cluster %s, want ErrConflict and %s", err, n2.Info().ClusterID, id)
	}
}

// TestReleasedWaits: a node whose leader could not join it waits again. It does not become a
// cluster of one.
func TestReleasedWaits(t *testing.T) {
	list := addressesFor(t, 2)
	n1 := openNode(t, "n1", t.TempDir(), joinsByItself(list[0], list), func(c *Config) { c.adopt = 1 })
	if err := n1.handleRelease(); err != nil {
		t.Fatal(err)
	}
	if info := n1.Info(); info.Waiting == "" || len(info.MemberIDs) > 0 || info.LastIndex > 0 {
		t.Errorf("released: got %+v, want it to wait without members", info)
	}
}

// TestVoteIsAskedFor: a node whose leader failed between the two steps of its join gets its vote.
func TestVoteIsAskedFor(t *testing.T) {
	n1 := openNode(t, "n1", t.TempDir())
	n1.waitLeader(t)
	n2 := openNode(t, "n2", t.TempDir())
	n2.waitLeader(t)
	_, err := n1.Join(context.Background(), JoinRequest{ID: "n2", Address: n2.RaftAddress(), Nonvoter: true})
	if err != nil {
		t.Fatalf("Join: %v", err)
	}
	n2.stop()
	list := []string{n1.RaftAddress(), n2.RaftAddress()}
	n2 = openNode(t, "n2", n2.config.Dir, joinsByItself(n2.RaftAddress(), list))
	waitMembers(t, 2, 0, n1, n2)
	n1.setSoon(t, "a", "1")
	checkReplicas(t, n1, n2)
}

// TestAdvertise: a node behind a proxy is known by the address of that alone, and all goes through it.
func TestAdvertise(t *testing.T) {
	n1 := openNode(t, "n1", t.TempDir())
	n1.waitLeader(t)
	outside, inside := freeAddress(t), freeAddress(t)
	relay(t, outside, inside)
	n2 := openNode(t, "n2", t.TempDir(), func(c *Config) {
		_, port, _ := net.SplitHostPort(inside)
		c.RaftAddress, c.Advertise = "0.0.0.0:"+port, outside
	})
	if got := n2.Info().RaftAddress; got != outside {
		t.Errorf("raftAddress: got %s, want %s", got, outside)
	}
	n1.join(t, n2)
	for _, s := range n1.current.Load().servers() {
		if string(s.ID) == "n2" && string(s.Address) != outside {
			t.Errorf("address of n2: got %s, want %s", s.Address, outside)
		}
	}
	n1.set(t, "a", "1")
	checkReplicas(t, n1, n2)
	if _, err := n1.Transfer(context.Background(), "n2"); err != nil {
		t.Fatalf("Transfer: %v", err)
	}
	waitFor(t, "n1 follows n2", func() bool {
		leader, err := n1.Leader(context.Background())
		return err == nil && leader.ID == "n2"
	})
	if got := n1.Info().LeaderAddress; got != outside {
		t.Errorf("address of the leader: got %s, want %s", got, outside)
	}
	n3 := openNode(t, "n3", t.TempDir()) // which has to reach n2 through the proxy
	n3.waitLeader(t)
	n2.join(t, n3)
	n2.set(t, "b", "2")
	checkReplicas(t, n1, n2, n3)
}

// relay listens at an address and carries each connection to another, until the test ends.
func relay(t testing.TB, from, to string) {
	t.Helper()
	l, err := net.Listen("tcp", from)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				_ = near.Close()
				continue
			}
			pump := func(dst, src net.Conn) {
				_, _ = io.Copy(dst, src)
				_, _ = dst.Close(), src.Close()
			}
			go pump(near, far)
			go pump(far, near)
		}
	}()
}
