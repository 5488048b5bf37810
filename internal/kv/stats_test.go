package kv

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// scanned is Size, counted anew.
func scanned(s *Store) (size int) {
	s.Ascend("", func(key string, item Item) bool {
		size += len(key) + len(item.Value)
		return true
	})
	return size
}

// TestSize: whatever changes the content, the running count is what a scan of all of it finds; in clones, too.
func TestSize(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		key := func() string { return fmt.Sprint(rnd.IntN(300)) }
		value := func() []byte { return make([]byte, rnd.IntN(50)) }
		s := New()
		clone := s.Clone()
		check := func(what string) {
			t.Helper()
			for name, of := range map[string]*Store{"store": s, "clone": clone} {
				want := scanned(of)
				if got := of.Size(); got != want {
					t.Fatalf("seed %d, %s after %s: got %d bytes, want %d", seed, name, what, got, want)
				}
				if got, _ := of.Footprint(); got != want+of.Len()*Overhead {
					t.Fatalf("seed %d, %s after %s: got a footprint of %d, want %d", seed, name, what, got, want+of.Len()*Overhead)
				}
			}
		}
		for index := uint64(1); index <= 400; index++ {
			what := "sets and removes"
			s.Update(index, 1, nil, func(tx *Tx) {
				switch n := rnd.IntN(100); {
				case n < 90:
					for range 1 + rnd.IntN(5) {
						if tx.Set(key(), value()); rnd.IntN(2) == 0 {
							tx.Remove(key())
						}
					}
				case n < 94:
					what = "a prefix"
					tx.RemovePrefix(fmt.Sprint(rnd.IntN(30)))
				case n < 97:
					what = "a restore"
					count := rnd.IntN(20)
					for i := range count {
						tx.Stage(fmt.Sprintf("%03d", i), value())
						tx.Stage(fmt.Sprintf("%03d", i), value()) // again: it replaces
					}
					if !tx.Restore(count, 0) {
						t.Errorf("a restore of %d items: got false, want true", count)
					}
				default:
					what = "a restore that fails"
					tx.Stage(key(), value())
					tx.Restore(2, 0)
				}
			})
			switch rnd.IntN(40) {
			case 0:
				clone = s.Clone()
			case 1:
				what = "a snapshot"
				var b bytes.Buffer
				if err := s.WriteSnapshot(&b); err != nil {
					t.Fatal(err)
				}
				s = New()
				if err := s.ReadSnapshot(&b); err != nil {
					t.Fatal(err)
				}
			case 2:
				clone.Update(index, 1, nil, func(tx *Tx) { tx.RemovePrefix("1") })
			}
			check(what)
		}
		s.Reset()
		check("a reset")
	}
}

func TestWatchers(t *testing.T) {
	s := New()
	check := func(what string, wantLive, wantOthers int) {
		t.Helper()
		if live, others := s.Watchers(); live != wantLive || others != wantOthers {
			t.Errorf("%s: got %d live and %d others, want %d and %d", what, live, others, wantLive, wantOthers)
		}
	}
	put(s, 1, "a", "1")
	w, err := s.Watch("a", 0)
	if err != nil {
		t.Fatal(err)
	}
	check("one that has not begun", 0, 1)
	if _, _, err := w.Next(context.Background()); err != nil {
		t.Fatal(err)
	}
	check("one that has caught up", 1, 0)
	s.Reset()
	check("one that has ended", 0, 1)
	w.Close()
	w.Close() // does nothing
	check("one that was closed", 0, 0)
}

// TestFootprint: what one key takes is what it adds; what is staged counts apart, and a record is found by its key.
func TestFootprint(t *testing.T) {
	s := New()
	s.Update(1, 1, nil, func(tx *Tx) {
		tx.Set("key", make([]byte, 100))
		tx.Stage("staged", make([]byte, 10))
		tx.AddRecord("id", "record")
	})
	content, staged := s.Footprint()
	alone, leased := s.ItemFootprint("key")
	if want := 3 + 100 + Overhead; content != want || alone != want || leased ||
		ItemFootprint("key", 100, Lease{}) != want {
		t.Errorf("content: got %d, the key alone %d and %d, lease %v, want %d and none",
			content, alone, ItemFootprint("key", 100, Lease{}), leased, want)
	}
	s.Update(2, 1, nil, func(tx *Tx) { tx.SetLeased("key", make([]byte, 100), Lease{TTL: time.Second}) })
	content, _ = s.Footprint()
	if alone, leased = s.ItemFootprint("key"); alone != content || !leased {
		t.Errorf("with a lease: got %d, %v, want %d and one", alone, leased, content)
	}
	if want := 6 + 10 + Overhead; staged != want {
		t.Errorf("staged: got %d, want %d", staged, want)
	}
	if got, leased := s.ItemFootprint("none"); got != 0 || leased {
		t.Errorf("no key: got %d, %v, want 0 and no lease", got, leased)
	}
	if !s.HasRecord("id") || s.HasRecord("key") {
		t.Errorf("records: got %v and %v, want only that of id", s.HasRecord("id"), s.HasRecord("key"))
	}
}
