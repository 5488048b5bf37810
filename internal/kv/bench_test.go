package kv

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"testing"
)

const benchKeys = 1_000_000

func benchKey(n int) string { return fmt.Sprintf("key%013d", n) } // 16 bytes

// fill returns a store of n keys of 16 bytes with values of as many, set in the
// order that order gives.
func fill(order []int) *Store {
	s := New()
	for i, n := range order {
		key := benchKey(n)
		put(s, uint64(i+1), key, key)
	}
	return s
}

func ascending(n int) []int {
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	return order
}

func shuffled(n int) []int { return rand.New(rand.NewPCG(1, 2)).Perm(n) }

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkHeapPerKey reports the heap beyond the bytes of keys and values.
func BenchmarkHeapPerKey(b *testing.B) {
	const most = 150 // bytes, the target
	for _, bb := range []struct {
		name  string
		order []int
		grow  func(s *Store) *Store
	}{
		{name: "ascending", order: ascending(benchKeys)},
		{name: "shuffled", order: shuffled(benchKeys)},
		{name: "restored", order: shuffled(benchKeys), grow: func(s *Store) *Store {
			restored := New()
			if err := restored.ReadSnapshot(bytes.NewReader(dump(b, s))); err != nil {
				b.Fatal(err)
			}
			return restored
		}},
	} {
		b.Run(bb.name, func(b *testing.B) {
			for b.Loop() {
				before := heap()
				s := fill(bb.order)
				if bb.grow != nil {
					s = bb.grow(s)
				}
				perKey := (float64(heap())-float64(before))/benchKeys - 2*float64(len(benchKey(0)))
				if perKey > most {
					b.Errorf("got %.1f bytes a key, want %d at most", perKey, most)
				}
				b.ReportMetric(perKey, "bytes/key")
				runtime.KeepAlive(s)
			}
		})
	}
}

func BenchmarkGet(b *testing.B) {
	order := shuffled(benchKeys)
	s := fill(order)
	keys := make([]string, 1<<16)
	for i := range keys {
		keys[i] = benchKey(order[i])
	}
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			if _, ok := s.Get(keys[i%len(keys)]); !ok {
				b.Error("no such key")
				return
			}
		}
	})
}

// BenchmarkSet is of one entry that sets one key, old or new.
func BenchmarkSet(b *testing.B) {
	for _, clones := range []bool{false, true} {
		b.Run(fmt.Sprintf("clones=%v", clones), func(b *testing.B) {
			order := shuffled(benchKeys)
			s := fill(order[:benchKeys/2])
			value := make([]byte, 16)
			keys := make([]string, 1<<16)
			for i := range keys {
				keys[i] = benchKey(order[len(order)/2-len(keys)/2+i])
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if clones {
					s.Clone()
				}
				s.Update(uint64(benchKeys+i), 1, nil, func(tx *Tx) { tx.Set(keys[i%len(keys)], value) })
				i++
			}
		})
	}
}

func BenchmarkClone(b *testing.B) {
	s := fill(shuffled(benchKeys))
	b.ReportAllocs()
	for b.Loop() {
		s.Clone()
	}
}

func BenchmarkWriteSnapshot(b *testing.B) {
	s := fill(shuffled(benchKeys))
	b.SetBytes(int64(len(dump(b, s))))
	b.ReportAllocs()
	for b.Loop() {
		if err := s.WriteSnapshot(io.Discard); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadSnapshot(b *testing.B) {
	snapshot := dump(b, fill(shuffled(benchKeys)))
	b.SetBytes(int64(len(snapshot)))
	b.ReportAllocs()
	for b.Loop() {
		if err := New().ReadSnapshot(bytes.NewReader(snapshot)); err != nil {
			b.Fatal(err)
		}
	}
}
