package kv

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// checkRecords checks that s has these idempotency records, keys and records by turns,
// in the order in which they were added.
func checkRecords(t testing.TB, s *Store, want ...string) {
	t.Helper()
	var got []string
	s.records.scan(func(key, text string) bool {
		got = append(got, key, text)
		return true
	})
	if !slices.Equal(got, want) {
		t.Errorf("records: got %.300q, want %.300q", got, want)
	}
	if got := s.Records(); got != len(want)/2 {
		t.Errorf("number of records: got %d, want %d", got, len(want)/2)
	}
}

// within runs check in an Update that changes nothing else.
func within(s *Store, check func(tx *Tx)) {
	index, term := s.Applied()
	s.Update(index+1, term, nil, check)
}

func TestRemovePrefix(t *testing.T) {
	keys := []string{"", "a", "ab", "ab\xff", "ab\xff\xff", "abc", "ac", "b", "\xff", "\xff\xff"}
	for _, tt := range []struct{ prefix, removed string }{
		{prefix: "none"}, {prefix: "a", removed: `["a" "ab" "abc" "ab\xff" "ab\xff\xff" "ac"]`}, {
			prefix:  "ab",
			removed: `["ab" "abc" "ab\xff" "ab\xff\xff"]`,
		},
		{prefix: "ab\xff", removed: `["ab\xff" "ab\xff\xff"]`}, {prefix: "b", removed: `["b"]`}, {
			prefix:  "\xff",
			removed: `["\xff" "\xff\xff"]`,
		}, {
			prefix: "abcd",
		},
		{removed: `["" "a" "ab" "abc" "ab\xff" "ab\xff\xff" "ac" "b" "\xff" "\xff\xff"]`},
	} {
		s, want := New(), make(map[string]Item)
		for i, key := range keys {
			put(s, uint64(i+1), key, "v")
			want[key] = Item{"v", uint64(i + 1)}
		}
		before, c := maps.Clone(want), s.Clone()
		var removed []string
		s.Update(20, 1, nil, func(tx *Tx) {
			if got := tx.RemovePrefix(tt.prefix); got != strings.Count(tt.removed, `"`)/2 {
				t.Errorf("prefix %q: got %d, want %s", tt.prefix, got, tt.removed)
			}
			for _, c := range tx.changes {
				removed = append(removed, c.Key)
				delete(want, c.Key)
			}
			if got := tx.RemovePrefix(tt.prefix); got != 0 {
				t.Errorf("prefix %q again: got %d, want 0", tt.prefix, got)
			}
		})
		if got := fmt.Sprintf("%q", removed); got != tt.removed && (tt.removed != "" || got != "[]") {
			t.Errorf("prefix %q: got %s, want %s", tt.prefix, got, tt.removed)
		}
		checkContent(t, s, want)
		checkContent(t, c, before)
	}
}

func TestRemovePrefixOfMany(t *testing.T) {
	s, want := New(), make(map[string]Item)
	rnd := rand.New(rand.NewPCG(1, 2))
	s.Update(1, 1, nil, func(tx *Tx) {
		for range 20_000 {
			key := fmt.Sprint(rnd.IntN(1 << 20))
			tx.Set(key, nil)
			want[key] = Item{"", 1}
		}
	})
	for i, prefix := range []string{"7", "12", "3", "999", "1", ""} {
		was := len(want)
		maps.DeleteFunc(want, func(key string, _ Item) bool { return strings.HasPrefix(key, prefix) })
		s.Update(uint64(i+2), 1, nil, func(tx *Tx) {
			if got := tx.RemovePrefix(prefix); got != was-len(want) {
				t.Errorf("prefix %s: got %d, want %d", prefix, got, was-len(want))
			}
		})
		checkContent(t, s, want)
	}
}

func TestRecords(t *testing.T) {
	s := New()
	s.Update(1, 1, nil, func(tx *Tx) {
		tx.AddRecord("b", "1")
		tx.AddRecord("a", "")
		if got, ok := tx.Record("b"); got != "1" || !ok {
			t.Errorf("got %q, %v, want what was added in the same update", got, ok)
		}
	})
	c := s.Clone()
	s.Update(2, 1, nil, func(tx *Tx) {
		if got, ok := tx.Record("a"); got != "" || !ok {
			t.Errorf(`got %q, %v, want ""`, got, ok)
		}
		if got, ok := tx.Record("none"); got != "" || ok {
			t.Errorf("got %q, %v, want none", got, ok)
		}
		tx.AddRecord("c", "3")
	})
	c.Update(2, 1, nil, func(tx *Tx) { tx.AddRecord("d", "4") })
	checkRecords(t, s, "b", "1", "a", "", "c", "3")
	checkRecords(t, c, "b", "1", "a", "", "d", "4")
	checkContent(t, s, nil) // they are beside the items

	// A caller's error, which must not do harm.
	s.Update(3, 1, nil, func(tx *Tx) { tx.AddRecord("b", "2") })
	checkRecords(t, s, "a", "", "c", "3", "b", "2")
	s.Reset()
	checkRecords(t, s)
}

// TestOldestRecordIsRemoved adds the keys in another order than theirs, and
// has a store that was restored from a snapshot in the middle, whose
// sequence numbers are others.
func TestOldestRecordIsRemoved(t *testing.T) {
	key := func(n int) string { return fmt.Sprintf("%x", uint32(n)*2654435761) }
	add := func(s *Store, from, to int) {
		within(s, func(tx *Tx) {
			for n := from; n < to; n++ {
				tx.AddRecord(key(n), fmt.Sprint(n))
			}
		})
	}
	has := func(s *Store, n int, want bool) {
		t.Helper()
		within(s.Clone(), func(tx *Tx) {
			if got, ok := tx.Record(key(n)); ok != want || ok && got != fmt.Sprint(n) {
				t.Errorf("record %d: got %q, %v, want %v", n, got, ok, want)
			}
		})
	}
	s := New()
	add(s, 0, MaxRecords)
	has(s, 0, true)
	full := s.Clone()
	add(s, MaxRecords, MaxRecords+3)
	for n, want := range []bool{false, false, false, true, true} {
		has(s, n, want)
	}
	has(s, MaxRecords+2, true)
	if got := s.Records(); got != MaxRecords {
		t.Errorf("got %d records, want %d", got, MaxRecords)
	}
	has(full, 0, true)

	restored := New()
	if err := restored.ReadSnapshot(bytes.NewReader(dump(t, s))); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*Store{s, restored} {
		add(s, MaxRecords+3, MaxRecords+1000)
		has(s, 999, false)
		has(s, 1000, true)
	}
	if !bytes.Equal(dump(t, s), dump(t, restored)) {
		t.Error("the restored store is not the original")
	}
}

// stage is a store with content, and two items and a record staged in term 2.
func stage() *Store {
	s := New()
	s.Update(1, 1, nil, func(tx *Tx) {
		tx.Set("old", []byte("1"))
		tx.AddRecord("id-old", "1")
	})
	s.Update(2, 2, nil, func(tx *Tx) {
		tx.Stage("new", []byte("2"))
		tx.StageRecord("id-new", "2")
	})
	s.Update(3, 2, nil, func(tx *Tx) { tx.Stage("another", []byte("3")) })
	return s
}

// restores returns whether Restore does.
func restores(s *Store, term uint64, items, records int) (ok bool) {
	index, _ := s.Applied()
	s.Update(index+1, term, nil, func(tx *Tx) { ok = tx.Restore(items, records) })
	return ok
}

func checkOld(t *testing.T, s *Store) {
	t.Helper()
	checkContent(t, s, map[string]Item{"old": {"1", 1}})
	checkRecords(t, s, "id-old", "1")
}

func checkNew(t *testing.T, s *Store) {
	t.Helper()
	checkContent(t, s, map[string]Item{"new": {"2", 2}, "another": {"3", 3}})
	checkRecords(t, s, "id-new", "2")
}

func TestRestore(t *testing.T) {
	s := stage()
	checkOld(t, s)
	if got, ok := s.Get("new"); ok {
		t.Errorf("got %v, want what is staged not to be seen", got)
	}
	within(s, func(tx *Tx) {
		if _, ok := tx.Record("id-new"); ok {
			t.Error("the staged record is seen")
		}
	})
	c, restored := s.Clone(), New()
	if err := restored.ReadSnapshot(bytes.NewReader(dump(t, s))); err != nil {
		t.Fatal(err)
	}
	before := s.Clone()
	defer func() {
		if !restores(before, 2, 2, 1) {
			t.Error("a clone has another staging area than when it was made")
		}
		checkNew(t, before)
	}()
	// In the middle of it, a node may take a snapshot or restart from one.
	for _, s := range []*Store{s, c, restored} {
		within(s, func(tx *Tx) { tx.Stage("third", []byte("4")) })
		within(s, func(tx *Tx) {
			if !tx.Restore(3, 1) {
				t.Error("got false, want true")
			}
			if got, ok := tx.Get("third"); !ok {
				t.Errorf("within the update: got %v, want the new content", got)
			}
		})
		checkContent(t, s, map[string]Item{"new": {"2", 2}, "another": {"3", 3}, "third": {"4", 5}})
		checkRecords(t, s, "id-new", "2")
		if !restores(s, 2, 0, 0) {
			t.Error("the staging area is not empty after a restore")
		}
		checkContent(t, s, nil)
		checkRecords(t, s)
	}
}

func TestRestoreWantsTheRightNumbers(t *testing.T) {
	for _, n := range [][2]int{{1, 1}, {3, 1}, {2, 0}, {2, 2}, {0, 0}} {
		s := stage()
		if restores(s, 2, n[0], n[1]) {
			t.Errorf("%v of 2 and 1: got true, want false", n)
		}
		checkOld(t, s)
		if restores(s, 2, 2, 1) {
			t.Errorf("%v of 2 and 1: what was staged is still there", n)
		}
	}
	s := stage()
	within(s, func(tx *Tx) { tx.Stage("new", []byte("again")) })
	if !restores(s, 2, 2, 1) {
		t.Error("a key staged twice counts twice")
	}
}

// TestStagingAreaLivesWithinOneTerm: the next leader's must not begin with what
// another one left, nor may it take memory for ever.
func TestStagingAreaLivesWithinOneTerm(t *testing.T) {
	plain := New()
	plain.Update(1, 1, nil, func(tx *Tx) {
		tx.Set("old", []byte("1"))
		tx.AddRecord("id-old", "1")
	})
	plain.Update(2, 2, nil, func(*Tx) {})
	plain.Update(3, 2, nil, func(*Tx) {})

	unstaged, nextTerm := stage(), stage()
	within(plain, func(*Tx) {})
	within(unstaged, func(tx *Tx) { tx.Unstage() })
	if !bytes.Equal(dump(t, unstaged), dump(t, plain)) {
		t.Error("something is left after Unstage")
	}
	again := nextTerm.Clone()
	nextTerm.Update(4, 3, nil, func(*Tx) {})
	for _, s := range []*Store{plain, nextTerm, unstaged} {
		s.Update(5, 3, nil, func(*Tx) {})
	}
	if nextTerm.stagedTerm != 0 || nextTerm.staged.items.Len() != 0 || nextTerm.staged.records.len() != 0 {
		t.Errorf("after an update of another term: got %+v, want nothing staged", nextTerm.staged)
	}
	if restores(nextTerm, 3, 2, 1) {
		t.Error("what was staged in term 2 was restored in term 3")
	}
	checkOld(t, nextTerm)

	again.Update(4, 3, nil, func(tx *Tx) { // a new one, in the first update of its term
		tx.Stage("another", []byte("3"))
		tx.Stage("new", []byte("2"))
		tx.StageRecord("id-new", "2")
	})
	if !restores(again, 3, 2, 1) {
		t.Error("staged in the first update of a term: got false, want true")
	}

	same := stage()
	if !restores(same, 2, 2, 1) {
		t.Error("within the term: got false, want true")
	}
	checkNew(t, same)
}

func TestStageCopiesTheValue(t *testing.T) {
	s, value := New(), []byte("before")
	s.Update(1, 1, nil, func(tx *Tx) { tx.Stage("k", value) })
	copy(value, "after!")
	restores(s, 1, 1, 0)
	checkContent(t, s, map[string]Item{"k": {"before", 1}})
}
