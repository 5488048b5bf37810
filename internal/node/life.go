package node

import (
	"context"
	"fmt"
	"sync"
)

// state is where a Node is in its life:
//
//		Open ──► running ◄──► replacing ◄── removed
//		            │                          ▲
//		            └──────────────────────────┘
//		any of these ──► closing ──► closed
//
//	  - running: raft runs; proposals and reads are served.
//	  - replacing: raft is stopped and started again on another volume. Proposals wait for
//	    the end of it; linearizable reads find no leader, and stale reads are refused.
//	  - removed: the cluster has removed this node. Raft is stopped, and everything is
//	    refused until the node is joined again.
//	  - closing: Close was called. Proposals are refused; what is in the log may yet be applied.
//	  - closed: raft, the raft port and the volume are closed.
//
// Only withRaftPaused moves a node between the first three, and it holds the member lock
// meanwhile. Close alone moves it to closing, at any time, and to closed when it has
// the member lock: never while an instance of raft is replaced.
type state int

const (
	running state = iota
	replacing
	removed
	closing
	closed
)

// life is the state of a Node, and what waits for it to change. Its methods may be called
// by several goroutines at once.
type life struct {
	ctx        context.Context // canceled by StepDown and by Close: what waits for other nodes gives up
	cancel     context.CancelFunc
	background sync.WaitGroup // the goroutines of Open
	stopped    chan struct{}  // closed when Close has stopped raft, which may leave futures without an answer

	closeOnce sync.Once
	closeErr  error

	mu        sync.Mutex // guards what follows
	state     state
	proposals int           // how many calls of Propose hold the instance
	changed   chan struct{} // closed, and made anew, when the state changes, or when proposals becomes 0
}

func (l *life) init() {
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.stopped, l.changed = make(chan struct{}), make(chan struct{})
}

// now returns the present state.
func (l *life) now() state {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

// move changes the state. The caller holds mu.
func (l *life) move(to state) {
	l.state = to
	l.wake()
}

// wake wakes what waits for changed. The caller holds mu.
func (l *life) wake() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// beginProposal returns, within ctx, when the node is running, and then keeps the instance
// of raft from being replaced until endProposal. Any error wraps ErrNotApplied.
func (l *life) beginProposal(ctx context.Context) error {
	for {
		l.mu.Lock()
		now, changed := l.state, l.changed
		if now == running {
			l.proposals++
		}
		l.mu.Unlock()
		switch now {
		case running:
			return nil
		case removed:
			return errRemoved
		case closing, closed:
			return errClosing
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%w: this node is moving to another cluster: %w", ErrNotApplied, ctx.Err())
		}
	}
}

func (l *life) endProposal() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.proposals--; l.proposals == 0 && l.state == replacing {
		l.wake()
	}
}

// pause moves the node to replacing and returns the state that it was in, once no proposal
// is under way: within applyLimit. ok is false if the node is being closed: then nothing
// may be replaced. The caller holds the member lock, and calls resume.
func (l *life) pause() (was state, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state >= closing {
		return l.state, false
	}
	was = l.state
	l.move(replacing)
	for l.proposals > 0 && l.state == replacing {
		changed := l.changed
		l.mu.Unlock()
		<-changed
		l.mu.Lock()
	}
	return was, l.state == replacing
}

// resume ends pause. A node that is being closed stays so.
func (l *life) resume(to state) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state == replacing {
		l.move(to)
	}
}

// end moves the node to closing or to closed.
func (l *life) end(to state) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.move(max(l.state, to))
}

// untilEnd returns ctx, canceled when the node ends too.
func (l *life) untilEnd(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(l.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}
