package peer

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// listenTest opens a raft port of the test's cluster.
func listenTest(t testing.TB) *Port {
	t.Helper()
	p, err := Listen("127.0.0.1:0", t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	p.NodeID = "n2"
	p.SetClusterID(ClusterID{1})
	p.Serve(nil, nil)
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// headerOf is that of a request of the node id.
func headerOf(id string) raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(id), Addr: []byte("127.0.0.1:9001")}
}

// TestHeartbeatsInStep: they go out with the clock, as long as the node leads.
func TestHeartbeatsInStep(t *testing.T) {
	receiver := NewTransport(listenTest(t).Stream(), hclog.NewNullLogger(), 0)
	t.Cleanup(func() { _ = receiver.Close() })
	receiver.SetGate(&Gate{Refused: t.Logf,
		Known: func() (term uint64, leader string, committed uint64) { return 1, "", 0 }})
	var received atomic.Int64
	go func() {
		for {
			select {
			case rpc := <-receiver.Consumer():
				received.Add(1)
				rpc.Respond(&raft.AppendEntriesResponse{Success: true}, nil)
			case <-receiver.closed.Done():
				return
			}
		}
	}()
	beat := func(step time.Duration, stillLeads bool) (sender *Transport, sent chan bool) {
		sender = NewTransport(listenTest(t).Stream(), hclog.NewNullLogger(), step)
		t.Cleanup(func() { _ = sender.Close() })
		sender.SetStillLeads(func(uint64, raft.ServerID, raft.ServerAddress) bool { return stillLeads })
		sent = make(chan bool, 1)
		go func() {
			before := received.Load()
			heartbeat, response := &raft.AppendEntriesRequest{RPCHeader: headerOf("n2"), Term: 1},
				new(raft.AppendEntriesResponse)
			if err := sender.AppendEntries("n2", receiver.LocalAddr(), heartbeat, response); err != nil {
				t.Errorf("got %v, which raft logs", err)
			}
			sent <- received.Load() > before
		}()
		return sender, sent
	}

	const step = 500 * time.Millisecond
	tick := time.Now().Truncate(step).Add(step)
	if _, sent := beat(step, true); !<-sent || time.Now().Before(tick) {
		t.Errorf("it was not sent, or %v before its time", time.Until(tick))
	}
	if _, sent := beat(time.Millisecond, false); <-sent {
		t.Error("it was sent although the node does not lead")
	}
	sender, sent := beat(1000*time.Hour, false)
	_ = sender.Close()
	select {
	case <-sent:
	case <-time.After(30 * time.Second):
		t.Error("it waits for its time although the transport is closed")
	}
}
