package kv

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
)

// unknownChain is that of a store which goes on from a snapshot of version 1. It
// stays unknown.
var unknownChain [sha256.Size]byte

// Chain returns the index of Applied and the chain up to there: the SHA-256 of
// the chain before, index and term, 8 bytes big-endian each, and the bytes of the
// entry, for each Update since the empty store, whose chain is zero. Of stores
// with the same index those with the same chain have applied the same entries.
// It is zero, of unknown, after a snapshot of version 1, which has none.
func (s *Store) Chain() (index uint64, chain [32]byte) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.index, s.chain
}

// ChainAt returns what Chain was when index was that of Applied; false if that was
// never so, is more than 1,024 Updates ago, or if the chain is unknown.
func (s *Store) ChainAt(index uint64) (chain [32]byte, ok bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.chains.at(index)
}

// chains are the last ones, in a ring that is made with the first: a clone which
// nobody changes needs none.
type chains struct {
	ring []chainLink
	next int
}

type chainLink struct {
	index uint64
	chain [sha256.Size]byte
}

func (c *chains) add(index uint64, chain [sha256.Size]byte) {
	if c.ring == nil {
		c.ring = make([]chainLink, 1024)
	}
	c.ring[c.next] = chainLink{index, chain}
	c.next = (c.next + 1) % len(c.ring)
}

func (c *chains) at(index uint64) (chain [sha256.Size]byte, ok bool) {
	for i := range c.ring { // the newest first: after a Reset, an index may come again
		link := &c.ring[(c.next-1-i+2*len(c.ring))%len(c.ring)]
		if link.index == index {
			return link.chain, link.chain != unknownChain
		}
	}
	return chain, false
}

// linker computes links of the chain without allocating memory for each.
type linker struct {
	sha hash.Hash
	buf [sha256.Size + 16]byte
}

func (l *linker) link(chain [sha256.Size]byte, index, term uint64, entry []byte) (next [sha256.Size]byte) {
	if l.sha == nil {
		l.sha = sha256.New()
	}
	l.sha.Reset()
	head := append(l.buf[:0], chain[:]...)
	head = binary.BigEndian.AppendUint64(head, index)
	head = binary.BigEndian.AppendUint64(head, term)
	l.sha.Write(head) // a hash never fails
	l.sha.Write(entry)
	l.sha.Sum(l.buf[:0])
	copy(next[:], l.buf[:])
	return next
}
