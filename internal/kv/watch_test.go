package kv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// waitFor is how long a test waits for what must come.
const waitFor = 20 * time.Second

// ended is a context that has ended: Next with it doesn't wait.
func ended() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func watch(t testing.TB, s *Store, prefix string, after uint64) *Watcher {
	t.Helper()
	w, err := s.Watch(prefix, after)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w
}

// live returns a watcher that waits for what comes.
func live(t testing.TB, s *Store, prefix string) *Watcher {
	t.Helper()
	w, _ := s.WatchNow(prefix)
	t.Cleanup(w.Close)
	if events, _, err := w.Next(ended()); len(events) > 0 || err != context.Canceled {
		t.Fatalf("got %s, %v, want nothing yet", text(events), err)
	}
	return w
}

// text returns the events as one line, each as index.term and its changes.
func text(events []*Event) string {
	var b strings.Builder
	for _, e := range events {
		fmt.Fprintf(&b, "%d.%d", e.Index, e.Term)
		for _, c := range e.Changes {
			if c.Removed {
				fmt.Fprintf(&b, " -%s%s", c.Key, c.Value)
			} else {
				fmt.Fprintf(&b, " %s=%s", c.Key, c.Value)
			}
		}
		b.WriteString("; ")
	}
	return b.String()
}

// checkNext checks what Next returns without waiting.
func checkNext(t testing.TB, w *Watcher, want string, wantThrough uint64) {
	t.Helper()
	events, through, err := w.Next(ended())
	if wantErr := want == ""; err != nil != wantErr || err != nil && err != context.Canceled {
		t.Errorf("watch %q: got error %v", w.prefix, err)
	}
	if got := text(events); got != want {
		t.Errorf("watch %q: got %s, want %s", w.prefix, got, want)
	}
	if through != wantThrough {
		t.Errorf("watch %q: got through %d, want %d", w.prefix, through, wantThrough)
	}
}

func checkEnded(t testing.TB, w *Watcher, want error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), waitFor)
	defer cancel()
	if events, _, err := w.Next(ctx); len(events) > 0 || !errors.Is(err, want) {
		t.Errorf("watch %q: got %s, %v, want %v", w.prefix, text(events), err, want)
	}
}

// checkUnwatched checks that nothing is left of the watchers of s.
func checkUnwatched(t testing.TB, s *Store) {
	t.Helper()
	if wd := &s.watchers; len(wd.groups) > 0 || len(wd.lengths) > 0 || len(wd.count) > 0 {
		t.Errorf("got prefixes of lengths %v, count %v, want none", wd.lengths, wd.count)
	}
}

// history makes a store with these events from index 2 on, and an entry without.
const wantHistory = "2.1 a=1; 3.2 b=2 ab=3 a=4; 4.2 -b; 6.2 -a -ab; 7.3 a=; "

func withHistory() *Store {
	s := New()
	s.Update(2, 1, nil, func(tx *Tx) { tx.Set("a", []byte("1")) })
	s.Update(3, 2, nil, func(tx *Tx) {
		tx.Set("b", []byte("2"))
		tx.Set("ab", []byte("3"))
		tx.Set("a", []byte("4"))
	})
	s.Update(4, 2, nil, func(tx *Tx) {
		tx.Remove("b")
		tx.Remove("b")
		tx.Remove("none")
	})
	s.Update(5, 2, nil, func(tx *Tx) {
		tx.RemovePrefix("none")
		tx.AddRecord("id", "")
		tx.Stage("a", nil)
		tx.Restore(2, 2)
	})
	s.Update(6, 2, nil, func(tx *Tx) { tx.RemovePrefix("a") })
	s.Update(7, 3, nil, func(tx *Tx) { tx.Set("a", nil) })
	s.Update(8, 3, nil, func(*Tx) {})
	return s
}

func TestWatch(t *testing.T) {
	s := withHistory()
	checkNext(t, watch(t, s, "", 0), wantHistory, 8)
	checkNext(t, watch(t, s, "a", 0), "2.1 a=1; 3.2 ab=3 a=4; 6.2 -a -ab; 7.3 a=; ", 8)
	checkNext(t, watch(t, s, "ab", 0), "3.2 ab=3; 6.2 -ab; ", 8)
	checkNext(t, watch(t, s, "a", 3), "6.2 -a -ab; 7.3 a=; ", 8)
	checkNext(t, watch(t, s, "abc", 0), "", 8)

	none, all, as, abs := live(t, s, "abc"), live(t, s, ""), live(t, s, "a"), live(t, s, "ab")
	future := watch(t, s, "", 10)
	checkNext(t, future, "", 10)
	s.Update(9, 3, nil, func(tx *Tx) {
		tx.Set("ab", nil)
		tx.Set("b", nil)
		tx.Set("abb", nil)
		tx.Remove("b")
	})
	s.Update(10, 3, nil, func(tx *Tx) { tx.Set("abb", []byte("2")) })
	s.Update(11, 3, nil, func(tx *Tx) {})
	checkNext(t, all, "9.3 ab= b= abb= -b; 10.3 abb=2; ", 11)
	checkNext(t, as, "9.3 ab= abb=; 10.3 abb=2; ", 11)
	checkNext(t, abs, "9.3 ab= abb=; 10.3 abb=2; ", 11)
	checkNext(t, none, "", 11)
	checkNext(t, future, "", 11)
	s.Update(12, 3, nil, func(tx *Tx) { tx.Set("b", nil) })
	checkNext(t, all, "12.3 b=; ", 12)
	checkNext(t, as, "", 12)
	checkNext(t, future, "12.3 b=; ", 12)
}

// TestEventsAreShared is why an event has to be encoded once only.
func TestEventsAreShared(t *testing.T) {
	s := New()
	var watchers []*Watcher
	for _, prefix := range []string{"", "k", "key", "key", "key1"} {
		watchers = append(watchers, live(t, s, prefix))
	}
	put(s, 1, "key1", "v")
	for _, prefix := range []string{"", "ke"} { // from the history
		watchers = append(watchers, watch(t, s, prefix, 0))
	}
	var first *Event
	encodings := 0
	for _, w := range watchers {
		events, _, err := w.Next(ended())
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = events[0]
		}
		if events[0] != first {
			t.Errorf("watch %q: got an event of its own", w.prefix)
		}
		got := events[0].Encoded(func(e *Event) []byte {
			encodings++
			return []byte(e.Changes[0].Key)
		})
		if string(got) != "key1" {
			t.Errorf("got %q, want key1", got)
		}
	}
	if encodings != 1 {
		t.Errorf("got %d encodings, want 1", encodings)
	}
}

// TestNextWaits has Next waiting before there is what it waits for.
func TestNextWaits(t *testing.T) {
	for _, tt := range []struct {
		name    string
		do      func(s *Store, w *Watcher, cancel func())
		want    string
		through uint64
		err     error
	}{
		{
			name:    "event",
			do:      func(s *Store, _ *Watcher, _ func()) { put(s, 1, "k", "v") },
			want:    "1.1 k=v; ",
			through: 1,
		},
		{name: "ctx ends", do: func(s *Store, _ *Watcher, cancel func()) {
			put(s, 2, "other", "v")
			cancel()
		}, through: 2, err: context.Canceled},
		{name: "close", do: func(_ *Store, w *Watcher, _ func()) { w.Close() }, err: ErrClosed},
		{name: "reset", do: func(s *Store, _ *Watcher, _ func()) { s.Reset() }, err: ErrHistoryGone},
	} {
		for _, caughtUp := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, caught up %t", tt.name, caughtUp), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := New()
					w := watch(t, s, "k", 0)
					if caughtUp {
						checkNext(t, w, "", 0)
					}
					ctx, cancel := context.WithTimeout(context.Background(), waitFor)
					defer cancel()
					go func() {
						synctest.Wait()
						tt.do(s, w, cancel)
					}()
					began := time.Now()
					events, through, err := w.Next(ctx)
					if text(events) != tt.want || through != tt.through || !errors.Is(err, tt.err) {
						t.Errorf("got %s, %d, %v, want %s, %d, %v", text(events), through, err, tt.want, tt.through, tt.err)
					}
					if waited := time.Since(began); waited > 0 {
						t.Errorf("it was not woken up: got it after %v", waited)
					}
				})
			})
		}
	}
}

// TestThroughIsNotBeforeTheEvents has an event come after Next looked up Applied.
func TestThroughIsNotBeforeTheEvents(t *testing.T) {
	s := New()
	w := live(t, s, "k")
	put(s, 1, "k", "v")
	put(s, 2, "k", "v")
	if events, _, err := w.take(1); len(events) != 2 || err != nil || w.through != 2 {
		t.Errorf("got %s, %v, through %d, want two events through 2", text(events), err, w.through)
	}
}

// TestUpdateKeepsNoChanges is why the memory of what was set once is freed.
func TestUpdateKeepsNoChanges(t *testing.T) {
	s := New()
	for i, n := range []int{1, 5, keepChanges, 3 * keepChanges, 2, 4 * keepChanges} {
		s.Update(uint64(i+1), 1, nil, func(tx *Tx) {
			for range n {
				tx.Set("k", nil)
			}
			if n == 4*keepChanges {
				tx.Restore(0, 0)
			}
		})
		kept := s.tx.changes[:cap(s.tx.changes)]
		if len(kept) > 2*keepChanges {
			t.Errorf("%d changes: got room for %d, want %d at most", n, len(kept), 2*keepChanges)
		}
		for _, c := range kept {
			if c != (Change{}) {
				t.Fatalf("%d changes: got %v, want nothing kept", n, c)
			}
		}
	}
}

// TestResume resumes at every index, with a history longer than a step.
func TestResume(t *testing.T) {
	const n = 2*catchUpStep + 300
	s := New()
	s.history.maxEvents = n
	var want []string
	for i := uint64(1); i <= n+100; i++ {
		key := fmt.Sprint(i % 2)
		put(s, 2*i, key, "v")
		want = append(want, text([]*Event{{Index: 2 * i, Term: 1, Changes: []Change{{Key: key, Value: "v"}}}}))
	}
	for after := uint64(0); after <= 2*(n+100)+1; after++ {
		if after < 2*100 {
			if _, err := s.Watch("", after); !errors.Is(err, ErrHistoryGone) {
				t.Errorf("after %d: got %v, want %v", after, err, ErrHistoryGone)
			}
			continue
		}
		if after > 2*110 && after%97 > 1 && after < 2*n+150 {
			continue // and nothing special
		}
		for prefix := range 2 {
			w := watch(t, s, fmt.Sprint(prefix), after)
			var got []string
			for {
				events, through, err := w.Next(ended())
				if err != nil {
					if want := max(after, 2*(n+100)); through != want {
						t.Errorf("after %d: got through %d, want %d", after, through, want)
					}
					break
				}
				if last := events[len(events)-1].Index; through < last {
					t.Errorf("after %d: got through %d, before %d", after, through, last)
				}
				for _, e := range events {
					got = append(got, text([]*Event{e}))
				}
			}
			var rest []string
			for i := after / 2; i < n+100; i++ {
				if int(i+1)%2 == prefix {
					rest = append(rest, want[i])
				}
			}
			if !slices.Equal(got, rest) {
				t.Fatalf("after %d: got %d events, %.100q, want %d, %.100q", after, len(got), got, len(rest), rest)
			}
			w.Close()
		}
	}
	checkUnwatched(t, s)
}

func TestHistoryIsBounded(t *testing.T) {
	for _, tt := range []struct {
		name             string
		maxEvents, bytes int
		value            int
		want             int // how many events are kept
	}{
		{name: "events", maxEvents: 7, bytes: 1 << 20, value: 100, want: 7},
		{name: "many events", maxEvents: 200, bytes: 1 << 20, value: 1, want: 200},
		{name: "one event", maxEvents: 1, bytes: 1 << 20, value: 1, want: 1},
		{name: "bytes", maxEvents: 1000, bytes: 10 * (40 + 3 + 97), value: 97, want: 10},
		{name: "a byte too few", maxEvents: 1000, bytes: 10*(40+3+97) - 1, value: 97, want: 9},
		{name: "the newest is larger", maxEvents: 1000, bytes: 50, value: 100, want: 1},
	} {
		s := New()
		s.history.maxEvents, s.history.maxBytes = tt.maxEvents, tt.bytes
		const last = 500
		for i := uint64(1); i <= last; i++ {
			put(s, i, fmt.Sprintf("%03d", i), strings.Repeat("v", tt.value))
			if h := &s.history; h.n > 1 && h.bytes > tt.bytes || h.n > tt.maxEvents || h.n < 1 {
				t.Fatalf("%s: got %d events of %d bytes, want %d of %d at most", tt.name, h.n, h.bytes, tt.maxEvents, tt.bytes)
			}
		}
		floor := uint64(last - tt.want)
		if _, err := s.Watch("", floor-1); !errors.Is(err, ErrHistoryGone) {
			t.Errorf("%s: after %d: got %v, want %v", tt.name, floor-1, err, ErrHistoryGone)
		}
		events, _, err := watch(t, s, "", floor).Next(ended())
		if err != nil || len(events) != tt.want || events[0].Index != floor+1 {
			t.Errorf("%s: got %d events, %v, want %d after %d", tt.name, len(events), err, tt.want, floor)
		}
		kept := 0
		for _, e := range s.history.ring {
			if e != nil {
				kept++
			}
		}
		if kept != tt.want {
			t.Errorf("%s: got %d events in memory, want %d", tt.name, kept, tt.want)
		}
	}
}

// TestHistoryRing has a ring that grows when its oldest event is in the middle.
func TestHistoryRing(t *testing.T) {
	s := New()
	s.history.maxBytes = 64 << 10
	index := uint64(0)
	fill := func(n, size int) {
		for range n {
			index++
			put(s, index, "k", strings.Repeat("v", size))
		}
	}
	fill(60, 1000)
	fill(1, 20_000) // drops some
	fill(200, 100)
	events, _ := s.history.after(s.history.floor, 1000)
	if len(events) < 100 {
		t.Fatalf("got %d events, want a ring that has grown", len(events))
	}
	for i, e := range events {
		if want := s.history.floor + 1 + uint64(i); e.Index != want {
			t.Fatalf("event %d: got index %d, want %d", i, e.Index, want)
		}
	}
	if last := events[len(events)-1].Index; last != index {
		t.Errorf("got events up to %d, want %d", last, index)
	}
}

func TestSlowWatcherIsDropped(t *testing.T) {
	s := New()
	slow, other, behind := live(t, s, "k"), live(t, s, "other"), watch(t, s, "k", 0)
	keeps := live(t, s, "k")
	for i := uint64(1); i <= maxPending; i++ {
		put(s, i, "key", "v")
		if i == 10 {
			checkNext(t, keeps, text(slow.group.pending), 10)
		}
	}
	if events, _, err := live(t, s, "other").Next(ended()); err != context.Canceled {
		t.Errorf("got %s, %v", text(events), err)
	}
	put(s, maxPending+1, "key", "v")
	checkEnded(t, slow, ErrSlow)
	checkEnded(t, slow, ErrSlow)
	if got := len(keeps.group.pending); got > maxPending {
		t.Errorf("%d events are held for those that keep up, want %d at most", got, maxPending)
	}
	if events, _, err := keeps.Next(ended()); len(events) != maxPending+1-10 || err != nil {
		t.Errorf("one that kept up: got %d events, %v", len(events), err)
	}
	checkNext(t, other, "", maxPending+1)
	n := 0
	for { // the history is no queue
		events, _, err := behind.Next(ended())
		if n += len(events); err != nil {
			break
		}
	}
	if n != maxPending+1 {
		t.Errorf("one that was behind: got %d events, want %d", n, maxPending+1)
	}

	// By size. One event always may wait.
	value := strings.Repeat("v", maxPendingBytes/2)
	for i := range uint64(3) {
		put(s, maxPending+2+i, "key", value+value[:i])
		put(s, maxPending+10+i, "other", value+value)
		checkNext(t, other, text([]*Event{s.history.at(s.history.n - 1)}), maxPending+10+i)
	}
	checkEnded(t, keeps, ErrSlow)
}

// TestTakenEventsAreNotHeld: what all watchers of a prefix have taken is freed, and what was
// handed out is not written to by what comes.
func TestTakenEventsAreNotHeld(t *testing.T) {
	s := New()
	first, second := live(t, s, "k"), live(t, s, "k")
	var held [][]*Event
	for i := uint64(1); i <= 10*minTrimLen; i++ {
		put(s, i, "key", "v")
		checkNext(t, first, text([]*Event{s.history.at(s.history.n - 1)}), i)
		if i%10 > 0 {
			continue
		}
		events, _, err := second.Next(ended())
		if len(events) != 10 || err != nil {
			t.Fatalf("got %d events, %v, want 10", len(events), err)
		}
		held = append(held, events)
		if got := len(first.group.pending); got > minTrimLen {
			t.Errorf("%d events are held, want %d at most", got, minTrimLen)
		}
	}
	for i, e := range slices.Concat(held...) {
		if e.Index != uint64(i+1) {
			t.Fatalf("event %d: got index %d, want %d", i, e.Index, i+1)
		}
	}
	// By size.
	value := strings.Repeat("v", minTrimBytes/4)
	for i := range uint64(20) {
		put(s, 10*minTrimLen+1+i, "key", value)
		for _, w := range []*Watcher{first, second} {
			if events, _, err := w.Next(ended()); len(events) != 1 || err != nil {
				t.Fatalf("got %d events, %v, want 1", len(events), err)
			}
		}
		if got := first.group.bytes; got > minTrimBytes {
			t.Errorf("%d bytes of events are held, want %d at most", got, minTrimBytes)
		}
	}
}

func TestBehindTheHistoryIsSlow(t *testing.T) {
	s := New()
	s.history.maxEvents = catchUpStep + 10
	for i := uint64(1); i <= catchUpStep+10; i++ {
		put(s, i, "k", "v")
	}
	unread, between := watch(t, s, "", 0), watch(t, s, "", 0)
	if events, through, err := between.Next(ended()); len(events) != catchUpStep || through != catchUpStep || err != nil {
		t.Fatalf("got %d events through %d, %v, want one step", len(events), through, err)
	}
	for i := uint64(1); i <= catchUpStep; i++ {
		put(s, catchUpStep+10+i, "k", "v")
	}
	checkEnded(t, unread, ErrSlow)
	put(s, 3*catchUpStep, "k", "v")
	checkEnded(t, between, ErrSlow)
	checkUnwatched(t, s)
}

func TestHistoryGone(t *testing.T) {
	snapshot := dump(t, small()) // of index 300
	for _, tt := range []struct {
		name  string
		lose  func(s *Store)
		floor uint64
	}{
		{name: "restore", lose: func(s *Store) {
			s.Update(10, 3, nil, func(tx *Tx) {
				tx.Set("before", nil)
				tx.Stage("a", nil)
				if !tx.Restore(1, 0) {
					t.Error("restore: got false")
				}
				tx.Set("after", nil)
			})
		}, floor: 10},
		{name: "snapshot", lose: func(s *Store) {
			if err := s.ReadSnapshot(bytes.NewReader(snapshot)); err != nil {
				t.Error(err)
			}
		}, floor: 300},
		{name: "reset", lose: func(s *Store) { s.Reset() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := withHistory()
			waiting, pending, behind, future := live(t, s, "a"), live(t, s, "b"), watch(t, s, "", 0), watch(t, s, "", 400)
			checkNext(t, future, "", 400)
			put(s, 9, "b", "")
			var wg sync.WaitGroup
			wg.Go(func() { checkEnded(t, waiting, ErrHistoryGone) })
			tt.lose(s)
			wg.Wait()
			for _, w := range []*Watcher{waiting, pending, behind, future} {
				checkEnded(t, w, ErrHistoryGone)
			}
			checkUnwatched(t, s)
			if tt.floor > 0 {
				if _, err := s.Watch("", tt.floor-1); !errors.Is(err, ErrHistoryGone) {
					t.Errorf("after %d: got %v, want %v", tt.floor-1, err, ErrHistoryGone)
				}
			}
			w, next := watch(t, s, "", tt.floor), live(t, s, "")
			checkNext(t, w, "", tt.floor)
			s.Update(tt.floor+1, 3, nil, func(tx *Tx) { tx.Set("new", nil) })
			for _, w := range []*Watcher{w, next, watch(t, s, "", tt.floor)} {
				checkNext(t, w, fmt.Sprintf("%d.3 new=; ", tt.floor+1), tt.floor+1)
			}
		})
	}
	t.Run("refused snapshot", func(t *testing.T) {
		s := withHistory()
		w := live(t, s, "")
		if err := s.ReadSnapshot(bytes.NewReader(snapshot[1:])); err == nil {
			t.Error("got no error")
		}
		checkNext(t, w, "", 8)
		checkNext(t, watch(t, s, "", 0), wantHistory, 8)
	})
	t.Run("clone", func(t *testing.T) {
		s := withHistory()
		w := live(t, s, "")
		c := s.Clone()
		if _, err := c.Watch("", 7); !errors.Is(err, ErrHistoryGone) {
			t.Errorf("got %v, want %v", err, ErrHistoryGone)
		}
		of := live(t, c, "")
		put(c, 9, "c", "")
		checkNext(t, of, "9.1 c=; ", 9)
		checkNext(t, w, "", 8)
		c.Reset()
		checkNext(t, w, "", 8)
	})
}

func TestCloseWatcher(t *testing.T) {
	s := New()
	a, again, b, behind := live(t, s, "ab"), live(t, s, "ab"), live(t, s, "cd"), watch(t, s, "efg", 0)
	a.Close()
	put(s, 1, "ab", "")
	a.Close()
	checkEnded(t, a, ErrClosed)
	checkNext(t, again, "1.1 ab=; ", 1)
	var wg sync.WaitGroup
	wg.Go(func() { checkEnded(t, b, ErrClosed) })
	b.Close()
	wg.Wait()
	behind.Close()
	checkEnded(t, behind, ErrClosed)
	again.Close()
	checkUnwatched(t, s)
}
