package storage

import (
	"slices"
	"sort"
	"sync"
)

// sizes knows about how many bytes the entries of a log take, from an index on. It keeps one mark for each markBytes
// of them. Its methods may be called by several goroutines at once.
type sizes struct {
	mu    sync.Mutex // guards what follows
	total uint64     // bytes of all entries that were ever added
	gone  uint64     // of those that were deleted from the beginning
	marks []mark     // in ascending order
}

// mark is an entry and the total when it had been added.
type mark struct{ index, total uint64 }

const markBytes = 1 << 20

// add notes an entry, which comes after all that are there.
func (s *sizes) add(index uint64, bytes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total += uint64(bytes)
	if n := len(s.marks); n == 0 || s.total-s.marks[n-1].total >= markBytes {
		s.marks = append(s.marks, mark{index, s.total})
	}
}

// above returns how many bytes the entries above index take, up to markBytes and one entry more than they do.
func (s *sizes) above(index uint64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := sort.Search(len(s.marks), func(k int) bool { return s.marks[k].index > index })
	switch {
	case len(s.marks) == 0:
		return 0
	case k == 0:
		return s.total - s.gone
	}
	return s.total - s.marks[k-1].total
}

// from returns an index above which the entries take at most so many bytes; 0 if all of them do.
func (s *sizes) from(bytes uint64) (index uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := sort.Search(len(s.marks), func(k int) bool { return s.total-s.marks[k].total <= bytes })
	switch {
	case s.total-s.gone <= bytes, len(s.marks) == 0:
		return 0
	case k == len(s.marks): // less than markBytes: keep what there is since the last mark
		k--
	}
	return s.marks[k].index
}

// deleted notes that the entries from low to high are gone: the beginning or the end of the log.
func (s *sizes) deleted(low, high uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.marks); n == 0 || high >= s.marks[n-1].index {
		s.marks = slices.DeleteFunc(s.marks, func(m mark) bool { return m.index >= low })
		if len(s.marks) == 0 {
			s.gone = s.total
		}
		return
	}
	k := sort.Search(len(s.marks), func(k int) bool { return s.marks[k].index > high })
	if k > 1 { // the last one of those that are gone is where the rest begins
		s.marks = slices.Delete(s.marks, 0, k-1)
	}
	if k > 0 {
		s.gone = s.marks[0].total
	}
}
