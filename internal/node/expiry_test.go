package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"raftkv/internal/command"
	"raftkv/internal/kv"
)

// timing is an expiry on a store, without raft and with a clock of its own.
type timing struct {
	expiry
	store    *kv.Store
	index    uint64
	clock    time.Time
	term     uint64
	leads    bool
	entries  int
	failures int // of the next proposals
	takes    time.Duration
}

func newTiming() *timing {
	x := &timing{store: kv.New(), clock: time.Now(), term: 1, leads: true}
	x.expiry = expiry{
		machine: machine{store: x.store}, propose: x.apply, now: func() time.Time { return x.clock }, pause: time.Second,
	}
	return x
}

func (x *timing) update(change func(tx *kv.Tx)) {
	x.index++
	x.store.Update(x.index, 1, nil, change)
}

func (x *timing) apply(_ context.Context, c command.Command) (command.Result, error) {
	if x.failures > 0 {
		x.failures--
		x.clock = x.clock.Add(x.takes)
		return command.Result{}, errors.New("no majority")
	}
	x.entries++
	x.update(func(tx *kv.Tx) {
		for _, timed := range c.Txn.If {
			tx.Expire(timed.Key, timed.Index)
		}
	})
	return command.Result{}, nil
}

func (x *timing) set(ttl time.Duration, keys ...string) {
	x.update(func(tx *kv.Tx) {
		for _, key := range keys {
			tx.SetLeased(key, nil, kv.Lease{TTL: ttl})
		}
	})
}

// run looks every step, for so long.
func (x *timing) run(long time.Duration) {
	for end := x.clock.Add(long); x.clock.Before(end); x.clock = x.clock.Add(expiryStep) {
		x.look(context.Background(), x.leads, x.term)
	}
}

func (x *timing) keys() (keys []string) {
	x.store.Ascend("", func(key string, _ kv.Item) bool {
		keys = append(keys, key)
		return true
	})
	return keys
}

func (x *timing) want(t *testing.T, when string, keys ...string) {
	t.Helper()
	if got := x.keys(); !slices.Equal(got, keys) {
		t.Errorf("%s: got %q, want %q", when, got, keys)
	}
}

// TestExpiry: a key goes when its time is over, and not before, whatever happens in the meantime.
func TestExpiry(t *testing.T) {
	for _, tt := range []struct {
		name      string
		meanwhile func(x *timing) // 6 s after the key with 10 s was set
		after     time.Duration   // from then on, when it must have gone; half a second earlier it must not
	}{
		{name: "nothing", meanwhile: func(*timing) {}, after: 4 * time.Second},
		{name: "set again", meanwhile: func(x *timing) { x.set(10*time.Second, "k") }, after: 10 * time.Second},
		{name: "set again, for longer", meanwhile: func(x *timing) { x.set(20*time.Second, "k") }, after: 20 * time.Second},
		{name: "set again, for less", meanwhile: func(x *timing) { x.set(time.Second, "k") }, after: time.Second},
		{name: "a new term", meanwhile: func(x *timing) { x.term++ }, after: 10 * time.Second},
		{name: "another led", meanwhile: func(x *timing) {
			x.leads = false
			x.run(time.Second / 2)
			x.leads = true
		}, after: 10 * time.Second},
		{name: "stopped", meanwhile: func(x *timing) { x.clock = x.clock.Add(time.Hour) }, after: 10 * time.Second},
		{name: "restored", meanwhile: func(x *timing) {
			x.update(func(tx *kv.Tx) {
				tx.Stage("k", nil)
				tx.StageLease("k", kv.Lease{TTL: 10 * time.Second})
			})
			x.set(time.Hour, "before") // later than what is restored
			x.run(expiryStep)
			x.update(func(tx *kv.Tx) { tx.Restore(1, 0) })
		}, after: 10 * time.Second},
		{name: "a refused proposal", meanwhile: func(x *timing) { x.failures = 3 }, after: 4*time.Second + 3*expiryStep},
		{
			name:      "a proposal that takes too long",
			meanwhile: func(x *timing) { x.failures, x.takes = 1, 5*time.Second },
			after:     4*time.Second + 5*time.Second + 10*time.Second,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			x := newTiming()
			x.set(10*time.Second, "k")
			x.run(6 * time.Second)
			tt.meanwhile(x)
			x.run(tt.after - time.Second/2)
			x.want(t, "just before", "k")
			x.run(time.Second)
			x.want(t, "just after")
		})
	}
}

// TestExpiryOfMany: those whose time is over go together, in few entries, and what is kept of those that are gone
// before has a bound.
func TestExpiryOfMany(t *testing.T) {
	x := newTiming()
	const keys = 10 * expiryBatch
	for i := range keys {
		x.set(2*time.Second, fmt.Sprint("k", i))
	}
	x.set(time.Minute, "stays")
	x.run(4 * time.Second)
	x.want(t, "after their time", "stays")
	if want := keys / expiryBatch; x.entries != want {
		t.Errorf("entries: got %d, want %d", x.entries, want)
	}
	for i := range keys {
		x.set(time.Hour, fmt.Sprint("gone", i))
		x.look(context.Background(), true, 1)
		x.update(func(tx *kv.Tx) { tx.RemovePrefix("gone") })
		if got := max(len(x.upcoming), len(x.byKey)); got > 2*expiryBatch+2 {
			t.Fatalf("after %d keys that were removed: got %d in memory, want a bound", i, got)
		}
	}
	x.want(t, "at the end", "stays")
}

// TestTTL: in a cluster, a key goes on every node, also when the leader that timed it is gone.
func TestTTL(t *testing.T) {
	n1, n2, n3 := openNode(t, "n1", t.TempDir()), openNode(t, "n2", t.TempDir()), openNode(t, "n3", t.TempDir())
	n1.waitLeader(t)
	n1.join(t, n2)
	n1.join(t, n3)
	nodes := []*testNode{n1, n2, n3}
	set := func(n *testNode, key string) time.Time {
		t.Helper()
		c := setting(key, "v")
		c.Options = &command.Options{Lease: command.Lease{TTL: time.Second}}
		begin := time.Now()
		result, err := n.Propose(context.Background(), c)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range nodes {
			waitFor(t, key+" is at "+n.config.ID, func() bool { return n.applied() >= result.Index })
		}
		return begin
	}
	gone := func(set time.Time, key string, nodes ...*testNode) {
		t.Helper()
		for _, n := range nodes {
			waitFor(t, key+" goes at "+n.config.ID, func() bool { _, ok := n.machine.store.Get(key); return !ok })
		}
		if took := time.Since(set); took < time.Second {
			t.Errorf("%s went after %v, want a second or more", key, took)
		}
	}
	gone(set(n1, "first"), "first", nodes...)
	begin := set(n1, "second")
	n1.stop()
	gone(begin, "second", n2, n3)
	checkReplicas(t, n2, n3)
}

// TestTimeLeft: what is left of a key's time is that of the entry that last set it, once that was seen.
func TestTimeLeft(t *testing.T) {
	x := newTiming()
	x.set(10*time.Second, "k") // index 1
	if left, known := x.left("k", 1); known {
		t.Errorf("before a look: got %v, want that it is not known", left)
	}
	x.run(2 * time.Second)
	if left, known := x.left("k", 1); !known || left < 7*time.Second || left > 8*time.Second {
		t.Errorf("after 2 of 10 s: got %v, %t, want 8 s", left, known)
	}
	x.set(10*time.Second, "k") // index 2
	if left, known := x.left("k", 2); known {
		t.Errorf("of an entry that was not seen yet: got %v, want that it is not known", left)
	}
	x.run(expiryStep)
	if left, known := x.left("k", 2); !known || left < 9*time.Second {
		t.Errorf("set again: got %v, %t, want 10 s", left, known)
	}
}
