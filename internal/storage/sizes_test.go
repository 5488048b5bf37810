package storage

import (
	"math/rand/v2"
	"testing"
)

// TestSizes: what is above an index is never less than the entries are, and never much more; what is kept from an index
// on fits into the bytes.
func TestSizes(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var s sizes
	if s.above(0) != 0 || s.from(10) != 0 {
		t.Errorf("of no entries: got %d above 0, from %d, want 0, 0", s.above(0), s.from(10))
	}
	bytes := make([]uint64, 1, 2001) // by index
	largest := uint64(0)
	for index := uint64(1); index <= 2000; index++ {
		size := uint64(random.IntN(30_000))
		largest = max(largest, size)
		bytes = append(bytes, size)
		s.add(index, int(size))
	}
	real := func(index uint64) (sum uint64) {
		for _, b := range bytes[min(int(index)+1, len(bytes)):] {
			sum += b
		}
		return sum
	}
	check := func(when string, first uint64) {
		t.Helper()
		for index := first; index <= uint64(len(bytes)); index += 37 {
			if got, want := s.above(index), real(index); got < want || got > want+markBytes+largest {
				t.Errorf("%s: above %d: got %d, want %d or a little more", when, index, got, want)
			}
		}
		for _, limit := range []uint64{markBytes, 3 * markBytes, 17 * markBytes} {
			index := s.from(limit)
			if got := real(index); index < first-1 || got > limit || got+markBytes+largest < limit {
				t.Errorf("%s: from(%d): %d bytes above index %d", when, limit, got, index)
			}
		}
	}
	check("all", 1)
	if got := s.above(0); got != real(0) {
		t.Errorf("above 0: got %d, want all %d", got, real(0))
	}
	if got := s.from(1 << 40); got != 0 {
		t.Errorf("from(1 TiB): got %d, want 0: all of it", got)
	}
	before := len(s.marks)
	s.deleted(1, 500)
	if got, want := s.above(0), real(500); got < want || got > want+markBytes+largest {
		t.Errorf("without the beginning: got %d above 0, want %d or a little more", got, want)
	}
	if check("without the beginning", 501); len(s.marks) >= before {
		t.Errorf("got %d marks, want fewer than %d", len(s.marks), before)
	}
	s.deleted(1801, 2000)
	if n := len(s.marks); s.marks[n-1].index > 1800 {
		t.Errorf("without the end: got a mark at %d", s.marks[n-1].index)
	}
	s.deleted(1, 1<<63)
	if len(s.marks) != 0 {
		t.Errorf("all deleted: got %d marks, want none", len(s.marks))
	}
}
