package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"raftkv/internal/storage"
)

// openCluster opens n nodes and joins them to the first.
func openCluster(t testing.TB, n int, mutate ...func(*Config)) []*testNode {
	t.Helper()
	var nodes []*testNode
	for i := range n {
		nodes = append(nodes, openNode(t, fmt.Sprintf("n%d", i+1), t.TempDir(), mutate...))
	}
	nodes[0].waitLeader(t)
	for _, other := range nodes[1:] {
		nodes[0].join(t, other)
	}
	return nodes
}

// reopen stops n and opens it again where it was.
func (n *testNode) reopen(t testing.TB) *testNode {
	t.Helper()
	n.stop()
	return openNode(t, n.config.ID, n.config.Dir, func(c *Config) {
		c.RaftAddress, c.commit = n.RaftAddress(),
			n.config.commit
	})
}

// leaderOf waits for one of nodes to lead.
func leaderOf(t testing.TB, nodes ...*testNode) (leader *testNode) {
	t.Helper()
	waitFor(t, "a leader", func() bool {
		for _, n := range nodes {
			if n.Leads() && n.ReadIndex(context.Background()) == nil {
				leader = n
				return true
			}
		}
		return false
	})
	return leader
}

func (n *testNode) setSoon(t testing.TB, key, value string) {
	t.Helper()
	waitFor(t, "a write is taken", func() bool {
		_, err := n.Propose(context.Background(), setting(key, value))
		return err == nil
	})
}

func wantError(t testing.TB, what string, err, want error, text string) {
	t.Helper()
	if !errors.Is(err, want) || !strings.Contains(fmt.Sprint(err), text) {
		t.Errorf("%s: got %v, want %v with %q", what, err, want, text)
	}
}

// TestWipedMemberIsAStranger: a member whose volume was cleaned comes up as a new
// cluster of one. Neither side takes anything from the other, the survivors go on,
// and it comes back by leave and join. As raft comes, it would grant any vote.
func TestWipedMemberIsAStranger(t *testing.T) {
	nodes := openCluster(t, 3)
	n1, n2, n3 := nodes[0], nodes[1], nodes[2]
	n1.set(t, "a", "1")
	n1.stop()
	wiped := openNode(t, "n1", t.TempDir(), func(c *Config) { c.RaftAddress = n1.RaftAddress() })
	leader := leaderOf(t, n2, n3)
	leader.setSoon(t, "b", "2")
	wiped.waitLeader(t) // of itself
	if keys := wiped.machine.Len(); keys != 0 {
		t.Errorf("the wiped node holds %d keys, want 0", keys)
	}
	wiped.set(t, "own", "1")
	for _, n := range []*testNode{n2, n3} {
		if _, ok := n.machine.store.Get("own"); ok {
			t.Errorf("%s took a write of the stranger", n.config.ID)
		}
	}
	request := JoinRequest{ID: "n1", Address: wiped.RaftAddress()}
	_, err := leader.Join(context.Background(), request)
	wantError(t, "join without leave", err, ErrConflict, "/leave?nodeId=n1 first")

	if _, err := leader.Leave(context.Background(), "n1"); err != nil {
		t.Fatalf("Leave: %v", err)
	}
	_, err = leader.Join(context.Background(), request)
	wantError(t, "join with data of its own", err, ErrConflict, "holds data of its own")
	wiped.stop()
	wiped = openNode(t, "n1", t.TempDir(), func(c *Config) { c.RaftAddress = n1.RaftAddress() })
	leader.join(t, wiped)
	leader.set(t, "c", "3")
	checkReplicas(t, n2, n3, wiped)
}

// TestSecondNodeOfAName: somebody forgot to give a new node a name of its own. The advice must
// not be to take the member of that name out, which runs.
func TestSecondNodeOfAName(t *testing.T) {
	nodes := openCluster(t, 3)
	for _, id := range []string{"n1", "n2"} { // the leader and another member
		second := openNode(t, id, t.TempDir())
		second.waitLeader(t)
		_, err := nodes[0].Join(context.Background(), JoinRequest{ID: id, Address: second.RaftAddress()})
		wantError(t, "join of a second "+id, err, ErrConflict, "with another RAFT_NODE_ID")
		if strings.Contains(fmt.Sprint(err), "/leave") {
			t.Errorf("second %s: got %v, want no advice to take out a member that runs", id, err)
		}
	}
	nodes[0].set(t, "x", "1")
	checkReplicas(t, nodes...)
}

// TestJoinerDoesNotReachTheLeader: a node that could never answer the leader, or be elected by it,
// is no member, and nothing has changed on either side.
func TestJoinerDoesNotReachTheLeader(t *testing.T) {
	n1 := openNode(t, "n1", t.TempDir())
	other := openNode(t, "other", t.TempDir()) // what answers at the address, as 127.0.0.1 does on another machine
	var leads atomic.Value                     // where the joiner gets to when it dials n1; empty: nowhere
	leads.Store("")
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		address := leads.Load().(string)
		if address == "" {
			return nil, errors.New("no route to host")
		}
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}
	n2 := openNode(t, "n2", t.TempDir(), func(c *Config) { c.Dial = dial })
	for _, n := range []*testNode{n1, n2, other} {
		n.waitLeader(t)
	}
	before := n2.Info().ClusterID
	request := JoinRequest{ID: "n2", Address: n2.RaftAddress()}
	for _, test := range []struct{ name, leads, want string }{
		{name: "nowhere", leads: "", want: "no route to host"},
		{name: "another node", leads: other.RaftAddress(), want: "other of cluster"},
		{name: "itself", leads: n2.RaftAddress(), want: "n2 of cluster"},
	} {
		leads.Store(test.leads)
		_, err := n1.Join(t.Context(), request)
		wantError(t, test.name, err, ErrConflict, test.want)
		wantError(t, test.name, err, ErrConflict, "n2 reaches")
		wantError(t, test.name, err, ErrConflict, "n1 at "+n1.RaftAddress())
		n2.port.Client().CloseIdleConnections()
	}
	if got := n2.Info().ClusterID; got != before {
		t.Errorf("the joiner is of cluster %s, want %s as before", got, before)
	}
	if got := n1.current.Load().servers(); len(got) != 1 {
		t.Errorf("the members are %v, want n1 alone", got)
	}
	// An older program does not know the question.
	if err := n1.reachedBy(t.Context(), request, &Info{NodeID: "n2", MaxFormat: 1}); err != nil {
		t.Errorf("a joiner of an older program: %v", err)
	}
	leads.Store(n1.RaftAddress())
	n1.join(t, n2)
	n1.set(t, "a", "1")
	checkReplicas(t, n1, n2)
}

// TestJoinAtANewAddress: a member that has moved, with its volume, is told to the
// cluster by joining it again.
func TestJoinAtANewAddress(t *testing.T) {
	nodes := openCluster(t, 3)
	nodes[2].stop()
	moved := openNode(t, "n3", nodes[2].config.Dir) // another port
	nodes[0].set(t, "a", "1")
	nodes[0].join(t, moved)
	nodes[0].set(t, "b", "2")
	waitFor(t, "n3 has it", func() bool { return moved.machine.Len() == 2 })
	checkReplicas(t, nodes[0], nodes[1], moved)
}

func TestJoinTwiceAndAtOnce(t *testing.T) {
	n1 := openNode(t, "n1", t.TempDir())
	n1.waitLeader(t)
	n2, n3 := openNode(t, "n2", t.TempDir()), openNode(t, "n3", t.TempDir())
	var joins sync.WaitGroup
	for _, n := range []*testNode{n2, n3, n2, n3} {
		joins.Go(func() { n1.join(t, n) })
	}
	joins.Wait()
	joined, err := n1.Join(context.Background(), JoinRequest{ID: "n2", Address: n2.RaftAddress()})
	if want := (Joined{Members: 3}); joined != want || err != nil {
		t.Errorf("join of a member: got %+v, %v, want %+v", joined, err, want)
	}
	n1.set(t, "a", "1")
	checkReplicas(t, n1, n2, n3)
}

// TestNonvoter: a read replica gets everything and counts for nothing.
func TestNonvoter(t *testing.T) {
	n1, n2 := openNode(t, "n1", t.TempDir()), openNode(t, "n2", t.TempDir())
	n1.waitLeader(t)
	request := JoinRequest{ID: "n2", Address: n2.RaftAddress(), Nonvoter: true}
	if _, err := n1.Join(context.Background(), request); err != nil {
		t.Fatal(err)
	}
	n1.set(t, "a", "1")
	checkReplicas(t, n1, n2)
	_, err := n1.Transfer(context.Background(), "n2")
	wantError(t, "transfer to a nonvoter", err, ErrConflict, "has no vote")
	_, err = n1.Leave(context.Background(), "n1")
	wantError(t, "leave of the last voter", err, ErrConflict, "last voter")
	n2 = n2.reopen(t)
	n1.set(t, "while it was away", "1") // its vote is not needed

	request.Nonvoter = false
	if _, err := n1.Join(context.Background(), request); err != nil {
		t.Fatalf("promotion: %v", err)
	}
	checkReplicas(t, n1, n2)
	request.Nonvoter = true
	_, err = n1.Join(context.Background(), request)
	wantError(t, "demotion", err, ErrConflict, "is a voter")
}

// TestJoinerDies: a joiner that does not catch up is taken out again, and the
// cluster never needs its vote.
func TestJoinerDies(t *testing.T) {
	n1 := openNode(t, "n1", t.TempDir(), func(c *Config) { c.catchUp = 500 * time.Millisecond })
	n1.waitLeader(t)
	n1.set(t, "a", "1")
	disk := new(faultyDisk)
	dir := t.TempDir()
	n2 := openNode(t, "n2", dir, withDisk(disk))
	n2.waitLeader(t)
	never := make(chan struct{})
	disk.armed = func() { // from its adoption on, until it was given up
		disk.hang.Store(&never)
		disk.armed = nil
		time.AfterFunc(2*time.Second, func() { close(never) })
	}
	told := 0
	_, err := n1.Join(context.Background(), JoinRequest{ID: "n2", Address: n2.RaftAddress(),
		Progress: func(has, of uint64) { told++ }})
	wantError(t, "join", err, ErrConflict, "does not catch up")
	n1.set(t, "b", "2")
	if servers := n1.current.Load().servers(); len(servers) != 1 {
		t.Errorf("members after the join has failed: %v, want n1 alone", servers)
	}
	n2.setSoon(t, "own", "1") // it was released
}

// TestReleasesItself: a node whose adopting leader died before it was added
// becomes a cluster of one again, and takes writes.
func TestReleasesItself(t *testing.T) {
	n1 := openNode(t, "n1", t.TempDir())
	n2 := openNode(t, "n2", t.TempDir(), func(c *Config) { c.adopt = 300 * time.Millisecond })
	n1.waitLeader(t)
	n2.waitLeader(t)
	if _, err := n1.adopt(context.Background(), n1.current.Load(), JoinRequest{ID: "n2", Address: n2.RaftAddress()},
		nil); err != nil {
		t.Fatal(err)
	}
	if id := n2.Info().ClusterID; id != n1.Info().ClusterID {
		t.Fatalf("adopted into %s, want %s", id, n1.Info().ClusterID)
	}
	n1.stop()
	n2.setSoon(t, "a", "1")
}

// TestLeave has every kind of it.
func TestLeave(t *testing.T) {
	nodes := openCluster(t, 5)
	n1, n2, n3, n4, n5 := nodes[0], nodes[1], nodes[2], nodes[3], nodes[4]
	n1.set(t, "a", "1")
	_, err := n1.Leave(context.Background(), "n9")
	wantError(t, "leave of a stranger", err, ErrNoSuchNode, "n9")
	_, err = n2.Leave(context.Background(), "n3")
	wantError(t, "leave at a follower", err, ErrNotLeader, "")

	// A follower: it says so, is quiet, refuses, and comes back with its old volume.
	if _, err := n1.Leave(context.Background(), "n5"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "n5 knows that it was removed", func() bool { return n5.Info().Removed })
	if !strings.Contains(n5.log.String(), "n5 was removed from cluster") {
		t.Error("n5 does not say that it was removed")
	}
	_, err = n5.Propose(context.Background(), setting("x", "1"))
	wantError(t, "write at a removed node", err, ErrNotApplied, "removed")
	wantError(t, "read at a removed node", n5.ReadIndex(context.Background()), ErrNotApplied, "removed")
	n1.set(t, "b", "2")
	n1.join(t, n5)
	n1.set(t, "c", "3")
	checkReplicas(t, nodes...)

	// A dead one, which learns it when it is back.
	n5.stop()
	if _, err := n1.Leave(context.Background(), "n5"); err != nil {
		t.Fatal(err)
	}
	n5 = n5.reopen(t)
	waitFor(t, "n5 learns that it was removed while it was away", func() bool { return n5.Info().Removed })

	// The leader.
	if _, err := n1.Leave(context.Background(), "n1"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "n1 knows that it was removed", func() bool { return n1.Info().Removed })
	leader := leaderOf(t, n2, n3, n4)
	leader.set(t, "d", "4")
	checkReplicas(t, n2, n3, n4)

	// One without whom the others could not go on.
	for _, n := range []*testNode{n2, n3, n4} {
		if n != leader {
			n.stop()
			break
		}
	}
	for _, n := range []*testNode{n2, n3, n4} {
		if n != leader && n.life.now() < closing {
			_, err := leader.Leave(context.Background(), n.config.ID)
			wantError(t, "leave of one that is needed", err, ErrConflict, "only 1 of 2 voters answer")
		}
	}
	leader.set(t, "e", "5")
}

func TestTransfer(t *testing.T) {
	nodes := openCluster(t, 3)
	n1, n2, n3 := nodes[0], nodes[1], nodes[2]
	n1.set(t, "a", "1")
	_, err := n1.Transfer(context.Background(), "n9")
	wantError(t, "transfer to a stranger", err, ErrNoSuchNode, "n9")
	_, err = n2.Transfer(context.Background(), "n3")
	wantError(t, "transfer at a follower", err, ErrNotLeader, "")

	if got, err := n1.Transfer(context.Background(), "n2"); got != "n2" || err != nil {
		t.Fatalf("transfer: got %q, %v, want n2", got, err)
	}
	n2.waitLeader(t)
	n2.setSoon(t, "b", "2")
	n3.stop()
	_, err = n2.Transfer(context.Background(), "n3")
	wantError(t, "transfer to a dead one", err, ErrConflict, "answers")
	if got, err := n2.Transfer(context.Background(), ""); got != "n1" || err != nil {
		t.Errorf("transfer to the best: got %q, %v, want n1, the only one that answers", got, err)
	}
	n1.setSoon(t, "c", "3")
	checkReplicas(t, n1, n2)
}

func TestTransferToALaggingOne(t *testing.T) {
	n1, n2 := openNode(t, "n1", t.TempDir()), openNode(t, "n2", t.TempDir())
	n1.waitLeader(t)
	if _, err := n1.Join(context.Background(), JoinRequest{ID: "n2", Address: n2.RaftAddress(),
		Nonvoter: true}); err != nil {
		t.Fatal(err)
	}
	servers := []raft.Server{{ID: "n1"}, {ID: "n2", Address: raft.ServerAddress(n2.RaftAddress()), Suffrage: raft.Voter}}
	i := n1.current.Load()
	if _, err := n1.successor(context.Background(), i, servers, "n2", 0); err != nil {
		t.Errorf("one that has caught up: %v", err)
	}
	n2.stop()
	stale := openNode(t, "n2", n2.config.Dir, func(c *Config) { c.RaftAddress = n2.RaftAddress() })
	n1.port.CloseStreams(n2.RaftAddress())
	stale.current.Load().raft.Shutdown() // it answers, and takes nothing
	for i := range transferLag + 1 {
		n1.set(t, fmt.Sprint(i), "")
	}
	_, err := n1.successor(context.Background(), i, servers, "n2", 0)
	wantError(t, "one that lags", err, ErrConflict, "entries behind")

	// One that has caught up, though its disk is nearly full, is better than one that lags.
	n3 := openNode(t, "n3", t.TempDir())
	if _, err := n1.Join(context.Background(), JoinRequest{ID: "n3", Address: n3.RaftAddress(),
		Nonvoter: true}); err != nil {
		t.Fatal(err)
	}
	n3.health.set(&n3.health.space, "nearly full")
	servers = append(servers, raft.Server{ID: "n3", Address: raft.ServerAddress(n3.RaftAddress()), Suffrage: raft.Voter})
	if to, err := n1.successor(context.Background(), i, servers, "", 0); err != nil || to.ID != "n3" {
		t.Errorf("of one that lags and one that is full: got %s, %v, want n3", to.ID, err)
	}
}

// TestRecovery: two of three are lost for good; peers.json in the third's volume
// makes it a cluster of one with all data, once.
func TestRecovery(t *testing.T) {
	nodes := openCluster(t, 3)
	n1 := nodes[0]
	for i := range 10 {
		n1.set(t, fmt.Sprint(i), fmt.Sprint(i))
	}
	want := fmt.Sprint(content(n1.machine.store))
	for _, n := range nodes {
		n.stop()
	}
	path := filepath.Join(n1.config.Dir, storage.RecoveryFile)
	for _, bad := range []string{"", "[]", `[{"id":"n1"}]`, `[{"id":"n1","address":"127.0.0.1:1","non_voter":true}]`} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := tryOpen(t, "n1", n1.config.Dir); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("peers.json %q: got %v, want an error that names it", bad, err)
		}
	}
	if err := os.WriteFile(path, fmt.Appendf(nil, `[{"id": "n1", "address": "%s", "non_voter": false}]`,
		n1.RaftAddress()), 0o600); err != nil {
		t.Fatal(err)
	}
	n1 = n1.reopen(t)
	n1.waitLeader(t)
	if got := fmt.Sprint(content(n1.machine.store)); got != want {
		t.Errorf("after the recovery\n%s\nwant\n%s", got, want)
	}
	if _, err := os.Stat(path + ".used"); err != nil {
		t.Errorf("peers.json was not renamed: %v", err)
	}
	if !strings.Contains(n1.log.String(), "Recovered from peers.json") {
		t.Error("it does not say that it was recovered")
	}
	n1.set(t, "after", "1")
	n1 = n1.reopen(t)
	n1.waitLeader(t)
	n2 := openNode(t, "n2", t.TempDir())
	n1.join(t, n2)
	n1.set(t, "more", "1")
	checkReplicas(t, n1, n2)
}

// TestMembersChangeDuringAJoin: while a joiner catches up, which may take long, another member can leave and the
// leadership can be handed over; and the joiner can be taken out, which its join must not undo.
func TestMembersChangeDuringAJoin(t *testing.T) {
	nodes := openCluster(t, 4)
	nodes[0].set(t, "x", "1")
	checkReplicas(t, nodes...)
	joiner := openNode(t, "n5", t.TempDir())
	gate := make(chan struct{})
	hold := func() { joiner.machine.gate.Store(&gate) } // from when it is adopted, it applies nothing
	joiner.machine.reset.Store(&hold)
	joined := make(chan error, 1)
	join := func(leader *testNode) {
		go func() {
			_, err := leader.Join(context.Background(), JoinRequest{ID: "n5", Address: joiner.RaftAddress()})
			joined <- err
		}()
		waitFor(t, "n5 is catching up", func() bool {
			return slices.Contains(leader.Info().MemberIDs, "n5") && len(leader.membership) == 0
		})
	}
	join(nodes[0])
	nodes[3].stop()
	if left, err := nodes[0].Leave(context.Background(), "n4"); err != nil || left != 4 {
		t.Fatalf("n4 leaves: got %d, %v, want 4 members, with n5", left, err)
	}
	if _, err := nodes[0].Leave(context.Background(), "n5"); err != nil {
		t.Fatalf("n5 leaves: %v", err)
	}
	if err := <-joined; !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(),
		"taken out, or moved, by another request") {
		t.Errorf("the join of n5, which was taken out: got %v, want ErrConflict", err)
	}
	if got := nodes[0].Info().MemberIDs; !slices.Equal(got, []string{"n1", "n2", "n3"}) {
		t.Errorf("members: got %v, want n1 to n3", got)
	}
	join(nodes[0])
	if _, err := nodes[0].Transfer(context.Background(), "n2"); err != nil {
		t.Fatalf("transfer: %v", err)
	}
	if err := <-joined; !errors.Is(err, ErrUnknown) {
		t.Errorf("the join of n5, over whose leader another has come: got %v, want ErrUnknown", err)
	}
	joiner.machine.reset.Store(nil)
	joiner.machine.gate.Store(nil)
	close(gate)
	nodes[1].waitLeader(t)
	waitFor(t, "n5 is joined", func() bool {
		_, err := nodes[1].Join(context.Background(), JoinRequest{ID: "n5", Address: joiner.RaftAddress()})
		if err != nil {
			t.Logf("n5 can't be joined yet: %v", err)
		}
		return err == nil
	})
	nodes[1].set(t, "y", "1")
	checkReplicas(t, append(nodes[:3:3], joiner)...)
}

// TestLeaderIsClosedDuringAJoin: what catches up stays in without a vote, and gets that when it is joined again. Taken
// out by a leader that can't release it any more, it would be inactive for ever.
func TestLeaderIsClosedDuringAJoin(t *testing.T) {
	leader, joiner := openNode(t, "n1", t.TempDir()), openNode(t, "n2", t.TempDir())
	leader.waitLeader(t)
	leader.set(t, "x", "1")
	gate := make(chan struct{})
	hold := func() { joiner.machine.gate.Store(&gate) } // from when it is adopted, it applies nothing
	joiner.machine.reset.Store(&hold)
	joined := make(chan error, 1)
	go func() {
		_, err := leader.Join(context.Background(), JoinRequest{ID: "n2", Address: joiner.RaftAddress()})
		joined <- err
	}()
	waitFor(t, "n2 has the leader's configuration", func() bool {
		return len(joiner.current.Load().servers()) == 2 && len(leader.membership) == 0
	})
	leader.life.cancel() // what Close begins with
	wantError(t, "join", <-joined, ErrUnknown, "shutting down")
	leader = leader.reopen(t)
	leader.waitLeader(t)
	if s := find(leader.current.Load().servers(), "n2"); s == nil || s.Suffrage != raft.Nonvoter {
		t.Fatalf("n2 after its leader was closed: got %v, want it a member without a vote", s)
	}
	joiner.machine.reset.Store(nil)
	joiner.machine.gate.Store(nil)
	close(gate)
	leader.join(t, joiner)
	leader.set(t, "y", "1")
	checkReplicas(t, leader, joiner)
}

// TestLateRemoval: a call whose caller has given up removes nothing, as the node may have been joined again.
func TestLateRemoval(t *testing.T) {
	n := openNode(t, "n1", t.TempDir())
	n.waitLeader(t)
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	if err := n.handleRemoved(gone); err != nil || n.life.now() != running {
		t.Errorf("got %v, state %d, want nil, and that it runs", err, n.life.now())
	}
	if err := n.handleRemoved(context.Background()); err != nil || n.life.now() != removed {
		t.Errorf("in time: got %v, state %d, want nil, and that it is removed", err, n.life.now())
	}
}

// TestMovedNode: a node that is started with another raft port has its address changed: alone, by itself; in a cluster,
// by the leader, unless it can be reached at the former one too.
func TestMovedNode(t *testing.T) {
	addressOf := func(n *testNode, id string) string {
		if server := find(n.current.Load().servers(), id); server != nil {
			return string(server.Address)
		}
		return ""
	}
	dir := t.TempDir()
	alone := openNode(t, "n1", dir)
	alone.waitLeader(t)
	alone.stop()
	alone = openNode(t, "n1", dir) // at another free address
	if want := "The members know n1 at the address "; !strings.Contains(alone.log.String(), want) {
		t.Errorf("at its start: want %q in its log", want)
	}
	waitFor(t, "a node alone to have moved", func() bool { return addressOf(alone, "n1") == alone.RaftAddress() })

	nodes := openCluster(t, 3)
	nodes[0].set(t, "x", "1")
	checkReplicas(t, nodes...)
	if err := nodes[0].moveMember(context.Background(), "n2", alone.RaftAddress()); err != nil {
		t.Errorf("a member that answers where it is: got %v, want nil", err)
	}
	if got := addressOf(nodes[0], "n2"); got != nodes[1].RaftAddress() {
		t.Errorf("a member that answers where it is: moved to %s", got)
	}
	dir = nodes[2].config.Dir
	nodes[2].stop()
	if err := nodes[0].moveMember(context.Background(), "n3", alone.RaftAddress()); !errors.Is(err, ErrConflict) {
		t.Errorf("to another node's address: got %v, want ErrConflict", err)
	}
	nodes[2] = openNode(t, "n3", dir)
	for _, n := range nodes {
		waitFor(t, n.config.ID+" to have the new address of n3", func() bool {
			return addressOf(n, "n3") == nodes[2].RaftAddress()
		})
	}
	nodes[0].set(t, "x", "2")
	checkReplicas(t, nodes...)

	dir = nodes[2].config.Dir
	for _, n := range nodes {
		n.stop()
	}
	n3 := openNode(t, "n3", dir)
	waitFor(t, "a warning, as no leader is there", func() bool {
		line := n3.Health().Warnings()
		return strings.Contains(line, n3.RaftAddress()+": no leader answers") && strings.Contains(n3.log.String(), line)
	})
}

// TestJoinIsNoScanner: beyond loopback, what is no raftkv node is all one, in text and in time.
func TestJoinIsNoScanner(t *testing.T) {
	web := &http.Server{}
	listener := listen(t)
	go func() { _ = web.Serve(listener) }()
	t.Cleanup(func() { _ = web.Close() })
	silent, dead := listen(t), listen(t)
	_ = dead.Close()
	there := map[string]string{"192.0.2.1:1": dead.Addr().String(), "192.0.2.2:1": listener.Addr().String(),
		"192.0.2.3:1": silent.Addr().String()}
	var mu sync.Mutex
	var lines []string
	n1 := openNode(t, "n1", t.TempDir(), func(c *Config) {
		c.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			if local, ok := there[address]; ok {
				address = local
			}
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		}
		logf := c.Logf
		c.Logf = func(format string, args ...any) {
			mu.Lock()
			defer mu.Unlock()
			lines = append(lines, fmt.Sprintf(format, args...))
			logf(format, args...)
		}
	})
	n1.waitLeader(t)
	var first string
	for address := range there {
		began := time.Now()
		_, err := n1.Join(t.Context(), JoinRequest{ID: "n2", Address: address})
		if took := time.Since(began); !errors.Is(err, ErrConflict) || took < memberTimeout {
			t.Errorf("%s: got %v after %v, want ErrConflict after %v", address, err, took, memberTimeout)
			continue
		}
		got := strings.ReplaceAll(err.Error(), address, "ADDRESS")
		if first = cmp.Or(first, got); got != first {
			t.Errorf("got %q and %q, want the same", got, first)
		}
		mu.Lock()
		if !slices.ContainsFunc(lines, func(line string) bool { return strings.Contains(line, "answers at "+address+": ") }) {
			t.Errorf("%s: the console has no reason: %q", address, lines)
		}
		mu.Unlock()
	}
}
