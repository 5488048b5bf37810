// Package flight bounds what the requests under way hold: slots, each of which one request has, and bytes of memory.
//
// A request that finds no room waits for a while, in the order of arrival, and is refused then. Each remote host
// (connlimit.Host) has a quarter of everything and waits in a queue of its own for what is beyond, so that no host
// keeps another one waiting for more than its quarter.
//
// golang.org/x/sync/semaphore has the counting and the queues. What it has not is here: shares of hosts, a bound on
// those that wait and on the memory that they hold meanwhile, and holders that give way.
package flight

import (
	"container/list"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"raftkv/internal/connlimit"
)

// MaxWait is how long a request waits for room, unless its own context ends earlier.
const MaxWait = 5 * time.Second

const (
	// grace is how long a holder has waited for its client before it gives way. It is more than the part of a body that
	// is on its way takes, also on a busy machine, and less than anybody should wait for a client that sends nothing.
	grace = 250 * time.Millisecond
	// lookEvery is how often holders that give way are looked for while something waits.
	lookEvery = 50 * time.Millisecond
)

// ErrFull is the error of Acquire when there is no room.
type ErrFull struct {
	Host bool          // it is the share of the host that is used up, not the whole
	For  time.Duration // how long the request has waited; 0: the queue was full too
}

func (e ErrFull) Error() string {
	of := "all"
	if e.Host {
		of = "this host's quarter"
	}
	return fmt.Sprintf("%s in use for %v", of, e.For.Round(time.Millisecond))
}

// Bound is what requests hold at most of one thing. When something waits for room, the holders that have waited for
// their clients, for longer than grace and for longest, give way to it: to announce a body and not to send it, or not
// to read an answer, costs a client next to nothing, and so keeps nobody out.
//
// Its methods may be called by several goroutines at once.
type Bound struct {
	max, share int64 // of all, of a host
	maxQueued  int
	maxHeld    int64
	maxWait    time.Duration // MaxWait; shorter in tests
	all        *semaphore.Weighted
	taken      atomic.Int64 // of all

	mu      sync.Mutex // guards what follows, and the fields of every Hold
	hosts   map[string]*host
	idle    list.List // of *Hold: those that wait for their clients, the one that began longest ago first
	wanted  int64     // what those wait for that wait for room of all
	queued  int       // how many wait for room
	held    int64     // bytes that those hold
	looking bool      // look runs
}

// host is the share of a remote host, while it has or wants any of it.
type host struct {
	room   *semaphore.Weighted
	users  int // that hold some or wait for it
	wanted int64
	queued int
	held   int64 // as Bound.held
}

// New returns a bound of max. At most queued requests wait for room, which meanwhile hold heldBytes at most; a host may
// have a quarter of either.
func New(max int64, queued int, heldBytes int64) *Bound {
	return &Bound{max: max, share: int64(connlimit.PerHost(int(max))), maxQueued: queued, maxHeld: heldBytes,
		maxWait: MaxWait,
		all:     semaphore.NewWeighted(max), hosts: make(map[string]*host)}
}

// Max is the bound.
func (b *Bound) Max() int64 { return b.max }

// Counts returns how much is held, how many of the holders wait for their clients, and how many requests wait for room.
func (b *Bound) Counts() (held int64, idle, queued int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.taken.Load(), b.idle.Len(), b.queued
}

// Hold is what one request holds of a Bound; the zero Hold holds nothing.
type Hold struct {
	bound *Bound
	host  string
	n     int64
	idle  *list.Element // in Bound.idle; nil: it does not wait for its client
	since time.Time     // that it does
	wait  Wait          // that one
	gone  bool          // it was released, or another has it
}

// Wait is that of a request for its client: for the next part of its body, or for it to read on. End ends it, and does
// not block.
type Wait interface{ End() error }

// Acquire has h, a zero Hold, hold n for a request of a host of connlimit.Host, and as much as there is at all if n is
// more. While it waits, it holds heldBytes of memory. Its error is an ErrFull, or that of ctx.
func (b *Bound) Acquire(ctx context.Context, h *Hold, of string, n, heldBytes int64) error {
	n = min(n, b.max)
	var own *host
	if of != "" {
		n = min(n, b.share)
		own = b.join(of)
	}
	if !b.try(own, n) {
		if err := b.wait(ctx, own, n, heldBytes); err != nil {
			b.leave(of, own)
			return err
		}
	}
	b.taken.Add(n)
	h.bound, h.host, h.n = b, of, n
	return nil
}

// try takes n if there is room at once and nothing waits for it.
func (b *Bound) try(own *host, n int64) bool {
	if own != nil && !own.room.TryAcquire(n) {
		return false
	}
	if b.all.TryAcquire(n) {
		return true
	}
	if own != nil {
		own.room.Release(n)
	}
	return false
}

// wait is the way of Acquire when there is no room at once.
func (b *Bound) wait(ctx context.Context, own *host, n, heldBytes int64) error {
	b.mu.Lock()
	full := b.queued >= b.maxQueued || b.held+heldBytes > b.maxHeld
	hostFull := own != nil && (own.queued >= connlimit.PerHost(b.maxQueued) || own.held+heldBytes > b.maxHeld/4)
	if full || hostFull {
		b.mu.Unlock()
		return ErrFull{Host: !full}
	}
	b.queue(own, 1, heldBytes)
	if !b.looking {
		b.looking = true
		go b.look()
	}
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		b.queue(own, -1, -heldBytes)
		b.mu.Unlock()
	}()
	waiting, cancel := context.WithTimeout(ctx, b.maxWait)
	defer cancel()
	began := time.Now()
	// The host's room comes first, so that no host has more than its quarter of what is held and waited for.
	ofHost := own != nil
	if ofHost {
		if b.acquire(waiting, own.room, &own.wanted, n) != nil {
			return b.gaveUp(ctx, ErrFull{true, time.Since(began)})
		}
	}
	if b.acquire(waiting, b.all, &b.wanted, n) != nil {
		if ofHost {
			own.room.Release(n)
		}
		return b.gaveUp(ctx, ErrFull{false, time.Since(began)})
	}
	return nil
}

// gaveUp is the error when the wait has ended.
func (b *Bound) gaveUp(ctx context.Context, err ErrFull) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// acquire waits for n of room, and counts it in wanted meanwhile.
func (b *Bound) acquire(ctx context.Context, room *semaphore.Weighted, wanted *int64, n int64) error {
	if room.TryAcquire(n) {
		return nil
	}
	b.mu.Lock()
	*wanted += n
	b.evict(time.Now(), n)
	b.mu.Unlock()
	err := room.Acquire(ctx, n)
	b.mu.Lock()
	*wanted -= n
	b.mu.Unlock()
	return err
}

// queue counts requests that wait, and what they hold. b.mu is held.
func (b *Bound) queue(own *host, n int, heldBytes int64) {
	b.queued += n
	b.held += heldBytes
	if own != nil {
		own.queued += n
		own.held += heldBytes
	}
}

// join returns the share of a host, with one user more.
func (b *Bound) join(of string) *host {
	b.mu.Lock()
	defer b.mu.Unlock()
	own := b.hosts[of]
	if own == nil {
		own = &host{room: semaphore.NewWeighted(b.share)}
		b.hosts[of] = own
	}
	own.users++
	return own
}

// leave takes a user from the share of a host; own is nil for one that has none.
func (b *Bound) leave(of string, own *host) {
	if own == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.leaveLocked(of, own)
}

func (b *Bound) leaveLocked(of string, own *host) {
	if own.users--; own.users == 0 {
		delete(b.hosts, of)
	}
}

// look has holders give way as long as something waits for room.
func (b *Bound) look() {
	for {
		time.Sleep(lookEvery)
		b.mu.Lock()
		if b.queued == 0 {
			b.looking = false
			b.mu.Unlock()
			return
		}
		b.evict(time.Now(), b.max)
		b.mu.Unlock()
	}
}

// evict has those holders give way that have waited for their clients longest, as far as something waits for what they
// hold: for room of all, or of their host. It frees about most. b.mu is held.
func (b *Bound) evict(now time.Time, most int64) {
	freed := int64(0)               // of what those want that wait for room of all
	ofHost := make(map[*host]int64) // of what those of a host want that wait for its room
	for e := b.idle.Front(); e != nil && most > 0; {
		h := e.Value.(*Hold)
		if now.Sub(h.since) < grace {
			return
		}
		e = e.Next()
		own := b.hosts[h.host]
		if freed >= b.wanted && (own == nil || ofHost[own] >= own.wanted) {
			continue
		}
		freed += h.n
		ofHost[own] += h.n
		most -= h.n
		// While it is in the list, it is within a read or a write, so that what is ended is that of its own request.
		_ = h.wait.End()
		b.release(h)
	}
}

// Release gives back what h holds, once: the second call does nothing.
func (h *Hold) Release() {
	if h.bound == nil {
		return
	}
	h.bound.mu.Lock()
	defer h.bound.mu.Unlock()
	h.bound.release(h)
}

// release is Release. b.mu is held.
func (b *Bound) release(h *Hold) {
	if h.gone {
		return
	}
	h.gone = true
	b.endIdle(h)
	b.give(h.host, h.n)
	if h.host != "" {
		b.leaveLocked(h.host, b.hosts[h.host])
	}
}

// endIdle takes h off those that wait for their clients. b.mu is held.
func (b *Bound) endIdle(h *Hold) {
	if h.idle != nil {
		b.idle.Remove(h.idle)
		h.idle, h.wait = nil, nil
	}
}

// Shrink gives back what h holds beyond n.
func (h *Hold) Shrink(n int64) {
	if h.bound == nil {
		return
	}
	b := h.bound
	b.mu.Lock()
	defer b.mu.Unlock()
	back := h.n - n
	if h.gone || back <= 0 {
		return
	}
	h.n = n
	b.give(h.host, back)
}

// give gives back n of a host. b.mu is held.
func (b *Bound) give(of string, n int64) {
	b.taken.Add(-n)
	b.all.Release(n)
	if of != "" {
		b.hosts[of].room.Release(n)
	}
}

// BeginWait notes that the request waits for its client from now on. It returns false, and EndWait is not to be called,
// if h holds nothing, or if another part of the request waits already.
func (h *Hold) BeginWait(w Wait) bool {
	if h.bound == nil {
		return false
	}
	b := h.bound
	b.mu.Lock()
	defer b.mu.Unlock()
	if h.gone || h.idle != nil {
		return false
	}
	h.since, h.wait = time.Now(), w
	h.idle = b.idle.PushBack(h)
	return true
}

// EndWait notes that it does so no more. It returns whether another request has been given what h held meanwhile: then
// this one has to end.
func (h *Hold) EndWait() (gone bool) {
	b := h.bound
	b.mu.Lock()
	defer b.mu.Unlock()
	b.endIdle(h)
	return h.gone
}

// Gone reports whether h was released, or what it held was given to another request.
func (h *Hold) Gone() bool {
	if h.bound == nil {
		return false
	}
	h.bound.mu.Lock()
	defer h.bound.mu.Unlock()
	return h.gone
}
