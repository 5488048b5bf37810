package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"raftkv/internal/storage"
)

// The relatives of the two join traps (docs/design.md): each test was red before its guard.

// recoverWith opens the stopped members again as the only ones, by the same peers.json
// in the volume of each.
func recoverWith(t testing.TB, members ...*testNode) (recovered []*testNode) {
	t.Helper()
	var lines []string
	for _, n := range members {
		lines = append(lines, fmt.Sprintf(`{"id": "%s", "address": "%s", "non_voter": false}`, n.config.ID, n.RaftAddress()))
	}
	for _, n := range members {
		if err := os.WriteFile(filepath.Join(n.config.Dir, storage.RecoveryFile), []byte("["+strings.Join(lines, ",")+"]"),
			0o600); err != nil {
			t.Fatal(err)
		}
		recovered = append(recovered, n.reopen(t))
	}
	return recovered
}

// TestRecoveryOfSeveral: survivors that are given the same file are one cluster again,
// which the lost one does not belong to.
func TestRecoveryOfSeveral(t *testing.T) {
	nodes := openCluster(t, 3)
	nodes[0].set(t, "a", "1")
	checkReplicas(t, nodes...)
	former := nodes[0].Info().ClusterID
	for _, n := range nodes {
		n.stop()
	}
	survivors := recoverWith(t, nodes[:2]...)
	leaderOf(t, survivors...).setSoon(t, "b", "2")
	checkReplicas(t, survivors...)
	if one, other := survivors[0].Info().ClusterID, survivors[1].Info().ClusterID; one != other || one == former {
		t.Errorf("cluster IDs: got %s and %s, want one, other than %s", one, other, former)
	}
}

// TestLostNodeComesBackAfterRecovery: n2 and n3 elected in a term that n1 missed; n1,
// recovered alone, elects in the same term, and both have another x at the same index
// and term. Under one cluster ID, n2 would be taken back and differ for ever.
func TestLostNodeComesBackAfterRecovery(t *testing.T) {
	nodes := openCluster(t, 3)
	n1, n2, n3 := nodes[0], nodes[1], nodes[2]
	n1.set(t, "a", "1")
	checkReplicas(t, nodes...)
	n1.stop()
	leaderOf(t, n2, n3).setSoon(t, "x", "from the lost ones")
	n2.stop()
	n3.stop()
	n1 = recoverWith(t, n1)[0]
	n1.waitLeader(t)
	n1.set(t, "x", "from n1")

	back := n2.reopen(t)
	_, err := n1.Join(context.Background(), JoinRequest{ID: "n2", Address: back.RaftAddress()})
	wantError(t, "join of a lost node with its volume", err, ErrConflict, "member of another cluster")
	n1.set(t, "later", "1")
	if item, _ := n1.machine.store.Get("x"); item.Value != "from n1" {
		t.Errorf("x=%q, want what n1 has acknowledged", item.Value)
	}
}

// TestLostMajorityComesBackAfterRecovery: the lost ones elect a leader among
// themselves. Under one cluster ID it would take n1 over, and what n1 acknowledged
// since would be gone.
func TestLostMajorityComesBackAfterRecovery(t *testing.T) {
	nodes := openCluster(t, 3)
	n1, n2, n3 := nodes[0], nodes[1], nodes[2]
	n1.set(t, "a", "1")
	checkReplicas(t, nodes...)
	for _, n := range nodes {
		n.stop()
	}
	n1 = recoverWith(t, n1)[0]
	n1.waitLeader(t)
	n1.set(t, "acknowledged", "by n1")
	n2, n3 = n2.reopen(t), n3.reopen(t)
	leaderOf(t, n2, n3).setSoon(t, "theirs", "1")
	n1.set(t, "still", "leads")
	if _, ok := n1.machine.store.Get("acknowledged"); !ok {
		t.Error("an acknowledged write is gone")
	}
	if _, ok := n1.machine.store.Get("theirs"); ok {
		t.Error("n1 took a write of the others")
	}
	checkReplicas(t, n2, n3)
}

// TestLeadershipMovesDuringAJoin: the joiner may be a member by then, and must not be
// released; the join can be sent again.
func TestLeadershipMovesDuringAJoin(t *testing.T) {
	nodes := openCluster(t, 3)
	n1 := nodes[0]
	n4 := openNode(t, "n4", t.TempDir())
	for i := range 20 {
		n1.set(t, fmt.Sprint(i), "v")
	}
	joined := make(chan error, 1)
	go func() {
		_, err := n1.Join(context.Background(), JoinRequest{ID: "n4", Address: n4.RaftAddress()})
		joined <- err
	}()
	waitFor(t, "n4 is a member, or was refused", func() bool { return len(n1.Info().MemberIDs) == 4 || len(joined) == 1 })
	n1.current.Load().raft.LeadershipTransfer()
	t.Logf("the first join: %v", <-joined)
	waitFor(t, "the join is done when sent again", func() bool {
		leader := leaderOf(t, nodes...)
		_, err := leader.Join(context.Background(), JoinRequest{ID: "n4", Address: n4.RaftAddress()})
		if errors.Is(err, ErrConflict) {
			t.Fatalf("sent again: %v", err)
		}
		return err == nil
	})
	leaderOf(t, nodes...).setSoon(t, "after", "1")
	checkReplicas(t, append(nodes, n4)...)
}

// TestJoinWaitsForTheRemoval: n3 was wiped, and its removal is not committed because
// n2 lags. Adopted all the same, the empty n3 would give its vote to n2, which lacks
// acknowledged writes.
func TestJoinWaitsForTheRemoval(t *testing.T) {
	disk := new(faultyDisk)
	n1 := openNode(t, "n1", t.TempDir(), func(c *Config) { c.ElectionTimeout = 4 * time.Second })
	n2 := openNode(t, "n2", t.TempDir(), withDisk(disk))
	n3 := openNode(t, "n3", t.TempDir())
	n1.waitLeader(t)
	n1.join(t, n2)
	n1.join(t, n3)
	n1.set(t, "a", "1")
	checkReplicas(t, n1, n2, n3)
	release := make(chan struct{})
	disk.hang.Store(&release)
	n1.set(t, "acknowledged", "by n1 and n3")
	n3.stop()
	wiped := openNode(t, "n3", t.TempDir(), func(c *Config) { c.RaftAddress = n3.RaftAddress() })
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if _, err := n1.Leave(ctx, "n3"); err == nil {
		t.Fatal("the removal was committed: the test shows nothing")
	}
	ctx, cancel = context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, err := n1.Join(ctx, JoinRequest{ID: "n3", Address: wiped.RaftAddress()})
	if err == nil || wiped.Info().ClusterID == n1.Info().ClusterID {
		t.Errorf("join: got %v, and the wiped node was adopted", err)
	}
	close(release)
	waitFor(t, "n2 has what was acknowledged", func() bool {
		_, ok := n2.machine.store.Get("acknowledged")
		return ok
	})
}

// TestStopWithoutALeader: a node stops in time though no other answers, also while a
// joining node hangs.
func TestStopWithoutALeader(t *testing.T) {
	n1 := openNode(t, "n1", t.TempDir())
	n1.waitLeader(t)
	n1.set(t, "a", "1")
	disk := new(faultyDisk)
	release := make(chan struct{})
	n2 := openNode(t, "n2", t.TempDir(), withDisk(disk))
	n2.waitLeader(t)
	disk.armed = func() { disk.hang.Store(&release) } // from its adoption on
	joined := make(chan error, 1)
	go func() {
		_, err := n1.Join(context.Background(), JoinRequest{ID: "n2", Address: n2.RaftAddress()})
		joined <- err
	}()
	waitFor(t, "n2 is being joined", func() bool { return len(n1.Info().MemberIDs) == 2 })
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := errors.Join(n1.StepDown(ctx), n1.Close(ctx)); err != nil {
		t.Errorf("stop during a join: %v", err)
	}
	if err := <-joined; err == nil {
		t.Error("the join is said to be done")
	}
	close(release)
}

// TestMemberThatWasAwayIsFoundSoon: raft alone sleeps up to 10 s between attempts.
func TestMemberThatWasAwayIsFoundSoon(t *testing.T) {
	nodes := openCluster(t, 3)
	nodes[0].set(t, "a", "1")
	nodes[2].stop()
	for i := range 50 { // for a second or two, replication to it fails
		nodes[0].set(t, fmt.Sprint(i), "1")
		time.Sleep(20 * time.Millisecond)
	}
	back := nodes[2].reopen(t)
	begin := time.Now()
	waitFor(t, "it has everything", func() bool { return back.machine.Len() == 51 })
	t.Logf("it had everything %v after its start", time.Since(begin))
	checkReplicas(t, nodes[0], nodes[1], back)
}
