package node

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

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
