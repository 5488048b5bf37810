package node

import (
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"raftkv/internal/peer"
)

// TestPipelineOfAFollowerThatRefuses is hashicorp/raft's issue 612, step by step: a
// follower refuses an entry, or its answer is an error, while more entries are on their
// way. The leader's pipelineDecode then reads no further answer; its loop may send one
// entry more before it notices, and that send waits for the answers to be read: for ever.
// The follower still hears heartbeats, so it elects nobody, and gets no entry until the
// leader changes; a transfer of the leadership to it may never end.
func TestPipelineOfAFollowerThatRefuses(t *testing.T) {
	stuck := func(t *testing.T, leader raft.Transport, follower *raft.NetworkTransport) bool {
		go func() {
			for rpc := range follower.Consumer() {
				rpc.Respond(&raft.AppendEntriesResponse{}, nil) // no success
			}
		}()
		pipeline, err := leader.AppendEntriesPipeline("old", peer.Target("old", follower.LocalAddr()))
		if errors.Is(err, raft.ErrPipelineReplicationNotSupported) {
			return false
		}
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = pipeline.Close() }()
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			for range 3 { // what replication.go has on its way when it notices
				if _, err := pipeline.AppendEntries(&raft.AppendEntriesRequest{Term: 1, PrevLogEntry: 1},
					new(raft.AppendEntriesResponse)); err != nil {
					return
				}
			}
		}()
		if got := <-pipeline.Consumer(); got.Response().Success { // all that pipelineDecode reads
			t.Fatal("got an entry taken, want it refused")
		}
		select {
		case <-sent:
			return false
		case <-time.After(time.Second):
			return true
		}
	}
	for _, test := range []struct {
		name   string
		leader func(stream raft.StreamLayer, log hclog.Logger) raft.Transport
		want   bool
	}{
		{name: "with our transport", leader: func(stream raft.StreamLayer, log hclog.Logger) raft.Transport {
			return peer.NewTransport(stream, log, time.Second)
		}, want: false},
		// Should this fail after an upgrade, issue 612 may be mended.
		{name: "as raft comes", leader: func(stream raft.StreamLayer, _ hclog.Logger) raft.Transport {
			return raft.NewNetworkTransport(stream, 3, 10*time.Second, newTestLog(t))
		}, want: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			logger := hclog.New(&hclog.LoggerOptions{Output: newTestLog(t)})
			follower := raft.NewNetworkTransport(listenPeer(t, "old").Stream(), 3, 10*time.Second, newTestLog(t))
			t.Cleanup(func() { _ = follower.Close() })
			if got := stuck(t, test.leader(listenPeer(t, "new").Stream(), logger), follower); got != test.want {
				t.Errorf("the leader is stuck: got %v, want %v", got, test.want)
			}
		})
	}
}
