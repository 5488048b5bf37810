package node

import (
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"raftkv/internal/command"
	"raftkv/internal/kv"
	"raftkv/internal/peer"
)

// faulty is a member of the cluster of n, by its own account, which sends what it likes.
func faulty(t testing.TB, n *testNode, id string) (trans *raft.NetworkTransport, header raft.RPCHeader) {
	t.Helper()
	port, err := peer.Listen("127.0.0.1:0", newTestLog(t).printf)
	if err != nil {
		t.Fatal(err)
	}
	port.NodeID = id
	cluster, _ := hex.DecodeString(n.Info().ClusterID)
	port.SetClusterID(peer.ClusterID(cluster))
	trans = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{Stream: port.Stream(), MaxPool: 1,
		Timeout: 10 * time.Second, Logger: hclog.NewNullLogger()})
	t.Cleanup(func() { _ = trans.Close(); _ = port.Close() })
	return trans, raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(id), Addr: []byte(port.Address())}
}

// TestFaultyMember: a member that sends what raft would panic at, lose what is committed by, or never come back from,
// is refused by each of the others: no node ends, nothing changes, and all start again.
func TestFaultyMember(t *testing.T) {
	nodes := openCluster(t, 3)
	for i := range 10 {
		nodes[0].set(t, fmt.Sprint("key ", i), "committed")
	}
	checkReplicas(t, nodes...)
	before := fmt.Sprint(content(nodes[0].machine.store))

	for _, n := range nodes {
		i := n.current.Load()
		trans, header := faulty(t, n, "n9")
		target := peer.Target(raft.ServerID(n.config.ID), raft.ServerAddress(n.RaftAddress()))
		term, last := i.raft.CurrentTerm(), i.raft.LastIndex()
		lastTerm, ok := i.termAt(last)
		if !ok {
			t.Fatalf("%s has no entry %d", n.config.ID, last)
		}
		entry := func(typ raft.LogType, data string) *raft.Log {
			return &raft.Log{Index: last + 1, Term: term + 1, Type: typ, Data: []byte(data)}
		}
		appends := func(entries ...*raft.Log) func() error {
			return func() error {
				a := &raft.AppendEntriesRequest{RPCHeader: header, Term: term + 1, PrevLogEntry: last, PrevLogTerm: lastTerm,
					Entries: entries, LeaderCommitIndex: last + 1}
				if len(entries) > 0 && entries[0] != nil && entries[0].Index <= last {
					a.PrevLogEntry = entries[0].Index - 1
					a.PrevLogTerm, _ = i.termAt(a.PrevLogEntry)
				}
				return trans.AppendEntries("", target, a, new(raft.AppendEntriesResponse))
			}
		}
		install := func(change func(*raft.InstallSnapshotRequest), state string) func() error {
			return func() error {
				s := &raft.InstallSnapshotRequest{RPCHeader: header, SnapshotVersion: 1, Term: term + 1, LastLogIndex: last + 9,
					LastLogTerm: term, Configuration: raft.EncodeConfiguration(raft.Configuration{Servers: i.servers()}),
					ConfigurationIndex: 1, Size: int64(len(state))}
				change(s)
				return trans.InstallSnapshot("", target, s, new(raft.InstallSnapshotResponse), strings.NewReader(state))
			}
		}
		alone := raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{{ID: "n9", Address: "127.0.0.1:1"}}})
		var later strings.Builder
		store := kv.New()
		store.Update(last+10, term, nil, func(tx *kv.Tx) { tx.Set("key 1", []byte("replaced")) })
		if err := store.WriteSnapshot(&later); err != nil {
			t.Fatal(err)
		}
		for _, test := range []struct {
			name string
			send func() error
		}{
			{"a command that can't be decoded", appends(entry(raft.LogCommand, "\xff\xff"))},
			{"a command of a newer version", appends(entry(raft.LogCommand, "\x63"))},
			{"members that can't be decoded", appends(entry(raft.LogConfiguration, "\xc1"))},
			{"no members", appends(entry(raft.LogConfiguration, ""))},
			{"an unknown type", appends(entry(77, ""))},
			{"a nil entry", appends(nil)},
			{"a gap", appends(&raft.Log{Index: last + 5, Term: term})},
			{"another entry where one is committed", appends(&raft.Log{Index: last, Term: term + 1, Type: raft.LogCommand,
				Data: command.Append(nil, setting("key 1", "rewritten"))})},
			{"members in the name of the leader's term", func() error {
				return trans.AppendEntries("", target, &raft.AppendEntriesRequest{RPCHeader: header, Term: term,
					PrevLogEntry: last, PrevLogTerm: lastTerm, Entries: []*raft.Log{{Index: last + 1, Term: term,
						Type: raft.LogConfiguration, Data: alone}}, LeaderCommitIndex: last + 1},
					new(raft.AppendEntriesResponse))
			}},
			{"a term of 2^64-1", func() error {
				return trans.RequestVote("", target, &raft.RequestVoteRequest{RPCHeader: header, Term: 1<<64 - 1},
					new(raft.RequestVoteResponse))
			}},
			{"a term of 2^61", func() error {
				return trans.AppendEntries("", target, &raft.AppendEntriesRequest{RPCHeader: header, Term: 1 << 61},
					new(raft.AppendEntriesResponse))
			}},
			{"a snapshot that is none", install(func(*raft.InstallSnapshotRequest) {}, "not a snapshot")},
			{"a snapshot of later entries than it states", install(func(*raft.InstallSnapshotRequest) {}, later.String())},
			{"a snapshot of a former term", install(func(s *raft.InstallSnapshotRequest) { s.Term = term - 1 }, "x")},
			{"an older snapshot", install(func(s *raft.InstallSnapshotRequest) { s.LastLogIndex = last - 1 }, "x")},
			{"a snapshot without members", install(func(s *raft.InstallSnapshotRequest) { s.Configuration = nil }, "x")},
			{"a snapshot for a cluster of its own", install(func(s *raft.InstallSnapshotRequest) {
				s.Term, s.Configuration = term, alone
			}, "x")},
		} {
			if err := test.send(); err == nil || !strings.Contains(err.Error(), "refused: ") &&
				!strings.Contains(err.Error(), io.EOF.Error()) && !strings.Contains(err.Error(), "connection reset") &&
				!strings.Contains(err.Error(), "broken pipe") {
				t.Errorf("%s, to %s: got %v, want a refusal", test.name, n.config.ID, err)
			}
		}
		if got := n.log.String(); !strings.Contains(got, "Refused AppendEntries of n9 at 127.0.0.1: ") {
			t.Errorf("%s prints no line that names n9", n.config.ID)
		}
		if got := i.raft.CurrentTerm(); got != term || i.raft.LastIndex() != last {
			t.Errorf("%s: term %d and last index %d, want %d and %d as before", n.config.ID, got, i.raft.LastIndex(), term, last)
		}
		select {
		case err := <-n.Failed():
			t.Fatalf("%s has failed: %v", n.config.ID, err)
		default:
		}
	}
	if got := fmt.Sprint(content(nodes[0].machine.store)); got != before {
		t.Errorf("got %s, want %s", got, before)
	}
	nodes[0].set(t, "after", "1")
	for k, n := range nodes {
		n.stop()
		nodes[k] = n.reopen(t)
	}
	leaderOf(t, nodes...).setSoon(t, "and after a restart", "1")
	checkReplicas(t, nodes...)
}
