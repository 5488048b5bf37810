package kv

import "github.com/tidwall/btree"

// MaxRecords is how many idempotency records a store keeps.
const MaxRecords = 100_000

// dedupTable maps idempotency keys to idempotency records: what a command with that
// key did, so that a client which got no answer can send it again and has it applied
// once (Raft paper, section 8). It is part of the replicated state, as every
// replica must recognize the same repetitions.
//
// It keeps the order in which records were added, to remove the oldest first. The
// sequence numbers are neither compared nor written to snapshots: only their order is.
type dedupTable struct {
	byKey      *btree.Map[string, record]
	bySequence *btree.Map[uint64, string] // idempotency keys
	next       uint64                     // sequence number of the next one
}

type record struct {
	text     string // the caller's; opaque to this package
	sequence uint64
}

func newDedupTable() dedupTable {
	return dedupTable{byKey: new(btree.Map[string, record]), bySequence: new(btree.Map[uint64, string])}
}

func (t *dedupTable) clone() dedupTable {
	return dedupTable{t.byKey.Copy(), t.bySequence.Copy(), t.next}
}

func (t *dedupTable) len() int { return t.byKey.Len() }

// add makes the record of key the newest, and removes the oldest of more than
// MaxRecords.
func (t *dedupTable) add(key, text string) {
	if old, ok := t.byKey.Set(key, record{text, t.next}); ok {
		t.bySequence.Delete(old.sequence)
	}
	t.bySequence.Load(t.next, key)
	t.next++
	if t.len() > MaxRecords {
		_, oldest, _ := t.bySequence.PopMin()
		t.byKey.Delete(oldest)
	}
}

// scan calls yield for each record, the oldest first, until it returns false.
func (t *dedupTable) scan(yield func(key, text string) bool) {
	t.bySequence.Scan(func(_ uint64, key string) bool {
		found, _ := t.byKey.Get(key)
		return yield(key, found.text)
	})
}

// Records returns the number of idempotency records.
func (s *Store) Records() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.records.len()
}

// AscendRecords calls yield for each idempotency record, the oldest first, until
// yield returns false. As with Ascend, yield must be quick.
func (s *Store) AscendRecords(yield func(key, record string) bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	s.records.scan(yield)
}
