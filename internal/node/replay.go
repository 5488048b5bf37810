package node

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"raftkv/internal/peer"
	"raftkv/internal/storage"
)

const (
	// replayBytes bounds the committed entries that raft has read from the disk and the state machine has not applied.
	// It is more than raft collects before it hands them on, which are MaxAppendEntries of at most a request each.
	replayBytes = 40 << 20
	// replayStall is how long a read waits for a state machine that applies nothing.
	replayStall = time.Second
)

// replay is the log on disk as raft reads it. Raft reads all that is committed as fast as the disk gives it, and queues
// it for the state machine: 128 batches of MaxAppendEntries (api.go: fsmMutateCh), which after a start may be as much
// as the data again. So a read waits until the state machine has caught up to within replayBytes.
//
// A read that nobody applies must not wait: those of entries that are not committed, and all of them until the
// instance of raft is set. No wait is for ever, because entries without an effect are never counted as applied.
type replay struct {
	*storage.Log
	machine StateMachine
	raft    atomic.Pointer[raft.Raft]
	limit   uint64 // replayBytes
}

// GetLog implements raft.LogStore.
func (r *replay) GetLog(index uint64, log *raft.Log) error {
	if raft := r.raft.Load(); raft != nil && index <= raft.CommitIndex() {
		r.wait(index)
	}
	return r.Log.GetLog(index, log)
}

// wait waits until the state machine has applied all but limit bytes of the entries before index, or applies nothing.
func (r *replay) wait(index uint64) {
	for applied, _ := r.machine.Applied(); applied < index; {
		if ahead := r.BytesAbove(applied); ahead <= r.limit || ahead-min(ahead, r.BytesAbove(index-1)) <= r.limit {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), replayStall)
		err := r.machine.WaitApplied(ctx, applied+1)
		cancel()
		if err != nil {
			return
		}
		applied, _ = r.machine.Applied()
	}
}

// installed is the log as raft sees it. It has the last entry of the newest snapshot, with nothing in it but its index
// and term, also if what the log has there is none or another entry: that of the snapshot is committed.
//
// Raft 1.7.3 goes by its log alone (raft.go: appendEntries): a follower with entries that no other has, and a snapshot
// that was installed over them, refuses what follows the snapshot for ever, and is sent the next one (hashicorp/raft
// issue 697).
//
// That entry is a stand-in, and must never be sent to another node, which would take it for the one that was committed:
// a leader does not show it to raft, which then sends the snapshot, and peer.Transport sends no peer.Standin.
//
// A leader does not show raft what is below hidden: for a member that is so far behind, less is to be sent if it gets
// the snapshot.
type installed struct {
	raft.LogStore
	newest func() (index, term uint64)
	raft   atomic.Pointer[raft.Raft] // nil: it is not made yet, and so does not lead
	hidden atomic.Uint64
}

// GetLog implements raft.LogStore.
func (l *installed) GetLog(index uint64, log *raft.Log) error {
	if index < l.hidden.Load() {
		return raft.ErrLogNotFound
	}
	err := l.LogStore.GetLog(index, log)
	at, term := l.newest()
	if index != at || !errors.Is(err, raft.ErrLogNotFound) && (err != nil || log.Term == term) {
		return err
	}
	if r := l.raft.Load(); r != nil && r.State() == raft.Leader {
		return raft.ErrLogNotFound
	}
	*log = raft.Log{Index: at, Term: term, Type: raft.LogNoop, Extensions: []byte(peer.Standin)}
	return nil
}
