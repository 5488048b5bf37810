package node

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/hashicorp/raft"
)

// Raft's followers learn that an entry is committed from the next AppendEntries, which a
// leader with nothing to replicate sends after CommitTimeout only (replication.go). A
// short one costs an idle cluster its rest, and with a long one a lone write is applied by
// the followers that much later, and a read there waits for it. So CommitTimeout is long,
// and a follower that holds an entry, and gets no further one, asks the leader. The leader
// then sends the AppendEntries that raft itself would send at the end of CommitTimeout.

// commitTimeout is raft's CommitTimeout: after this time, and up to twice it, an idle
// leader sends its followers the commit index, and retries an entry that failed.
const commitTimeout = 250 * time.Millisecond

// How long a follower waits for a further entry before it asks: after a lone entry, and
// after one of several or when it has just asked.
const (
	idleAfterOne     = 5 * time.Millisecond
	idleAfterSeveral = 50 * time.Millisecond
)

// onAppend restarts the idle timer. While that has not fired since the last entries, or
// pollCommitIndex has just asked, more are likely to follow, and each would be asked for.
func (n *Node) onAppend() {
	if active := n.idleTimer.Reset(idleAfterOne); active {
		n.idleTimer.Reset(idleAfterSeveral)
	}
	n.logGrew()
}

// pollCommitIndex asks the leader, until the node ends, whether the last entry is committed
// when no further one arrives. While entries keep coming, the idle timer does not fire.
func (n *Node) pollCommitIndex() {
	for {
		select {
		case <-n.life.ctx.Done():
			return
		case <-n.idleTimer.C:
		}
		i := n.current.Load() // may be stopped meanwhile: it is only looked at
		last := i.volume.Log.Last()
		if i.raft.State() != raft.Follower || i.raft.CommitIndex() >= last {
			continue
		}
		n.idleTimer.Reset(idleAfterSeveral)
		if address, id := i.raft.LeaderWithID(); address != "" {
			n.requestCommitIndex(n.life.ctx, raft.Server{ID: id, Address: address}, last)
		}
	}
}

// requestCommitIndex has the leader send this node, which has the entry at index, that it
// is committed, if it is.
func (n *Node) requestCommitIndex(ctx context.Context, leader raft.Server, index uint64) {
	ctx, cancel := context.WithTimeout(ctx, memberTimeout)
	defer cancel()
	path := fmt.Sprintf("/committed?nodeId=%s&index=%d", n.config.ID, index)
	_ = n.members.call(ctx, http.MethodGet, leader, path, nil)
}

// handleCommitted sends a follower that has the entry at index that it is committed, if it
// is.
func (n *Node) handleCommitted(i *instance, r *http.Request) (any, error) {
	query := r.URL.Query()
	index, _ := strconv.ParseUint(query.Get("index"), 10, 64)
	if !i.leads() || index > i.raft.CommitIndex() {
		return nil, ErrNotLeader
	}
	n.sendCommitIndex(i, raft.ServerID(query.Get("nodeId")), index)
	return nil, nil
}

// sendCommitIndex sends a follower that has the entry at index that it is committed. An
// error means that the follower learns it later.
func (n *Node) sendCommitIndex(i *instance, id raft.ServerID, index uint64) {
	var entry raft.Log
	if !i.readEntry(index, &entry) {
		return
	}
	for _, server := range i.servers() {
		if server.ID != id {
			continue
		}
		_ = i.transport.AppendEntriesOnce(id, server.Address, &raft.AppendEntriesRequest{
			RPCHeader:         i.header(n.config.ID),
			Term:              entry.Term,
			PrevLogEntry:      index,
			PrevLogTerm:       entry.Term,
			LeaderCommitIndex: index,
		}, new(raft.AppendEntriesResponse))
	}
}

// readEntry reads the entry at index of the log. It does so in a goroutine of its own,
// because a damaged entry ends the goroutine that reads it (storage.Log): the caller's goes
// on, and gets false.
func (i *instance) readEntry(index uint64, entry *raft.Log) (ok bool) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		ok = i.log.GetLog(index, entry) == nil
	}()
	<-done
	return ok
}
