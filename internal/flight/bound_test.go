package flight

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// waitFor waits until so much is held, by so many that wait for their clients, and so many wait for room.
func waitFor(t testing.TB, b *Bound, held int64, idle, queued int) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		gotHeld, gotIdle, gotQueued := b.Counts()
		if gotHeld == held && gotIdle == idle && gotQueued == queued {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("got %d held, %d idle and %d queued, want %d, %d and %d", gotHeld, gotIdle, gotQueued, held, idle, queued)
		}
	}
}

// hold acquires n at once.
func hold(t testing.TB, b *Bound, host string, n int64) *Hold {
	t.Helper()
	h := new(Hold)
	if err := b.Acquire(t.Context(), h, host, n, 0); err != nil {
		t.Fatal(err)
	}
	return h
}

// later acquires n while the test goes on.
func later(t testing.TB, b *Bound, host string, n, held int64) (*Hold, chan error) {
	h, result := new(Hold), make(chan error, 1)
	go func() { result <- b.Acquire(t.Context(), h, host, n, held) }()
	return h, result
}

// wants waits for the result of an Acquire.
func wants(t testing.TB, what string, result chan error, want string) {
	t.Helper()
	select {
	case err := <-result:
		if got := fmt.Sprint(err); !strings.Contains(got, want) {
			t.Fatalf("%s: got %q, want %q", what, got, want)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("%s: got nothing, want %q", what, want)
	}
}

// ended is a Wait that counts how often it was ended.
type ended struct {
	mu sync.Mutex
	n  int
}

func (e *ended) End() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.n++
	return nil
}

func (e *ended) times() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.n
}

// TestWaitsForRoom: in the order of arrival, be it much or little that a request wants, and until there is room.
func TestWaitsForRoom(t *testing.T) {
	b := New(10, 10, 100)
	first := hold(t, b, "", 8)
	large, gotLarge := later(t, b, "", 5, 1)
	waitFor(t, b, 8, 0, 1)
	small, gotSmall := later(t, b, "", 1, 1)
	waitFor(t, b, 8, 0, 2) // although there is room for the small one, if the large one is before it
	first.Release()
	first.Release()
	wants(t, "large", gotLarge, "<nil>")
	wants(t, "small", gotSmall, "<nil>")
	waitFor(t, b, 6, 0, 0)
	large.Shrink(2)
	large.Shrink(3)
	waitFor(t, b, 3, 0, 0)
	all, gotAll := later(t, b, "", 1000, 1) // more than there is: as much as there is
	waitFor(t, b, 3, 0, 1)
	large.Release()
	small.Release()
	wants(t, "all", gotAll, "<nil>")
	waitFor(t, b, 10, 0, 0)
	all.Release()
	waitFor(t, b, 0, 0, 0)
	if b.held != 0 || b.wanted != 0 || len(b.hosts) != 0 {
		t.Errorf("got %d bytes of those that wait, %d wanted, %v, want none", b.held, b.wanted, b.hosts)
	}
}

// TestMaxWait: a request waits for so long and no longer, and leaves nothing behind.
func TestMaxWait(t *testing.T) {
	b := New(4, 10, 100)
	b.maxWait = 20 * time.Millisecond
	first := hold(t, b, "", 3)
	_, got := later(t, b, "", 3, 1)
	wants(t, "for all", got, "all in use for")
	second := hold(t, b, "a", 1)
	_, got = later(t, b, "a", 1, 1)
	wants(t, "for its host's", got, "this host's quarter in use for")
	_, got = later(t, b, "b", 1, 1)
	wants(t, "another host", got, "all in use for")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Acquire(ctx, new(Hold), "", 1, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("of a client that has gone: got %v, want context.Canceled", err)
	}
	first.Release()
	second.Release()
	waitFor(t, b, 0, 0, 0)
	if b.held != 0 || b.wanted != 0 || len(b.hosts) != 0 {
		t.Errorf("got %d bytes of those that wait, %d wanted, %v, want none", b.held, b.wanted, b.hosts)
	}
}

// TestQueueIsBounded: in the number of those that wait and in what they hold; of either, a host has a quarter.
func TestQueueIsBounded(t *testing.T) {
	for _, tt := range []struct {
		name       string
		host       string
		queued     int
		held       int64 // of the one that waits
		next       string
		nextHeld   int64
		want       bool // the next one waits, too
		wantOfHost bool // it is the host's part that is full
	}{
		{name: "number", queued: 1, next: ""},
		{name: "one more", queued: 2, next: "", want: true},
		{name: "number of a host", host: "a", queued: 4, next: "a", wantOfHost: true},
		{name: "another host", host: "a", queued: 4, next: "b", want: true},
		{name: "bytes", queued: 8, held: 90, nextHeld: 11},
		{name: "as many bytes as may be", queued: 8, held: 90, nextHeld: 10, want: true},
		{name: "bytes of a host", host: "a", queued: 8, held: 20, next: "a", nextHeld: 6, wantOfHost: true},
		{name: "bytes of two hosts", host: "a", queued: 8, held: 20, next: "b", nextHeld: 6, want: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := New(1, tt.queued, 100)
			first := hold(t, b, "", 1)
			h, got := later(t, b, tt.host, 1, tt.held)
			waitFor(t, b, 1, 0, 1)
			next, gotNext := later(t, b, tt.next, 1, tt.nextHeld)
			if tt.want {
				waitFor(t, b, 1, 0, 2)
			} else if err := <-gotNext; err != (ErrFull{Host: tt.wantOfHost}) {
				t.Errorf("got %v, want that the queue is full, of the host: %v", err, tt.wantOfHost)
			}
			first.Release()
			for range 2 { // either may have been the first to wait for the room itself
				select {
				case err := <-got:
					if err != nil {
						t.Fatalf("the one that waits: got %v, want room", err)
					}
					h.Release()
				case err := <-gotNext:
					if err != nil {
						t.Fatalf("the next: got %v, want room", err)
					}
					next.Release()
				}
				if !tt.want {
					break
				}
			}
			waitFor(t, b, 0, 0, 0)
		})
	}
}

// TestLongestWaitingGivesWay: of those that wait for their clients, as soon as something waits for room, and no more of
// them than it needs. What does not wait for its client keeps what it has.
func TestLongestWaitingGivesWay(t *testing.T) {
	b := New(4, 10, 100)
	waits := make([]ended, 4)
	holds := make([]*Hold, 4)
	for i := range holds {
		holds[i] = hold(t, b, "", 1)
	}
	for _, i := range []int{2, 0, 1} { // the last one does not wait
		if !holds[i].BeginWait(&waits[i]) {
			t.Fatal("got false, want that it waits")
		}
	}
	if holds[0].BeginWait(&waits[0]) {
		t.Error("another part of a request that waits: got true, want false")
	}
	if holds[2].EndWait() { // its body has come on
		t.Error("got that it gave way, although nothing waits for room")
	}
	holds[2].BeginWait(&waits[2])
	_, got := later(t, b, "", 1, 0)
	wants(t, "the next one", got, "<nil>")
	for i, want := range []int{1, 0, 0, 0} {
		if got := waits[i].times(); got != want || holds[i].Gone() != (want > 0) {
			t.Errorf("holder %d: got %d ends of its wait, gone %v, want %d", i, got, holds[i].Gone(), want)
		}
	}
	if !holds[0].EndWait() {
		t.Error("the one that gave way: got false, want true")
	}
	if holds[0].BeginWait(&waits[0]) {
		t.Error("the one that gave way waits again: got true, want false")
	}
	holds[0].Release() // which its handler does when it returns
	waitFor(t, b, 4, 2, 0)
}

// TestGraceOfAWait: a request whose body comes steadily does not give way, however full it is.
func TestGraceOfAWait(t *testing.T) {
	b := New(1, 10, 100)
	h, wait := hold(t, b, "", 1), new(ended)
	_, got := later(t, b, "", 1, 0)
	waitFor(t, b, 1, 0, 1)
	for began := time.Now(); time.Since(began) < 2*grace; {
		at := time.Now()
		h.BeginWait(wait)
		time.Sleep(time.Millisecond)
		if gone := h.EndWait(); gone && time.Since(at) < grace {
			t.Fatal("it gave way after less than it may wait")
		} else if gone { // the test was held up
			return
		}
	}
	h.Release()
	wants(t, "the next one", got, "<nil>")
}

// TestShareOfAHost: a host has a quarter; what is beyond waits for its own, and makes room among its own. A request of
// another host has room meanwhile. Without a host there is no such bound.
func TestShareOfAHost(t *testing.T) {
	b := New(8, 32, 100)
	other, otherWait := hold(t, b, "other", 1), new(ended)
	other.BeginWait(otherWait)
	busy, mine, wait := hold(t, b, "host", 1), hold(t, b, "host", 1), new(ended)
	next, got := later(t, b, "host", 1, 0)
	waitFor(t, b, 3, 1, 1)
	hold(t, b, "third", 1).Release()
	mine.BeginWait(wait)
	wants(t, "the next of the host", got, "<nil>")
	if got, of := wait.times(), otherWait.times(); got != 1 || of != 0 {
		t.Errorf("got %d ends of the wait of its own, %d of another host's, want 1 and 0", got, of)
	}
	large, got := later(t, b, "host", 100, 0) // more than a host may have: as much as it may
	waitFor(t, b, 3, 1, 1)
	busy.Release()
	next.Release()
	wants(t, "all of the host", got, "<nil>")
	waitFor(t, b, 3, 1, 0)
	var locals []*Hold
	for range 5 {
		locals = append(locals, hold(t, b, "", 1))
	}
	last, got := later(t, b, "", 1, 0) // now of all
	wants(t, "one without a host", got, "<nil>")
	if got := otherWait.times(); got != 1 {
		t.Errorf("another host's that waits when all is taken: got %d ends, want 1", got)
	}
	for _, h := range append(locals, large, last, other) {
		h.Release()
	}
	waitFor(t, b, 0, 0, 0)
	if len(b.hosts) != 0 {
		t.Errorf("got %v, want no host left", b.hosts)
	}
}

// TestManyAtOnce: nothing is lost or held twice when many requests come and go, of several hosts, with waits that are
// given up.
func TestManyAtOnce(t *testing.T) {
	b := New(16, 64, 1<<20)
	var all sync.WaitGroup
	for i := range 64 {
		all.Go(func() {
			for k := range 50 {
				host := []string{"", "a", "b"}[(i+k)%3]
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(k%5)*time.Millisecond+time.Microsecond)
				h := new(Hold)
				if b.Acquire(ctx, h, host, int64(1+k%7), 1) == nil {
					if held, _, _ := b.Counts(); held > 16 {
						t.Errorf("got %d held, want 16 at most", held)
					}
					if h.BeginWait(new(ended)) {
						h.EndWait()
					}
					h.Release()
				}
				cancel()
			}
		})
	}
	all.Wait()
	waitFor(t, b, 0, 0, 0)
	if !b.all.TryAcquire(16) || len(b.hosts) != 0 || b.held != 0 || b.wanted != 0 {
		t.Errorf("got %v, %d bytes, %d wanted, want all free", b.hosts, b.held, b.wanted)
	}
}

// BenchmarkAcquire is what a request pays when there is room.
func BenchmarkAcquire(b *testing.B) {
	bound := New(2048, 8192, 64<<20)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			var h Hold
			if bound.Acquire(context.Background(), &h, "", 1, 0) == nil {
				h.Release()
			}
		}
	})
}
