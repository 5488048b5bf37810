package storage

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"os"
)

// checkBolt reads the file of a closed bbolt database and returns an error that
// wraps ErrCorrupt unless every page that its tree reaches is well-formed.
//
// It stands before bbolt itself, which checks its two meta pages only, falls back
// without a word to the older one (losing the newest transaction), and panics on
// a malformed page, partly in goroutines of its own. What is in the pages is
// checked by store's checksums.
func checkBolt(path string) error {
	file, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	c := boltChecker{file: file, seen: make(map[uint64]bool)}
	if err := c.run(); err != nil {
		return fmt.Errorf("%s: %w: %w", path, ErrCorrupt, err)
	}
	return nil
}

// The file format of bbolt, version 2: integers are in the machine's byte order.
const (
	boltPageHeader = 16 // id 8, flags 2, count 2, overflow 4
	boltElement    = 16 // branch: pos 4, key size 4, page 8; leaf: flags 4, pos 4, key size 4, value size 4
	boltMeta       = 64 // magic 4, version 4, page size 4, flags 4, root 8, sequence 8, freelist 8, high-water mark 8, transaction 8, checksum 8
	boltBucket     = 16 // root 8, sequence 8; root 0: the page follows inline

	boltMagic   = 0xED0CDAED
	boltVersion = 2

	boltBranchFlag = 0x01
	boltLeafFlag   = 0x02
	boltBucketFlag = 0x01 // of a leaf element
)

var native = binary.NativeEndian

type boltChecker struct {
	file     []byte
	pageSize uint64
	pages    uint64          // high-water mark: pages in use
	seen     map[uint64]bool // pages reached
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
	if size := uint64(len(c.file)) / c.pageSize; c.pages > size {
		return fmt.Errorf("truncated: %d pages of %d", size, c.pages)
	}
	return c.page(native.Uint64(newest[16:]), nil, nil)
}

// meta returns the meta page at offset. Both must be whole: bbolt writes them in
// turn, each within one sector.
func (c *boltChecker) meta(offset uint64) ([]byte, error) {
	offset += boltPageHeader
	if offset+boltMeta > uint64(len(c.file)) {
		return nil, fmt.Errorf("truncated: %d bytes", len(c.file))
	}
	m := c.file[offset : offset+boltMeta]
	sum := fnv.New64a()
	_, _ = sum.Write(m[:56])
	if native.Uint32(m) != boltMagic || native.Uint32(m[4:]) != boltVersion || native.Uint64(m[56:]) != sum.Sum64() {
		return nil, fmt.Errorf("meta page at byte %d", offset)
	}
	return m, nil
}

// page checks the tree below page id, whose keys must be at least low and below
// high (nil: no bound).
func (c *boltChecker) page(id uint64, low, high []byte) error {
	if id < 2 || id >= c.pages {
		return fmt.Errorf("page %d of %d", id, c.pages)
	}
	p := c.file[id*c.pageSize:]
	if got := native.Uint64(p); got != id {
		return fmt.Errorf("page %d calls itself %d", id, got)
	}
	overflow := uint64(native.Uint32(p[12:]))
	if overflow >= c.pages-id {
		return fmt.Errorf("page %d overflows by %d", id, overflow)
	}
	for i := id; i <= id+overflow; i++ {
		if c.seen[i] {
			return fmt.Errorf("page %d is used twice", i)
		}
		c.seen[i] = true
	}
	if err := c.elements(p[:(1+overflow)*c.pageSize], low, high); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

// elements checks the elements of page p, whole with its overflow, and what is
// below them.
func (c *boltChecker) elements(p, low, high []byte) error {
	flags, count := native.Uint16(p[8:]), int(native.Uint16(p[10:]))
	if flags != boltBranchFlag && flags != boltLeafFlag {
		return fmt.Errorf("flags 0x%x", flags)
	}
	if boltPageHeader+count*boltElement > len(p) || (flags == boltBranchFlag && count == 0) {
		return fmt.Errorf("%d elements", count)
	}
	type element struct {
		flags      uint32
		page       uint64
		key, value []byte
	}
	elements := make([]element, count)
	for i := range elements {
		e := p[boltPageHeader+i*boltElement:]
		var pos, keySize, valueSize uint64
		if flags == boltBranchFlag {
			pos, keySize = uint64(native.Uint32(e)), uint64(native.Uint32(e[4:]))
			elements[i].page = native.Uint64(e[8:])
		} else {
			elements[i].flags = native.Uint32(e)
			pos, keySize, valueSize = uint64(native.Uint32(e[4:])), uint64(native.Uint32(e[8:])), uint64(native.Uint32(e[12:]))
		}
		if pos+keySize+valueSize > uint64(len(e)) {
			return fmt.Errorf("element %d reaches beyond the page", i)
		}
		elements[i].key = e[pos : pos+keySize]
		elements[i].value = e[pos+keySize : pos+keySize+valueSize]
	}
	for i, e := range elements {
		next := high
		if i+1 < count {
			next = elements[i+1].key
		}
		if bytes.Compare(e.key, low) < 0 || (next != nil && bytes.Compare(e.key, next) >= 0) {
			return fmt.Errorf("element %d is out of order", i)
		}
		var err error
		switch {
		case flags == boltBranchFlag:
			err = c.page(e.page, e.key, next)
		case e.flags == boltBucketFlag:
			err = c.bucket(e.value)
		case e.flags != 0:
			err = fmt.Errorf("element %d has flags 0x%x", i, e.flags)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *boltChecker) bucket(value []byte) error {
	if len(value) < boltBucket {
		return fmt.Errorf("bucket of %d bytes", len(value))
	}
	if root := native.Uint64(value); root != 0 {
		return c.page(root, nil, nil)
	}
	if len(value) < boltBucket+boltPageHeader {
		return fmt.Errorf("inline bucket of %d bytes", len(value))
	}
	return c.elements(value[boltBucket:], nil, nil)
}
