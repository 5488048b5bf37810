package kv

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
)

// unknownHash is that of a store which goes on from a snapshot of version 1, which
// holds none. It stays unknown.
var unknownHash [sha256.Size]byte

// Hash returns the index of Applied and the head of a hash chain over all entries
// up to there: the SHA-256 of the hash before, of index and term, 8 bytes
// big-endian each, and of the bytes of the entry, for each Update since the empty
// store, whose hash is zero. It is zero, for unknown, after a snapshot of version 1.
//
// Two stores with the same index and the same hash have applied the same entries,
// so nodes compare 32 bytes to find out whether their replicas are equal, as etcd's
// members do with HashKV. HashKV reads all keys and so covers the result; a hash
// chain costs the same for any number of keys, and covers what led to the result.
func (s *Store) Hash() (index uint64, hash [32]byte) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.index, s.hash
}

// HashAt returns what Hash was when index was that of Applied; false if that was
// never so, is more than 1,024 Updates ago, or if the hash is unknown. It is how a
// node compares itself with one that is some entries behind.
func (s *Store) HashAt(index uint64) (hash [32]byte, ok bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.hashes.at(index)
}

// hashRing holds the newest hashes. The ring is allocated with the first of them: a
// clone that is only read needs none.
type hashRing struct {
	ring []indexHash
	next int
}

type indexHash struct {
	index uint64
	hash  [sha256.Size]byte
}

func (r *hashRing) add(index uint64, hash [sha256.Size]byte) {
	if r.ring == nil {
		r.ring = make([]indexHash, 1024)
	}
	r.ring[r.next] = indexHash{index, hash}
	r.next = (r.next + 1) % len(r.ring)
}

func (r *hashRing) at(index uint64) (hash [sha256.Size]byte, ok bool) {
	for i := range r.ring { // the newest first: after a Reset, an index may come again
		at := &r.ring[(r.next-1-i+2*len(r.ring))%len(r.ring)]
		if at.index == index {
			return at.hash, at.hash != unknownHash
		}
	}
	return hash, false
}

// hasher computes the hashes of the chain without allocating memory for each.
type hasher struct {
	sha hash.Hash
	buf [sha256.Size + 16]byte
}

// next returns the hash that follows prev.
func (h *hasher) next(prev [sha256.Size]byte, index, term uint64, entry []byte) (next [sha256.Size]byte) {
	if h.sha == nil {
		h.sha = sha256.New()
	}
	h.sha.Reset()
	head := append(h.buf[:0], prev[:]...)
	head = binary.BigEndian.AppendUint64(head, index)
	head = binary.BigEndian.AppendUint64(head, term)
	h.sha.Write(head) // a hash never fails
	h.sha.Write(entry)
	h.sha.Sum(h.buf[:0])
	copy(next[:], h.buf[:])
	return next
}
