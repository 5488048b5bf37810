package storage

import (
	"sync"

	"github.com/hashicorp/raft"
)

// Cache keeps the newest entries of a log in memory, as raft.LogCache does, for raft reads them once for each follower
// and once to apply them. It is bounded in bytes: raft's is in entries, and 512 of them may take a gigabyte.
//
// Its methods may be called concurrently, writers of the log one at a time, as raft does.
type Cache struct {
	raft.LogStore
	limit int // of bytes

	mu      sync.RWMutex // guards what follows
	entries map[uint64]*raft.Log
	indexes []uint64 // of entries, in the order in which they came
	bytes   int
}

// NewCache returns a cache of log that holds at most limit bytes of entries, or one entry that is larger.
func NewCache(log raft.LogStore, limit int) *Cache {
	return &Cache{LogStore: log, limit: limit, entries: make(map[uint64]*raft.Log)}
}

// GetLog implements raft.LogStore.
func (c *Cache) GetLog(index uint64, log *raft.Log) error {
	c.mu.RLock()
	entry := c.entries[index]
	c.mu.RUnlock()
	if entry == nil {
		return c.LogStore.GetLog(index, log)
	}
	*log = *entry
	return nil
}

// Cached reports whether an entry is in the cache, and reads it there alone.
func (c *Cache) Cached(index uint64, log *raft.Log) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	entry := c.entries[index]
	if entry != nil {
		*log = *entry
	}
	return entry != nil
}

// StoreLog implements raft.LogStore.
func (c *Cache) StoreLog(log *raft.Log) error { return c.StoreLogs([]*raft.Log{log}) }

// StoreLogs implements raft.LogStore. The entries are on disk before they are in the cache.
func (c *Cache) StoreLogs(logs []*raft.Log) error {
	if err := c.LogStore.StoreLogs(logs); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, log := range logs {
		if was := c.entries[log.Index]; was != nil {
			c.bytes -= entrySize(was)
		} else {
			c.indexes = append(c.indexes, log.Index)
		}
		c.entries[log.Index] = log
		c.bytes += entrySize(log)
	}
	for c.bytes > c.limit && len(c.indexes) > 1 {
		c.bytes -= entrySize(c.entries[c.indexes[0]])
		delete(c.entries, c.indexes[0])
		c.indexes = c.indexes[1:]
	}
	return nil
}

// DeleteRange implements raft.LogStore. It empties the cache first: what is deleted must never be read again.
func (c *Cache) DeleteRange(low, high uint64) error {
	c.empty()
	return c.LogStore.DeleteRange(low, high)
}

// Discard is Log.Discard, for a log that is below the cache.
func (c *Cache) Discard(log *Log, index, term uint64) {
	c.empty()
	log.Discard(index, term)
}

func (c *Cache) empty() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.entries)
	c.indexes, c.bytes = nil, 0
}

// entryOverhead is about what an entry takes beyond its bytes, in memory and in raft.db.
const entryOverhead = 128

func entrySize(log *raft.Log) int { return len(log.Data) + len(log.Extensions) + entryOverhead }
