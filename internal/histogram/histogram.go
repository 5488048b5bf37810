// Package histogram counts observations in buckets, cheaply enough for the path of a write, and without knowing where
// the counts are shown.
package histogram

import (
	"math"
	"sort"
	"sync/atomic"
)

// Histogram counts values by upper bounds. New makes one. Its methods may be called concurrently.
type Histogram struct {
	bounds []float64
	counts []atomic.Uint64 // by bound, and one more for what is greater than all
	sum    atomic.Uint64   // the bits of a float64
}

// New returns a histogram with these upper bounds, in ascending order.
func New(bounds ...float64) *Histogram {
	return &Histogram{bounds: bounds, counts: make([]atomic.Uint64, len(bounds)+1)}
}

// Observe counts v in the bucket of the least bound that is not less than v.
func (h *Histogram) Observe(v float64) {
	h.counts[sort.SearchFloat64s(h.bounds, v)].Add(1)
	for {
		old := h.sum.Load()
		if h.sum.CompareAndSwap(old, math.Float64bits(math.Float64frombits(old)+v)) {
			return
		}
	}
}

// Snapshot returns how many values there were, their sum, and for each bound how many were not greater than it.
// While values are observed, the sum may differ from the counts by those under way.
func (h *Histogram) Snapshot() (count uint64, sum float64, upTo map[float64]uint64) {
	upTo = make(map[float64]uint64, len(h.bounds))
	for i := range h.counts {
		count += h.counts[i].Load()
		if i < len(h.bounds) {
			upTo[h.bounds[i]] = count
		}
	}
	return count, math.Float64frombits(h.sum.Load()), upTo
}
