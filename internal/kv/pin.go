package kv

import "container/list"

// A clone costs nothing at first, and then what has changed since: the old values, and the nodes of the trees that
// were copied. A reader that takes its time could so hold the whole of a version, and a thousand of them a thousand
// versions. What changes have taken out of the store is counted, so that versions that have become too dear are given
// up.

const (
	// nodeBytes is what a change copies of the trees at most, in bytes, but for the first nodes of a tree: a leaf of 63
	// items of 40 bytes, and the part of the nodes above that belongs to it.
	nodeBytes = 3 << 10
	// itemNodeBytes is what the nodes of a tree are for each item at most, as they are at least half full.
	itemNodeBytes = 96
)

// pins are the versions of a store that are read. Store.mu guards them.
type pins struct {
	nodes   uint64    // bytes of nodes that were copied until the last clone, at most
	changes uint64    // data.changes at the last clone
	all     list.List // of *pin, the oldest first
}

// pin is a version that is read.
type pin struct {
	until  uint64 // it is given up when dropped is more
	giveUp func()
}

// dropped is how many bytes changes have taken out of the store, ever, that clones may still hold: all clones together
// hold no more of it than what came since the oldest of them. s.mu is held.
func (s *Store) dropped() uint64 { return s.data.dropped + s.pins.nodes + s.copied() }

// copied is how many bytes of nodes were copied since the last clone, at most. s.mu is held.
func (s *Store) copied() uint64 {
	return min((s.data.changes-s.pins.changes)*nodeBytes, uint64(s.items.Len())*itemNodeBytes)
}

// noteClone notes that a clone is made. s.mu is held.
func (s *Store) noteClone() {
	s.pins.nodes += s.copied()
	s.pins.changes = s.data.changes
}

// Pin returns a Clone that is given up when the store has dropped more than limit bytes since: then giveUp is called,
// once, in a goroutine of its own, and the caller should let go of the clone. Until it does, or calls release, all
// pinned clones together hold limit bytes at most, if all have the same limit.
func (s *Store) Pin(limit uint64, giveUp func()) (view *Store, release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noteClone()
	view = newStore(s.state.clone())
	e := s.pins.all.PushBack(&pin{until: s.dropped() + limit, giveUp: giveUp})
	return view, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.pins.all.Remove(e) // nothing, if it was given up
	}
}

// giveUp gives up the versions that hold too much. s.mu is held.
func (s *Store) giveUp() {
	for e := s.pins.all.Front(); e != nil && s.dropped() > e.Value.(*pin).until; e = s.pins.all.Front() {
		s.pins.all.Remove(e)
		go e.Value.(*pin).giveUp()
	}
}
