package node

import (
	"container/heap"
	"context"
	"sync"
	"time"

	"raftkv/internal/command"
	"raftkv/internal/kv"
)

// A key with a TTL goes when it was not set again for so long. No clock decides that in the state machine, where
// replicas would differ. The leader times the keys, by its own monotonic clock, and proposes to remove those whose time
// is over, under the condition that they were not set again: an entry of a leader that was replaced, or is late, then
// has no effect. A key is timed from when the leader has seen it in its own state machine, so it never goes early. A
// new leader gives every key its full time again, as it can't know how much is over, and so does one that did not get
// to look for a while, stopped or without a majority, as clients could not renew their keys meanwhile.

const (
	// expiryStep is how often the leader looks for keys that came, and for those whose time is over.
	expiryStep = 100 * time.Millisecond
	// expiryBatch is how many keys one entry removes at most, and how many are read in one step.
	expiryBatch = 1024
)

// expiry times the keys with a TTL, on the leader. It is used by one goroutine; left, by any.
type expiry struct {
	machine StateMachine
	propose func(context.Context, command.Command) (command.Result, error)
	now     func() time.Time
	pause   time.Duration // without a look, or for a proposal that fails, after which all keys get their full time again

	leading bool
	term    uint64    // that the leader is of
	epoch   uint64    // of the store, see kv.Store.TimedKeys
	looked  time.Time // when the last look was over
	seen    kv.Timed  // the last key that was timed

	mu       sync.Mutex // guards what follows, and what is in it
	byKey    map[string]*deadline
	upcoming deadlines
}

// deadline is when a key goes.
type deadline struct {
	kv.Timed
	at    time.Time
	place int // in the heap
}

func newExpiry(n *Node) *expiry {
	return &expiry{
		machine: n.machine, propose: n.propose, now: time.Now, pause: max(n.config.ElectionTimeout, time.Second),
	}
}

// TimeLeft returns how long the key that was last set by the entry at index stays, if it is not set again. It returns
// false if this node does not lead, or has not timed it yet.
func (n *Node) TimeLeft(key string, index uint64) (time.Duration, bool) {
	if !n.Leads() {
		return 0, false
	}
	return n.expiry.left(key, index)
}

func (e *expiry) left(key string, index uint64) (time.Duration, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	d := e.byKey[key]
	if d == nil || d.Index != index {
		return 0, false
	}
	return max(d.at.Sub(e.now()), 0), true
}

// expireKeys times the keys while this node leads, until it is closed.
func (n *Node) expireKeys() {
	e := n.expiry
	ticks := time.NewTicker(expiryStep)
	defer ticks.Stop()
	for {
		select {
		case <-n.life.ctx.Done():
			return
		case <-ticks.C:
		}
		i := n.current.Load()
		e.look(n.life.ctx, i.leads(), i.raft.CurrentTerm())
	}
}

// look times the keys that have come, and removes those whose time is over. It returns when the log has taken that, or
// when the first proposal failed; what is left is proposed at the next look.
func (e *expiry) look(ctx context.Context, leads bool, term uint64) {
	if !leads {
		e.leading = false
		e.forget()
		return
	}
	if !e.leading || e.term != term || e.now().Sub(e.looked) > e.pause {
		e.leading, e.term = true, term
		e.forget()
	}
	e.learn()
	for ctx.Err() == nil && e.removeDue(ctx) {
		continue
	}
	e.looked = e.now()
}

// forget has all keys get their full time again.
func (e *expiry) forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.seen, e.byKey, e.upcoming = kv.Timed{}, nil, nil
}

// learn times the keys that were set since the last look.
func (e *expiry) learn() {
	for {
		keys, epoch := e.machine.TimedKeys(e.seen, expiryBatch)
		if epoch != e.epoch {
			e.epoch = epoch
			if e.seen != (kv.Timed{}) {
				e.forget()
				continue
			}
		}
		if len(keys) == 0 {
			break
		}
		e.time(keys)
		e.seen = keys[len(keys)-1]
	}
	if len(e.upcoming) > 2*e.machine.TimedLen()+expiryBatch {
		e.sweep()
	}
}

// time times keys that were read from the state machine.
func (e *expiry) time(keys []kv.Timed) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.byKey == nil {
		e.byKey = make(map[string]*deadline)
	}
	read := e.now() // after they were read: a key must not go early
	for _, key := range keys {
		if d := e.byKey[key.Key]; d != nil {
			d.Timed, d.at = key, read.Add(key.TTL)
			heap.Fix(&e.upcoming, d.place)
			continue
		}
		d := &deadline{Timed: key, at: read.Add(key.TTL)}
		e.byKey[key.Key] = d
		heap.Push(&e.upcoming, d)
	}
}

// sweep drops the keys that were removed in the meantime, or have no TTL any more. Otherwise they would stay until
// their time is over.
func (e *expiry) sweep() {
	e.mu.Lock()
	defer e.mu.Unlock()
	kept := e.upcoming[:0]
	for _, d := range e.upcoming {
		if e.machine.IsTimed(d.Key, d.Index) {
			d.place = len(kept)
			kept = append(kept, d)
		} else {
			delete(e.byKey, d.Key)
		}
	}
	clear(e.upcoming[len(kept):])
	e.upcoming = kept
	heap.Init(&e.upcoming)
}

// removeDue proposes to remove keys whose time is over, and returns whether there may be more of them.
func (e *expiry) removeDue(ctx context.Context) bool {
	begin := e.now()
	c := command.Command{Kind: command.Expire, Txn: new(command.Transaction)}
	due := e.due(begin, c.Txn)
	if len(c.Txn.If) == 0 {
		return len(due) == expiryBatch
	}
	if _, err := e.propose(ctx, c); err != nil {
		e.mu.Lock()
		defer e.mu.Unlock()
		for _, d := range due {
			e.byKey[d.Key] = d
			heap.Push(&e.upcoming, d)
		}
		e.leading = e.now().Sub(begin) < e.pause
		return false
	}
	return len(due) == expiryBatch
}

// due takes out the keys whose time is over, up to expiryBatch of them, and adds to t those that have not gone.
func (e *expiry) due(begin time.Time, t *command.Transaction) (due []*deadline) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for len(e.upcoming) > 0 && len(due) < expiryBatch && !e.upcoming[0].at.After(begin) {
		d := heap.Pop(&e.upcoming).(*deadline)
		delete(e.byKey, d.Key)
		due = append(due, d)
		if e.machine.IsTimed(d.Key, d.Index) {
			t.If = append(t.If, command.Compare{Key: d.Key, What: command.HasIndex, Index: d.Index})
		}
	}
	return due
}

// deadlines is a heap with the next one first.
type deadlines []*deadline

func (h deadlines) Len() int           { return len(h) }
func (h deadlines) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h deadlines) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}

// Push implements heap.Interface.
func (h *deadlines) Push(x any) {
	d := x.(*deadline)
	d.place = len(*h)
	*h = append(*h, d)
}

// Pop implements heap.Interface.
func (h *deadlines) Pop() any {
	last := len(*h) - 1
	d := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return d
}
