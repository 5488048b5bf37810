package node

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"raftkv/internal/command"
)

const (
	// enqueueLimit is how long raft may take to accept a proposal.
	enqueueLimit = 2 * time.Second
	// applyLimit is how long a proposal may take as a whole. Raft's own timeout bounds only
	// the queueing, and some of its futures are never answered (hashicorp/raft issue 498).
	applyLimit = 10 * time.Second
)

const (
	// maxCommands and maxBytes bound a batch; a larger command is a batch of its own.
	maxCommands = 1024
	maxBytes    = 512 << 10
	// maxWaiting bounds the commands that wait for a batch.
	maxWaiting = 4096
)

// Propose replicates c and returns its result, once a majority has it on disk and this
// node has applied it. Any error wraps ErrNotLeader, ErrNotApplied or ErrUnknown. The
// command must not be changed afterwards.
//
// Commands that arrive while others are being replicated are proposed together, in the
// next batch. Of two with a key in common, the one that came first has the lower index,
// and no two have the same.
func (n *Node) Propose(ctx context.Context, c command.Command) (command.Result, error) {
	result, err := n.propose(ctx, c)
	n.observed.proposal(err)
	return result, err
}

func (n *Node) propose(ctx context.Context, c command.Command) (command.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, applyLimit)
	defer cancel()
	if err := n.life.beginProposal(ctx); err != nil {
		return command.Result{}, err
	}
	defer n.life.endProposal()
	if err := n.RequireFormat(ctx, c.Format()); err != nil {
		return command.Result{}, err
	}
	return n.batcher.propose(ctx, c)
}

// batcher is group commit: while one batch of commands is being replicated, which costs
// an fsync on every node, those that arrive wait, and then share the next one. One batch
// at a time: more of them carry fewer commands each, and were slower.
type batcher struct {
	raft    func() applier  // what the next batch is proposed to
	stopped <-chan struct{} // closed when raft may never answer again
	onBatch func(batch)     // called with each batch that is proposed; nil: none
	names   *command.Names  // of Config

	// admit finishes the commands of the next batch that are not to be proposed, and returns the others. answered
	// is false if the batch before has no answer yet. nil: all are proposed.
	admit func(next batch, answered bool) batch

	mu      sync.Mutex // guards what follows
	waiting []*proposal
	running bool // run does
	closed  bool // nothing is proposed any more
}

// applier is the part of raft that a batch needs.
type applier interface {
	Apply(entry []byte, timeout time.Duration) raft.ApplyFuture
}

// proposal is a command on its way.
type proposal struct {
	command command.Command
	size    int // bytes, about

	done   chan struct{} // closed when what follows is set
	result command.Result
	err    error
}

func newProposal(c command.Command) *proposal {
	p := &proposal{command: c, size: 16, done: make(chan struct{})}
	for _, pair := range c.Pairs {
		p.size += len(pair.Key) + len(pair.Value) + 8
	}
	if c.Txn != nil {
		for _, compare := range c.Txn.If {
			p.size += len(compare.Key) + len(compare.Value) + 8
		}
		for _, o := range slices.Concat(c.Txn.Then, c.Txn.Else) {
			p.size += len(o.Key) + len(o.End) + len(o.Value) + 8
		}
	}
	return p
}

func (p *proposal) finish(result command.Result, err error) {
	p.result, p.err = result, err
	close(p.done)
}

// propose returns what became of c, or when ctx ends. It may be called by several
// goroutines at once.
func (b *batcher) propose(ctx context.Context, c command.Command) (command.Result, error) {
	p := newProposal(c)
	if err := b.add(p); err != nil {
		return command.Result{}, err
	}
	var err error
	select {
	case <-p.done:
	case <-ctx.Done():
		err = ctx.Err()
	case <-b.stopped:
		err = raft.ErrRaftShutdown
	}
	if err != nil && b.remove(p) {
		return command.Result{}, fmt.Errorf("%w: it waited for an earlier batch: %w", ErrNotApplied, err)
	}
	select {
	case <-p.done: // also when the other events came at the same time
		return p.result, p.err
	default:
		return command.Result{}, outcome(err)
	}
}

// add makes p the last one that waits, and starts run unless it runs.
func (b *batcher) add(p *proposal) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return errClosing
	}
	if len(b.waiting) >= maxWaiting {
		return fmt.Errorf("%w: %d proposals are waiting", ErrNotApplied, maxWaiting)
	}
	b.waiting = append(b.waiting, p)
	if !b.running {
		b.running = true
		go b.run()
	}
	return nil
}

// remove takes p out; it returns false when p waits no more: it is in a batch.
func (b *batcher) remove(p *proposal) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.Index(b.waiting, p)
	if i >= 0 {
		b.waiting = slices.Delete(b.waiting, i, i+1)
	}
	return i >= 0
}

// close refuses what waits and what comes later. The batch under way goes on.
func (b *batcher) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for _, p := range b.waiting {
		p.finish(command.Result{}, errClosing)
	}
	b.waiting = nil
}

// run proposes one batch after the other until nothing waits. A batch that raft never
// answers holds up the next one for no longer than applyLimit.
func (b *batcher) run() {
	inTime := true
	for {
		next, r := b.next()
		if next == nil {
			return
		}
		if b.admit != nil {
			next = b.admit(next, inTime)
		}
		if inTime = true; len(next) == 0 {
			continue
		}
		if b.onBatch != nil {
			b.onBatch(next)
		}
		answered := make(chan struct{})
		go func() {
			next.propose(r, b.names)
			close(answered)
		}()
		limit := time.NewTimer(applyLimit)
		select {
		case <-answered:
		case <-limit.C:
			inTime = false
		}
		limit.Stop()
	}
}

// next takes the next batch, and the instance of raft to propose it to: a proposal that
// waits keeps that from being replaced (see life). Once its caller has given up, it does
// not, and the batch stays with the instance that it was taken for.
func (b *batcher) next() (batch, applier) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.running = len(b.waiting) > 0; !b.running {
		return nil, nil
	}
	var next batch
	next, b.waiting = nextBatch(b.waiting)
	return next, b.raft()
}

// batch is a few entries that are proposed one right after the other, which raft writes
// and sends together. Its entries hold the commands that came first:
//   - In an entry, no key occurs in two commands, as the index of its entry is what
//     tells one state of a key from another (ETag).
//   - A command of another kind than Set and Remove, which may touch any key, has an
//     entry to itself, after all that came before it and before all that came later.
//
// A Restore, which replaces all keys, has a batch to itself.
type batch [][]*proposal

// nextBatch takes a batch from the head of waiting, which is not empty, and returns what
// is left of it.
func nextBatch(waiting []*proposal) (next batch, rest []*proposal) {
	first := 0                    // entry that a command may be in, unless its keys forbid
	after := make(map[string]int) // key: the entry after the last one that it is in
	size := 0
	for i, p := range waiting {
		alone := p.command.Kind == command.Restore || i == 1 && waiting[0].command.Kind == command.Restore
		if i == maxCommands || (i > 0 && (alone || size+p.size > maxBytes)) {
			return next, waiting[i:]
		}
		size += p.size
		at := first
		if kind := p.command.Kind; kind != command.Set && kind != command.Remove {
			at = len(next)
			first = at + 1
		}
		for _, pair := range p.command.Pairs {
			at = max(at, after[pair.Key])
		}
		for _, pair := range p.command.Pairs {
			after[pair.Key] = at + 1
		}
		if at == len(next) {
			next = append(next, nil)
		}
		next[at] = append(next[at], p)
	}
	return next, nil
}

// propose proposes the batch and finishes each of its proposals with what came of it. It
// returns when raft has answered, which it may never do.
func (b batch) propose(r applier, names *command.Names) {
	deadline := time.Now().Add(enqueueLimit)
	futures := make([]raft.ApplyFuture, len(b))
	for i, entry := range b {
		commands := make([]command.Command, len(entry))
		for j, p := range entry {
			commands[j] = p.command
		}
		data := command.Append(nil, commands...)
		defer names.Put(data, commands)()
		// Raft takes a timeout of 0 for none.
		futures[i] = r.Apply(data, max(time.Until(deadline), time.Millisecond))
	}
	for i, entry := range b {
		if err := futures[i].Error(); err != nil {
			err = outcome(err)
			for _, p := range entry {
				p.finish(command.Result{}, err)
			}
			continue
		}
		results := futures[i].Response().([]command.Result)
		for j, p := range entry {
			p.finish(results[j], nil)
		}
	}
}
