package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"raftkv/internal/command"
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

	errClosing = fmt.Errorf("%w: this node is shutting down", ErrNotApplied)
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

const (
	// maxCommands and maxBytes bound a flight; a larger command flies alone.
	maxCommands = 1024
	maxBytes    = 512 << 10
	// maxWaiting bounds the commands that wait for a flight.
	maxWaiting = 4096
)

// Propose replicates c and returns the index of its entry and what the state machine
// answered to it, once a majority has it on disk and this node has applied it. Any
// error wraps ErrNotLeader, ErrNotApplied or ErrUnknown. The command must not be
// changed afterwards.
//
// Commands that arrive while others are in flight travel together in the next
// entries (see flight). Of two with a key in common, the one that came first has the
// lower index, and no two have the same.
func (n *Node) Propose(ctx context.Context, c command.Command) (index uint64, response any, err error) {
	n.proposing.RLock()
	defer n.proposing.RUnlock()
	if n.closing.Load() {
		return 0, nil, errClosing
	}
	if n.removed.Load() {
		return 0, nil, errRemoved
	}
	ctx, cancel := context.WithTimeout(ctx, applyLimit)
	defer cancel()
	p := newProposal(c)
	if !n.proposals.add(p) {
		return 0, nil, fmt.Errorf("%w: %d proposals are waiting", ErrNotApplied, maxWaiting)
	}
	n.launch()
	select {
	case <-p.done:
	case <-ctx.Done():
		err = ctx.Err()
	case <-n.stopped: // raft may never answer
		err = raft.ErrRaftShutdown
	}
	if err != nil && n.proposals.drop(p) {
		return 0, nil, fmt.Errorf("%w: others were in flight before it: %w", ErrNotApplied, err)
	}
	select {
	case <-p.done: // also when the rest came at the same time
		return p.index, p.response, p.err
	default:
		return 0, nil, outcome(err)
	}
}

// proposals are the commands that wait for a flight. Who proposed one of them is in
// Propose and holds Node.proposing.
type proposals struct {
	mu      sync.Mutex // guards what follows
	waiting []*proposal
	flying  bool // one flight at a time: more of them carry fewer commands each, and were slower
}

// proposal is a command on its way.
type proposal struct {
	command command.Command
	size    int // bytes, about

	done     chan struct{} // closed when what follows is set
	index    uint64
	response any
	err      error
}

func newProposal(c command.Command) *proposal {
	p := &proposal{command: c, size: 16, done: make(chan struct{})}
	for _, pair := range c.Pairs {
		p.size += len(pair.Key) + len(pair.Value) + 8
	}
	return p
}

// add makes p the last one that waits, unless too many do.
func (ps *proposals) add(p *proposal) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if len(ps.waiting) >= maxWaiting {
		return false
	}
	ps.waiting = append(ps.waiting, p)
	return true
}

// drop takes p out; it returns false when p waits no more: it is in an entry.
func (ps *proposals) drop(p *proposal) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	i := slices.Index(ps.waiting, p)
	if i >= 0 {
		ps.waiting = slices.Delete(ps.waiting, i, i+1)
	}
	return i >= 0
}

// launch starts a flight of what waits, unless there is one. None starts once the
// node closes.
func (n *Node) launch() {
	n.proposals.mu.Lock()
	defer n.proposals.mu.Unlock()
	if n.closing.Load() {
		for _, p := range n.proposals.waiting {
			p.err = errClosing
			close(p.done)
		}
		n.proposals.waiting = nil
	}
	if n.proposals.flying || len(n.proposals.waiting) == 0 {
		return
	}
	var f flight
	f, n.proposals.waiting = load(n.proposals.waiting)
	n.proposals.flying = true
	// Those who wait keep the instance from being replaced. Whoever gives up once
	// under way does not: the flight stays with this instance.
	go n.fly(n.current.Load().raft, f)
}

// flight is a few entries that are proposed one right after the other, which raft
// writes and sends together. Its entries hold the commands that came first:
//   - In an entry, no key occurs in two commands, as the index of its entry is what
//     tells one state of a key from another (ETag).
//   - A command of another kind than Set and Remove, which may touch any key, has an
//     entry to itself, after all that came before it and before all that came later.
type flight [][]*proposal

// load takes a flight from the head of waiting, which is not empty, and returns what
// is left of it.
func load(waiting []*proposal) (f flight, left []*proposal) {
	first := 0                    // entry that a command may be in, unless its keys forbid
	after := make(map[string]int) // key: the entry after the last one that it is in
	size := 0
	for i, p := range waiting {
		if i == maxCommands || (i > 0 && size+p.size > maxBytes) {
			return f, waiting[i:]
		}
		size += p.size
		at := first
		if kind := p.command.Kind; kind != command.Set && kind != command.Remove {
			at = len(f)
			first = at + 1
		}
		for _, pair := range p.command.Pairs {
			at = max(at, after[pair.Key])
		}
		for _, pair := range p.command.Pairs {
			after[pair.Key] = at + 1
		}
		if at == len(f) {
			f = append(f, nil)
		}
		f[at] = append(f[at], p)
	}
	return f, nil
}

// applier is what a flight needs of raft.
type applier interface {
	Apply(entry []byte, timeout time.Duration) raft.ApplyFuture
}

// fly proposes f and tells each of its proposals what came of it. It returns when
// raft has answered, which it may never do: the next flight need not wait for it
// longer than applyLimit.
func (n *Node) fly(r applier, f flight) {
	land := sync.OnceFunc(func() {
		n.proposals.mu.Lock()
		n.proposals.flying = false
		n.proposals.mu.Unlock()
		n.launch()
	})
	defer land()
	defer time.AfterFunc(applyLimit, land).Stop()
	deadline := time.Now().Add(enqueueLimit)
	futures := make([]raft.ApplyFuture, len(f))
	for i, entry := range f {
		commands := make([]command.Command, len(entry))
		for j, p := range entry {
			commands[j] = p.command
		}
		// Raft takes a timeout of 0 for none.
		futures[i] = r.Apply(command.Append(nil, commands...), max(time.Until(deadline), time.Millisecond))
	}
	for i, entry := range f {
		if err := futures[i].Error(); err != nil {
			err = outcome(err)
			for _, p := range entry {
				p.err = err
				close(p.done)
			}
			continue
		}
		responses := futures[i].Response().([]command.Result)
		for j, p := range entry {
			p.index, p.response = futures[i].Index(), responses[j]
			close(p.done)
		}
	}
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
