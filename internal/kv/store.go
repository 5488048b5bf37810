// Package kv is the ordered store of the state machine: get, set, remove, scan,
// watch, a clone in constant time, and the snapshot format.
package kv

import (
	"context"
	"crypto/sha256"
	"sync"
)

// Item is what the store has under a key. It is immutable, and shared by all
// who hold it.
type Item struct {
	Value string
	Index uint64 // raft index of the entry that last set the key: its ETag
}

// Store maps keys to items, in the order of the keys' bytes. New makes one. All
// methods may be called concurrently, except that only one goroutine at a time,
// the state machine's, may call those that change the store: Update,
// ReadSnapshot and Reset.
type Store struct {
	mu      sync.RWMutex // guards all below
	state                // its chain is read by Update without mu: only Update's goroutine writes it
	waiting map[*waiter]struct{}
	chains  chains
	history history
	watched watched
	epoch   uint64 // counts how often the history was lost

	// Used by Update's goroutine alone.
	linker linker
	tx     Tx
}

// state is all that snapshots and clones hold.
type state struct {
	index uint64
	term  uint64
	chain [sha256.Size]byte
	data

	// The staging area, and the term that it was begun in, 0 if there is none.
	// That is the term of the last Update, always.
	staged     data
	stagedTerm uint64
}

func newState() state { return state{data: newData(), staged: newData()} }

// clone returns a copy in constant time. It writes to the trees it copies.
func (s *state) clone() state {
	c := *s
	c.data = s.data.clone()
	c.staged = s.staged.clone()
	return c
}

func (s *state) unstage() { s.staged, s.stagedTerm = newData(), 0 }

// waiter waits for an index to be applied.
type waiter struct {
	index   uint64
	applied chan struct{} // closed when it is
}

// New returns an empty store.
func New() *Store {
	return newStore(newState())
}

func newStore(st state) *Store {
	s := &Store{state: st, history: newHistory()}
	s.history.clear(st.index)
	return s
}

// Get returns the item of key, and whether there is one.
func (s *Store) Get(key string) (Item, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.items.Get(key)
}

// Len returns the number of keys of the content.
func (s *Store) Len() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.items.Len()
}

// Applied returns the raft index and term of the last entry that the content of
// the store comes from: of the last Update, or what ReadSnapshot has read. Both
// are 0 when there was none.
func (s *Store) Applied() (index, term uint64) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.index, s.term
}

// Answers returns the number of answers that are remembered.
func (s *Store) Answers() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.answers.len()
}

// AscendAnswers calls yield for each answer that is remembered, the oldest first,
// until yield returns false. As with Ascend, yield must be quick.
func (s *Store) AscendAnswers(yield func(key, answer string) bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	s.answers.scan(yield)
}

// Ascend calls yield for each key that is from or comes after it, in order,
// until yield returns false. It sees one state of the store and holds off
// Update until it returns, so yield must be quick, and must not call a method of
// this store: for anything else, ascend a Clone.
func (s *Store) Ascend(from string, yield func(key string, item Item) bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	s.items.Ascend(from, yield)
}

// Clone returns a store with the same content, answers, staging area and Chain, in
// constant time. From then on the two are independent, and may be used
// concurrently; the first change of either to a part of a tree copies that part.
// The clone has neither watchers nor a history: to Watch it begins at Applied.
func (s *Store) Clone() *Store {
	s.mu.Lock() // not RLock: copying a tree writes to it
	defer s.mu.Unlock()
	return newStore(s.state.clone())
}

// Reset makes the store what New returns. All watchers end with ErrHistoryGone.
func (s *Store) Reset() {
	s.replace(newState())
}

func (s *Store) replace(st state) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = st
	s.loseHistory(st.index)
	s.advance(st.index, st.term)
}

// WaitApplied returns nil once the index of Applied is index or greater, or the
// error of ctx.
func (s *Store) WaitApplied(ctx context.Context, index uint64) error {
	if applied, _ := s.Applied(); applied >= index { // readers, mostly: they need not exclude each other
		return nil
	}
	s.mu.Lock()
	if s.index >= index {
		s.mu.Unlock()
		return nil
	}
	w := &waiter{index: index, applied: make(chan struct{})}
	if s.waiting == nil {
		s.waiting = make(map[*waiter]struct{})
	}
	s.waiting[w] = struct{}{}
	s.mu.Unlock()
	select {
	case <-w.applied:
		return nil
	case <-ctx.Done():
		s.mu.Lock()
		delete(s.waiting, w)
		s.mu.Unlock()
		return ctx.Err()
	}
}

// advance sets what is applied and wakes who waits for it. The caller holds mu.
func (s *Store) advance(index, term uint64) {
	s.index, s.term = index, term
	s.chains.add(index, s.chain)
	for w := range s.waiting {
		if w.index <= index {
			close(w.applied)
			delete(s.waiting, w)
		}
	}
}

// Update applies the raft entry at index of term: others see all that change
// does, and the new Applied and Chain, or nothing of it. Index must be greater
// than that of Applied and term at least 1; this is not checked. Entry is the
// bytes of the entry for the Chain, nil if it has none; it is not kept. Change
// must not call a method of this store. It can't fail: what an entry does is
// decided by its content and the store's alone, and a node where it can't be done
// must stop.
func (s *Store) Update(index, term uint64, entry []byte, change func(tx *Tx)) {
	chain := s.chain
	if s.index == 0 || chain != unknownChain {
		chain = s.linker.link(chain, index, term, entry) // may take milliseconds: before mu
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stagedTerm != 0 && s.stagedTerm != term {
		s.unstage()
	}
	tx := &s.tx
	*tx = Tx{state: &s.state, index: index, term: term, changes: tx.changes[:0]}
	change(tx)
	if tx.restored {
		s.loseHistory(index)
	} else if len(tx.changes) > 0 {
		s.publish(tx.event())
	}
	tx.end()
	s.chain = chain
	s.advance(index, term)
}
