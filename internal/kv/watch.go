package kv

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

var (
	// ErrHistoryGone is returned when a watch needs events that the store no
	// longer has, or never had: list what there is, then watch from there.
	ErrHistoryGone = errors.New("the history is gone")

	// ErrSlow is returned when a watcher did not keep up with the changes.
	ErrSlow = errors.New("watcher is too slow")

	// ErrClosed is returned when a watcher was closed.
	ErrClosed = errors.New("watcher is closed")
)

// Watcher hands out the events of one prefix. Close it when done. Next may be
// called by one goroutine at a time, Close by any.
type Watcher struct {
	s      *Store
	prefix string
	after  uint64 // events at or before it are not wanted
	epoch  uint64 // Store.epoch at the beginning
	closed bool   // guarded by Store.mu

	// Used by Next alone.
	through uint64
	live    bool // caught up: events come from group; before, from the history

	group *prefixGroup // written under Store.mu before it is live
	next  uint64       // the number of the event of group to take next; guarded by group.mu

	done chan struct{} // closed when it ends

	mu  sync.Mutex // guards err; taken after group.mu
	err error      // why it ended
}

// Watch returns a watcher of the events after the index after that changed a key
// that begins with prefix: those there were and those to come, in the order of the
// log, none missing, none twice. An index that is not applied yet is waited for.
// The error wraps ErrHistoryGone if an event after it may be gone already: the store
// keeps the last 65,536 events or 32 MiB of changes, and none of before a
// ReadSnapshot, a Reset or a Restore.
func (s *Store) Watch(prefix string, after uint64) (*Watcher, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if floor := s.history.floor; after < floor {
		return nil, fmt.Errorf("watch after index %d: %w: it begins after %d", after, ErrHistoryGone, floor)
	}
	return s.newWatcher(prefix, after), nil
}

// WatchNow is Watch from now on, which it returns: the index of Applied.
func (s *Store) WatchNow(prefix string) (w *Watcher, after uint64) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.newWatcher(prefix, s.index), s.index
}

func (s *Store) newWatcher(prefix string, after uint64) *Watcher {
	s.open.Add(1)
	return &Watcher{
		s: s, prefix: prefix, after: after, through: after, epoch: s.epoch,
		done: make(chan struct{}),
	}
}

// Next waits until there is an event, and returns all pending ones, the oldest first;
// the slice is shared with other watchers and must not be written to. With events, and with ctx's error when ctx ends
// first, through is an index up to which it has returned all events that there
// are: to Watch after it goes on where this one stopped, also if nothing came.
// The changes of an event can be read from the store by then. Any other error is the
// end of the watcher, and its pending events are lost: it wraps
// ErrHistoryGone after a Restore, ReadSnapshot or Reset of the store; ErrSlow when
// more than 8,192 events or 32 MiB of changes were pending, or when it was still behind
// and what was next left the history; ErrClosed after Close.
func (w *Watcher) Next(ctx context.Context) (events []*Event, through uint64, err error) {
	for {
		var wake <-chan struct{}
		if !w.live {
			events, err = w.catchUp()
		} else {
			applied, _ := w.s.Applied() // before, so that all up to it waits already
			events, wake, err = w.take(applied)
		}
		switch {
		case err != nil:
			return nil, w.through, fmt.Errorf("watch %q: %w", w.prefix, err)
		case len(events) > 0:
			return events, w.through, nil
		case ctx.Err() != nil:
			return nil, w.through, ctx.Err()
		case wake == nil: // it read the history
			continue
		}
		select {
		case <-wake:
		case <-w.done:
		case <-ctx.Done(): // and look once more, for the newest index
		}
	}
}

// catchUpStep is how many events of the history are copied at once while Update
// is held off.
const catchUpStep = 1024

// catchUp returns the matching ones of the next events of the history, of which
// there may be none. At the end of the history the watcher is live.
func (w *Watcher) catchUp() ([]*Event, error) {
	history, err := w.fromHistory()
	if err != nil {
		return nil, err
	}
	var events []*Event
	for _, e := range history {
		if part := e.matching(w.prefix); part != nil {
			events = append(events, part)
		}
	}
	return events, nil
}

func (w *Watcher) fromHistory() ([]*Event, error) {
	s := w.s
	s.mu.Lock()
	defer s.mu.Unlock()
	switch err := w.ended(); {
	case err != nil:
		return nil, err
	case w.epoch != s.epoch:
		return nil, ErrHistoryGone
	case w.through < s.history.floor:
		return nil, ErrSlow
	}
	events, all := s.history.after(w.through, catchUpStep)
	if all {
		w.through, w.live = max(w.through, s.index), true
		s.watchers.add(w)
	} else {
		w.through = events[len(events)-1].Index
	}
	return events, nil
}

// take returns what is pending: all matching events up to applied, and maybe more. Where
// there are none, wake is closed with the next one.
func (w *Watcher) take(applied uint64) (events []*Event, wake <-chan struct{}, err error) {
	g := w.group
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := w.ended(); err != nil {
		return nil, nil, err
	}
	events = g.pending[w.next-g.first:]
	w.next += uint64(len(events))
	for len(events) > 0 && events[0].Index <= w.after {
		events = events[1:]
	}
	w.through = max(w.through, applied)
	if n := len(events); n > 0 {
		w.through = max(w.through, events[n-1].Index)
		return events[:n:n], nil, nil
	}
	if g.wake == nil {
		g.wake = make(chan struct{})
	}
	return nil, g.wake, nil
}

// What may be pending for the Next of a Watcher at most. One event always may.
const (
	maxPending      = 8192 // events
	maxPendingBytes = historyBytes
)

// Close ends the watcher, and a Next under way. It may be called more than once.
func (w *Watcher) Close() {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	if !w.closed {
		w.closed = true
		w.s.open.Add(-1)
	}
	w.s.watchers.remove(w)
	w.end(ErrClosed)
}

// end ends the watcher, unless it has ended. The caller holds Store.mu, and takes
// it out of Store.watchers.
func (w *Watcher) end(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
		close(w.done)
	}
}

func (w *Watcher) ended() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}
