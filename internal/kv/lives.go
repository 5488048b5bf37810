package kv

import (
	"strings"

	"github.com/tidwall/btree"
)

// livesFormat is the cluster format from which on a store counts how often a key is set. Below it, members may run a
// program that does not, and the replicas would differ.
const livesFormat = 4

// Full is an Item with all that the store keeps of its key.
//
// A key that was last set before the cluster had format 4 counts as made by that.
type Full struct {
	Item
	Created uint64 // raft index of the entry that made the key: it was not there before, or was removed
	Version uint64 // how often it was set since, 1 or more
	Lease   Lease
}

// life is what a key has been through since it was made. Only a key that was set more than once has one.
type life struct {
	created uint64
	version uint64 // 2 or more
}

// lives are those of the keys of a data. A key that was set once needs none, so that a store below livesFormat, and
// one whose keys are never set again, pays nothing.
type lives struct{ byKey *btree.Map[string, life] }

func newLives() lives { return lives{new(btree.Map[string, life])} }

func (l lives) clone() lives { return lives{l.byKey.Copy()} }

// lifeSize is the bytes that a life adds to those of its key and value, about.
func lifeSize(key string) int { return len(key) + 48 }

// LifeFootprint returns what a key may add to the Footprint beyond its ItemFootprint, when it is set again in a cluster
// of this format.
func LifeFootprint(format int, key string) int {
	if format < livesFormat {
		return 0
	}
	return lifeSize(key)
}

// full returns what d has of a key, which has this item.
func (d *data) full(key string, item Item) Full {
	f := Full{Item: item, Created: item.Index, Version: 1}
	if d.lives.byKey.Len() > 0 {
		if l, ok := d.lives.byKey.Get(key); ok {
			f.Created, f.Version = l.created, l.version
		}
	}
	if d.leases.byKey.Len() > 0 {
		f.Lease, _ = d.leases.byKey.Get(key)
	}
	return f
}

func (d *data) getFull(key string) (Full, bool) {
	item, ok := d.items.Get(key)
	if !ok {
		return Full{}, false
	}
	return d.full(key, item), true
}

// setLife gives a key that has none a life.
func (d *data) setLife(key string, l life) {
	d.lives.byKey.Set(key, l)
	d.size += lifeSize(key)
}

// removeLife takes the life from a key, if it has one.
func (d *data) removeLife(key string) {
	if d.lives.byKey.Len() == 0 {
		return
	}
	if _, ok := d.lives.byKey.Delete(key); ok {
		d.size -= lifeSize(key)
	}
}

// GetFull is Get with all that there is of the key.
func (s *Store) GetFull(key string) (Full, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.getFull(key)
}

// AscendFull is Ascend with all that there is of each key.
func (s *Store) AscendFull(from string, yield func(key string, full Full) bool) {
	s.Ascend(from, func(key string, item Item) bool { return yield(key, s.full(key, item)) })
}

// OwnedBy returns the keys that go with key, in order.
func (s *Store) OwnedBy(key string) []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.leases.ownedBy(key)
}

// UnchangedSince reports whether no key that begins with prefix, and for which in returns true, has changed after
// index. It returns false if the store no longer knows.
func (s *Store) UnchangedSince(index uint64, prefix string, in func(key string) bool) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if index < s.history.floor {
		return false
	}
	events, _ := s.history.after(index, s.history.n)
	for _, e := range events {
		for i := range e.Changes {
			if key := e.Changes[i].Key; strings.HasPrefix(key, prefix) && in(key) {
				return false
			}
		}
	}
	return true
}

// Detail is what a Change has beside the key and its value, in a store that keeps details.
type Detail struct {
	Now Full // of the key when it was set; zero if it was removed
	Was Full // before; zero if there was none
}

// KeepDetails has all later changes have a Detail, which costs the memory of former values as long as the history has
// the changes. It is called before the first Update.
func (s *Store) KeepDetails() { s.details = true }

// GetFull is Get with all that there is of the key.
func (tx *Tx) GetFull(key string) (Full, bool) { return tx.state.getFull(key) }

// View returns a store with the content as it is now, in the middle of the Update, and as Applied the index and term of
// that. It is made as a Clone is.
func (tx *Tx) View() *Store {
	st := tx.state.clone()
	st.index, st.term = tx.index, tx.term
	return newStore(st)
}

// Touch sets a key as it was set last, with its value and lease, and returns whether it was there.
func (tx *Tx) Touch(key string) bool {
	full, ok := tx.GetFull(key)
	if ok {
		tx.SetLeased(key, []byte(full.Value), full.Lease)
	}
	return ok
}

// RemoveRange removes all keys from one on, before until, or to the last one if that is empty, and the keys that go
// with them, and returns how many were in the range.
func (tx *Tx) RemoveRange(from, until string) (removed int) {
	return tx.removeAll(from, func(key string) bool { return until == "" || key < until })
}

// grow gives key, which was just set and had been was, its life.
func (tx *Tx) grow(key string, was Full, found bool) {
	if found && tx.state.format >= livesFormat {
		tx.state.setLife(key, life{created: was.Created, version: was.Version + 1})
	}
}
