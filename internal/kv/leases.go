package kv

import (
	"encoding/binary"
	"strings"
	"time"

	"github.com/tidwall/btree"
)

// Lease is what ends a key. The zero Lease is none: the key stays.
type Lease struct {
	// TTL is how long the key stays when it is not set again; 0: for ever. The store only keeps
	// it: no clock decides here, as replicas have different ones. The leader proposes the end
	// of a key, under the condition that it was not set again (Tx.Expire).
	TTL time.Duration
	// Key is another key: when that one is removed, so is this one, in the same Update.
	Key string
}

// leases are those of the keys of a data. The trees are copy-on-write, as all of its trees.
type leases struct {
	byKey *btree.Map[string, Lease]
	timed *btree.Map[string, struct{}] // those with a TTL, by timedKey
	owned *btree.Map[string, struct{}] // those with a Key, by ownedKey
}

func newLeases() leases {
	return leases{
		byKey: new(btree.Map[string, Lease]),
		timed: new(btree.Map[string, struct{}]),
		owned: new(btree.Map[string, struct{}]),
	}
}

func (l *leases) clone() leases {
	return leases{byKey: l.byKey.Copy(), timed: l.timed.Copy(), owned: l.owned.Copy()}
}

// timedKey orders the keys with a TTL by the index that last set them: the leader looks for those that came since.
func timedKey(index uint64, key string) string {
	return string(binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(key)), index)) + key
}

// ownedKey orders keys by the key that they go with. The length before that one keeps keys apart of which one is the
// beginning of another.
func ownedKey(owner, key string) string {
	return string(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(owner)+len(key)), uint32(len(owner)))) + owner + key
}

// add gives a key that has none a lease, which is not none. The key was last set by the entry at index.
func (l *leases) add(key string, index uint64, lease Lease) {
	l.byKey.Set(key, lease)
	if lease.TTL != 0 {
		l.timed.Set(timedKey(index, key), struct{}{})
	}
	if lease.Key != "" {
		l.owned.Set(ownedKey(lease.Key, key), struct{}{})
	}
}

// remove takes the lease from a key that was last set by the entry at index, and returns it, if there was one.
func (l *leases) remove(key string, index uint64) Lease {
	if l.byKey.Len() == 0 {
		return Lease{}
	}
	lease, _ := l.byKey.Delete(key)
	if lease.TTL != 0 {
		l.timed.Delete(timedKey(index, key))
	}
	if lease.Key != "" {
		l.owned.Delete(ownedKey(lease.Key, key))
	}
	return lease
}

// ownedBy returns the keys that go with key.
func (l *leases) ownedBy(key string) (keys []string) {
	if l.owned.Len() == 0 {
		return nil
	}
	prefix := ownedKey(key, "")
	l.owned.Ascend(prefix, func(at string, _ struct{}) bool {
		child, ok := strings.CutPrefix(at, prefix)
		if ok {
			keys = append(keys, child)
		}
		return ok
	})
	return keys
}

// leaseSize is the bytes that a lease adds to those of its key and value, about.
func leaseSize(key string, l Lease) (size int) {
	if l.TTL != 0 {
		size += len(key) + 8
	}
	if l.Key != "" {
		size += len(key) + 2*len(l.Key) + 4
	}
	return size
}

// GetLeased is Get with the lease of the key.
func (s *Store) GetLeased(key string) (Item, Lease, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	item, ok := s.items.Get(key)
	if s.leases.byKey.Len() == 0 {
		return item, Lease{}, ok
	}
	lease, _ := s.leases.byKey.Get(key)
	return item, lease, ok
}

// AscendLeased is Ascend with the lease of each key.
func (s *Store) AscendLeased(from string, yield func(key string, item Item, lease Lease) bool) {
	s.Ascend(from, func(key string, item Item) bool {
		lease, _ := s.leases.byKey.Get(key)
		return yield(key, item, lease)
	})
}

// DescendLeased is AscendLeased for each key before below, from the last to the first; an empty below is behind all keys.
func (s *Store) DescendLeased(below string, yield func(key string, item Item, lease Lease) bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	each := func(key string, item Item) bool {
		if key == below && below != "" {
			return true
		}
		lease, _ := s.leases.byKey.Get(key)
		return yield(key, item, lease)
	}
	if below == "" {
		s.items.Reverse(each)
		return
	}
	s.items.Descend(below, each)
}

// AscendLeases calls yield for each key with a lease, in order, until it returns false. It holds off Update
// as Ascend does.
func (s *Store) AscendLeases(yield func(key string, lease Lease) bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	s.leases.byKey.Scan(yield)
}

// Timed is a key with a TTL.
type Timed struct {
	Key   string
	Index uint64 // that last set it
	TTL   time.Duration
}

// TimedKeys returns up to limit keys with a TTL, in the order of their indexes, from the first that is behind
// after; all keys are behind the zero Timed. Epoch changes when the whole content is replaced: the order
// begins anew.
func (s *Store) TimedKeys(after Timed, limit int) (keys []Timed, epoch uint64) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.leases.timed.Len() == 0 {
		return nil, s.epoch
	}
	from := timedKey(after.Index, after.Key)
	s.leases.timed.Ascend(from, func(at string, _ struct{}) bool {
		if at != from {
			timed := Timed{Index: binary.BigEndian.Uint64([]byte(at[:8])), Key: at[8:]}
			lease, _ := s.leases.byKey.Get(timed.Key)
			timed.TTL = lease.TTL
			keys = append(keys, timed)
		}
		return len(keys) < limit
	})
	return keys, s.epoch
}

// TimedLen returns the number of keys with a TTL.
func (s *Store) TimedLen() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.leases.timed.Len()
}

// IsTimed reports whether key has a TTL and was last set by the entry at index.
func (s *Store) IsTimed(key string, index uint64) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	_, ok := s.leases.timed.Get(timedKey(index, key))
	return ok
}

// Expire removes key, and what goes with it, if the entry at index was the last to set it, and gave it a TTL.
// It returns whether it did.
func (tx *Tx) Expire(key string, index uint64) bool {
	item, _ := tx.state.items.Get(key)
	lease, _ := tx.state.leases.byKey.Get(key)
	return item.Index == index && lease.TTL != 0 && tx.Remove(key)
}

// StageLease gives a key of the staging area a lease. It does nothing if the key or that of the lease is not there.
func (tx *Tx) StageLease(key string, lease Lease) {
	tx.state.stagedTerm = tx.term
	tx.state.staged.setLease(key, lease)
}

// setLease gives a key the lease, if that is not none. It returns false if the key or that of the lease is not there.
func (d *data) setLease(key string, lease Lease) bool {
	item, found := d.items.Get(key)
	if lease.Key != "" && found {
		_, found = d.items.Get(lease.Key)
	}
	if !found {
		return false
	}
	d.size -= leaseSize(key, d.leases.remove(key, item.Index))
	if lease != (Lease{}) {
		d.leases.add(key, item.Index, lease)
		d.size += leaseSize(key, lease)
	}
	return true
}
