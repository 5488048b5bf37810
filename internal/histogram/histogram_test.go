package histogram

import (
	"maps"
	"sync"
	"testing"
)

func TestSnapshot(t *testing.T) {
	h := New(1, 2)
	var done sync.WaitGroup
	for _, v := range []float64{0.5, 1, 1.5, 2, 3} { // a bound belongs to its bucket
		done.Go(func() { h.Observe(v) })
	}
	done.Wait()
	count, sum, upTo := h.Snapshot()
	want := map[float64]uint64{1: 2, 2: 4}
	if count != 5 || sum != 8 || !maps.Equal(upTo, want) {
		t.Errorf("got %d values, sum %v, %v, want 5, 8, %v", count, sum, upTo, want)
	}
}
