package faults

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"raftkv/internal/testkit"
)

// leasePrefix is that of the keys that end. They are in no other history: whether one is there depends on the time.
const leasePrefix = "lease."

// leases counts what the clients of keys that end have seen.
type leases struct {
	set, early atomic.Int64
	reads      atomic.Int64 // that came in time to find out
}

// lease is the client of a node that sets keys with a TTL, and others that go with them, and looks for the one fault
// that must never be: a key that goes before its time is over, counted from before it was set. That one goes late is
// normal while leaders change; that it goes is checked at the end, by leasesEnd. And no view of the data has a key that
// goes with another one without that one.
func (w *world) lease(number int, n *node) {
	random := rand.New(rand.NewPCG(*seed, uint64(900+number)))
	session := ""
	var until time.Time // it must be there; zero: that is not known
	step := func(i int) {
		if session == "" || random.IntN(8) == 0 { // a new one; the last one is left to itself
			session, until = fmt.Sprintf("%s%d.%d", leasePrefix, number, i), time.Time{}
		}
		ttl := time.Second + time.Duration(random.IntN(2000))*time.Millisecond
		begin := time.Now()
		_, err := n.ask(3*time.Second, "/set", url.Values{"key": {session}, "value": {"v"}, "ttl": {ttl.String()}})
		if err != nil {
			session = "" // nobody knows what it has become
			return
		}
		until = begin.Add(ttl)
		w.leases.set.Add(1)
		_, _ = n.ask(3*time.Second, "/set", url.Values{"key": {session + ".child"}, "value": {"v"}, "lease": {session}})
		reader := w.nodes[random.IntN(len(w.nodes))]
		if !reader.active() || reader.shut.Load() {
			reader = n
		}
		r, err := http.NewRequest(http.MethodGet, reader.base()+"/get?key="+session, nil)
		if err != nil {
			w.problem("%v", err)
			return
		}
		c := *asking
		c.Timeout = 3 * time.Second
		a, err := testkit.Send(&c, r)
		if err == nil && time.Now().Before(until) {
			w.leases.reads.Add(1)
			if a.Status == http.StatusNotFound {
				w.leases.early.Add(1)
				w.problem("%s: %s with a TTL of %v was gone after %v", reader.id, session, ttl, time.Since(begin))
			}
		}
		list, err := n.ask(3*time.Second, "/list", url.Values{"prefix": {leasePrefix}})
		if err != nil {
			return
		}
		there := make(map[string]bool)
		for d := json.NewDecoder(strings.NewReader(list)); d.More(); {
			var line struct{ Key, Lease string }
			if d.Decode(&line) != nil {
				return // it broke off
			}
			if there[line.Key] = true; line.Lease != "" && !there[line.Lease] { // which comes before it
				w.problem("%s: %s is there without %s", n.id, line.Key, line.Lease)
			}
		}
	}
	w.clients.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-w.done:
				return
			case <-time.After(time.Duration(20+random.IntN(200)) * time.Millisecond):
			}
			w.paused.RLock()
			n.open.RLock()
			if !n.shut.Load() {
				step(i)
			}
			n.open.RUnlock()
			w.paused.RUnlock()
		}
	})
}

// leasesEnd waits until all keys that end are gone, and checks that the clients have seen what they are for.
func (w *world) leasesEnd() {
	w.t.Helper()
	err := testkit.Poll(bound, func() error {
		err := errors.New("no node to ask")
		for _, n := range w.nodes {
			if !n.active() || n.shut.Load() {
				continue
			}
			var list string
			if list, err = n.ask(5*time.Second, "/list", url.Values{"prefix": {leasePrefix}, "limit": {"5"}}); err != nil {
				continue
			}
			if list != "" {
				return fmt.Errorf("%s still has\n%s", n.id, list)
			}
			return nil
		}
		return err
	})
	if err != nil {
		w.fail("keys that end: %v", err)
	}
	if got := w.leases.reads.Load(); w.rounds > 3 && got == 0 {
		w.t.Errorf("%s: got no read of a key that ends in its time, want some", w.name)
	}
	w.t.Logf("%s: keys with a TTL were set %d times, and read %d times before they may go: %d were gone", w.name,
		w.leases.set.Load(), w.leases.reads.Load(), w.leases.early.Load())
}
