package kv

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"
)

// TestPin: a version is given up as soon as more than its limit has been dropped since, by whatever drops it, and not
// before; one that was released is not.
func TestPin(t *testing.T) {
	const limit = 100 << 10
	value := make([]byte, 10<<10)
	for _, tt := range []struct {
		name   string
		drops  int // values of 10 KiB in a change
		change func(tx *Tx, i int)
	}{
		{name: "set again", drops: 1, change: func(tx *Tx, _ int) { tx.Set("a", value) }},
		{name: "removed", drops: 1, change: func(tx *Tx, i int) { tx.Remove(fmt.Sprintf("key%03d", i)) }},
		{name: "removed by a prefix", drops: 20, change: func(tx *Tx, _ int) {
			tx.RemovePrefix("key00")
			tx.RemovePrefix("key01")
		}},
		{name: "restored", drops: 100, change: func(tx *Tx, _ int) { tx.Restore(0, 0) }},
		{name: "added", change: func(tx *Tx, i int) { tx.Set(fmt.Sprint("new", i), value) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := New()
			s.Update(1, 1, nil, func(tx *Tx) {
				tx.Set("a", value)
				for i := range 100 {
					tx.Set(fmt.Sprintf("key%03d", i), value)
				}
			})
			gaveUp := make(chan struct{}, 2)
			view, release := s.Pin(limit, func() { gaveUp <- struct{}{} })
			defer release()
			_, releaseOther := s.Pin(limit, func() { t.Error("one that was released was given up") })
			releaseOther()
			s.mu.RLock()
			before := s.dropped()
			s.mu.RUnlock()
			given := false
			for i := 0; i < 30 && !given; i++ {
				s.Update(uint64(i)+2, 1, nil, func(tx *Tx) { tt.change(tx, i) })
				s.mu.RLock()
				dropped := s.dropped() - before
				given = s.pins.all.Len() == 0
				s.mu.RUnlock()
				if given != (dropped > limit) {
					t.Fatalf("after %d changes: got given up %v, with %d dropped", i+1, given, dropped)
				}
				if least := uint64((i + 1) * tt.drops * len(value)); i == 0 && dropped < least {
					t.Errorf("got %d dropped, want %d at least", dropped, least)
				}
			}
			if given != (tt.drops > 0) {
				t.Fatalf("got given up %v", given)
			}
			if given {
				select {
				case <-gaveUp:
				case <-time.After(30 * time.Second):
					t.Fatal("giveUp was not called")
				}
			}
			if _, ok := view.Get("key050"); !ok || view.Len() != 101 {
				t.Errorf("got %d keys, want the version as it was", view.Len())
			}
		})
	}
	s := New()
	gaveUp := make(chan struct{})
	s.Update(1, 1, nil, func(tx *Tx) { tx.Set("a", value) })
	_, release := s.Pin(1, func() { close(gaveUp) })
	defer release()
	s.Reset()
	<-gaveUp
}

// TestDroppedIsEnough: clones hold no more memory than what is counted as dropped since the oldest, for small changes
// all over the tree, with one clone and with many.
func TestDroppedIsEnough(t *testing.T) {
	live := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for _, clones := range []int{1, 20} {
		s := New()
		random := rand.New(rand.NewPCG(1, 2))
		s.Update(1, 1, nil, func(tx *Tx) {
			for i := range 50_000 {
				tx.Set(fmt.Sprintf("key%07d", i*7919%50_000), make([]byte, 100))
			}
		})
		s.Clone() // and so with all nodes copied once for this
		var views []*Store
		before := live()
		s.mu.RLock()
		counted := s.dropped()
		s.mu.RUnlock()
		for i := range clones {
			views = append(views, s.Clone())
			s.Update(uint64(i)+2, 1, nil, func(tx *Tx) {
				for range 4000 / clones {
					tx.Set(fmt.Sprintf("key%07d", random.IntN(50_000)), make([]byte, 100))
				}
			})
		}
		after := live()
		s.mu.RLock()
		counted = s.dropped() - counted
		s.mu.RUnlock()
		t.Logf("%d clones hold %d KiB, counted %d KiB", clones, (int64(after)-int64(before))>>10, counted>>10)
		if grown := int64(after) - int64(before); grown > int64(counted)+1<<20 { // the heap's own noise, and the history
			t.Errorf("%d clones hold %d bytes, and %d are counted", clones, grown, counted)
		}
		runtime.KeepAlive(views)
		runtime.KeepAlive(s)
	}
}
