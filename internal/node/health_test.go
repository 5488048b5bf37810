package node

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"raftkv/internal/kv"
	"raftkv/internal/storage"
)

// TestReplicasThatDiffer has a follower whose state machine was given another entry
// than the log has: leader and follower say so, and the third node has nothing to say.
func TestReplicasThatDiffer(t *testing.T) {
	nodes := openCluster(t, 3)
	nodes[0].set(t, "x", "1")
	checkReplicas(t, nodes...)
	status := func() Replicas {
		t.Helper()
		return nodes[0].Status(context.Background()).Replicas
	}
	hash := func(n *testNode) string { return n.Info().Hash }
	waitFor(t, "equal replicas in the status", func() bool {
		got := status()
		return got.State == Equal && got.Hash != "" && got.Hash == hash(nodes[0]) && got.Hash == hash(nodes[2])
	})

	wrong := nodes[2]
	index, term := wrong.machine.store.Applied()
	wrong.machine.store.Update(index, term, []byte("not of the log"), func(*kv.Tx) {})
	nodes[0].set(t, "x", "2")
	for _, n := range []*testNode{nodes[0], wrong} {
		waitFor(t, n.config.ID+" to say that the replicas differ", func() bool {
			said := n.Health().Replicas
			return strings.HasPrefix(said, "the replicas differ: n1 and n3 came to index ") && strings.Count(n.log.String(),
				said) == 1
		})
	}
	waitFor(t, "the status to say so", func() bool { return status().State == Different })
	if got := nodes[1].Health(); got != (Health{}) {
		t.Errorf("n2: got %+v, want nothing", got)
	}

	// The member that differs goes away. What is known stays known.
	wrong.stop()
	time.Sleep(3 * watchInterval)
	if got := nodes[0].Health().Replicas; !strings.Contains(got, "n1 and n3") {
		t.Errorf("after n3 has gone away: got %q, want the same as before", got)
	}
	if got := status(); got.State != Different || !strings.Contains(got.Detail, "n1 and n3") {
		t.Errorf("after n3 has gone away: got %+v, want that they differ", got)
	}

	// The operator does what the line asks for.
	if _, err := nodes[0].Leave(context.Background(), "n3"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "nothing to report", func() bool { return nodes[0].Health() == (Health{}) })
	waitFor(t, "equal replicas in the status", func() bool { return status().State == Equal })
	checkReplicas(t, nodes[:2]...)
}

// TestDifferenceOfAStranger: a report that names no member is refused, or callers could have
// this node keep as many lines as they like.
func TestDifferenceOfAStranger(t *testing.T) {
	n := openNode(t, "n1", t.TempDir())
	n.waitLeader(t)
	text := "different"
	report := func(nodeID string) error {
		query := url.Values{"text": {text}, "nodeId": {nodeID}}
		request := httptest.NewRequest(http.MethodPost, "/differs?"+query.Encode(), nil)
		_, err := n.handleDiffers(n.current.Load(), request)
		return err
	}
	if err := report("n9"); !errors.Is(err, ErrNoSuchNode) || n.Health() != (Health{}) {
		t.Errorf("of n9: got %v and %+v, want ErrNoSuchNode and nothing", err, n.Health())
	}
	if err := report("n1"); err != nil || n.Health().Replicas != "different" {
		t.Errorf("of a member: got %v and %+v, want the line", err, n.Health())
	}
	text = "a\nINFO[2026] forged\x1b[2J\u2028" + strings.Repeat("x", 1000)
	if err := report("n1"); err != nil || !strings.HasPrefix(n.Health().Replicas, "a?INFO[2026] forged?[2J?xxx") ||
		len(n.Health().Replicas) > 512 {
		t.Errorf("with line ends: got %v and %q, want one line", err, n.Health().Replicas)
	}
}

// TestReplicasThatCannotBeCompared: that is not the same as equal, and the status gives the
// member and the reason.
func TestReplicasThatCannotBeCompared(t *testing.T) {
	nodes := openCluster(t, 2)
	nodes[0].set(t, "x", "1")
	checkReplicas(t, nodes...)
	state, detail := nodes[0].compare(context.Background(), &Info{NodeID: "n9", AppliedIndex: nodes[0].applied()})
	if state != Unknown || !strings.Contains(detail, "n9 has no hash") {
		t.Errorf("a member without a hash: got %s, %q", state, detail)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	state, detail = nodes[0].compare(ctx, &Info{NodeID: "n9", Hash: "00", AppliedIndex: 1 << 40})
	if state != Unknown || !strings.Contains(detail, "n1 has not applied index") {
		t.Errorf("a member that is ahead: got %s, %q", state, detail)
	}
	state, detail = nodes[0].compare(context.Background(), &Info{NodeID: "n9", Hash: "00", AppliedIndex: 0})
	if state != Unknown || !strings.Contains(detail, "no longer has the hash") {
		t.Errorf("a member that lags too far: got %s, %q", state, detail)
	}
	nodes[1].stop()
	got := nodes[0].Status(context.Background()).Replicas
	if got.State != Unknown || !strings.HasPrefix(got.Detail, "n2 at "+nodes[1].RaftAddress()+": ") {
		t.Errorf("a member that is down: got %+v, want unknown, and n2", got)
	}
}

// TestStatusComparesAtOnce: members that are ahead of this node are waited for at the same
// time, not one after the other.
func TestStatusComparesAtOnce(t *testing.T) {
	nodes := openCluster(t, 5)
	nodes[0].set(t, "x", "1")
	checkReplicas(t, nodes...)
	gate := make(chan struct{})
	nodes[4].machine.gate.Store(&gate)
	nodes[0].set(t, "x", "2")
	waitFor(t, "n5 lags", func() bool {
		for _, n := range nodes[:4] {
			if n.applied() <= nodes[4].applied() {
				return false
			}
		}
		return true
	})
	all := make(chan Replicas, 1)
	go func() { all <- nodes[4].Status(context.Background()).Replicas }()
	most := int32(0)
	waitFor(t, "the four comparisons wait at once", func() bool {
		most = max(most, nodes[4].machine.waits.Load())
		return most == 4 || len(all) > 0
	})
	if most != 4 {
		t.Errorf("%d comparisons waited at once, want 4", most)
	}
	got := <-all
	if got.State != Unknown || strings.Count(got.Detail, "n5 has not applied index") != 4 {
		t.Errorf("got %+v, want four members that are ahead", got)
	}
	close(gate)
	nodes[4].machine.gate.Store(nil)
	checkReplicas(t, nodes...)
}

// TestLowSpace: a node warns once when the disk of its volume is nearly full.
func TestLowSpace(t *testing.T) {
	n := openNode(t, "n1", t.TempDir(), func(c *Config) { c.lowSpace = 1 << 62 })
	waitFor(t, "a warning", func() bool { return strings.Contains(n.Health().Space, " MiB left: make room") })
	waitFor(t, "the same in the log", func() bool { return strings.Contains(n.log.String(), n.Health().Space) })
	if got := n.Info().Health.Space; got == "" {
		t.Error("status: got nothing, want the same")
	}
	plenty := openNode(t, "n2", t.TempDir(), func(c *Config) { c.lowSpace = 1; newFakeDisk().use(c) })
	plenty.checkSpace()
	if got := plenty.Health().Space; got != "" {
		t.Errorf("with room: got %q, want nothing", got)
	}
}

// TestVoterWarning: whoever looks at the leader learns how far the cluster is from a standstill.
func TestVoterWarning(t *testing.T) {
	member := func(id string, suffrage raft.ServerSuffrage, info *Info) comparison {
		return comparison{server: raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(id + ":9000"),
			Suffrage: suffrage}, info: info}
	}
	there := new(Info)
	for _, tt := range []struct {
		name   string
		others []comparison
		want   string
	}{
		{name: "alone"},
		{name: "all answer", others: []comparison{member("n2", raft.Voter, there), member("n3", raft.Voter, there)}},
		{name: "a replica does not count", others: []comparison{member("n2", raft.Voter, there),
			member("n3", raft.Nonvoter, nil)}},
		{name: "one of three", others: []comparison{member("n2", raft.Voter, nil), member("n3", raft.Voter, there)},
			want: "no answer from n2 at n2:9000: 2 of 3 voters are there, and 0 more may go before there is no majority"},
		{name: "one of five", others: []comparison{member("n2", raft.Voter, nil), member("n3", raft.Voter, there),
			member("n4", raft.Voter, there), member("n5", raft.Voter, there)},
			want: "no answer from n2 at n2:9000: 4 of 5 voters are there, and 1 more may go before there is no majority"},
		{name: "no majority", others: []comparison{member("n2", raft.Voter, nil), member("n3", raft.Voter, nil)},
			want: "no answer from n2 at n2:9000, n3 at n3:9000: 1 of 3 voters are there, and 0 more may go " +
				"before there is no majority"},
	} {
		if got := voterWarning(tt.others); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}

	nodes := openCluster(t, 3)
	leader := leaderOf(t, nodes...)
	gone := nodes[0]
	if gone == leader {
		gone = nodes[1]
	}
	gone.stop()
	waitFor(t, "a warning", func() bool {
		return strings.Contains(leader.Health().Warnings(), "no answer from "+gone.config.ID)
	})
}

// TestVolumeGone: writes to a file without a name succeed. So a node whose volume was removed or replaced must end,
// and one whose volume is there must not, also when the node replaces it itself.
func TestVolumeGone(t *testing.T) {
	for _, test := range []struct {
		name string
		harm func(dir string) error
	}{
		{"removed", os.RemoveAll},
		{"moved away", func(dir string) error { return os.Rename(dir, dir+".moved") }},
		{"raft.db removed", func(dir string) error { return os.Remove(filepath.Join(dir, "raft.db")) }},
		{"raft.db replaced", func(dir string) error {
			path := filepath.Join(dir, "raft.db")
			return errors.Join(os.WriteFile(path+".2", nil, 0o600), os.Rename(path+".2", path))
		}},
		{"another in its place", func(dir string) error {
			return errors.Join(os.Rename(dir, dir+".moved"), os.Mkdir(dir, 0o700),
				os.Rename(filepath.Join(dir+".moved", "raft.db"), filepath.Join(dir, "raft.db")))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "v")
			n := openNode(t, "n1", dir)
			n.waitLeader(t)
			if n.checkVolume(); len(n.failed) > 0 {
				t.Fatalf("before: got %v, want no failure", <-n.failed)
			}
			if err := test.harm(dir); err != nil {
				t.Fatal(err)
			}
			err := waitFailed(t, n)
			if !errors.Is(err, storage.ErrGone) || !strings.HasPrefix(err.Error(), "volume "+dir+": it was removed") {
				t.Errorf("got %v, want ErrGone and the volume", err)
			}
		})
	}
}

// TestVolumeReplacedByTheNode: a node that is adopted makes a new raft.db, which is not the loss of the old one.
func TestVolumeReplacedByTheNode(t *testing.T) {
	n := openNode(t, "n1", t.TempDir())
	n.waitLeader(t)
	err := n.withRaftPaused(func(i *instance, was state) (state, error) {
		path := filepath.Join(n.config.Dir, "raft.db")
		err := errors.Join(os.Rename(path, path+".2"), os.WriteFile(path, nil, 0o600))
		n.checkVolume()
		return was, errors.Join(err, os.Rename(path+".2", path))
	})
	if err != nil || len(n.failed) > 0 {
		t.Errorf("got %v, %d failures, want none", err, len(n.failed))
	}
}

// TestSnapshotsThatFail are in the log and in the node's health until one succeeds.
func TestSnapshotsThatFail(t *testing.T) {
	n := openNode(t, "n1", t.TempDir())
	n.waitLeader(t)
	n.set(t, "x", "1")
	snapshots := filepath.Join(n.config.Dir, "snapshots")
	if err := errors.Join(os.Remove(snapshots), os.WriteFile(snapshots, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := n.current.Load().raft.Snapshot().Error(); err == nil {
		t.Fatal("a snapshot into a file: got no error")
	}
	waitFor(t, "a warning", func() bool { return strings.Contains(n.Health().Warnings(), "could not be written") })
	waitFor(t, "the same in the log", func() bool { return strings.Contains(n.log.String(), n.Health().Snapshots) })
	if err := errors.Join(os.Remove(snapshots), os.Mkdir(snapshots, 0o700)); err != nil {
		t.Fatal(err)
	}
	snapshotNow(t, n)
	waitFor(t, "no warning", func() bool { return n.Health() == (Health{}) })
}
