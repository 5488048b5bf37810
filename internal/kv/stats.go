package kv

// Size returns how many bytes the keys and values of the content are, without what the tree takes beyond them. It is
// counted with each change: asking takes constant time.
func (s *Store) Size() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.size
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
