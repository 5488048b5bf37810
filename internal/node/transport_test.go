package node

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"raftkv/internal/command"
	"raftkv/internal/peer"
)

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// listenPeer opens the raft port of a node of the test's cluster.
func listenPeer(t testing.TB, id string) *peer.Port {
	t.Helper()
	p, err := peer.Listen("127.0.0.1:0", newTestLog(t).printf)
	if err != nil {
		t.Fatal(err)
	}
	p.NodeID = id
	p.SetClusterID(peer.ClusterID{1})
	p.Serve(nil, nil)
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// TestHeartbeatsOffTheFastPath is hashicorp/raft's issue 695, step by step. A
// leader of term 2 hears a heartbeat of term 5, whose leader the test plays, and
// is given a command before its main loop has looked. As raft comes, it stamps
// the command with term 5, which it does not lead. When the true leader of term 5
// then replicates its own entry of that index, the terms are equal and the
// follower keeps the wrong one, for ever.
func TestHeartbeatsOffTheFastPath(t *testing.T) {
	asItComes := func(stream raft.StreamLayer, log hclog.Logger) raft.Transport {
		return raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{Stream: stream, Logger: log})
	}
	wrapped := func(stream raft.StreamLayer, log hclog.Logger) raft.Transport {
		t := peer.NewTransport(stream, log, 0)
		t.SetGate(&peer.Gate{
			Known:        func() (term uint64, leader string, committed uint64) { return 2, "", 0 },
			CheckCommand: command.Check,
		})
		return t
	}

	t.Run("with our transport", func(t *testing.T) {
		if got := afterStrayHeartbeat(t, wrapped); got != "the true leader's" {
			t.Errorf("the follower applied x=%q, want the true leader's", got)
		}
	})
	t.Run("as raft comes", func(t *testing.T) {
		// Should this fail after an upgrade, issue 695 may be mended: see whether
		// the wrapper can go.
		for range 5 {
			if afterStrayHeartbeat(t, asItComes) == "the old leader's" {
				return
			}
		}
		t.Error("the follower applied what the true leader committed, 5 times of 5: it no longer diverges")
	})
}

// afterStrayHeartbeat returns what the old leader holds as x after the true leader
// of term 5 has committed another.
func afterStrayHeartbeat(t *testing.T, transportOf func(raft.StreamLayer, hclog.Logger) raft.Transport) string {
	log := newTestLog(t)
	logger := hclog.New(&hclog.LoggerOptions{Output: log, Level: hclog.Debug})
	c := raft.DefaultConfig()
	c.LocalID = "old"
	c.Logger = logger
	// The lease is what wakes the leader's loop, now and then: hardly ever between
	// the heartbeat and the command.
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = time.Second, time.Second, time.Second

	store, m := raft.NewInmemStore(), newMachine()
	trans := transportOf(listenPeer(t, "old").Stream(), logger)
	servers := raft.Configuration{Servers: []raft.Server{{ID: "old", Address: trans.LocalAddr()}}}
	if err := raft.BootstrapCluster(c, store, store, raft.NewInmemSnapshotStore(), trans, servers); err != nil {
		t.Fatal(err)
	}
	r, err := raft.NewRaft(c, m, store, store, raft.NewInmemSnapshotStore(), trans)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Shutdown().Error() })
	waitFor(t, "it leads", func() bool { return r.State() == raft.Leader && r.AppliedIndex() == r.LastIndex() })

	stream := listenPeer(t, "true").Stream()
	trueLeader := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{Stream: stream, MaxPool: 1,
		Timeout: 10 * time.Second, Logger: logger})
	t.Cleanup(func() { _ = trueLeader.Close() })
	header := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte("true"),
		Addr: []byte(trueLeader.LocalAddr())}
	send := func(a raft.AppendEntriesRequest) {
		t.Helper()
		a.RPCHeader, a.Term = header, 5
		var response raft.AppendEntriesResponse
		if err := trueLeader.AppendEntries("old", peer.Target("old", trans.LocalAddr()), &a, &response); err != nil {
			t.Fatal(err)
		}
		if !response.Success {
			t.Fatalf("AppendEntries was refused: %+v", response)
		}
	}
	lastIndex, lastTerm := r.LastIndex(), r.CurrentTerm()
	send(raft.AppendEntriesRequest{}) // the heartbeat
	_ = r.Apply(command.Append(nil, setting("x", "the old leader's")), 0).Error()

	waitFor(t, "it follows", func() bool { return r.State() == raft.Follower })
	entry := &raft.Log{Index: lastIndex + 1, Term: 5, Type: raft.LogCommand, Data: command.Append(nil,
		setting("x", "the true leader's"))}
	send(raft.AppendEntriesRequest{PrevLogEntry: lastIndex, PrevLogTerm: lastTerm, Entries: []*raft.Log{entry},
		LeaderCommitIndex: entry.Index})
	waitFor(t, fmt.Sprintf("index %d is applied", entry.Index), func() bool {
		index,
			_ := m.Applied()
		return index == entry.Index
	})
	item, _ := m.store.Get("x")
	return item.Value
}
