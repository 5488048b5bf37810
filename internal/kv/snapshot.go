package kv

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strings"

	"github.com/tidwall/btree"
)

// A snapshot is, in version 1,
//
//	"raftkv", 0x01
//	uvarint applied index, uvarint applied term
//	uvarint number of items
//	items, in strictly ascending order of their keys:
//	    uvarint length of key, key
//	    uvarint length of value, value
//	    uvarint index
//	CRC-32C of all of the above, 4 bytes, big-endian
//
// and nothing after it, with uvarints as in encoding/binary.
const snapshotHeader = "raftkv\x01"

// Limits of what a snapshot may hold, in bytes, far above those of a request.
// They keep a damaged length from being believed.
const (
	maxSnapshotKey   = 64 << 10
	maxSnapshotValue = 64 << 20
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
)

// WriteSnapshot writes the store to w, in writes of a sensible size, and does
// not close it. Stores with the same content and the same Applied write the same
// bytes. Nothing but an error of w or a key or value beyond the limits of a
// snapshot makes it fail; what was written is worthless then. It holds off
// Update until it returns: call it on a Clone.
func (s *Store) WriteSnapshot(w io.Writer) error {
	s.mu.RLock()
	defer s.mu.RUnlock()

	sum := &checksummed{w: w}
	out := bufio.NewWriterSize(sum, snapshotBuffer) // keeps its first error, for Flush
	uvarint := func(v uint64) error {
		_, err := out.Write(binary.AppendUvarint(out.AvailableBuffer(), v))
		return err
	}
	out.WriteString(snapshotHeader)
	uvarint(s.index)
	uvarint(s.term)
	uvarint(uint64(s.tree.Len()))
	var tooLarge error
	s.tree.Scan(func(key string, item Item) bool {
		if len(key) > maxSnapshotKey || len(item.Value) > maxSnapshotValue {
			tooLarge = fmt.Errorf("write snapshot: key of %d bytes with value of %d bytes is beyond the limits",
				len(key), len(item.Value))
			return false
		}
		uvarint(uint64(len(key)))
		out.WriteString(key)
		uvarint(uint64(len(item.Value)))
		out.WriteString(item.Value)
		return uvarint(item.Index) == nil
	})
	if tooLarge != nil {
		return tooLarge
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	if _, err := w.Write(binary.BigEndian.AppendUint32(nil, sum.crc)); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
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

// ReadSnapshot replaces the content of the store, Applied included, by the
// snapshot in r, which it reads to its end. The snapshot is read and verified
// first and then takes effect in one step, so for a while both contents are in
// memory; readers and clones have the old one until then. On any error the store
// is unchanged. The error wraps ErrSnapshotVersion, ErrSnapshotDamaged, or that
// of r when r fails.
func (s *Store) ReadSnapshot(r io.Reader) error {
	d := &decoder{r: bufio.NewReaderSize(r, snapshotBuffer)}
	tree, index, term := d.snapshot()
	if d.err != nil {
		return fmt.Errorf("read snapshot: %w", d.err)
	}
	s.replace(tree, index, term)
	return nil
}

// decoder reads a snapshot. After its first error, err, it reads nothing more,
// and what its methods return is of no meaning.
type decoder struct {
	r   *bufio.Reader
	crc uint32 // of what was read
	buf []byte // that of the last bytes
	err error
}

func (d *decoder) damaged(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s", ErrSnapshotDamaged, fmt.Sprintf(format, args...))
	}
}

// failed is for an error of the reader: the end is damage, all else is not.
func (d *decoder) failed(what string, err error) {
	switch {
	case d.err != nil:
	case err == io.EOF || err == io.ErrUnexpectedEOF:
		d.damaged("it ends in %s", what)
	default:
		d.err = fmt.Errorf("%s: %w", what, err)
	}
}

func (d *decoder) snapshot() (tree *btree.Map[string, Item], index, term uint64) {
	d.header()
	index = d.uvarint("applied index")
	term = d.uvarint("applied term")
	count := d.uvarint("number of items")
	tree = new(btree.Map[string, Item])
	last := ""
	for i := uint64(0); i < count && d.err == nil; i++ {
		key := string(d.bytes("key", maxSnapshotKey))
		value := string(d.bytes("value", maxSnapshotValue))
		item := Item{Value: value, Index: d.uvarint("index")}
		switch {
		case d.err != nil:
		case i > 0 && key <= last:
			d.damaged("key %d of %d is out of order", i+1, count)
		case item.Index > index:
			d.damaged("key %d of %d was set at index %d, after %d", i+1, count, item.Index, index)
		default:
			tree.Load(key, item)
			last = key
		}
	}
	d.trailer()
	return tree, index, term
}

func (d *decoder) header() {
	got := d.read("header", len(snapshotHeader))
	if !strings.HasPrefix(snapshotHeader, string(got)) {
		d.err = fmt.Errorf("%w: it begins with %q, want %q", ErrSnapshotVersion, got, snapshotHeader)
	}
}

func (d *decoder) trailer() {
	want := d.crc
	if got := d.read("checksum", 4); d.err == nil && binary.BigEndian.Uint32(got) != want {
		d.damaged("checksum is %x, want %08x", got, want)
	}
	if d.err != nil {
		return
	}
	switch _, err := d.r.ReadByte(); err {
	case io.EOF:
	case nil:
		d.damaged("it goes on after its checksum")
	default:
		d.failed("end", err)
	}
}

func (d *decoder) uvarint(what string) uint64 {
	if d.err != nil {
		return 0
	}
	b, err := d.r.Peek(binary.MaxVarintLen64)
	v, n := binary.Uvarint(b)
	switch {
	case n < 0, n == 0 && err == nil: // more than fits in 64 bits, or in as many bytes
		d.damaged("%s is too large", what)
	case n == 0:
		d.failed(what, err)
	default:
		d.crc = crc32.Update(d.crc, castagnoli, b[:n])
		d.r.Discard(n) // can't fail: they are in the buffer
	}
	return v
}

// bytes reads a length and as many bytes, max at most, good until the next call.
func (d *decoder) bytes(what string, max uint64) []byte {
	n := d.uvarint("length of " + what)
	if n > max {
		d.damaged("length of %s is %d, %d at most", what, n, max)
	}
	return d.read(what, int(n))
}

// read reads n bytes, or as many as there are, good until the next call. It
// allocates memory as they come in.
func (d *decoder) read(what string, n int) []byte {
	d.buf = d.buf[:0]
	for len(d.buf) < n && d.err == nil {
		at := len(d.buf)
		step := min(n-at, snapshotBuffer)
		d.buf = slices.Grow(d.buf, step)[:at+step]
		got, err := io.ReadFull(d.r, d.buf[at:])
		d.buf = d.buf[:at+got]
		if err != nil {
			d.failed(what, err)
		}
	}
	d.crc = crc32.Update(d.crc, castagnoli, d.buf)
	return d.buf
}
