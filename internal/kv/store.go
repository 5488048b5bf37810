// Package kv is the ordered store of the state machine: get, set, remove, scan,
// a clone in constant time, and the snapshot format.
package kv

import (
	"context"
	"sync"

	"github.com/tidwall/btree"
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
	mu sync.RWMutex // guards all below

	// The tree has no lock of its own. Its copies share nodes, which nobody
	// writes to: a tree first replaces a shared node by its own copy.
	//
	// A node that was split keeps the memory of both halves, and so, for each key
	// of the other one, the value it had then: at worst as much again as the live
	// values, until an insert into the node or, after a Clone, any change of it.
	tree  *btree.Map[string, Item]
	index uint64
	term  uint64

	waiting map[*waiter]struct{}
}

// waiter waits for an index to be applied.
type waiter struct {
	index   uint64
	applied chan struct{} // closed when it is
}

// New returns an empty store.
func New() *Store {
	return &Store{tree: new(btree.Map[string, Item])}
}

// Get returns the item of key, and whether there is one.
func (s *Store) Get(key string) (Item, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.tree.Get(key)
}

// Len returns the number of keys.
func (s *Store) Len() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.tree.Len()
}

// Applied returns the raft index and term of the last entry that the content of
// the store comes from: of the last Update, or what ReadSnapshot has read. Both
// are 0 when there was none.
func (s *Store) Applied() (index, term uint64) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.index, s.term
}

// Ascend calls yield for each key that is from or comes after it, in order,
// until yield returns false. It sees one state of the store and holds off
// Update until it returns, so yield must be quick, and must not call a method of
// this store: for anything else, ascend a Clone.
func (s *Store) Ascend(from string, yield func(key string, item Item) bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	s.tree.Ascend(from, yield)
}

// Clone returns a store with the same content, in constant time. From then on
// the two are independent, and may be used concurrently; the first change of
// either to a part of the tree copies that part.
func (s *Store) Clone() *Store {
	s.mu.Lock() // not RLock: Copy writes to the tree that is copied
	defer s.mu.Unlock()
	return &Store{tree: s.tree.Copy(), index: s.index, term: s.term}
}

// Reset makes the store what New returns.
func (s *Store) Reset() {
	s.replace(new(btree.Map[string, Item]), 0, 0)
}

func (s *Store) replace(tree *btree.Map[string, Item], index, term uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tree = tree
	s.advance(index, term)
}

// WaitApplied returns nil once the index of Applied is index or greater, or the
// error of ctx.
func (s *Store) WaitApplied(ctx context.Context, index uint64) error {
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
	for w := range s.waiting {
		if w.index <= index {
			close(w.applied)
			delete(s.waiting, w)
		}
	}
}

// Update applies the raft entry at index of term: others see all that change
// does, and the new Applied, or nothing of it. Index must be greater than that
// of Applied; this is not checked. Change must not call a method of this store.
// It can't fail: what an entry does is decided by its content and the store's
// alone, and a node where it can't be done must stop.
func (s *Store) Update(index, term uint64, change func(tx *Tx)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&Tx{tree: s.tree, index: index})
	s.advance(index, term)
}

// Tx is the store within an Update, good until the Update's change returns. It
// sees its own changes.
type Tx struct {
	tree  *btree.Map[string, Item]
	index uint64
}

// Get returns the item of key, and whether there is one.
func (tx *Tx) Get(key string) (Item, bool) {
	return tx.tree.Get(key)
}

// Set sets key to a copy of value. The item's Index is the Update's. The key is
// kept as it is, and with it any longer string that it is a part of.
func (tx *Tx) Set(key string, value []byte) {
	tx.tree.Set(key, Item{Value: string(value), Index: tx.index})
}

// Remove removes key, and returns whether it was there.
func (tx *Tx) Remove(key string) bool {
	// Delete copies the nodes it visits if a clone shares them, also in vain.
	if _, ok := tx.tree.Get(key); !ok {
		return false
	}
	tx.tree.Delete(key)
	return true
}
