package kv

import (
	"slices"
	"strings"
)

// Tx is the store within an Update, good until the Update's change returns. It
// sees its own changes.
type Tx struct {
	state       *state
	index, term uint64
	changes     []Change // those of the content
	restored    bool
	details     bool // changes have a Detail
}

// Get returns the item of key, and whether there is one.
func (tx *Tx) Get(key string) (Item, bool) {
	return tx.state.items.Get(key)
}

// Set is SetLeased with no lease.
func (tx *Tx) Set(key string, value []byte) { tx.SetLeased(key, value, Lease{}) }

// SetLeased sets key to a copy of value, with this lease in the place of the one that it had.
// The item's Index is the Update's. The key is kept as it is, and with it any longer string that
// it is a part of. A key whose lease is of a key that is not there goes at once.
func (tx *Tx) SetLeased(key string, value []byte, lease Lease) {
	item := Item{Value: string(value), Index: tx.index}
	var was Full
	found := false
	if tx.details || tx.state.format >= livesFormat {
		was, found = tx.GetFull(key)
	}
	tx.state.set(tx.state.items.Set, key, item)
	tx.grow(key, was, found)
	leased := lease == (Lease{}) || tx.state.setLease(key, lease)
	change := Change{Key: key, Value: item.Value}
	if tx.details {
		now, _ := tx.GetFull(key)
		change.Detail = &Detail{Now: now, Was: was}
	}
	if tx.changes = append(tx.changes, change); !leased {
		tx.Remove(key)
	}
}

// Remove removes key, and the keys that go with it, and returns whether it was there.
func (tx *Tx) Remove(key string) bool {
	// Delete copies the nodes it visits if a clone shares them, also in vain.
	if _, ok := tx.state.items.Get(key); !ok {
		return false
	}
	first := len(tx.changes)
	tx.changes = append(tx.changes, tx.removal(key))
	tx.removeFrom(first)
	return true
}

// removal is the change that the removal of a key is, which is still there.
func (tx *Tx) removal(key string) Change {
	c := Change{Key: key, Removed: true}
	if tx.details {
		was, _ := tx.GetFull(key)
		c.Detail = &Detail{Was: was}
	}
	return c
}

// RemovePrefix removes all keys that begin with prefix, every key if it is empty, and the keys
// that go with them, and returns how many began with prefix.
func (tx *Tx) RemovePrefix(prefix string) (removed int) {
	return tx.removeAll(prefix, func(key string) bool { return strings.HasPrefix(key, prefix) })
}

// removeAll removes all keys from one on, up to the first for which in returns false, and the keys that go with them,
// and returns how many were in that range.
func (tx *Tx) removeAll(from string, in func(key string) bool) (removed int) {
	first := len(tx.changes)
	tx.state.items.Ascend(from, func(key string, _ Item) bool {
		if !in(key) {
			return false
		}
		tx.changes = append(tx.changes, tx.removal(key))
		return true
	})
	removed = len(tx.changes) - first
	tx.removeFrom(first)
	return removed
}

// removeFrom removes the keys of the changes from the one at first on, and then those that go
// with them, which it adds to the changes, and so on.
func (tx *Tx) removeFrom(first int) {
	last := len(tx.changes)
	for i := first; i < last; i++ {
		tx.state.remove(tx.changes[i].Key)
	}
	for i := first; i < len(tx.changes); i++ {
		for _, key := range tx.state.leases.ownedBy(tx.changes[i].Key) {
			tx.changes = append(tx.changes, tx.removal(key))
			tx.state.remove(key)
		}
	}
}

// RaiseFormat makes the cluster format at least format.
func (tx *Tx) RaiseFormat(format uint64) { tx.state.format = max(tx.state.format, format) }

// Record returns the idempotency record of an idempotency key, and whether there is
// one.
func (tx *Tx) Record(key string) (string, bool) {
	found, ok := tx.state.records.byKey.Get(key)
	return found.text, ok
}

// AddRecord adds the idempotency record of a key that should have none yet: if it has,
// the new record replaces the old one, and is the newest. Of more than MaxRecords the
// one that was added first is removed. Key and record are kept as they are, as the key
// of Set is.
func (tx *Tx) AddRecord(key, record string) {
	tx.state.records.add(key, record)
}

// Stage puts an item into the staging area, beside the content: no reader sees it
// until Restore. It is as Set is, and fastest for keys in ascending order. The
// staging area lives within one term: an Update of another term than the one it
// was begun in empties it first, so that none is left by a leader that is gone.
func (tx *Tx) Stage(key string, value []byte) {
	tx.state.stagedTerm = tx.term
	tx.state.staged.set(tx.state.staged.items.Load, key, Item{Value: string(value), Index: tx.index})
}

// StageRecord puts an idempotency record into the staging area, as AddRecord adds it:
// the oldest first.
func (tx *Tx) StageRecord(key, record string) {
	tx.state.stagedTerm = tx.term
	tx.state.staged.records.add(key, record)
}

// Unstage empties the staging area.
func (tx *Tx) Unstage() { tx.state.unstage() }

// Restore makes the staging area the content, idempotency records included, and
// returns true if it holds exactly as many items and records; otherwise it changes
// nothing and returns false. Either way the staging area is empty then: that of no
// items and no records is one, too. After a restore all watchers end with
// ErrHistoryGone, whatever else the Update changes.
func (tx *Tx) Restore(items, records int) bool {
	staged := tx.state.staged
	tx.Unstage()
	if staged.items.Len() != items || staged.records.len() != records {
		return false
	}
	staged.dropAll(&tx.state.data)
	tx.state.data = staged
	tx.restored = true
	return true
}

// keepChanges is how many changes Update keeps room for between calls.
const keepChanges = 1024

// event returns the event of the changes, which there must be, and lets go of
// them.
func (tx *Tx) event() *Event {
	var e *Event
	switch n := len(tx.changes); {
	case n == 1: // most entries: one allocation for both
		both := &struct {
			Event
			change [1]Change
		}{change: [1]Change{tx.changes[0]}}
		e = &both.Event
		e.Changes = both.change[:]
	case n <= keepChanges:
		e = &Event{Changes: slices.Clone(tx.changes)}
	default:
		e = &Event{Changes: slices.Clip(tx.changes)}
		tx.changes = nil
	}
	e.Index, e.Term = tx.index, tx.term
	for _, c := range e.Changes {
		e.size += c.size()
	}
	return e
}

// end makes the Tx unusable. It keeps the room for changes, but none of them.
func (tx *Tx) end() {
	tx.state = nil
	clear(tx.changes)
	if cap(tx.changes) > keepChanges {
		tx.changes = nil
	}
}
