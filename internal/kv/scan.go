package kv

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
)

// Visitor is called with what the content of a snapshot has, in its order: items by key, idempotency records the oldest
// first, leases by key. An error of its ends the scan.
type Visitor struct {
	Item   func(key, value string) error
	Record func(key, record string) error
	Lease  func(key string, lease Lease) error
}

// ScanSnapshot reads the snapshot in r to its end, as ReadSnapshotWithin does, and keeps nothing of it but the hashes
// of its idempotency keys: however large it is, it takes some MiB. It returns the number of items and records. What was
// visited counts only if the error is nil, as the checksum is at the end. The error is one of ReadSnapshotWithin, or
// the visitor's. Unlike that, it does not find a lease of a key that is not there, which no store writes.
func ScanSnapshot(r io.Reader, max int, visit Visitor) (items, records int, err error) {
	d := &decoder{r: bufio.NewReaderSize(r, snapshotBuffer), max: max, scan: &scan{visit: visit}}
	d.state()
	if d.err != nil {
		return 0, 0, fmt.Errorf("read snapshot: %w", d.err)
	}
	return d.scan.items, d.scan.records, nil
}

// scan is what a decoder hands on in the place of keeping it.
type scan struct {
	visit          Visitor
	staged         bool // the decoder is in the staging area, of which nothing is handed on
	items, records int
	size           int // the footprint of the content, or of the staging area
	seen           map[[16]byte]struct{}
}

// stage notes that the staging area begins.
func (s *scan) stage() { *s = scan{visit: s.visit, staged: true, items: s.items, records: s.records} }

func (s *scan) item(key, value string) error {
	s.size += ItemFootprint(key, len(value), Lease{})
	if s.staged {
		return nil
	}
	s.items++
	return s.visit.Item(key, value)
}

// record returns false if the key is that of another record.
func (s *scan) record(key, record string) (isNew bool, err error) {
	if s.seen == nil {
		s.seen = make(map[[16]byte]struct{})
	}
	hash := sha256.Sum256([]byte(key))
	before := len(s.seen)
	s.seen[[16]byte(hash[:16])] = struct{}{}
	if len(s.seen) == before || s.staged {
		return len(s.seen) > before, nil
	}
	s.records++
	return true, s.visit.Record(key, record)
}

func (s *scan) lease(key string, lease Lease) error {
	s.size += leaseSize(key, lease)
	if s.staged {
		return nil
	}
	return s.visit.Lease(key, lease)
}
