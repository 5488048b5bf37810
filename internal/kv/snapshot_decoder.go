package kv

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"slices"
	"time"
)

// decoder reads a snapshot. After its first error, err, it reads nothing more,
// and what its methods return is of no meaning.
type decoder struct {
	r   *bufio.Reader
	crc uint32 // of what was read
	buf []byte // that of the last bytes
	err error

	leases bool  // the version has them
	lives  bool  // the version has them
	max    int   // of the footprint of a content, and of a staging area; 0: any
	scan   *scan // of ScanSnapshot: takes what else would be kept; nil: it is kept
}

// maxRecordBytes is what the idempotency records of a content may take where its footprint is bounded: each has a key
// of 255 bytes at most and a result of some 60, or some 170 if it is that of a transaction.
const maxRecordBytes = MaxRecords * 640

// within refuses a content that takes at least so many bytes, if that is more than it may.
func (d *decoder) within(bytes uint64) {
	if d.err == nil && d.max > 0 && bytes > uint64(d.max) {
		d.err = fmt.Errorf("%w: it takes %d bytes or more, and %d are allowed", ErrSnapshotTooLarge, bytes, d.max)
	}
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

func (d *decoder) state() state {
	st := newState()
	version := d.header()
	d.leases, d.lives = version >= snapshotV4, version >= snapshotV5
	if version >= snapshotV3 {
		if st.format = d.uvarint("cluster format"); st.format+1 < uint64(version) {
			d.damaged("cluster format is %d", st.format)
		}
	}
	st.index = d.uvarint("applied index")
	st.term = d.uvarint("applied term")
	if version == snapshotV1 {
		d.items(&st.data, st.index)
		d.trailer()
		return st
	}
	copy(st.hash[:], d.read("hash", len(st.hash)))
	d.data(&st.data, st.index)
	st.stagedTerm = d.uvarint("term of the staging area")
	if st.stagedTerm != 0 && st.stagedTerm != st.term {
		d.damaged("staging area is of term %d, the last entry of %d", st.stagedTerm, st.term)
	}
	if st.stagedTerm != 0 {
		if d.scan != nil {
			d.scan.stage()
		}
		d.data(&st.staged, st.index)
	}
	d.trailer()
	return st
}

// header reads the header, and returns its version.
func (d *decoder) header() (version byte) {
	got := d.read("header", len(snapshotMagic)+1)
	n := min(len(got), len(snapshotMagic))
	if string(got[:n]) != snapshotMagic[:n] {
		d.err = fmt.Errorf("%w: it begins with %q, want %q", ErrSnapshotVersion, got, snapshotMagic)
	}
	if d.err != nil || len(got) == n {
		return 0
	}
	if version = got[n]; version < snapshotV1 || version > snapshotV5 {
		d.err = fmt.Errorf("%w: its version is %d, this program knows %d to %d; use a newer one",
			ErrSnapshotVersion, version, snapshotV1, snapshotV5)
	}
	return version
}

func (d *decoder) data(into *data, applied uint64) {
	d.items(into, applied)
	d.records(&into.records)
	if d.leases {
		d.leasesOf(into)
	}
	if d.lives {
		d.livesOf(into)
	}
}

func (d *decoder) livesOf(into *data) {
	count := d.uvarint("number of lives")
	last := ""
	for i := uint64(0); i < count && d.err == nil; i++ {
		key := string(d.bytes("key of a life", maxSnapshotKey))
		l := life{created: d.uvarint("index that made the key"), version: d.uvarint("version of a key")}
		if d.err != nil {
			return
		}
		item, found := into.items.Get(key)
		switch {
		case i > 0 && key <= last:
			d.damaged("life %d of %d is out of order", i+1, count)
		case l.version < 2 || d.scan == nil && (!found || l.created > item.Index):
			d.damaged("life %d of %d is none, or of a key that is not there", i+1, count)
		case d.scan != nil: // a restore makes each key anew
		default:
			into.setLife(key, l)
			d.within(uint64(into.footprint()))
		}
		last = key
	}
}

func (d *decoder) leasesOf(into *data) {
	count := d.uvarint("number of leases")
	last := ""
	for i := uint64(0); i < count && d.err == nil; i++ {
		key := string(d.bytes("key of a lease", maxSnapshotKey))
		ttl := d.uvarint("TTL")
		lease := Lease{
			TTL: time.Duration(min(ttl, uint64(maxSnapshotTTL))) * time.Millisecond,
			Key: string(d.bytes("key that it goes with", maxSnapshotKey)),
		}
		switch {
		case d.err != nil:
		case ttl > maxSnapshotTTL:
			d.damaged("lease %d of %d has a TTL of %d ms", i+1, count, ttl)
		case i > 0 && key <= last:
			d.damaged("lease %d of %d is out of order", i+1, count)
		case lease == Lease{} || d.scan == nil && !into.setLease(key, lease):
			d.damaged("lease %d of %d is none, or of a key that is not there", i+1, count)
		case d.scan != nil:
			d.err = d.scan.lease(key, lease)
			d.within(uint64(d.scan.size))
		default:
			d.within(uint64(into.footprint()))
		}
		last = key
	}
}

func (d *decoder) items(into *data, applied uint64) {
	count := d.uvarint("number of items")
	d.within(min(count, math.MaxUint32) * Overhead)
	last := ""
	for i := uint64(0); i < count && d.err == nil; i++ {
		key := string(d.bytes("key", maxSnapshotKey))
		value := string(d.bytes("value", maxSnapshotValue))
		item := Item{Value: value, Index: d.uvarint("index")}
		switch {
		case d.err != nil:
		case i > 0 && key <= last:
			d.damaged("key %d of %d is out of order", i+1, count)
		case item.Index > applied:
			d.damaged("key %d of %d was set at index %d, after %d", i+1, count, item.Index, applied)
		case d.scan != nil:
			d.err = d.scan.item(key, value)
			d.within(uint64(d.scan.size))
			last = key
		default:
			into.set(into.items.Load, key, item)
			d.within(uint64(into.footprint()))
			last = key
		}
	}
}

func (d *decoder) records(into *dedupTable) {
	count := d.uvarint("number of idempotency records")
	if count > MaxRecords {
		d.damaged("number of idempotency records is %d, %d at most", count, MaxRecords)
	}
	bytes := 0
	for i := uint64(0); i < count && d.err == nil; i++ {
		key := string(d.bytes("idempotency key", maxSnapshotKey))
		text := string(d.bytes("idempotency record", maxSnapshotValue))
		if d.err != nil {
			return
		}
		if bytes += len(key) + len(text); d.max > 0 && bytes > maxRecordBytes {
			d.err = fmt.Errorf("%w: its idempotency records take more than %d bytes", ErrSnapshotTooLarge, maxRecordBytes)
			return
		}
		isNew := true
		if d.scan != nil {
			isNew, d.err = d.scan.record(key, text)
		} else {
			into.add(key, text)
			isNew = uint64(into.len()) == i+1
		}
		if !isNew {
			d.damaged("idempotency record %d of %d has the key of another", i+1, count)
		}
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
