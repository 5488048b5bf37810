// Package kv is the data of a node: the replicated part, which is the same on every
// node that has applied the same entries of the raft log, and the watchers, which are
// the node's own. It knows neither raft nor HTTP, and does no I/O of its own.
//
// All changes go through [Store.Update], once for each entry, by one goroutine; readers
// see an entry whole or not at all. A Store holds
//
//   - the content: keys in the order of their bytes, each with its value and the index
//     of the entry that last set it (store.go, tx.go);
//   - leases: what ends a key, be it time or the end of another key (leases.go);
//   - lives: which entry made a key, and how often it was set since (lives.go);
//   - the dedup table: idempotency records, by which a command that is sent twice is
//     applied once (dedup.go);
//   - the staging area, in which a restored backup grows over several entries before it
//     becomes the content in one (Tx.Stage, Tx.Restore);
//   - a hash chain over all entries, by which nodes find out that their replicas differ
//     (hash.go, as etcd's HashKV);
//   - the latest changes, for the watchers of a prefix (history.go, watch.go,
//     watch_index.go).
//
// The trees are copy-on-write: [Store.Clone] takes constant time, so that a snapshot of
// a million keys neither stops the state machine nor copies the data. A clone that is
// alive costs the memory of what has changed since. The format of snapshots, with its
// versions, is in snapshot.go.
package kv

import (
	"context"
	"crypto/sha256"
	"sync"
	"sync/atomic"

	"github.com/tidwall/btree"
)

// Item is what the store has under a key. It is immutable, and shared by all
// holders.
type Item struct {
	Value string
	Index uint64 // raft index of the entry that last set the key: its ETag
}

// Store maps keys to items, in the order of the keys' bytes. New makes one. All
// methods may be called concurrently, except that only one goroutine at a time,
// the state machine's, may call those that change the store: Update,
// ReadSnapshot and Reset.
type Store struct {
	mu       sync.RWMutex // guards all below
	state                 // its hash is read by Update without mu: only Update's goroutine writes it
	waiting  map[*waiter]struct{}
	hashes   hashRing
	history  history
	watchers watcherIndex
	epoch    uint64       // counts the resets of the history
	open     atomic.Int64 // watchers that were not closed
	details  bool         // of KeepDetails
	pins     pins

	// Used by Update's goroutine alone.
	hasher hasher
	tx     Tx
}

// state is all that snapshots and clones hold.
type state struct {
	index  uint64
	term   uint64
	format uint64 // of the cluster; 0: the first, or one that was never raised
	hash   [sha256.Size]byte
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

// data is what a restore replaces: the items and the idempotency records.
//
// The trees have no lock of their own. They are copy-on-write: copies share nodes,
// which are immutable from then on, and a tree replaces a shared node by a copy of its
// own before it changes it.
//
// A node that was split keeps the memory of both halves, and so, for each key of
// the other one, the value it had then: at worst as much again as the live values,
// until an insert into the node or, after a clone, any change of it.
type data struct {
	items   *btree.Map[string, Item]
	size    int // bytes of the keys and values of items: all that changes items goes through set and remove
	records dedupTable
	leases  leases
	lives   lives

	dropped uint64 // bytes of keys and values that were replaced or removed, ever
	changes uint64 // of items, ever
}

func newData() data {
	return data{items: new(btree.Map[string, Item]), records: newDedupTable(), leases: newLeases(), lives: newLives()}
}

func (d *data) clone() data {
	c := *d
	c.items, c.records, c.leases, c.lives = d.items.Copy(), d.records.clone(), d.leases.clone(), d.lives.clone()
	return c
}

// set sets key, without a lease and a life, with put, which is Set of d.items or Load, its faster form for keys in
// ascending order.
func (d *data) set(put func(string, Item) (Item, bool), key string, item Item) {
	was, replaced := put(key, item)
	d.changes++
	d.size += len(item.Value) - len(was.Value)
	if !replaced {
		d.size += len(key)
		return
	}
	d.dropped += uint64(len(key) + len(was.Value))
	d.size -= leaseSize(key, d.leases.remove(key, was.Index))
	d.removeLife(key)
}

// dropAll notes that d takes the place of was.
func (d *data) dropAll(was *data) {
	d.dropped = was.dropped + uint64(was.footprint())
	d.changes += was.changes
}

// remove removes key, if it is there.
func (d *data) remove(key string) {
	if was, ok := d.items.Delete(key); ok {
		d.changes++
		d.dropped += uint64(len(key) + len(was.Value))
		d.size -= len(key) + len(was.Value) + leaseSize(key, d.leases.remove(key, was.Index))
		d.removeLife(key)
	}
}

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

// Format returns the cluster format: that of the last RaiseFormat, 1 if there was none.
func (s *Store) Format() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return int(max(s.format, 1))
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

// Clone returns a store with the same content, idempotency records, staging area and
// Hash, in constant time, as the trees are copy-on-write: the first change of either to
// a node of a tree copies that node. From then on the two are independent, and may be
// used concurrently.
// The clone has neither watchers nor a history: to Watch it begins at Applied.
func (s *Store) Clone() *Store {
	s.mu.Lock() // not RLock: copying a tree writes to it
	defer s.mu.Unlock()
	s.noteClone()
	return newStore(s.state.clone())
}

// Reset makes the store what New returns. All watchers end with ErrHistoryGone.
func (s *Store) Reset() {
	s.replace(newState())
}

func (s *Store) replace(st state) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st.dropAll(&s.data)
	s.state = st
	s.giveUp()
	s.resetHistory(st.index)
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

// advance sets what is applied and wakes those that wait for it. The caller holds mu.
func (s *Store) advance(index, term uint64) {
	s.index, s.term = index, term
	s.hashes.add(index, s.hash)
	for w := range s.waiting {
		if w.index <= index {
			close(w.applied)
			delete(s.waiting, w)
		}
	}
}

// Update applies the raft entry at index of term: readers see all that change
// does, and the new Applied and Hash, or nothing of it. Index must be greater
// than that of Applied and term at least 1; this is not checked. Entry is the
// bytes of the entry for the Hash, nil if it has none; it is not kept. Change
// must not call a method of this store. It can't fail: what an entry does is
// decided by its content and the store's alone, and a node where it can't be done
// must stop.
func (s *Store) Update(index, term uint64, entry []byte, change func(tx *Tx)) {
	hash := s.hash
	if s.index == 0 || hash != unknownHash {
		hash = s.hasher.next(hash, index, term, entry) // may take milliseconds: before mu
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stagedTerm != 0 && s.stagedTerm != term {
		s.unstage()
	}
	tx := &s.tx
	*tx = Tx{state: &s.state, index: index, term: term, changes: tx.changes[:0], details: s.details}
	change(tx)
	if tx.restored {
		s.resetHistory(index)
	} else if len(tx.changes) > 0 {
		s.publish(tx.event())
	}
	tx.end()
	s.hash = hash
	s.giveUp()
	s.advance(index, term)
}
