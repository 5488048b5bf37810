// Package events is what raft does on one node, as it crosses the two seams that the node owns: the transport and the
// log store. Somebody who looks (package page) sees it; nobody else pays for it.
package events

import (
	"sync"
	"sync/atomic"
	"time"
)

// Kinds of events. They are part of the format of a frame (docs/page.md).
const (
	Vote     = "vote"     // this node has asked a member for its vote, and has its answer
	PreVote  = "pre-vote" // the same without a new term
	Append   = "append"   // this node has sent entries, or a heartbeat (To is 0)
	Install  = "install"  // this node has sent a snapshot
	Handover = "handover" // this node has asked a member to stand for election at once
	Stored   = "stored"   // entries From to To are on this disk
	Repair   = "repair"   // entries From to To at the end of this log are gone: the leader has others there
	Compact  = "compact"  // entries up to To are gone: a snapshot stands for them
	Voted    = "voted"    // the vote of Term is on this disk
	State    = "state"    // this node is a Leader, Follower, Candidate from now on
	LeaderIs = "leader"   // this node has heard of the leader of Term; empty Member: it has none
	Took     = "snapshot" // a snapshot up to To is on this disk
	Lab      = "lab"      // links were cut or healed
)

const (
	// MaxViews is how many may look at once.
	MaxViews = 64

	maxError = 64   // bytes of an Error that are kept
	size     = 1024 // events that are kept for those who look
	maxBatch = 256  // events of one Since
)

// Event is one of them. Members are IDs.
type Event struct {
	Number uint64 `json:"n"`            // from 1; a gap: events that were dropped, as the frame has it
	At     int64  `json:"at"`           // milliseconds of Unix time, when it was over
	Kind   string `json:"k"`            // of the constants
	Member string `json:"to,omitempty"` // that was called; of a Voted, for which the vote is
	Term   uint64 `json:"term,omitempty"`
	From   uint64 `json:"from,omitempty"` // first index
	To     uint64 `json:"upto,omitempty"` // last index
	// Of a call: what was answered. Without OK, the term of the answer is the reason: a greater one than Term is that of
	// another leader or candidate; otherwise the other has refused for what it has in its log, or as it hears a leader.
	OK     bool   `json:"ok,omitempty"`
	Answer uint64 `json:"answer,omitempty"` // term of the answer
	Error  string `json:"error,omitempty"`  // there was no answer
	Text   string `json:"text,omitempty"`   // of a State
}

// Recorder keeps the last events for those who look. The zero Recorder is ready. Its methods may be called by several
// goroutines at once; none of them waits for a viewer.
type Recorder struct {
	views atomic.Int32

	mu   sync.Mutex // guards what follows, and is never held while anything is sent
	ring []Event    // of length size while anybody looks
	last uint64     // number of the last event
	wake []chan struct{}
}

// Watched reports whether there is a viewer. Callers check it before they build an event: it is one atomic load.
func (r *Recorder) Watched() bool { return r.views.Load() > 0 }

// Add keeps e, if anybody looks. It sets its number and time.
func (r *Recorder) Add(e Event) {
	if !r.Watched() {
		return
	}
	e.At = time.Now().UnixMilli()
	if len(e.Error) > maxError {
		e.Error = e.Error[:maxError]
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ring == nil {
		return
	}
	r.last++
	e.Number = r.last
	r.ring[r.last%size] = e
	for _, c := range r.wake {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// View is somebody who looks.
type View struct {
	News <-chan struct{} // receives when there is an event

	recorder *Recorder
	wake     chan struct{}
	seen     uint64
}

// Watch returns a view of the events from now on; nil: there are MaxViews of them already. It is closed by Close.
func (r *Recorder) Watch() *View {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.wake) >= MaxViews {
		return nil
	}
	if r.ring == nil {
		r.ring = make([]Event, size)
	}
	c := make(chan struct{}, 1)
	r.wake = append(r.wake, c)
	r.views.Store(int32(len(r.wake)))
	return &View{News: c, recorder: r, wake: c, seen: r.last}
}

// Close ends the view. The last one that ends takes what was kept with it.
func (v *View) Close() {
	r := v.recorder
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, c := range r.wake {
		if c == v.wake {
			r.wake = append(r.wake[:i:i], r.wake[i+1:]...)
			break
		}
	}
	if r.views.Store(int32(len(r.wake))); len(r.wake) == 0 {
		r.ring = nil
	}
}

// Since returns the events since the last call, or since Watch, oldest first, the newest 256 of them at most, and how
// many before these were dropped.
func (v *View) Since() (all []Event, dropped uint64) {
	r := v.recorder
	r.mu.Lock()
	defer r.mu.Unlock()
	count := r.last - v.seen
	if kept := min(count, maxBatch); kept < count {
		dropped = count - kept
		count = kept
	}
	for n := r.last - count + 1; n <= r.last; n++ {
		all = append(all, r.ring[n%size])
	}
	v.seen = r.last
	return all, dropped
}
