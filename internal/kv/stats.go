package kv

// Watchers returns how many watchers get what changes: those that have caught up.
func (s *Store) Watchers() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	n := 0
	for _, g := range s.watchers.groups {
		n += len(g.watchers)
	}
	return n
}
