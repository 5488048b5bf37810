package faults

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"raftkv/client"
	"raftkv/internal/lincheck"
	"raftkv/internal/testkit"
)

const (
	// electionTimeout of the nodes. On a busy machine a shorter one finds leaders that
	// are only slow.
	electionTimeout = 300 * time.Millisecond
	// writesAgain is promised: writes are taken so soon after the last fault has healed.
	writesAgain = 5 * time.Second
	// writesBound is when a test fails; the rest is for a machine with other work.
	writesBound = 15 * time.Second
	// bound is for what must happen at some time.
	bound = 60 * time.Second
	// snapshotThreshold is small, so that a node that was away for some seconds gets a
	// snapshot.
	snapshotThreshold = 200
)

// link is what befalls packets on their way from one host to another. The zero value
// is a good link.
type link struct {
	cut    bool
	loss   float64 // part of the packets
	double float64
	delay  time.Duration
	jitter time.Duration // at random more than delay: packets overtake others
}

// world is a cluster with clients on all its nodes.
type world struct {
	t      testing.TB
	random *rand.Rand // of the schedule
	name   string
	dir    string // where logs and histories stay when the test fails
	nodes  []*node
	disks  bool // the volumes are on disks of mountDisk

	group   atomic.Pointer[string] // where clients act now
	paused  sync.RWMutex           // read: a client does something
	done    chan struct{}
	clients sync.WaitGroup
	retried atomic.Int64
	byGo    atomic.Int64 // operations of package client that were done, or failed their condition
	leases  leases

	mu       sync.Mutex // guards what follows
	history  *lincheck.Recorder
	fates    map[string]lincheck.Result // of the keys that are set once
	problems []string                   // answers that are in no table
	totals   map[string]int             // operations done, of all rounds
	unknown  int
	rounds   int
	worst    time.Duration
	late     int // rounds in which writes were not taken within writesAgain
	unsure   int // histories that were too long to check
}

// newWorld starts a cluster of so many nodes and its clients. Its end checks that
// the clients did what they are for.
//
// prepare, if not nil, is called for each node before it starts.
func newWorld(t testing.TB, name string, size int, prepare func(*node), env ...string) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "raftkv-faults-"+name+"-")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, name: name, dir: dir, done: make(chan struct{}), history: lincheck.NewRecorder(),
		random: rand.New(rand.NewPCG(*seed, uint64(size))), fates: make(map[string]lincheck.Result),
		totals: make(map[string]int)}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d; logs and histories are in %s", *seed, dir)
			return
		}
		_ = os.RemoveAll(dir)
	})
	// The journal is as small as it can be, so that it goes round its ring.
	env = append([]string{"RAFT_ELECTION_TIMEOUT=" + electionTimeout.String(), fmt.Sprint("RAFT_SNAPSHOT_THRESHOLD=",
		snapshotThreshold), "RAFT_SNAPSHOT_BYTES=4194304"}, env...)
	for i := range size {
		// Half of the nodes send on what is for the leader, and half send clients there.
		n := newNode(t, i+1, dir, append([]string{"HTTP_FOLLOWERS=" + []string{"forward", "redirect"}[i%2]}, env...)...)
		if prepare != nil {
			prepare(n)
		}
		n.shut.Store(i > 0)
		n.start()
		w.nodes = append(w.nodes, n)
	}
	for _, n := range w.nodes[1:] {
		w.join(n)
	}
	w.enter("before")
	t.Cleanup(w.stop) // before the nodes end
	for i := range size {
		w.client(i, w.nodes[i])
		w.lease(i, w.nodes[i])
	}
	return w
}

// join makes a node a member, asked of whoever leads, and lets clients use it.
func (w *world) join(n *node) {
	w.t.Helper()
	if err := testkit.Poll(bound, func() error {
		return w.try("/join", url.Values{"nodeId": {n.id}, "raftPort": {n.raft}, "raftHost": {n.host}}, n)
	}); err != nil {
		w.t.Fatalf("join %s: %v", n.id, err)
	}
	n.open.Lock()
	n.shut.Store(false)
	n.open.Unlock()
}

// try asks each node that runs, but for one, for a change of the members.
func (w *world) try(path string, query url.Values, but *node) error {
	err := errors.New("nobody to ask")
	for _, n := range w.nodes {
		if n == but || !n.active() || n.shut.Load() {
			continue
		}
		var answer string
		if answer, err = n.ask(40*time.Second, path, query); err != nil {
			continue
		}
		if strings.Contains(answer, "\nERROR ") {
			return fmt.Errorf("%s: %s", n.id, answer)
		}
		return nil
	}
	return err
}

// enter makes the clients go on in other groups of keys: what is open for ever in one
// is no burden to check in the next.
func (w *world) enter(phase string) {
	prefix := fmt.Sprintf("r%d.%s.", w.rounds, phase)
	w.group.Store(&prefix)
}

func (w *world) groups() (all []string) {
	for _, phase := range []string{"before", "fault", "after"} {
		for i := range groups {
			all = append(all, fmt.Sprintf("r%d.%s.g%d.", w.rounds, phase, i))
		}
	}
	return all
}

const groups = 4 // of keys, in each phase

// client starts the clients of a node: two that do all, one of which sends again what
// has no answer, one that only reads, one that sets keys of its own, each once, and one
// of package client, which begins at the node and goes where it likes.
func (w *world) client(number int, n *node) {
	for kind := range 5 {
		id := number*5 + kind
		c := lincheck.NewClient(id, n.base(), w.recorder(), rand.New(rand.NewPCG(*seed, uint64(100+id))), w.problem)
		c.OnlyReads, c.Large = kind == 1, true
		if kind == 2 {
			c.Retries = 4
		}
		w.clients.Go(func() {
			defer func() { w.retried.Add(int64(c.Retried())) }()
			history := w.recorder()
			for i := 0; ; i++ {
				select {
				case <-w.done:
					return
				default:
				}
				rest := 6 * time.Millisecond
				w.paused.RLock()
				n.open.RLock()
				if h := w.recorder(); h != history {
					history = h
					c.Record(h)
				}
				left := n.shut.Load()
				if base := n.base(); !left && (c.Base != base || kind == 4 && c.Go == nil) {
					c.Base = base
					if kind == 4 {
						c.Go = w.goClient(base)
					}
				}
				switch {
				case left:
					rest = 50 * time.Millisecond
				case kind == 3:
					key := fmt.Sprintf("once.%d.%d", id, i)
					out := c.SetTo(key, []string{key}, []string{"the value of " + key}, "", false)
					w.mu.Lock()
					w.fates[key] = out.Result
					w.mu.Unlock()
					rest = 15 * time.Millisecond
				default:
					if out := c.Act(fmt.Sprintf("%sg%d.", *w.group.Load(), rand.IntN(groups))); out.Result == lincheck.NotApplied {
						rest = 20 * time.Millisecond // an election is under way: leave it the processor
					} else if kind == 4 && (out.Result == lincheck.Done || out.Result == lincheck.Failed) {
						w.byGo.Add(1)
					}
					if kind == 4 {
						rest = max(rest, 15*time.Millisecond)
					}
				}
				n.open.RUnlock()
				w.paused.RUnlock()
				time.Sleep(rest)
			}
		})
	}
}

// goClient returns package client's client, which knows one node at first.
func (w *world) goClient(base string) *client.Client {
	c, err := lincheck.NewGo(base)
	if err != nil {
		w.problem("package client: %v", err)
	}
	return c
}

func (w *world) recorder() *lincheck.Recorder {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.history
}

func (w *world) problem(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.problems = append(w.problems, fmt.Sprintf(format, args...))
}

func (w *world) stop() {
	select {
	case <-w.done:
	default:
		close(w.done)
	}
	w.clients.Wait()
}

// statuses asks all nodes that can answer.
func (w *world) statuses(nodes []*node) map[*node]testkit.Status {
	var mu sync.Mutex
	var asked sync.WaitGroup
	all := make(map[*node]testkit.Status)
	for _, n := range nodes {
		if !n.active() || n.shut.Load() {
			continue
		}
		asked.Go(func() {
			if s, err := n.status(); err == nil {
				mu.Lock()
				defer mu.Unlock()
				all[n] = s
			}
		})
	}
	asked.Wait()
	return all
}

// leaderOf waits for the leader among nodes, the one of the highest term.
func (w *world) leaderOf(limit time.Duration, nodes []*node) (leader *node, err error) {
	err = testkit.Poll(limit, func() error {
		var mu sync.Mutex
		var asked sync.WaitGroup
		var leading []*node
		for _, n := range nodes {
			if n.active() && !n.shut.Load() {
				asked.Go(func() {
					if n.leads() {
						mu.Lock()
						defer mu.Unlock()
						leading = append(leading, n)
					}
				})
			}
		}
		asked.Wait()
		leader = nil
		if len(leading) == 1 {
			leader = leading[0]
			return nil
		}
		var term uint64
		for n, s := range w.statuses(leading) {
			if s.State == "Leader" && s.Term > term {
				leader, term = n, s.Term
			}
		}
		if leader == nil {
			return errors.New("none leads")
		}
		return nil
	})
	return leader, err
}

// hand is the world for one fault: no other fault takes from its random numbers.
type hand struct {
	*world
	random   *rand.Rand
	patience time.Duration // with a leader
}

func (h *hand) leader() (*node, error) { return h.leaderOf(h.patience, h.nodes) }

func (h *hand) follower() (*node, error) {
	leader, err := h.leader()
	if err != nil {
		return nil, err
	}
	return h.pick(h.others(leader)), nil
}

// otherLeader waits until another than these leads.
func (h *hand) otherLeader(old ...*node) error {
	_, err := h.leaderOf(h.patience, h.others(old...))
	return err
}

// pick returns a node at random.
func (h *hand) pick(from []*node) *node { return from[h.random.IntN(len(from))] }

// between is a duration at random.
func (h *hand) between(low, high time.Duration) time.Duration {
	return low + time.Duration(h.random.Int64N(int64(high-low)))
}

// others is all nodes but these.
func (w *world) others(but ...*node) []*node {
	return slices.DeleteFunc(slices.Clone(w.nodes), func(n *node) bool { return slices.Contains(but, n) })
}

// heal ends all faults.
func (w *world) heal() {
	if wires != nil {
		wires.heal()
	}
	for _, n := range w.nodes {
		n.signal(syscall.SIGCONT)
		if !n.running() {
			n.start()
		}
	}
}

// round does one fault, or several at once, and checks all that must hold after it.
func (w *world) round(faults ...fault) {
	var names []string
	for _, f := range faults {
		names = append(names, f.name)
	}
	name := strings.Join(names, " + ")
	if len(faults) > 1 {
		tried.note("mixed, "+w.name, func(r *row) { r.times++ })
	}
	w.t.Logf("%s: round %d: %s", time.Now().Format("15:04:05.000"), w.rounds, name)
	time.Sleep(300 * time.Millisecond)
	w.enter("fault")
	before := w.findings()
	var running sync.WaitGroup
	for _, f := range faults {
		h := &hand{world: w, random: rand.New(rand.NewPCG(*seed, w.random.Uint64())), patience: writesBound}
		if len(faults) > 1 {
			h.patience = 2 * time.Second // there may be no majority
		}
		do := func() {
			err := f.do(h)
			tried.note(f.name+", "+w.name, func(r *row) {
				if err == nil {
					r.times++
				} else {
					r.missed++
				}
			})
			switch {
			case err == nil:
			case len(faults) > 1 || errors.Is(err, errNothing):
				w.t.Logf("%s: could not be done: %v", f.name, err)
			default:
				w.fail("%s: %v", f.name, err)
			}
		}
		if len(faults) == 1 {
			do()
		} else {
			running.Go(do)
		}
	}
	running.Wait()
	w.heal()
	again := w.settle(name)
	for _, f := range faults {
		tried.note(f.name+", "+w.name, func(r *row) {
			r.writes = max(r.writes, again)
			if w.findings() > before {
				r.found++
			}
		})
	}
}

// findings is how many failures there were.
func (w *world) findings() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.totals["failures"]
}

func (w *world) fail(format string, args ...any) {
	w.t.Helper()
	w.mu.Lock()
	w.totals["failures"]++
	w.mu.Unlock()
	w.t.Errorf("seed %d, %s, round %d: "+format, append([]any{*seed, w.name, w.rounds}, args...)...)
}

// settle checks what must hold once all faults have healed. It returns how long it
// took until a write was taken.
func (w *world) settle(name string) (again time.Duration) {
	w.t.Helper()
	healed := time.Now()
	members := slices.DeleteFunc(slices.Clone(w.nodes), func(n *node) bool { return n.shut.Load() })
	err := testkit.Poll(bound, func() (err error) {
		for _, n := range members {
			if _, err = n.ask(time.Second, "/set", url.Values{"key": {"probe"}, "value": {name}}); err == nil {
				return nil
			}
		}
		return err
	})
	again = time.Since(healed)
	if err != nil {
		w.fail("after %s, a write: %v", name, err)
		w.t.FailNow()
	}
	w.worst = max(w.worst, again)
	if again > writesAgain {
		w.late++
		w.t.Logf("after %s, a write was taken only after %v", name, again)
	}
	if again > writesBound {
		w.fail("after %s, a write was taken after %v, want %v", name, again, writesAgain)
	}
	for _, n := range members {
		if err := testkit.Poll(bound, func() error {
			_, err := n.ask(3*time.Second, "/readyz",
				nil)
			return err
		}); err != nil {
			w.fail("after %s, %s ready: %v; its last line: %s", name, n.id, err, n.lastLine())
			w.t.FailNow()
		}
	}
	w.enter("after")
	time.Sleep(400 * time.Millisecond)

	w.paused.Lock() // all clients have their answers
	defer w.paused.Unlock()
	history := w.recorder()
	for i, n := range members {
		c := lincheck.NewClient(1000+i, n.base(), history, w.random, w.problem)
		for _, group := range w.groups() {
			if err := testkit.Poll(bound, func() error {
				if out := c.List(group); out.Result != lincheck.Done {
					return errors.New(string(out.Result))
				}
				return nil
			}); err != nil {
				w.fail("after %s, a last list on %s: %v", name, n.id, err)
			}
		}
	}
	w.replicas(name, members)
	if err := history.Check(30*time.Second, w.dir); errors.Is(err, lincheck.ErrUndecided) {
		w.unsure++
		w.t.Logf("after %s: %v", name, err)
	} else if err != nil {
		w.fail("after %s: %v", name, err)
	}
	lincheck.HTTP.CloseIdleConnections()
	asking.CloseIdleConnections()
	testkit.Following.CloseIdleConnections()
	for _, n := range members {
		limit := 40 + 15*len(w.nodes)
		if err := testkit.Poll(bound, func() error {
			if got := n.descriptors(); got > limit {
				return fmt.Errorf("got %d, want at most %d", got, limit)
			}
			return nil
		}); err != nil {
			w.fail("after %s, open descriptors of %s: %v", name, n.id, err)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tell(name)
	for kind := range kinds {
		w.totals[kind] += history.Count(kind, lincheck.Done)
		w.unknown += history.Count(kind, lincheck.Unknown)
		w.totals["failed"] += history.Count(kind, lincheck.Failed)
	}
	w.history = lincheck.NewRecorder()
	w.rounds++
	w.enter("before") // groups of keys that the new history has from their beginning
	return again
}

// tell reports the problems so far. w.mu is held.
func (w *world) tell(name string) {
	w.t.Helper()
	for _, p := range w.problems {
		w.totals["failures"]++
		w.t.Errorf("seed %d, %s, %s: %s", *seed, w.name, name, p)
	}
	w.problems = nil
}

// kinds are the operations of which a test must have done at least so many, for each
// round that it had.
var kinds = map[string]int{"get": 20, "set": 10, "set several": 5, "remove": 1, "remove several": 1, "removeall": 1,
	"list":         10,
	"set if match": 1, "set if absent": 1, "remove if match": 1}

// replicas checks that all nodes hold the same, byte for byte, at the same index, to which they came by the same
// entries, and what was acknowledged is there and what was refused is not.
func (w *world) replicas(name string, members []*node) {
	w.t.Helper()
	all, err := testkit.Replicas(bound, members...)
	if err != nil {
		w.fail("after %s, the same applied index everywhere: %v", name, err)
		return
	}
	if err := testkit.Compare(all); err != nil {
		w.fail("after %s, %v", name, err)
	}
	has, err := all[0].Values()
	if err != nil {
		w.fail("after %s: %v", name, err)
	}
	w.mu.Lock()
	lost, extra := 0, 0
	for key, result := range w.fates {
		value, there := has[key]
		switch {
		case result == lincheck.Done && value != "the value of "+key:
			lost++
		case result == lincheck.NotApplied && there:
			extra++
		}
	}
	w.mu.Unlock()
	if lost > 0 {
		w.fail("after %s, %d acknowledged writes are gone", name, lost)
	}
	if extra > 0 {
		w.fail("after %s, %d writes are there that were answered as not applied", name, extra)
	}
}

// finish ends the clients and checks that enough was done, and the goroutines of each
// node.
func (w *world) finish() {
	w.t.Helper()
	w.stop()
	w.leasesEnd()
	w.mu.Lock()
	acknowledged := 0
	for _, result := range w.fates {
		if result == lincheck.Done {
			acknowledged++
		}
	}
	totals, unknown := w.totals, w.unknown
	w.mu.Unlock()
	for kind, each := range kinds {
		if want := each * w.rounds; totals[kind] < want {
			w.t.Errorf("%s: got %d %s done in %d rounds, want %d", w.name, totals[kind], kind, w.rounds, want)
		}
	}
	if want := 30 * w.rounds; acknowledged < want {
		w.t.Errorf("%s: got %d keys set once, want %d", w.name, acknowledged, want)
	}
	if got, want := w.byGo.Load(), int64(10*w.rounds); got < want {
		w.t.Errorf("%s: got %d operations of package client in %d rounds, want %d", w.name, got, w.rounds, want)
	}
	if w.rounds > 3 && (totals["failed"] == 0 || unknown == 0) {
		w.t.Errorf("%s: got %d conditions that failed and %d unknown outcomes, want some", w.name, totals["failed"], unknown)
	}
	if w.unsure*10 > w.rounds {
		w.t.Errorf("%s: %d of %d histories were too long to check", w.name, w.unsure, w.rounds)
	}
	w.goroutines()
	w.t.Logf("%s, seed %d: %d rounds; done %v; %d of unknown outcome, %d sent again; %d by package client; %d keys "+
		"set once; writes again after %v at most, %d rounds over %v; %d histories undecided; %v",
		w.name, *seed, w.rounds, totals, unknown, w.retried.Load(), w.byGo.Load(), acknowledged,
		w.worst.Round(time.Millisecond), w.late, writesAgain, w.unsure, wires)
}

// goroutines has each node print its goroutines, and end.
func (w *world) goroutines() {
	w.t.Helper()
	for _, n := range w.nodes {
		if !n.active() {
			continue
		}
		before := len(n.console())
		n.signal(syscall.SIGQUIT)
		if _, err := n.ends(20 * time.Second); err != nil {
			w.fail("%v after SIGQUIT", err)
			continue
		}
		text := n.console()[before:]
		const limit = 150
		switch got := strings.Count(text, "\ngoroutine "); {
		case got == 0:
			w.fail("%s did not tell its goroutines", n.id)
		case got > limit:
			w.fail("%s has %d goroutines, want at most %d", n.id, got, limit)
		default:
			w.t.Logf("%s: %d goroutines at its end", n.id, got)
		}
	}
}
