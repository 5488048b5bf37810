package kv

// Overhead is about what an item takes in memory beyond the bytes of its key and value, in bytes: its part of the
// tree, and what the allocator adds. It was measured as 75 to 110, for values of 1 B to 10 KiB, set in ascending and in
// random order.
const Overhead = 128

// footprint is what d's items take: their bytes, and Overhead for each.
func (d *data) footprint() int { return d.size + Overhead*d.items.Len() }

// Size returns how many bytes the keys and values of the content are, without what the tree takes beyond them. It is
// counted with each change: asking takes constant time.
func (s *Store) Size() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.size
}

// Footprint returns about how much memory the content takes, and the staging area: Size, and Overhead for each item. It
// takes constant time. Idempotency records, whose number is bounded, and watchers are not counted.
func (s *Store) Footprint() (content, staged int) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.data.footprint(), s.staged.footprint()
}

// ItemFootprint returns what the item of key adds to the Footprint, 0 if there is none, and whether it has a lease.
func (s *Store) ItemFootprint(key string) (bytes int, leased bool) {
	item, lease, ok := s.GetLeased(key)
	if !ok {
		return 0, false
	}
	return ItemFootprint(key, len(item.Value), lease), lease != Lease{}
}

// ItemFootprint returns what an item with a value of so many bytes and this lease adds to the Footprint.
func ItemFootprint(key string, value int, lease Lease) int {
	return len(key) + value + leaseSize(key, lease) + Overhead
}

// HasRecord reports whether there is an idempotency record of an idempotency key.
func (s *Store) HasRecord(idempotencyKey string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	_, ok := s.records.byKey.Get(idempotencyKey)
	return ok
}

// Watchers returns how many watchers there are: live ones, which get each change as it comes, and others, which
// read the history until they have caught up, or have ended and are not closed yet.
func (s *Store) Watchers() (live, others int) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, g := range s.watchers.groups {
		live += len(g.watchers)
	}
	return live, max(int(s.open.Load())-live, 0)
}

// OpenWatchers returns how many watchers there are that are not closed. It takes no lock.
func (s *Store) OpenWatchers() int { return int(s.open.Load()) }
