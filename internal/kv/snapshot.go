package kv

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"
)

// A snapshot is, in version 2,
//
//	"raftkv", 0x02
//	uvarint applied index, uvarint applied term
//	hash of the chain, 32 bytes
//	items, records: the content
//	uvarint term that the staging area was begun in, 0 if there is none
//	items, records: the staging area, if there is one
//	CRC-32C of all of the above, 4 bytes, big-endian
//
// and nothing after it, where items are
//
//	uvarint number of items
//	items, in strictly ascending order of their keys:
//	    uvarint length of key, key
//	    uvarint length of value, value
//	    uvarint index
//
// and records, which are idempotency records, are
//
//	uvarint number of records
//	records, the oldest first, no key twice:
//	    uvarint length of idempotency key, idempotency key
//	    uvarint length of record, record
//
// with uvarints as in encoding/binary. Version 1, which is read but not written,
// has neither hash nor records nor staging area. Version 3 has, before the applied index,
//
//	uvarint cluster format (>= 2)
//
// and is written if the cluster has such a format: as long as it has not, its members may
// run a program that does not know version 3. Version 4 is that of cluster format 3 and later;
// behind each records it has leases, which are
//
//	uvarint number of leases
//	leases, in strictly ascending order of their keys, which are among the items:
//	    uvarint length of key, key
//	    uvarint TTL in milliseconds, 0 for none
//	    uvarint length of the key that it goes with, that key, empty for none
//
// Version 5 is that of cluster format 4 and later; behind each leases it has lives, which are
//
//	uvarint number of lives
//	lives, in strictly ascending order of their keys, which are among the items:
//	    uvarint length of key, key
//	    uvarint index of the entry that made the key, its own index at most
//	    uvarint version (>= 2)
const (
	snapshotMagic = "raftkv"
	snapshotV1    = 1
	snapshotV2    = 2
	snapshotV3    = 3
	snapshotV4    = 4
	snapshotV5    = 5
)

// Limits of what a snapshot may hold, in bytes, far above those of a request.
// They keep a damaged length from being believed.
const (
	maxSnapshotKey   = 64 << 10
	maxSnapshotValue = 64 << 20
	maxSnapshotTTL   = 100 * 365 * 24 * 3600 * 1000 // milliseconds
)

// snapshotBuffer is the size of reads and writes, and the step in which memory
// for a long value is allocated, in bytes.
const snapshotBuffer = 64 << 10

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var (
	// ErrSnapshotVersion is returned when a snapshot is none of raftkv's, or one
	// of a version that this program does not know.
	ErrSnapshotVersion = errors.New("not a snapshot that this version can read")

	// ErrSnapshotDamaged is returned when a snapshot is not what WriteSnapshot
	// wrote: truncated, longer, or different in any byte.
	ErrSnapshotDamaged = errors.New("snapshot is damaged")

	// ErrSnapshotTooLarge is returned by ReadSnapshotWithin.
	ErrSnapshotTooLarge = errors.New("snapshot has more data than there is room for")
)

// WriteSnapshot writes the store to w, in writes of a sensible size, and does
// not close it. Stores with the same content, idempotency records, staging area,
// Applied and Hash write the same bytes. Nothing but an error of w or a key or value
// beyond the limits of a snapshot makes it fail; what was written is worthless then. It
// holds off Update until it returns: call it on a Clone.
func (s *Store) WriteSnapshot(w io.Writer) error {
	s.mu.RLock()
	defer s.mu.RUnlock()

	sum := &checksummed{w: w}
	e := &encoder{out: bufio.NewWriterSize(sum, snapshotBuffer)}
	e.state(&s.state)
	if e.err == nil {
		e.err = e.out.Flush()
	}
	if e.err == nil {
		_, e.err = w.Write(binary.BigEndian.AppendUint32(nil, sum.crc))
	}
	if e.err != nil {
		return fmt.Errorf("write snapshot: %w", e.err)
	}
	return nil
}

// checksummed is a writer to w that keeps the CRC-32C of what it wrote.
type checksummed struct {
	w   io.Writer
	crc uint32
}

func (c *checksummed) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.crc = crc32.Update(c.crc, castagnoli, p[:n])
	return n, err
}

// encoder writes all of a snapshot but its checksum. After its first error, err,
// it writes nothing more.
type encoder struct {
	out    *bufio.Writer // keeps its own first error
	err    error
	leases bool // the version has them
	lives  bool // the version has them
}

func (e *encoder) state(st *state) {
	e.out.WriteString(snapshotMagic)
	switch {
	case st.format < 2:
		e.out.WriteByte(snapshotV2)
	case st.format == 2:
		e.out.WriteByte(snapshotV3)
		e.uvarint(st.format)
	case st.format == 3:
		e.out.WriteByte(snapshotV4)
		e.uvarint(st.format)
		e.leases = true
	default:
		e.out.WriteByte(snapshotV5)
		e.uvarint(st.format)
		e.leases, e.lives = true, true
	}
	e.uvarint(st.index)
	e.uvarint(st.term)
	e.out.Write(st.hash[:])
	e.data(&st.data)
	e.uvarint(st.stagedTerm)
	if st.stagedTerm != 0 {
		e.data(&st.staged)
	}
}

func (e *encoder) data(d *data) {
	e.uvarint(uint64(d.items.Len()))
	d.items.Scan(func(key string, item Item) bool {
		e.pair(key, item.Value)
		e.uvarint(item.Index)
		return e.err == nil
	})
	e.uvarint(uint64(d.records.len()))
	d.records.scan(func(key, text string) bool {
		e.pair(key, text)
		return e.err == nil
	})
	if !e.leases {
		return // there are none
	}
	e.uvarint(uint64(d.leases.byKey.Len()))
	d.leases.byKey.Scan(func(key string, l Lease) bool {
		e.text(key)
		e.uvarint(uint64(l.TTL / time.Millisecond))
		e.text(l.Key)
		return e.err == nil
	})
	if !e.lives {
		return // there are none
	}
	e.uvarint(uint64(d.lives.byKey.Len()))
	d.lives.byKey.Scan(func(key string, l life) bool {
		e.text(key)
		e.uvarint(l.created)
		e.uvarint(l.version)
		return e.err == nil
	})
}

func (e *encoder) pair(key, value string) {
	if len(key) > maxSnapshotKey || len(value) > maxSnapshotValue {
		e.err = fmt.Errorf("key of %d bytes with value of %d bytes is beyond the limits", len(key), len(value))
		return
	}
	e.text(key)
	e.text(value)
}

func (e *encoder) text(s string) {
	e.uvarint(uint64(len(s)))
	e.out.WriteString(s)
}

func (e *encoder) uvarint(v uint64) {
	if e.err == nil {
		_, e.err = e.out.Write(binary.AppendUvarint(e.out.AvailableBuffer(), v))
	}
}

// ReadSnapshot replaces the content of the store, its idempotency records, staging
// area, Hash and Applied included, by the snapshot in r, which it reads to its end. The
// snapshot is read and verified first and then takes effect in one step, so for a
// while both contents are in memory; readers and clones have the old one until
// then. All watchers end with ErrHistoryGone. On any error the store is unchanged. The
// error wraps ErrSnapshotVersion, ErrSnapshotDamaged, or that of r when r fails.
func (s *Store) ReadSnapshot(r io.Reader) error { return s.ReadSnapshotWithin(r, 0) }

// ReadSnapshotWithin is ReadSnapshot for a snapshot that may come from anybody: once it is certain that the Footprint
// of its content is more than max bytes, it reads no more and returns an error that wraps ErrSnapshotTooLarge. For the
// number of keys at the beginning that is certain before any of them is read. Idempotency records are bounded too, by
// more than as many as may be can take.
func (s *Store) ReadSnapshotWithin(r io.Reader, max int) error {
	p, err := prepareSnapshot(r, max)
	if err == nil {
		s.Install(p)
	}
	return err
}

// MaxSnapshotWithin returns a length from which on no snapshot passes ReadSnapshotWithin.
func MaxSnapshotWithin(max int) int64 {
	// Beside the footprint, an item has 30 bytes of lengths and index at most, a record 20 of lengths, and there is
	// twice a content: the staging area is one, too.
	return 2*(int64(max)+maxRecordBytes+20*MaxRecords) + 1024
}

// Prepared is a snapshot that was read and verified, and is not yet the content of a store.
type Prepared struct{ state state }

// PrepareSnapshot reads the snapshot in r to its end. Its errors are those of ReadSnapshot.
func PrepareSnapshot(r io.Reader) (*Prepared, error) { return prepareSnapshot(r, 0) }

func prepareSnapshot(r io.Reader, max int) (*Prepared, error) {
	d := &decoder{r: bufio.NewReaderSize(r, snapshotBuffer), max: max}
	st := d.state()
	if d.err != nil {
		return nil, fmt.Errorf("read snapshot: %w", d.err)
	}
	return &Prepared{st}, nil
}

// Applied is what Applied of a store with that content is.
func (p *Prepared) Applied() (index, term uint64) { return p.state.index, p.state.term }

// Install replaces the content of the store as ReadSnapshot does. A snapshot is installed once.
func (s *Store) Install(p *Prepared) { s.replace(p.state) }
