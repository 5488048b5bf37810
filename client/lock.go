package client

import (
	"context"
	"crypto/rand"
	"errors"
	"sync"
	"time"
)

// DefaultTTL is that of a Lock or Election that names none.
const DefaultTTL = 15 * time.Second

// ErrLost is returned by Unlock for a lock that another may have held since.
var ErrLost = errors.New("the lock was lost")

// Lock is a lock that this program holds: a key with a TTL, which is set again as long as it is
// held, and goes by itself when the program is gone. Its methods may be called by several
// goroutines at once.
//
// A program that was stopped, or cut off, may believe for a moment that it holds a lock which
// another has by now. Lost ends that within the TTL, counted by this program's clock. Where a moment
// is too long, what the lock protects has to refuse a Fence that is lower than one it has seen.
type Lock struct {
	client *Client
	key    string
	value  []byte
	ttl    time.Duration
	fence  uint64
	lost   chan struct{}
	cancel context.CancelFunc
	ended  sync.WaitGroup // the goroutine that keeps it

	etag string // of the key; written by that goroutine, until it has ended
}

// Lock waits until the key is free, and takes it with a random value. A ttl of 0 is DefaultTTL; see
// TTL. Those that wait are not served in any order.
func (c *Client) Lock(ctx context.Context, key string, ttl time.Duration) (*Lock, error) {
	return c.lock(ctx, key, []byte(rand.Text()), ttl)
}

func (c *Client) lock(ctx context.Context, key string, value []byte, ttl time.Duration) (*Lock, error) {
	if ttl == 0 {
		ttl = DefaultTTL
	}
	for {
		l := &Lock{client: c, key: key, value: value, ttl: ttl, lost: make(chan struct{})}
		end, err := l.set(ctx, IfAbsent())
		if err == nil && time.Now().Before(end) {
			kept, cancel := context.WithCancel(context.WithoutCancel(ctx))
			l.cancel = cancel
			l.ended.Go(func() { l.keep(kept, end) })
			return l, nil
		}
		if err != nil && !errors.Is(err, ErrPreconditionFailed) {
			return nil, err
		}
		if err := c.waitAbsent(ctx, key); err != nil { // also if it came too late, and so is another's, or about to go
			return nil, err
		}
	}
}

// set sets the key once, and returns until when it can't have gone. A call whose outcome is unknown
// is made again, with the same idempotency key, until ctx ends.
func (l *Lock) set(ctx context.Context, condition WriteOption) (end time.Time, err error) {
	once := IdempotencyKey(rand.Text())
	for failures := 0; ; failures++ {
		begin := time.Now()
		result, err := l.client.Set(ctx, l.key, l.value, condition, once, TTL(l.ttl))
		if err == nil {
			if l.etag = result.ETag; l.fence == 0 {
				l.fence = result.Index
			}
			if failures > 0 { // it may have been done by the first call
				return end, nil
			}
			return begin.Add(l.ttl), nil
		}
		if failures == 0 {
			end = begin.Add(l.ttl)
		}
		if !errors.Is(err, ErrUnknown) || !sleep(ctx, pause(failures)) {
			return time.Time{}, err
		}
	}
}

// keep sets the key again, in time, until it is canceled or the lock is lost.
func (l *Lock) keep(ctx context.Context, end time.Time) {
	defer close(l.lost)
	for sleep(ctx, time.Until(end.Add(-l.ttl*2/3))) {
		attempt, cancel := context.WithDeadline(ctx, end)
		next, err := l.set(attempt, IfMatch(l.etag))
		cancel()
		switch {
		case err == nil:
			end = next
		case errors.Is(err, ErrPreconditionFailed), !time.Now().Before(end):
			return
		case !sleep(ctx, min(l.ttl/10, time.Until(end))): // refused for now: once more, as long as there is time
			return
		}
	}
}

// waitAbsent returns nil when there is no such key.
func (c *Client) waitAbsent(ctx context.Context, key string) error {
	for e, err := range c.ListWatch(ctx, key) {
		if err != nil {
			return err
		}
		there := !e.Reset
		for _, item := range e.Items {
			there = there || item.Key == key
		}
		for _, change := range e.Changes {
			there = there && !(change.Key == key && change.Removed)
		}
		if !there {
			return nil
		}
	}
	return ctx.Err()
}

// Fence returns the index of the entry that took the lock: it is higher for each that takes it.
func (l *Lock) Fence() uint64 { return l.fence }

// Lost returns a channel that is closed when the lock can't be counted on any more, or was unlocked.
func (l *Lock) Lost() <-chan struct{} { return l.lost }

// Held returns the condition of a transaction that the lock is held still: a write that carries it
// is done by no one else.
func (l *Lock) Held() Compare { return HasValue(l.key, l.value) }

// Unlock gives the lock up, and returns nil when the next may have it. The error is ErrLost if it was
// lost before; after any other one, the lock goes by itself within its TTL.
func (l *Lock) Unlock(ctx context.Context) error {
	l.cancel()
	l.ended.Wait()
	// By its value, not its ETag: the last renewal may have been done, and its answer not have come.
	result, err := l.client.Txn(ctx, Txn{If: []Compare{l.Held()}, Then: []Op{RemoveOp(l.key)}})
	if err == nil && !result.Held {
		return ErrLost
	}
	return err
}

// Election has one of its candidates lead at a time: the one that holds the Lock of the key, whose
// value tells the others who that is.
type Election struct {
	Client *Client
	Key    string
	TTL    time.Duration // 0: DefaultTTL
}

// Campaign waits until the candidate leads. Others get its name, an address for instance, by Leader.
// It leads until Lost, or until it gives up by Unlock. No two candidates may have the same name.
func (e Election) Campaign(ctx context.Context, name string) (*Lock, error) {
	return e.Client.lock(ctx, e.Key, []byte(name), e.TTL)
}

// Leader returns the name of the candidate that leads. The error is ErrNotFound if none does.
func (e Election) Leader(ctx context.Context) (name string, err error) {
	item, err := e.Client.Get(ctx, e.Key)
	return string(item.Value), err
}
