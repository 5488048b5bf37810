package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// leaderlessTimeouts is after how many election timeouts without a leader this node no
// longer serves what must be new: an election, even a second one, is over by then.
const leaderlessTimeouts = 4

// serving has the contexts that Serving returns.
type serving struct {
	mu     sync.Mutex // guards what follows
	member span       // ends when the node is no member any more, or shuts down
	led    span       // ends with that, too, and when it has no leader
}

// span is a context that is made anew after it has ended.
type span struct {
	ctx context.Context
	end context.CancelCauseFunc
}

// set ends the span because of reason, which becomes its cause; nil: it goes on, or begins.
func (s *span) set(reason error) {
	if s.ctx == nil || (reason == nil && s.ctx.Err() != nil) {
		s.ctx, s.end = context.WithCancelCause(context.Background())
	}
	if reason != nil {
		s.end(reason)
	}
}

func (s *serving) set(member, led error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.member.set(member)
	s.led.set(cmp.Or(member, led))
}

// Serving returns a context that ends when this node no longer learns what is new: when it
// was removed from its cluster, when it shuts down, and, unless stale, when it has had no
// leader for 4 election timeouts. context.Cause gives the reason, a line for clients. It is
// what a stream of changes lasts as long as. After it has ended, a node that serves again
// has another one.
func (n *Node) Serving(stale bool) context.Context {
	n.serving.mu.Lock()
	defer n.serving.mu.Unlock()
	if stale {
		return n.serving.member.ctx
	}
	return n.serving.led.ctx
}

var (
	errNoMember = errors.New("this node was removed from its cluster")
	errStopping = errors.New("this node is shutting down")
)

// watchServing ends and begins the contexts of Serving until the node ends.
func (n *Node) watchServing() {
	limit := leaderlessTimeouts * n.config.ElectionTimeout
	tick := time.NewTicker(n.config.ElectionTimeout / 2)
	defer tick.Stop()
	led := time.Now() // last
	for {
		select {
		case <-n.life.ctx.Done():
			n.serving.set(errStopping, nil)
			return
		case <-tick.C:
		}
		var member, leaderless error
		if n.life.now() == removed {
			member = errNoMember
		}
		if _, leader := n.current.Load().raft.LeaderWithID(); leader != "" {
			led = time.Now()
		} else if time.Since(led) > limit {
			leaderless = fmt.Errorf("this node has had no leader for %v", limit)
		}
		n.serving.set(member, leaderless)
	}
}
