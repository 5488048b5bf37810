package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

var (
	// ErrNotLeader is returned when this node does not lead. Nothing was done.
	ErrNotLeader = errors.New("not the leader")
	// ErrNotApplied is returned when a proposal was definitely not applied and
	// never will be. It is safe to try again.
	ErrNotApplied = errors.New("not applied")
	// ErrUnknown is returned when a proposal may or may not be applied, now or
	// later.
	ErrUnknown = errors.New("outcome unknown")

	errRemoved = fmt.Errorf("%w: this node was removed from its cluster; join it again at a member", ErrNotApplied)
)

const (
	// enqueueLimit is how long raft may take to accept a proposal.
	enqueueLimit = 2 * time.Second
	// applyLimit is how long a proposal may take as a whole. Raft's own timeout
	// bounds only the queueing, and some of its futures are never answered
	// (hashicorp/raft issue 498).
	applyLimit = 10 * time.Second
)

// Propose replicates entry and returns its index and what the state machine
// answered, once a majority has it on disk and this node has applied it. Any error
// wraps ErrNotLeader, ErrNotApplied or ErrUnknown. The entry must not be changed
// afterwards.
func (n *Node) Propose(ctx context.Context, entry []byte) (index uint64, response any, err error) {
	n.proposing.RLock()
	defer n.proposing.RUnlock()
	if n.closing.Load() {
		return 0, nil, fmt.Errorf("%w: this node is shutting down", ErrNotApplied)
	}
	if n.removed.Load() {
		return 0, nil, errRemoved
	}
	ctx, cancel := context.WithTimeout(ctx, applyLimit)
	defer cancel()
	future := n.current.Load().raft.Apply(entry, enqueueLimit)
	if err := wait(ctx, future); err != nil {
		return 0, nil, outcome(err)
	}
	return future.Index(), future.Response(), nil
}

// wait is future.Error() that ends with ctx.
func wait(ctx context.Context, future raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- future.Error() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// outcome sorts what Apply answers. Only these three of raft's errors come before
// the entry is in the log; with any other, ErrRaftShutdown and a failed write
// among them, it may be there and may be committed.
func outcome(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader):
		return ErrNotLeader
	case errors.Is(err, raft.ErrEnqueueTimeout), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return fmt.Errorf("%w: %w", ErrNotApplied, err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: no answer in time", ErrUnknown)
	default:
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	}
}
