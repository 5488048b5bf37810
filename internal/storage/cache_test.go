package storage

import (
	"errors"
	"testing"

	"github.com/hashicorp/raft"
)

// countedLog counts the reads that reach it.
type countedLog struct {
	*raft.InmemStore
	reads int
}

func (c *countedLog) GetLog(index uint64, log *raft.Log) error {
	c.reads++
	return c.InmemStore.GetLog(index, log)
}

// TestCache: the newest entries are read from memory, as many as fit into the bytes, and none that was deleted.
func TestCache(t *testing.T) {
	below := &countedLog{InmemStore: raft.NewInmemStore()}
	c := NewCache(below, 4*(1000+entryOverhead))
	for i := uint64(1); i <= 10; i++ {
		if err := c.StoreLog(&raft.Log{Index: i, Term: 1, Data: make([]byte, 1000)}); err != nil {
			t.Fatal(err)
		}
	}
	read := func(index uint64, fromDisk bool) {
		t.Helper()
		var log raft.Log
		before := below.reads
		if err := c.GetLog(index, &log); err != nil || log.Index != index {
			t.Errorf("entry %d: got %d, %v", index, log.Index, err)
		}
		if got := below.reads > before; got != fromDisk {
			t.Errorf("entry %d: read from the log below: %t, want %t", index, got, fromDisk)
		}
	}
	for i := uint64(1); i <= 10; i++ {
		read(i, i <= 6)
	}
	large := &raft.Log{Index: 11, Term: 1, Data: make([]byte, 1<<20)}
	if err := c.StoreLogs([]*raft.Log{large}); err != nil {
		t.Fatal(err)
	}
	read(11, false) // larger than the cache, and the one that is wanted next
	read(10, true)
	if len(c.entries) != 1 || len(c.indexes) != 1 || c.bytes != entrySize(large) {
		t.Errorf("got %d entries of %d bytes, want the large one", len(c.entries), c.bytes)
	}

	if err := c.DeleteRange(9, 11); err != nil {
		t.Fatal(err)
	}
	var log raft.Log
	if err := c.GetLog(11, &log); !errors.Is(err, raft.ErrLogNotFound) {
		t.Errorf("a deleted entry: got %v, want ErrLogNotFound", err)
	}
	if err := c.StoreLog(&raft.Log{Index: 9, Term: 2, Data: []byte("other")}); err != nil {
		t.Fatal(err)
	}
	if err := c.GetLog(9, &log); err != nil || log.Term != 2 {
		t.Errorf("the entry in its place: got term %d, %v, want 2", log.Term, err)
	}
}
