package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"raftkv/client"
	"raftkv/internal/lincheck"
	"raftkv/internal/testkit"
)

// newClient returns a client of the nodes.
func newClient(t testing.TB, nodes ...*testkit.Node) *client.Client {
	t.Helper()
	var endpoints []string
	for _, n := range nodes {
		endpoints = append(endpoints, n.Base)
	}
	c, err := client.New(client.Config{Endpoints: endpoints})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// recorded does what package client offers, and records it.
type recorded struct {
	*client.Client
	id      int
	history *lincheck.Recorder
	values  int
	tags    map[string]client.Item // as last seen
}

func resultOf(err error) lincheck.Result {
	switch {
	case err == nil:
		return lincheck.Done
	case errors.Is(err, client.ErrPreconditionFailed):
		return lincheck.Failed
	case errors.Is(err, client.ErrNotApplied):
		return lincheck.NotApplied
	}
	return lincheck.Unknown
}

// act does one thing, at random, with keys of a group.
func (r *recorded) act(ctx context.Context, group string) {
	key, other := group+string(rune('a'+rand.IntN(3))), group+"d"
	made := func() string {
		r.values++
		return fmt.Sprintf("%d-%d", r.id, r.values)
	}
	in := lincheck.Input{Group: group, Keys: []string{key}}
	var run func() lincheck.Output
	write := func(_ client.Result, err error) lincheck.Output { return lincheck.Output{Result: resultOf(err)} }
	switch known, dice := r.tags[key], rand.IntN(10); {
	case dice < 3:
		in.Kind = lincheck.Get
		run = func() lincheck.Output {
			out := lincheck.Output{Found: make(map[string]string)}
			item, err := r.Get(ctx, key)
			delete(r.tags, key)
			switch {
			case err == nil:
				out.Found[key], r.tags[key] = string(item.Value), item
			case errors.Is(err, client.ErrNotFound):
				err = nil
			}
			out.Result = resultOf(err)
			return out
		}
	case dice < 5 && known.ETag != "":
		in.Kind, in.IfMatch, in.Values = lincheck.Set, string(known.Value), []string{made()}
		run = func() lincheck.Output {
			return write(r.Set(ctx, key, []byte(in.Values[0]), client.IfMatch(known.ETag)))
		}
	case dice < 6:
		in.Kind, in.IfAbsent, in.Values = lincheck.Set, true, []string{made()}
		run = func() lincheck.Output { return write(r.Set(ctx, key, []byte(in.Values[0]), client.IfAbsent())) }
	case dice < 7:
		in.Kind, in.Keys, in.Values = lincheck.Set, []string{key, other}, []string{made(), made()}
		run = func() lincheck.Output {
			return write(r.SetAll(ctx, map[string][]byte{key: []byte(in.Values[0]), other: []byte(in.Values[1])}))
		}
	case dice < 8:
		in.Kind = lincheck.Remove
		run = func() lincheck.Output {
			result, err := r.Remove(ctx, in.Keys)
			return lincheck.Output{Result: resultOf(err), Removed: result.Removed}
		}
	case dice < 9:
		in.Kind, in.Keys = lincheck.List, nil
		run = func() lincheck.Output {
			out := lincheck.Output{Result: lincheck.Done, Found: make(map[string]string)}
			for item, err := range r.List(ctx, group, client.PageSize(0)) { // 0: one view
				if err != nil {
					return lincheck.Output{Result: lincheck.Unknown}
				}
				out.Found[item.Key] = string(item.Value)
			}
			return out
		}
	default:
		in.Kind, in.Values = lincheck.Set, []string{made()}
		run = func() lincheck.Output { return write(r.Set(ctx, key, []byte(in.Values[0]))) }
	}
	r.history.Do(r.id, in, run)
}

// TestGoClientUnderFaults: what package client tells is linearizable, and its watch leaves nothing out
// and has nothing twice, while leaders are killed, stopped and moved.
func TestGoClientUnderFaults(t *testing.T) {
	slow(t)
	t.Parallel()
	nodes := startThree(t)
	history := lincheck.NewRecorder()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()

	// The watcher builds the state by what it is told alone.
	var mu sync.Mutex
	state, index := make(map[string]string), uint64(0)
	watching := sync.WaitGroup{}
	watching.Go(func() {
		for event, err := range newClient(t, nodes...).ListWatch(ctx, "") {
			if err != nil {
				if ctx.Err() == nil {
					t.Errorf("watch: %v", err)
				}
				return
			}
			mu.Lock()
			if event.Index < index || event.Index == index && !event.Reset {
				t.Errorf("got event %s after index %d, want a later one", event.ID, index)
			}
			if index = event.Index; event.Reset {
				clear(state)
				for _, item := range event.Items {
					state[item.Key] = string(item.Value)
				}
			}
			for _, change := range event.Changes {
				if change.Removed {
					delete(state, change.Key)
				} else {
					state[change.Key] = string(change.Value)
				}
			}
			mu.Unlock()
		}
	})
	defer func() { cancel(); watching.Wait() }()

	stop := make(chan struct{})
	var acting sync.WaitGroup
	for id := range 6 {
		r := &recorded{Client: newClient(t, nodes...), id: id, history: history, tags: make(map[string]client.Item)}
		acting.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(10 * time.Millisecond):
					r.act(ctx, fmt.Sprintf("g%d.", (i/20)%4))
				}
			}
		})
	}
	operator := newClient(t, nodes...)
	for _, how := range []string{"transfer", "kill", "stop", "transfer"} {
		leader, _ := testkit.Leader(t, nodes...)
		before := history.Count("set", lincheck.Done)
		t.Logf("%s of %s", how, leader.ID)
		switch how {
		case "transfer":
			if err := operator.Transfer(t.Context(), ""); err != nil && !errors.Is(err, client.ErrConflict) {
				t.Errorf("transfer: %v", err)
			}
		case "kill":
			leader.Kill(t)
		case "stop":
			leader.Stop(t, syscall.SIGTERM)
		}
		testkit.Eventually(t, "sets after the "+how, func() error {
			if got := history.Count("set", lincheck.Done); got < before+10 {
				return fmt.Errorf("got %d, want %d", got, before+10)
			}
			return nil
		})
		if how != "transfer" {
			leader.Start(t)
		}
	}
	close(stop)
	acting.Wait()
	t.Log(history)
	for _, kind := range []string{"set", "get", "list", "set if match", "set if absent", "set several", "remove"} {
		if history.Count(kind, lincheck.Done) == 0 {
			t.Errorf("%s: got none done", kind)
		}
		for _, bad := range []lincheck.Result{lincheck.NotApplied, lincheck.Unknown} {
			if n := history.Count(kind, bad); n > 0 {
				t.Errorf("%s: got %d %s, want none: it is sent again until it is clear", kind, n, bad)
			}
		}
	}
	if err := history.Check(30*time.Second, t.TempDir()); err != nil {
		t.Error(err)
	}
	has := testkit.CheckReplicas(t, nodes...)
	testkit.Eventually(t, "the state by the watch", func() error {
		mu.Lock()
		defer mu.Unlock()
		if !maps.Equal(state, has) {
			return fmt.Errorf("got %v, want %v", state, has)
		}
		return nil
	})
}

// TestGoClient: what package client offers, against real nodes: members, backups, and a watch over a restore.
func TestGoClient(t *testing.T) {
	t.Parallel()
	nodes := testkit.StartNodes(t, binary(t), 3)
	c := newClient(t, nodes[0])
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Bound)
	defer cancel()
	check := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	for _, n := range nodes[1:] {
		port, _ := strconv.Atoi(n.RaftPort)
		check("join", c.Join(ctx, client.Member{ID: n.ID, Port: port}, nil))
	}
	follower := newClient(t, nodes[1]) // it knows no other node
	big := bytes.Repeat([]byte{0xff}, 1<<20)
	_, err := follower.Set(ctx, "big", big)
	check("set through a follower", err)
	_, err = follower.Set(ctx, "empty \xff", nil)
	check("set to nothing", err)
	item, err := follower.Get(ctx, "big")
	check("get", err)
	if !bytes.Equal(item.Value, big) {
		t.Errorf("got %d bytes, want what was set", len(item.Value))
	}
	if _, err := c.Get(ctx, "none"); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("get of no key: got %v, want %v", err, client.ErrNotFound)
	}
	if _, err := c.Set(ctx, "big", nil, client.IfMatch(`"1-00000000"`)); !errors.Is(err, client.ErrPreconditionFailed) {
		t.Errorf("set with another ETag: got %v, want %v", err, client.ErrPreconditionFailed)
	}
	result, err := follower.Txn(ctx, client.Txn{
		If:   []client.Compare{client.HasETag("big", item.ETag), client.Absent("new")},
		Then: []client.Op{client.SetOp("new", []byte{0xfe}), client.RemoveOp("big"), client.GetOp("new")}})
	check("txn", err)
	if len(result.Results) != 3 || !result.Held || !bytes.Equal(result.Results[2].Value, []byte{0xfe}) {
		t.Errorf("txn: got %+v", result)
	}

	backup, err := c.Snapshot(ctx)
	check("snapshot", err)
	data, err := io.ReadAll(backup)
	check("snapshot", errors.Join(err, backup.Close()))
	events := make(chan client.Event, 100)
	var watching sync.WaitGroup
	watched, stop := context.WithCancel(ctx)
	defer watching.Wait()
	defer stop()
	watching.Go(func() {
		for e, err := range newClient(t, nodes[2]).ListWatch(watched, "") {
			if err == nil {
				events <- e
			}
		}
	})
	if e := <-events; !e.Reset || len(e.Items) != 2 {
		t.Errorf("the first event: got %+v, want a Reset with 2 keys", e)
	}
	_, err = c.Remove(ctx, []string{"new", "empty \xff"})
	check("remove of everything", err)
	if e := <-events; len(e.Changes) != 2 {
		t.Errorf("the second event: got %+v, want 2 changes", e)
	}
	check("restore through a follower", follower.Restore(ctx, bytes.NewReader(data)))
	if e := <-events; !e.Reset || len(e.Items) != 2 {
		t.Errorf("after a restore: got %+v, want a Reset with 2 keys", e)
	}

	check("transfer", c.Transfer(ctx, "n2"))
	s, err := c.Status(ctx)
	check("status", err)
	if len(s.Members) != 3 {
		t.Errorf("status: got %+v, want 3 members", s)
	}
	check("leave", c.Leave(ctx, "n3"))
	testkit.CheckReplicas(t, nodes[:2]...)
}

// TestGoClientLock: while leaders are killed, a lock has one holder at a time, each with a higher fence; one whose
// holder is gone goes to the next, and one that was taken away is noticed.
func TestGoClientLock(t *testing.T) {
	t.Parallel()
	nodes := testkit.StartCluster(t, binary(t), 3, "RAFT_ELECTION_TIMEOUT=200ms")
	nodes[0].Definite(t, "PUT", "/set?key=raises-the-format&ttl=1h", "") // which needs all members
	ctx, cancel := context.WithTimeout(t.Context(), 2*testkit.Bound)
	defer cancel()
	var holders, fences, held atomic.Int64
	var working sync.WaitGroup
	election := func(i int) client.Election { // one that knows a killed node alone could not keep its lock
		return client.Election{Client: newClient(t, append(nodes[i:3:3], nodes[:i]...)...), Key: "leader"}
	}
	for i := range 4 {
		e := election(i % 3)
		name := fmt.Sprint("candidate", i)
		working.Go(func() {
			for range 5 {
				l, err := e.Campaign(ctx, name)
				if err != nil {
					t.Errorf("%s: campaign: %v", name, err)
					return
				}
				if n := holders.Add(1); n != 1 {
					t.Errorf("%s: got %d holders, want 1", name, n)
				}
				if last := fences.Swap(int64(l.Fence())); last >= int64(l.Fence()) {
					t.Errorf("%s: got the fence %d after %d, want a higher one", name, l.Fence(), last)
				}
				if leader, err := e.Leader(ctx); err != nil || leader != name {
					t.Errorf("%s: the leader: got %q, %v, want itself", name, leader, err)
				}
				select {
				case <-l.Lost():
					t.Errorf("%s: lost", name)
				default:
				}
				holders.Add(-1)
				if err := l.Unlock(ctx); err != nil {
					t.Errorf("%s: unlock: %v", name, err)
				}
				held.Add(1)
			}
		})
	}
	for range 2 {
		before := held.Load()
		leader, _ := testkit.Leader(t, nodes...)
		leader.Kill(t)
		testkit.Eventually(t, "the lock goes on", func() error {
			if held.Load() == before && held.Load() < 20 {
				return errors.New("nobody has held it since")
			}
			return nil
		})
		leader.Start(t)
		leader.WaitReady(t)
	}
	working.Wait()

	c := newClient(t, nodes[0])
	begin := time.Now()
	if _, err := c.Set(ctx, "gone", []byte("its holder is gone"), client.TTL(2*time.Second)); err != nil {
		t.Fatal(err)
	}
	l, err := c.Lock(ctx, "gone", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < 2*time.Second {
		t.Errorf("a lock of one that is gone: got it after %v, want 2 s or more", took)
	}
	guarded := client.Txn{If: []client.Compare{l.Held()}, Then: []client.Op{client.SetOp("guarded", nil)}}
	if r, err := c.Txn(ctx, guarded); err != nil || !r.Held {
		t.Errorf("a write of the holder: got %+v, %v, want that it was done", r, err)
	}
	if _, err := c.Remove(ctx, []string{"gone"}); err != nil {
		t.Fatal(err)
	}
	if r, err := c.Txn(ctx, guarded); err != nil || r.Held {
		t.Errorf("a write of a former holder: got %+v, %v, want that it was not done", r, err)
	}
	select {
	case <-l.Lost():
	case <-ctx.Done():
		t.Error("a lock that was taken away was never lost")
	}
	if err := l.Unlock(ctx); !errors.Is(err, client.ErrLost) {
		t.Errorf("unlock of a lost one: got %v, want ErrLost", err)
	}
	testkit.CheckReplicas(t, nodes...)
}

// TestNoTransferIsLost: two hundred clients each read two of ten accounts and move one unit from one
// to the other, under the ETags of both. The sum stays, and every unit that was moved has arrived.
func TestNoTransferIsLost(t *testing.T) {
	t.Parallel()
	nodes := startThree(t)
	const clients, accounts, initial = 200, 10, 1000
	name := func(i int) string { return fmt.Sprint("account-", i) }
	start := make(map[string][]byte)
	for i := range accounts {
		start[name(i)] = []byte(strconv.Itoa(initial))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*testkit.Bound)
	defer cancel()
	apart := make([]*client.Client, len(nodes))
	for i := range nodes { // each begins at another node
		apart[i] = newClient(t, append(nodes[i:len(nodes):len(nodes)], nodes[:i]...)...)
	}
	if _, err := apart[0].SetAll(ctx, start); err != nil {
		t.Fatal(err)
	}
	var moving sync.WaitGroup
	var mu sync.Mutex
	want, attempts := [accounts]int{}, 0
	for i := range want {
		want[i] = initial
	}
	for i := range clients {
		c, from := apart[i%len(apart)], i%accounts
		to := (from + 1 + i/accounts%(accounts-1)) % accounts
		moving.Go(func() {
			for {
				mu.Lock()
				attempts++
				mu.Unlock()
				a, errA := c.Get(ctx, name(from))
				b, errB := c.Get(ctx, name(to))
				if err := errors.Join(errA, errB); err != nil {
					t.Errorf("get: %v", err)
					return
				}
				hasA, _ := strconv.Atoi(string(a.Value))
				hasB, _ := strconv.Atoi(string(b.Value))
				result, err := c.Txn(ctx, client.Txn{
					If: []client.Compare{client.HasETag(a.Key, a.ETag), client.HasETag(b.Key, b.ETag)},
					Then: []client.Op{client.SetOp(a.Key, []byte(strconv.Itoa(hasA-1))),
						client.SetOp(b.Key, []byte(strconv.Itoa(hasB+1)))},
				})
				if err != nil {
					t.Errorf("txn: %v", err)
					return
				}
				if result.Held {
					mu.Lock()
					want[from]--
					want[to]++
					mu.Unlock()
					return
				}
			}
		})
	}
	moving.Wait()
	t.Logf("%d attempts for %d transfers", attempts, clients)
	if attempts == clients {
		t.Error("no attempt failed: the clients did not compete")
	}
	has, sum := testkit.CheckReplicas(t, nodes...), 0
	for i := range accounts {
		got, _ := strconv.Atoi(has[name(i)])
		if sum += got; got != want[i] {
			t.Errorf("%s: got %d, want %d", name(i), got, want[i])
		}
	}
	if sum != accounts*initial {
		t.Errorf("the sum: got %d, want %d", sum, accounts*initial)
	}
}
