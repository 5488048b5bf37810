package kv

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// put is an Update that sets one key.
func put(s *Store, index uint64, key, value string) {
	s.Update(index, 1, nil, func(tx *Tx) { tx.Set(key, []byte(value)) })
}

func content(s *Store) map[string]Item {
	m := make(map[string]Item)
	s.Ascend("", func(key string, item Item) bool {
		m[key] = item
		return true
	})
	return m
}

// dump returns the snapshot of s, by which stores are compared: it is the same
// for the same content and Applied.
func dump(t testing.TB, s *Store) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.WriteSnapshot(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func checkApplied(t testing.TB, s *Store, wantIndex, wantTerm uint64) {
	t.Helper()
	if index, term := s.Applied(); index != wantIndex || term != wantTerm {
		t.Errorf("applied: got index %d of term %d, want %d of %d", index, term, wantIndex, wantTerm)
	}
}

func checkContent(t testing.TB, s *Store, want map[string]Item) {
	t.Helper()
	if got := content(s); !maps.Equal(got, want) {
		t.Errorf("content: got %.300v, want %.300v", got, want)
	}
	if got := s.Len(); got != len(want) {
		t.Errorf("len: got %d, want %d", got, len(want))
	}
}

func TestUpdate(t *testing.T) {
	s := New()
	checkApplied(t, s, 0, 0)
	checkContent(t, s, nil)

	s.Update(3, 2, nil, func(tx *Tx) {
		tx.Set("a", []byte("1"))
		tx.Set("b", nil)
		tx.Set("c", []byte("3"))
		if got, ok := tx.Get("a"); !ok || got != (Item{"1", 3}) {
			t.Errorf("within the update: got %v, %v, want what it has set", got, ok)
		}
	})
	checkApplied(t, s, 3, 2)
	checkContent(t, s, map[string]Item{"a": {"1", 3}, "b": {"", 3}, "c": {"3", 3}})

	s.Update(7, 4, nil, func(tx *Tx) {
		tx.Set("a", []byte("one"))
		if !tx.Remove("b") {
			t.Error("remove of a key: got false, want true")
		}
		if tx.Remove("b") || tx.Remove("none") {
			t.Error("remove of no key: got true, want false")
		}
		if got, ok := tx.Get("b"); ok {
			t.Errorf("within the update: got %v, want what it has removed to be gone", got)
		}
	})
	checkApplied(t, s, 7, 4)
	checkContent(t, s, map[string]Item{"a": {"one", 7}, "c": {"3", 3}})

	s.Update(8, 4, nil, func(*Tx) {})
	checkApplied(t, s, 8, 4)
	if got, ok := s.Get("a"); !ok || got != (Item{"one", 7}) {
		t.Errorf("get: got %v, %v, want one at 7", got, ok)
	}
	if got, ok := s.Get("b"); ok || got != (Item{}) {
		t.Errorf("get of no key: got %v, %v", got, ok)
	}

	s.Reset()
	checkApplied(t, s, 0, 0)
	checkContent(t, s, nil)
}

func TestSetCopiesTheValue(t *testing.T) {
	s, value := New(), []byte("before")
	s.Update(1, 1, nil, func(tx *Tx) { tx.Set("k", value) })
	copy(value, "after!")
	if got, _ := s.Get("k"); got.Value != "before" {
		t.Errorf("got %q, want before", got.Value)
	}
}

func TestAscend(t *testing.T) {
	s := New()
	s.Update(1, 1, nil, func(tx *Tx) {
		for _, key := range []string{"b", "\xff", "a", "ab", "c"} {
			tx.Set(key, nil)
		}
	})
	for _, tt := range []struct {
		from string
		max  int
		want []string
	}{
		{max: 9, want: []string{"a", "ab", "b", "c", "\xff"}},
		{from: "ab", max: 9, want: []string{"ab", "b", "c", "\xff"}},
		{from: "aa", max: 2, want: []string{"ab", "b"}},
		{from: "a", max: 1, want: []string{"a"}},
		{from: "\xff\x00", max: 9},
	} {
		var got []string
		s.Ascend(tt.from, func(key string, item Item) bool {
			got = append(got, key)
			return len(got) < tt.max
		})
		if !slices.Equal(got, tt.want) {
			t.Errorf("from %q, %d at most: got %q, want %q", tt.from, tt.max, got, tt.want)
		}
	}
}

func TestCloneIsIndependent(t *testing.T) {
	s := New()
	put(s, 1, "a", "1")
	c := s.Clone()
	put(s, 2, "a", "2")
	put(c, 3, "b", "3")
	checkContent(t, s, map[string]Item{"a": {"2", 2}})
	checkContent(t, c, map[string]Item{"a": {"1", 1}, "b": {"3", 3}})
	checkApplied(t, s, 2, 1)
	checkApplied(t, c, 3, 1)
	s.Reset()
	checkContent(t, c, map[string]Item{"a": {"1", 1}, "b": {"3", 3}})
}

// TestHash computes the hash chain as the comment of Store.Hash defines it.
func TestHash(t *testing.T) {
	check := func(name string, s *Store, wantIndex uint64, want [32]byte) {
		t.Helper()
		if index, hash := s.Hash(); index != wantIndex || hash != want {
			t.Errorf("%s: got %d, %x, want %d, %x", name, index, hash, wantIndex, want)
		}
	}
	s, want := New(), [32]byte{}
	check("empty", s, 0, want)
	for _, e := range []struct {
		index, term uint64
		entry       string
	}{
		{index: 1, term: 1, entry: "one"},
		{index: 2, term: 1},
		{index: 0x1122334455667788, term: 0x99, entry: strings.Repeat("long", 1<<19)},
	} {
		s.Update(e.index, e.term, []byte(e.entry), func(*Tx) {})
		hashed := binary.BigEndian.AppendUint64(want[:], e.index)
		hashed = binary.BigEndian.AppendUint64(hashed, e.term)
		want = sha256.Sum256(append(hashed, e.entry...))
		check("updated", s, e.index, want)
	}
	c, restored := s.Clone(), New()
	check("clone", c, 0x1122334455667788, want)
	if err := restored.ReadSnapshot(bytes.NewReader(dump(t, s))); err != nil {
		t.Fatal(err)
	}
	check("restored", restored, 0x1122334455667788, want)
	for _, other := range []*Store{s, c, restored} {
		other.Update(0x1122334455667789, 0x99, []byte("next"), func(*Tx) {})
	}
	index, want := s.Hash()
	check("clone goes on", c, index, want)
	check("restored goes on", restored, index, want)
	s.Reset()
	check("reset", s, 0, [32]byte{})
	check("clone of before the reset", c, index, want)
}

// TestHashAt: the hashes of the latest Updates are there to compare with, and none that
// is unknown.
func TestHashAt(t *testing.T) {
	s := New()
	if _, ok := s.HashAt(0); ok {
		t.Error("empty store: got a hash at 0, want none")
	}
	const updates = 3000
	var want [updates + 1][32]byte
	for i := uint64(2); i <= updates; i += 2 {
		s.Update(i, 1, []byte{byte(i)}, func(*Tx) {})
		_, want[i] = s.Hash()
	}
	for i := range uint64(updates + 1) {
		got, ok := s.HashAt(i)
		if wantOK := i > updates-2048 && i%2 == 0; ok != wantOK || (ok && got != want[i]) {
			t.Fatalf("at %d: got %x, %v, want %x, %v", i, got, ok, want[i], wantOK)
		}
	}
	s.Reset()
	s.Update(updates, 1, nil, func(*Tx) {})
	if got, _ := s.HashAt(updates); got == want[updates] {
		t.Errorf("after a reset: got the hash of before")
	}
	old := readGolden(t, goldenSnapshotV1)
	old.Update(301, 3, []byte("next"), func(*Tx) {})
	if got, ok := old.HashAt(301); ok {
		t.Errorf("after a snapshot of version 1: got %x, want none", got)
	}
}

func TestUpdateAllocatesLittle(t *testing.T) {
	s, entry, value, index := New(), make([]byte, 4096), make([]byte, 16), uint64(0)
	for _, tt := range []struct {
		name   string
		change func(tx *Tx)
		want   float64
	}{
		{name: "nothing", change: func(*Tx) {}},
		{name: "a set: the value, the event", change: func(tx *Tx) { tx.Set("k", value) }, want: 2},
		{name: "three sets: the values, the event, its changes", change: func(tx *Tx) {
			tx.Set("k", value)
			tx.Set("l", value)
			tx.Set("m", value)
		}, want: 5},
	} {
		got := testing.AllocsPerRun(2*historyEvents, func() {
			index++
			s.Update(index, 1, entry, tt.change)
		})
		if got != tt.want {
			t.Errorf("%s: got %v allocations, want %v", tt.name, got, tt.want)
		}
	}
}

// entry is an entry of the model's log: set to value, or removed if that is nil.
type entry struct {
	index, term uint64
	keys        []string
	values      [][]byte
}

// bytes returns something for the hash, nil for the entry of a membership change.
func (e entry) bytes() []byte {
	if len(e.keys) == 0 {
		return nil
	}
	return fmt.Appendf(nil, "%q %q", e.keys, e.values)
}

func (e entry) apply(s *Store) {
	s.Update(e.index, e.term, e.bytes(), func(tx *Tx) {
		for i, key := range e.keys {
			if e.values[i] == nil {
				tx.Remove(key)
			} else {
				tx.Set(key, e.values[i])
			}
		}
		tx.AddRecord("id"+strconv.FormatUint(e.index, 36), "")
		if e.index%3 == 0 {
			tx.Stage("staged"+strconv.FormatUint(e.index, 36), nil)
			tx.StageRecord("id"+strconv.FormatUint(e.index, 36), "")
		}
	})
}

func (e entry) applyToMap(m map[string]Item) {
	for i, key := range e.keys {
		if e.values[i] == nil {
			delete(m, key)
		} else {
			m[key] = Item{string(e.values[i]), e.index}
		}
	}
}

// TestModel runs random entries on a store and on a map. The store is to be the
// map, each clone what the map was, and a snapshot with the rest of the log the
// same as all of the log. Some of the logs have few keys, some enough for a tree
// of three levels; it grows, shrinks and grows.
func TestModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for run, keys := range []int{5, 300, 8000} {
		testModel(t, rand.New(rand.NewPCG(seed, uint64(run))), keys)
	}
}

func testModel(t *testing.T, rnd *rand.Rand, keys int) {
	t.Helper()
	type clone struct {
		s    *Store
		want map[string]Item
	}
	var (
		s           = New()
		want        = make(map[string]Item)
		log         []entry
		clones      []clone
		snapshot    []byte
		tail        int // of the log, after snapshot
		index, term uint64
	)
	const steps = 600
	for step := range steps {
		index += 1 + rnd.Uint64N(3)
		term += rnd.Uint64N(2)
		e := entry{index: index, term: term}
		shrink := step/(steps/3) == 1
		for range rnd.IntN(1 + min(keys, 120)) {
			e.keys = append(e.keys, "key"+strconv.Itoa(rnd.IntN(keys)))
			var value []byte
			if remove := rnd.IntN(100); shrink && remove >= 95 || !shrink && remove >= 15 {
				value = fmt.Appendf([]byte{}, "%d", rnd.IntN(1000))[rnd.IntN(2):]
			}
			e.values = append(e.values, value)
		}
		log = append(log, e)
		e.apply(s)
		e.applyToMap(want)

		switch rnd.IntN(50) {
		case 0:
			clones = append(clones, clone{s.Clone(), maps.Clone(want)})
		case 1:
			snapshot, tail = dump(t, s.Clone()), len(log)
		}
		key := "key" + strconv.Itoa(rnd.IntN(keys))
		if got := func() Item { i, _ := s.Get(key); return i }(); got != want[key] {
			t.Fatalf("step %d, %d keys: %s: got %v, want %v", step, keys, key, got, want[key])
		}
	}
	checkApplied(t, s, index, term)
	checkContent(t, s, want)
	for _, c := range clones {
		checkContent(t, c.s, c.want)
	}

	replayed, restored := New(), New()
	for _, e := range log {
		e.apply(replayed)
	}
	put(restored, 1, "key0", "of before")
	put(restored, 2, "other", "of before")
	if snapshot == nil {
		restored.Reset()
	} else if err := restored.ReadSnapshot(bytes.NewReader(snapshot)); err != nil {
		t.Fatal(err)
	}
	for _, e := range log[tail:] {
		e.apply(restored)
	}
	for name, other := range map[string]*Store{"replayed": replayed, "restored": restored} {
		checkApplied(t, other, index, term)
		if !bytes.Equal(dump(t, other), dump(t, s)) {
			t.Errorf("%d keys: the %s store is not the original", keys, name)
		}
	}
}

// TestConcurrentReadersSeeWholeUpdates has one writer, which in each Update sets
// pairs of keys far from each other to the same value, or removes both.
func TestConcurrentReadersSeeWholeUpdates(t *testing.T) {
	const pairs, rounds = 500, 60
	s := New()
	whole := func(s *Store) error {
		values := make(map[string]Item)
		last := ""
		s.Ascend("", func(key string, item Item) bool {
			if key <= last {
				values["disorder"] = Item{key, 0}
			}
			last = key
			if key[0] == 'a' {
				values[key[1:]] = item
			} else if values[key[1:]] == item {
				delete(values, key[1:])
			}
			return true
		})
		if len(values) > 0 {
			return fmt.Errorf("half an update is seen: %.200v", values)
		}
		return nil
	}

	var readers, writer sync.WaitGroup
	done := make(chan struct{})
	writer.Go(func() {
		rnd := rand.New(rand.NewPCG(1, 2))
		for index := uint64(1); ; index++ {
			select {
			case <-done:
				return
			default:
			}
			s.Update(index, index, nil, func(tx *Tx) {
				for range 5 {
					n := strconv.Itoa(rnd.IntN(pairs))
					if rnd.IntN(3) == 0 {
						tx.Remove("a" + n)
						tx.Remove("b" + n)
						continue
					}
					value := strconv.AppendUint(nil, index, 10)
					tx.Set("a"+n, value)
					tx.Set("b"+n, value)
				}
			})
		}
	})
	read := func(check func() error) {
		readers.Go(func() {
			for range rounds {
				if err := check(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	read(func() error { return whole(s) })
	read(func() error { return whole(s.Clone()) })
	read(func() error {
		c := s.Clone()
		index, term := c.Applied()
		if index != term {
			return fmt.Errorf("applied: got index %d, term %d, want the same", index, term)
		}
		var first, second bytes.Buffer
		if err := errors.Join(c.WriteSnapshot(&first), c.Clone().WriteSnapshot(&second)); err != nil {
			return err
		}
		if !bytes.Equal(first.Bytes(), second.Bytes()) {
			return errors.New("a clone has changed")
		}
		restored := New()
		if err := restored.ReadSnapshot(&first); err != nil {
			return err
		}
		return whole(restored)
	})
	read(func() error { // clones may be written to, too
		c := s.Clone()
		before, _ := c.Applied()
		c.Update(before+1, 1, nil, func(tx *Tx) {
			for n := range pairs {
				tx.Remove("a" + strconv.Itoa(n))
				tx.Set("b"+strconv.Itoa(n), nil)
			}
		})
		if got := c.Len(); got != pairs {
			return fmt.Errorf("len of the changed clone: got %d, want %d", got, pairs)
		}
		return nil
	})
	read(func() error {
		item, ok := s.Get("a7")
		if index, _ := s.Applied(); ok && item.Index > index {
			return fmt.Errorf("applied: got %d after an item of %d was seen", index, item.Index)
		}
		return nil
	})
	readers.Wait()
	close(done)
	writer.Wait()
	if err := whole(s); err != nil {
		t.Error(err)
	}
}
