package storage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
)

// checkBolt reads the file of a closed bbolt database and returns an error that wraps ErrCorrupt unless every page
// that its tree reaches is well-formed.
//
// It runs before bbolt opens the file, because bbolt checks its two meta pages only, falls back silently to the older
// one (which loses the newest transaction), and panics on a malformed page, partly in goroutines of its own, where no
// caller can recover. bbolt's own Tx.Check has the same trouble: README.md of this package has the measurements. The
// content of the pages is not looked at: it is under the checksums of Log.
//
// The file may be larger than memory. It is read a page at a time, of a page with overflow only the first page and
// the keys. What is held is a page for each level of the tree, and a bit for each page of the file.
// It calls progress, unless that is nil, with the fraction that is done; an error of progress ends it. It returns how
// many bytes are in use.
func checkBolt(path string, progress func(fraction float64) error) (used uint64, err error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	if err != nil {
		return 0, err
	}
	c := boltChecker{file: file, size: uint64(info.Size()), progress: progress}
	err = c.run()
	if c.stopped != nil {
		return 0, c.stopped
	}
	if _, unreadable := errors.AsType[*fs.PathError](err); err == nil || unreadable {
		return (2 + c.reached) * c.pageSize, err
	}
	return 0, fmt.Errorf("%s: %w: %w", path, ErrCorrupt, err)
}

// The file format of bbolt, version 2 (internal/common/page.go and meta.go of bbolt). Integers are in the machine's
// byte order.
const (
	boltPageHeader = 16 // id 8, flags 2, count 2, overflow 4
	boltElement    = 16 // branch: pos 4, key size 4, page 8; leaf: flags 4, pos 4, key size 4, value size 4
	// magic 4, version 4, page size 4, flags 4, root 8, sequence 8, freelist 8, high-water mark 8, transaction 8,
	// checksum 8
	boltMeta   = 64
	boltBucket = 16 // root 8, sequence 8; root 0: the page follows inline

	boltMagic   = 0xED0CDAED
	boltVersion = 2

	boltBranchFlag = 0x01
	boltLeafFlag   = 0x02
	boltBucketFlag = 0x01 // of a leaf element

	boltMaxKey = 32768 // bbolt's MaxKeySize
)

var native = binary.NativeEndian

type boltChecker struct {
	file     io.ReaderAt
	size     uint64 // of file
	pageSize uint64
	pages    uint64   // high-water mark: pages in use
	seen     []byte   // pages reached, a bit each
	free     [][]byte // buffers of a page that are not in use

	progress func(fraction float64) error // nil: none
	reached  uint64                       // pages
	stopped  error                        // of progress
}

func (c *boltChecker) run() error {
	first, err := c.meta(0)
	if err != nil {
		return err
	}
	c.pageSize = uint64(native.Uint32(first[8:]))
	if c.pageSize < 512 || c.pageSize > 1<<20 {
		return fmt.Errorf("page size %d", c.pageSize)
	}
	second, err := c.meta(c.pageSize)
	if err != nil {
		return err
	}
	newest := first
	if native.Uint64(second[48:]) > native.Uint64(first[48:]) {
		newest = second
	}
	c.pages = native.Uint64(newest[40:])
	if size := c.size / c.pageSize; c.pages > size {
		return fmt.Errorf("truncated: %d pages of %d", size, c.pages)
	}
	c.seen = make([]byte, c.pages/8+1)
	return c.page(native.Uint64(newest[16:]), nil, nil)
}

// meta returns the meta page at offset. Both must be whole: bbolt writes them in turn, each within one sector.
func (c *boltChecker) meta(offset uint64) ([]byte, error) {
	offset += boltPageHeader
	if offset+boltMeta > c.size {
		return nil, fmt.Errorf("truncated: %d bytes", c.size)
	}
	m := make([]byte, boltMeta)
	if _, err := c.file.ReadAt(m, int64(offset)); err != nil {
		return nil, err
	}
	sum := fnv.New64a()
	_, _ = sum.Write(m[:56])
	if native.Uint32(m) != boltMagic || native.Uint32(m[4:]) != boltVersion || native.Uint64(m[56:]) != sum.Sum64() {
		return nil, fmt.Errorf("meta page at byte %d", offset)
	}
	return m, nil
}

// page checks the tree below page id, whose keys must be at least low and below high (nil: no bound).
func (c *boltChecker) page(id uint64, low, high []byte) error {
	if id < 2 || id >= c.pages {
		return fmt.Errorf("page %d of %d", id, c.pages)
	}
	p, err := c.open(id*c.pageSize, c.pageSize)
	if err != nil {
		return err
	}
	defer c.close(p)
	if got := native.Uint64(p.head); got != id {
		return fmt.Errorf("page %d calls itself %d", id, got)
	}
	overflow := uint64(native.Uint32(p.head[12:]))
	if overflow >= c.pages-id {
		return fmt.Errorf("page %d overflows by %d", id, overflow)
	}
	for i := id; i <= id+overflow; i++ {
		if c.seen[i/8]&(1<<(i%8)) != 0 {
			return fmt.Errorf("page %d is used twice", i)
		}
		c.seen[i/8] |= 1 << (i % 8)
	}
	if c.reached += 1 + overflow; c.progress != nil {
		if c.stopped = c.progress(float64(c.reached) / float64(c.pages)); c.stopped != nil {
			return c.stopped
		}
	}
	p.size += overflow * c.pageSize
	if err := c.elements(p, low, high); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

// elements checks the elements of p, a page with its overflow or an inline bucket, and what is below them.
func (c *boltChecker) elements(p boltRun, low, high []byte) error {
	flags, count := native.Uint16(p.head[8:]), uint64(native.Uint16(p.head[10:]))
	if flags != boltBranchFlag && flags != boltLeafFlag {
		return fmt.Errorf("flags 0x%x", flags)
	}
	if boltPageHeader+count*boltElement > p.size || (flags == boltBranchFlag && count == 0) {
		return fmt.Errorf("%d elements", count)
	}
	if count == 0 {
		return nil
	}
	e, err := p.element(0, flags)
	if err != nil {
		return err
	}
	for i := range count {
		following, next := boltEntry{}, high
		if i+1 < count {
			if following, err = p.element(i+1, flags); err != nil {
				return err
			}
			next = following.key
		}
		if bytes.Compare(e.key, low) < 0 || (next != nil && bytes.Compare(e.key, next) >= 0) {
			return fmt.Errorf("element %d is out of order", i)
		}
		switch {
		case flags == boltBranchFlag:
			err = c.page(e.page, e.key, next)
		case e.flags == boltBucketFlag:
			err = c.bucket(p.base+e.value, e.valueSize)
		case e.flags != 0:
			err = fmt.Errorf("element %d has flags 0x%x", i, e.flags)
		}
		if err != nil {
			return err
		}
		e = following
	}
	return nil
}

// bucket checks the bucket whose header takes size bytes at base.
func (c *boltChecker) bucket(base, size uint64) error {
	if size < boltBucket {
		return fmt.Errorf("bucket of %d bytes", size)
	}
	var header [boltBucket]byte
	if _, err := c.file.ReadAt(header[:], int64(base)); err != nil {
		return err
	}
	if root := native.Uint64(header[:]); root != 0 {
		return c.page(root, nil, nil)
	}
	if size < boltBucket+boltPageHeader {
		return fmt.Errorf("inline bucket of %d bytes", size)
	}
	p, err := c.open(base+boltBucket, size-boltBucket)
	if err != nil {
		return err
	}
	defer c.close(p)
	return c.elements(p, nil, nil)
}

// open reads the beginning, a page at most, of what takes size bytes at base.
func (c *boltChecker) open(base, size uint64) (p boltRun, err error) {
	if n := len(c.free); n > 0 {
		p.head, c.free = c.free[n-1], c.free[:n-1]
	} else {
		p.head = make([]byte, c.pageSize)
	}
	p.file, p.base, p.size, p.head = c.file, base, size, p.head[:min(size, c.pageSize)]
	_, err = c.file.ReadAt(p.head, int64(base))
	return p, err
}

// close gives the buffer of p back. Its keys must not be used any more.
func (c *boltChecker) close(p boltRun) { c.free = append(c.free, p.head[:cap(p.head)]) }

// boltRun is a run of pages or an inline bucket, whose first page is held. The rest is mostly one large value, which
// need not be read.
type boltRun struct {
	file       io.ReaderAt
	base, size uint64
	head       []byte
}

// bytes returns n bytes at offset, both within the run.
func (r boltRun) bytes(offset, n uint64) ([]byte, error) {
	if offset+n <= uint64(len(r.head)) {
		return r.head[offset : offset+n], nil
	}
	b := make([]byte, n)
	_, err := r.file.ReadAt(b, int64(r.base+offset))
	return b, err
}

// boltEntry is an element of a branch (key and page) or a leaf (all but page).
type boltEntry struct {
	flags            uint32
	page             uint64
	key              []byte
	value, valueSize uint64 // the offset in the run, and the size
}

// element returns element i, which lies within the run with its key and value.
func (r boltRun) element(i uint64, flags uint16) (e boltEntry, err error) {
	at := boltPageHeader + i*boltElement
	b, err := r.bytes(at, boltElement)
	if err != nil {
		return e, err
	}
	var pos, keySize uint64
	if flags == boltBranchFlag {
		pos, keySize, e.page = uint64(native.Uint32(b)), uint64(native.Uint32(b[4:])), native.Uint64(b[8:])
	} else {
		e.flags, e.valueSize = native.Uint32(b), uint64(native.Uint32(b[12:]))
		pos, keySize = uint64(native.Uint32(b[4:])), uint64(native.Uint32(b[8:]))
	}
	if at+pos+keySize+e.valueSize > r.size {
		return e, fmt.Errorf("element %d reaches beyond the page", i)
	}
	if keySize > boltMaxKey {
		return e, fmt.Errorf("element %d has a key of %d bytes", i, keySize)
	}
	e.value = at + pos + keySize
	e.key, err = r.bytes(at+pos, keySize)
	return e, err
}
