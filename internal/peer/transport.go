package peer

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// Transport is raft's network transport, changed in nine ways because raft 1.7.3 leaves these things to its users.
//
// What other nodes send is served here and not by raft's transport: decoded within a bound of bytes (wire.go), checked
// (Gate), and only then given to raft.
//
// A snapshot is taken off the wire before raft hears of it (install).
//
// Heartbeats are kept off the fast path (net_transport.go: SetHeartbeatHandler). There, a heartbeat of a newer term
// raises the term on the connection's own goroutine while the leader's loop stamps an entry with it: an entry of a
// term that this node does not lead, and, when the true leader has another of the same index and term, replicas that
// differ for ever (hashicorp/raft issue 695).
//
// Heartbeats to all members go out together, at multiples of one step. An idle leader mostly wakes up for raft's own
// heartbeats, which go to each member at a random time of HeartbeatTimeout/10 to /5. Neither a follower nor the
// leader's lease needs more than one of them in HeartbeatTimeout.
//
// AppendEntries to a member that is away is retried here, because raft backs off up to 10 s after a failure
// (replication.go, maxFailureScale) and does not notice meanwhile that the member is back.
//
// Every call is of a Target. Raft passes the ID of the member that it calls, of which its transport makes no use, and
// credits the answer to that ID: a name or an address that leads to another member would make that one count twice.
//
// An AppendEntries carries maxAppendBytes of entries, or one that is larger. Raft sends up to 64 of them, of any size,
// and gives them 10 s: with large values over a slow link they never arrive in time, and are sent again for ever.
//
// An AppendEntries has no commit index beyond its last entry (Raft paper, figure 2): a follower takes what is at or below
// it in its own log for committed (raft.go: appendEntries), and may have other entries behind those that it was sent.
//
// TimeoutNow returns in a bounded time, because raft takes no entries until it has.
type Transport struct {
	*raft.NetworkTransport
	step   time.Duration
	leads  atomic.Pointer[StillLeads] // nil: never
	served served
	closed context.Context
	close  context.CancelFunc

	requests  chan raft.RPC // to raft
	serving   sync.WaitGroup
	gate      *Gate
	gated     chan struct{} // closed when gate is set
	refusals  refusals
	receiving atomic.Int64 // bytes of requests: see maxReceiving
	installs  installs

	// order is held from the check of entries, or of a snapshot, until raft has them: what is committed does not change
	// in between by what came over another connection.
	order sync.Mutex
}

// StillLeads reports whether this node still leads in term and has a member id at that address. It may be called by
// several goroutines at once and must not block.
type StillLeads func(term uint64, id raft.ServerID, address raft.ServerAddress) bool

// AppendEntries is retried for appendRetryLimit at most, appendRetryDelay apart.
const (
	appendRetryLimit = time.Minute
	appendRetryDelay = 50 * time.Millisecond
)

// maxAppendBytes is how many bytes of entries an AppendEntries carries at most, if it has more than one.
const maxAppendBytes = 1 << 20

// shorten leaves out of args what is beyond maxAppendBytes, and lowers its commit index to its last entry. Raft goes by
// the entries that it finds there when the call has returned, and sends the others next (replication.go: replicateTo,
// updateLastAppended).
func shorten(args *raft.AppendEntriesRequest) {
	size := 0
	for k, entry := range args.Entries {
		size += len(entry.Data) + len(entry.Extensions)
		if k > 0 && size > maxAppendBytes {
			args.Entries = args.Entries[:k]
			break
		}
	}
	args.LeaderCommitIndex = min(args.LeaderCommitIndex, args.PrevLogEntry+uint64(len(args.Entries)))
}

// Standin is the Extensions of an entry that stands for the last one of a snapshot in a log that does not have that.
const Standin = "stands for the last entry of a snapshot"

// errStandin is returned for entries of which one is a Standin: whoever got it would take it for the true one.
var errStandin = errors.New("not sent: the log has no more of an entry than its index and term")

func hasStandin(entries []*raft.Log) bool {
	return slices.ContainsFunc(entries, func(l *raft.Log) bool { return string(l.Extensions) == Standin })
}

// TimeoutNowLimit is how long a TimeoutNow may take.
const TimeoutNowLimit = time.Second

// NewTransport returns raft's transport over stream, which Close closes too. The heartbeats go out at multiples of
// step. Until SetStillLeads is called, nothing is retried and no heartbeat is sent. Until SetGate is called, raft gets
// no request of another node.
func NewTransport(stream raft.StreamLayer, log hclog.Logger, step time.Duration) *Transport {
	send := &sendOnly{StreamLayer: stream}
	send.closed, send.close = context.WithCancel(context.Background())
	t := &Transport{step: step, NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream:  send,
		MaxPool: 3,
		// No pipeline: after an answer that is no success, raft may wait for ever to send the next entry, while the
		// follower hears heartbeats (hashicorp/raft issue 612). With one batch of proposals at a time, no difference
		// in speed was measured.
		MaxRPCsInFlight: 1,
		Timeout:         10 * time.Second,
		Logger:          log,
	})}
	t.closed, t.close = context.WithCancel(context.Background())
	t.requests, t.gated = make(chan raft.RPC), make(chan struct{})
	t.serving.Go(func() { t.serve(stream) })
	return t
}

// SetGate sets what the requests of other nodes are checked by. It is called once, after raft was made, because raft is
// made from its transport.
func (t *Transport) SetGate(gate *Gate) {
	t.gate = gate
	close(t.gated)
}

// Consumer implements raft.Transport.
func (t *Transport) Consumer() <-chan raft.RPC { return t.requests }

// SetStillLeads sets what decides whether an AppendEntries is still worth sending. It is set after raft was made,
// because raft is made from its transport.
func (t *Transport) SetStillLeads(leads StillLeads) { t.leads.Store(&leads) }

// SetHeartbeatHandler does nothing, so that heartbeats take raft's main loop.
func (*Transport) SetHeartbeatHandler(func(raft.RPC)) {}

// AppendEntries implements raft.Transport.
func (t *Transport) AppendEntries(id raft.ServerID, address raft.ServerAddress, args *raft.AppendEntriesRequest,
	response *raft.AppendEntriesResponse) error {
	shorten(args)
	heartbeat := args.PrevLogEntry == 0 && len(args.Entries) == 0 && args.LeaderCommitIndex == 0
	stillLeads := func() bool {
		leads := t.leads.Load()
		return leads != nil && (*leads)(args.Term, id, address)
	}
	if heartbeat {
		now := time.Now()
		select {
		case <-t.closed.Done():
		case <-time.After(now.Truncate(t.step).Add(t.step).Sub(now)):
		}
		if !stillLeads() {
			return nil // raft is about to end this heartbeat, and would log an error
		}
	}
	for begin := time.Now(); ; time.Sleep(appendRetryDelay) {
		err := t.AppendEntriesOnce(id, address, args, response)
		if err == nil || err == errStandin || heartbeat || t.IsShutdown() || time.Since(begin) > appendRetryLimit || !stillLeads() {
			return err
		}
	}
}

// AppendEntriesOnce is AppendEntries, sent at once and not retried.
func (t *Transport) AppendEntriesOnce(id raft.ServerID, address raft.ServerAddress, args *raft.AppendEntriesRequest,
	response *raft.AppendEntriesResponse) error {
	if hasStandin(args.Entries) {
		return errStandin
	}
	err := t.NetworkTransport.AppendEntries(id, Target(id, address), args, response)
	if err == nil && response.Success && args.PrevLogEntry > 0 {
		t.served.serve(id, args.PrevLogEntry+uint64(len(args.Entries)))
	}
	return err
}

// Served returns the least index after which a member that is being served needs the entries: it has taken some, or a
// snapshot is being sent to it, within servedLimit. math.MaxUint64: there is none.
func (t *Transport) Served() uint64 { return t.served.least() }

// AppendEntriesPipeline implements raft.Transport. There is none, see NewTransport.
func (t *Transport) AppendEntriesPipeline(id raft.ServerID, address raft.ServerAddress) (raft.AppendPipeline, error) {
	return t.NetworkTransport.AppendEntriesPipeline(id, Target(id, address))
}

// RequestVote implements raft.Transport.
func (t *Transport) RequestVote(id raft.ServerID, address raft.ServerAddress, args *raft.RequestVoteRequest,
	response *raft.RequestVoteResponse) error {
	return t.NetworkTransport.RequestVote(id, Target(id, address), args, response)
}

// RequestPreVote implements raft.WithPreVote.
func (t *Transport) RequestPreVote(id raft.ServerID, address raft.ServerAddress, args *raft.RequestPreVoteRequest,
	response *raft.RequestPreVoteResponse) error {
	return t.NetworkTransport.RequestPreVote(id, Target(id, address), args, response)
}

// InstallSnapshot implements raft.Transport.
func (t *Transport) InstallSnapshot(id raft.ServerID, address raft.ServerAddress, args *raft.InstallSnapshotRequest,
	response *raft.InstallSnapshotResponse, data io.Reader) error {
	t.served.serve(id, args.LastLogIndex)
	err := t.NetworkTransport.InstallSnapshot(id, Target(id, address), args, response, reading{data, func() {
		t.served.serve(id, args.LastLogIndex)
	}})
	if err == nil {
		t.served.serve(id, args.LastLogIndex)
	}
	return err
}

// TimeoutNow implements raft.Transport, within TimeoutNowLimit. After an error the member may yet stand for election.
func (t *Transport) TimeoutNow(id raft.ServerID, address raft.ServerAddress, args *raft.TimeoutNowRequest,
	_ *raft.TimeoutNowResponse) error {
	sent := make(chan error, 1)
	go func() { // until the network transport's own timeout, or until it is closed
		sent <- t.NetworkTransport.TimeoutNow(id, Target(id, address), args, new(raft.TimeoutNowResponse))
	}()
	select {
	case err := <-sent:
		return err
	case <-time.After(TimeoutNowLimit):
		return errors.New("no answer in time")
	}
}

// Close implements raft.WithClose. It may be called more than once. When it returns, no request is being served.
func (t *Transport) Close() error {
	t.close()
	err := t.NetworkTransport.Close()
	t.serving.Wait()
	return err
}
