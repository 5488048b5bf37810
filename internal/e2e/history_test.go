package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"raftkv/internal/testkit"
)

// fate is what became of a set.
type fate int

const (
	unknown fate = iota // the key may be there, and then on all nodes
	done                // it was acknowledged: it must be there
	refused             // it was definitely not applied: it must not be there
)

// history is what was sent to a cluster. Every key is set once, to value(key). Its methods may be called concurrently.
type history struct {
	padding string // of each value; not changed once in use

	mu         sync.Mutex // guards what follows
	fates      map[string]fate
	count      [refused + 1]int
	unexpected []string // answers that are in no table
	writers    int      // so many were started
}

func newHistory() *history { return &history{fates: make(map[string]fate)} }

func (h *history) value(key string) string { return "value of " + key + h.padding }

func (h *history) note(key string, f fate) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fates[key] = f
	h.count[f]++
}

func (h *history) acknowledged() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.count[done]
}

// waitMore waits until so many more sets are acknowledged.
func (h *history) waitMore(t testing.TB, more int) {
	t.Helper()
	want := h.acknowledged() + more
	testkit.Eventually(t, "acknowledged sets", func() error {
		if got := h.acknowledged(); got < want {
			return fmt.Errorf("got %d, want %d", got, want)
		}
		return nil
	})
}

// set sets key at a node, following redirects to the leader. It sends POST: of a GET whose connection breaks, net/http
// would send a second one unasked.
func (h *history) set(t testing.TB, n *testkit.Node, key string) (f fate) {
	defer func() { h.note(key, f) }()
	a, err := testkit.Send(testkit.Following, n.Request(t, http.MethodPost, "/set", testkit.Pair(key, h.value(key))))
	if op := (*net.OpError)(nil); errors.As(err, &op) && op.Op == "dial" {
		return refused
	}
	if err != nil {
		return unknown
	}
	switch a.Status {
	case http.StatusOK:
		return done
	case http.StatusServiceUnavailable:
		return refused
	case http.StatusGatewayTimeout:
		return unknown
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.unexpected = append(h.unexpected, fmt.Sprintf("set %s at %s: %d: %s", key, n.ID, a.Status, a.Body))
	return unknown
}

// write sets new keys at all nodes in turn, from several goroutines, until stop is called.
func (h *history) write(t testing.TB, nodes ...*testkit.Node) (stop func()) {
	ended := make(chan struct{})
	var running sync.WaitGroup
	for range 4 {
		h.mu.Lock()
		h.writers++
		writer := h.writers
		h.mu.Unlock()
		running.Go(func() {
			pace := time.NewTicker(5 * time.Millisecond) // leaves some of the machine to the nodes
			defer pace.Stop()
			for i := 0; ; i++ {
				h.set(t, nodes[(writer+i)%len(nodes)], fmt.Sprintf("writer-%d-%d", writer, i))
				select {
				case <-pace.C:
				case <-ended:
					return
				}
			}
		})
	}
	stop = sync.OnceFunc(func() { close(ended); running.Wait() })
	t.Cleanup(stop)
	return stop
}

// check checks that all nodes hold the same: all that was acknowledged and nothing that was
// refused or never sent. It is called while nobody writes.
func (h *history) check(t testing.TB, nodes ...*testkit.Node) {
	t.Helper()
	testkit.Eventually(t, "a last set", func() error { // what has no answer yet is before it
		if f := h.set(t, nodes[0], fmt.Sprint("last-", len(h.fates))); f != done {
			return fmt.Errorf("got fate %d", f)
		}
		return nil
	})
	has := testkit.CheckReplicas(t, nodes...)
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, answer := range h.unexpected {
		t.Error(answer)
	}
	for key, f := range h.fates {
		switch value, ok := has[key]; {
		case f == done && !ok:
			t.Errorf("%s: got nothing, want what was acknowledged", key)
		case f == refused && ok:
			t.Errorf("%s: got a value, want none: it was answered as not applied", key)
		case ok && value != h.value(key):
			t.Errorf("%s: got %q, want %q", key, value, h.value(key))
		}
	}
	for key := range has {
		if _, ok := h.fates[key]; !ok {
			t.Errorf("%s: got a value, want none: it was never sent", key)
		}
	}
	t.Logf("%d nodes hold the same %d keys: %d sets acknowledged, %d refused, %d unknown",
		len(nodes), len(has), h.count[done], h.count[refused], h.count[unknown])
}
