package node

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"
)

// Code is the kind of an error: what a caller may conclude from it. Every error of this
// package that a client should act on wraps one, so that errors.Is(err, ErrConflict) and
// CodeOf work, on this node and for an error that came from another node.
type Code string

// The codes. Their text begins the line that a client reads.
const (
	// ErrNotLeader: this node does not lead. Nothing was done.
	ErrNotLeader Code = "not the leader"
	// ErrNotApplied: definitely not applied, and never will be. It is safe to try again.
	ErrNotApplied Code = "not applied"
	// ErrUnknown: it may or may not be applied, now or later.
	ErrUnknown Code = "outcome unknown"
	// ErrFull: there is no room for it, in the bound of the data or on a disk. Nothing was done.
	ErrFull Code = "no room"
	// ErrConflict: a change of the cluster's members does not fit its state; the text gives
	// the reason. Nothing was changed on either side.
	ErrConflict Code = "membership change rejected"
	// ErrNoSuchNode: the node that was named is not a member.
	ErrNoSuchNode Code = "no such node"
	// ErrNoLeader: this node knows of no leader. Nothing was done.
	ErrNoLeader Code = "no leader is known"
	// ErrNotLinearizable: a read could not be confirmed to be the newest: there is no
	// leader, or it does not reach a majority.
	ErrNotLinearizable Code = "the newest state can't be confirmed"
)

// Error implements error.
func (c Code) Error() string { return string(c) }

// CodeOf returns the code that err wraps. With several, it is the one that was added last.
func CodeOf(err error) (Code, bool) { return errors.AsType[Code](err) }

// Error is an error as it crosses the raft port, in JSON. The message is the whole line,
// its code's text included: nothing is cut off or added on the way.
type Error struct {
	Code    Code   `json:"code"` // empty: an error that no caller can act on
	Message string `json:"message"`
}

// Error implements error.
func (e *Error) Error() string { return e.Message }

// Unwrap makes errors.Is find the code.
func (e *Error) Unwrap() error {
	if e.Code == "" {
		return nil
	}
	return e.Code
}

var (
	errClosing   = fmt.Errorf("%w: this node is shutting down", ErrNotApplied)
	errRemoved   = fmt.Errorf("%w: this node was removed from its cluster; join it again at a member", ErrNotApplied)
	errReplacing = fmt.Errorf("%w: this node is moving to another cluster", ErrNotLinearizable)
)

// outcome sorts the errors of raft's Apply by what became of the entry. Only these three
// come before the entry is in the log; with any other, ErrRaftShutdown and a failed write
// among them, it may be there and may be committed.
func outcome(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader):
		return ErrNotLeader
	case errors.Is(err, raft.ErrEnqueueTimeout), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return fmt.Errorf("%w: %w", ErrNotApplied, err)
	case isDeadline(err):
		return fmt.Errorf("%w: no answer in time", ErrUnknown)
	default:
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	}
}
