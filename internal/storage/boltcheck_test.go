package storage

import (
	"errors"
	"hash/fnv"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"go.etcd.io/bbolt"
)

// writeLargeValue makes a bbolt database of 256 MiB that is nothing but one value, which takes no room on disk: the
// file has a hole there. It returns the size of the value.
func writeLargeValue(t testing.TB, path string) int {
	t.Helper()
	const (
		pageSize = 4096
		pages    = 256 << 20 / pageSize
		value    = (pages-3)*pageSize - boltPageHeader - boltElement - 1
	)
	head := make([]byte, 4*pageSize)
	for id := range 2 { // root page 2, no freelist
		page := head[id*pageSize:]
		native.PutUint64(page, uint64(id))
		native.PutUint16(page[8:], 4)
		m := page[boltPageHeader:]
		native.PutUint32(m, boltMagic)
		native.PutUint32(m[4:], boltVersion)
		native.PutUint32(m[8:], pageSize)
		native.PutUint64(m[16:], 2)
		native.PutUint64(m[32:], 1<<64-1)
		native.PutUint64(m[40:], pages)
		native.PutUint64(m[48:], uint64(id))
		sum := fnv.New64a()
		_, _ = sum.Write(m[:56])
		native.PutUint64(m[56:], sum.Sum64())
	}
	leaf := func(id, overflow, flags, valueSize uint32) []byte {
		page := head[id*pageSize:]
		native.PutUint64(page, uint64(id))
		native.PutUint16(page[8:], boltLeafFlag)
		native.PutUint16(page[10:], 1)
		native.PutUint32(page[12:], overflow)
		e := page[boltPageHeader:]
		native.PutUint32(e, flags)
		native.PutUint32(e[4:], boltElement)
		native.PutUint32(e[8:], 1)
		native.PutUint32(e[12:], valueSize)
		e[boltElement] = 'k'
		return e[boltElement+1:]
	}
	native.PutUint64(leaf(2, 0, boltBucketFlag, boltBucket), 3)
	leaf(3, pages-4, 0, value)
	if err := os.WriteFile(path, head, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, pages*pageSize); err != nil {
		t.Fatal(err)
	}
	return value
}

// TestCheckBoltInBoundedMemory: a log that is larger than memory must be checked, not end the node.
func TestCheckBoltInBoundedMemory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "large.db")
	size := writeLargeValue(t, path)
	db, err := bbolt.Open(path, 0o600, boltOptions(true))
	if err != nil {
		t.Fatalf("bbolt does not open what the test made: %v", err)
	}
	_ = db.View(func(tx *bbolt.Tx) error {
		if got := len(tx.Bucket([]byte("k")).Get([]byte("k"))); got != size {
			t.Errorf("bbolt finds a value of %d bytes, want %d", got, size)
		}
		return nil
	})
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	allocated, err := checkAllocations(path)
	if err != nil {
		t.Errorf("got %v, want that it is well-formed", err)
	}
	if allocated > 1<<20 {
		t.Errorf("it allocated %d bytes for a file of 256 MiB, want 1 MiB at most", allocated)
	}
}

// TestCheckBoltDamagedKeySize: a damaged size of a key, still within its page, must not be allocated.
func TestCheckBoltDamagedKeySize(t *testing.T) {
	path := filepath.Join(t.TempDir(), "large.db")
	size := writeLargeValue(t, path)
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	sizes := native.AppendUint32(native.AppendUint32(nil, uint32(size)), 0) // of key and value
	_, err = file.WriteAt(sizes, 3*4096+boltPageHeader+8)
	if err := errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
	allocated, err := checkAllocations(path)
	if !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v, want ErrCorrupt", err)
	}
	if allocated > 1<<20 {
		t.Errorf("it allocated %d bytes, want 1 MiB at most", allocated)
	}
}

// checkAllocations returns how many bytes checkBolt allocates.
func checkAllocations(path string) (uint64, error) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := checkBolt(path, nil)
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc, err
}
