package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"raftkv/internal/command"
)

// TestLoad: a command is written as its keys, one letter each; ! is one that may
// touch any key. The digits tell it from others.
func TestLoad(t *testing.T) {
	large, larger := strings.Repeat("v", maxBytes-100), strings.Repeat("v", maxBytes+1)
	for _, test := range []struct{ name, waiting, want, left string }{
		{"one", "a1", "a1", ""},
		{"of different keys", "a1 b2 cd3", "a1 b2 cd3", ""},
		{"of one key", "a1 a2 a3", "a1 | a2 | a3", ""},
		{"a key waits, others do not", "a1 a2 b3 b4 c5", "a1 b3 c5 | a2 b4", ""},
		{"of several keys", "ab1 bc2 cd3 d4 a5", "ab1 | bc2 a5 | cd3 | d4", ""},
		{"any key", "a1 b2 !3 c4 !5 !6 a7 d8", "a1 b2 | !3 | c4 | !5 | !6 | a7 d8", ""},
		{"any key, and keys behind it", "a1 a2 !3 a4 b5", "a1 | a2 | !3 | a4 b5", ""},
		{"as many bytes as may be", "L1 a2 b3", "L1 a2 b3", ""},
		{"too many bytes", "L1 M2 b3", "L1", "M2 b3"},
		{"a large one alone", "X1 b2", "X1", "b2"},
		{"a large one later", "a1 X2 b3", "a1", "X2 b3"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var waiting []*proposal
			names := make(map[*proposal]string)
			for _, name := range strings.Fields(test.waiting) {
				c := command.Command{Kind: command.Set}
				for _, key := range name[:len(name)-1] {
					value := map[rune]string{'L': large, 'M': large, 'X': larger}[key]
					c.Pairs = append(c.Pairs, command.Pair{Key: string(key), Value: []byte(value)})
				}
				if name[0] == '!' {
					c = command.Command{Kind: command.Noop}
				}
				p := newProposal(c)
				names[p] = name
				waiting = append(waiting, p)
			}
			text := func(ps []*proposal) string {
				var words []string
				for _, p := range ps {
					words = append(words, names[p])
				}
				return strings.Join(words, " ")
			}
			f, left := load(waiting)
			var entries []string
			for _, entry := range f {
				entries = append(entries, text(entry))
			}
			if got := strings.Join(entries, " | "); got != test.want || text(left) != test.left {
				t.Errorf("got %q and %q left, want %q and %q", got, text(left), test.want, test.left)
			}
		})
	}
}

// TestLoadKeepsTheOrder: whatever waits, all of it goes, and of two commands with a
// key in common the first goes in an earlier entry.
func TestLoadKeepsTheOrder(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 0))
		var waiting []*proposal
		for range 1 + r.IntN(3*maxCommands) {
			c := command.Command{Kind: command.Set}
			for range r.IntN(3) {
				c.Pairs = append(c.Pairs, command.Pair{Key: fmt.Sprint(r.IntN(1 << r.IntN(12)))})
			}
			if len(c.Pairs) == 0 {
				c.Kind = command.Kind(99)
			}
			waiting = append(waiting, newProposal(c))
		}
		at, number, all := make(map[*proposal]int), 0, slices.Clone(waiting)
		for len(waiting) > 0 {
			f, left := load(waiting)
			if len(f) == 0 || len(waiting)-len(left) > maxCommands {
				t.Fatalf("seed %d: %d entries of %d commands", seed, len(f), len(waiting)-len(left))
			}
			for _, entry := range f {
				number++
				for _, p := range entry {
					at[p] = number
				}
			}
			waiting = left
		}
		last := make(map[string]int) // key: entry of the last command that has it
		any, newest := 0, 0
		for i, p := range all {
			least := any + 1
			for _, pair := range p.command.Pairs {
				least = max(least, last[pair.Key]+1)
			}
			if p.command.Kind != command.Set {
				least = newest + 1
				any = at[p]
			}
			for _, pair := range p.command.Pairs {
				last[pair.Key] = at[p]
			}
			newest = max(newest, at[p])
			if at[p] < least {
				t.Fatalf("seed %d: command %d is in entry %d, want %d or later", seed, i, at[p], least)
			}
		}
	}
}

// proposed is what a proposal that runs beside the test came to.
type proposed struct {
	index    uint64
	response any
	err      error
	done     chan struct{}
}

func (n *testNode) propose(ctx context.Context, c command.Command) *proposed {
	p := &proposed{done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.index, p.response, p.err = n.Propose(ctx, c)
	}()
	return p
}

func (n *testNode) waiting() int {
	n.proposals.mu.Lock()
	defer n.proposals.mu.Unlock()
	return len(n.proposals.waiting)
}

// holdFlight makes n, which leads a cluster of one, apply nothing until open is
// called, and puts a command in flight: the next ones wait.
func holdFlight(t *testing.T, n *testNode) (flying *proposed, open func()) {
	t.Helper()
	gate := make(chan struct{})
	n.machine.gate.Store(&gate)
	open = sync.OnceFunc(func() { close(gate) })
	t.Cleanup(open)
	flying = n.propose(context.Background(), setting("flying", "1"))
	waitFor(t, "it is in the log", func() bool { return n.keyInLog(t, "flying") })
	return flying, open
}

// keyInLog reports whether an entry of the log has a command for key.
func (n *testNode) keyInLog(t testing.TB, key string) bool {
	t.Helper()
	log := n.current.Load().log
	last, err := log.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	for index := uint64(1); index <= last; index++ {
		var l raft.Log
		if err := log.GetLog(index, &l); err != nil {
			t.Fatal(err)
		}
		if l.Type != raft.LogCommand {
			continue
		}
		commands, err := command.Decode(l.Data)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range commands {
			if slices.ContainsFunc(c.Pairs, func(p command.Pair) bool { return p.Key == key }) {
				return true
			}
		}
	}
	return false
}

// TestProposalsTravelTogether: what waited is in as few entries as may be, and each
// caller gets the answer to its own command.
func TestProposalsTravelTogether(t *testing.T) {
	n := openNode(t, "n1", t.TempDir())
	n.waitLeader(t)
	_, open := holdFlight(t, n)
	before := n.Info().LastIndex
	const keys, each = 20, 3
	var waiting [each][keys]*proposed
	for i := range each {
		for key := range keys {
			waiting[i][key] = n.propose(context.Background(), setting(fmt.Sprint(key), fmt.Sprint(i)))
			waitFor(t, "it waits", func() bool { return n.waiting() == i*keys+key+1 })
		}
	}
	open()
	for i := range each {
		for key := range keys {
			p := waiting[i][key]
			<-p.done
			if p.err != nil || p.response != resultOf(fmt.Sprint(key)) || p.index != before+1+uint64(i) {
				t.Errorf("command %d of key %d: got index %d, %v, %v; want %d, %d", i, key, p.index, p.response, p.err, before+1+uint64(i), key)
			}
		}
	}
	for key := range keys {
		item, _ := n.machine.store.Get(fmt.Sprint(key))
		if item.Value != fmt.Sprint(each-1) || item.Index != before+each {
			t.Errorf("key %d: got %+v, want the last command at index %d", key, item, before+each)
		}
	}
}

// TestProposalGivenUp: one that waits is definitely not applied; one in flight may be.
func TestProposalGivenUp(t *testing.T) {
	n := openNode(t, "n1", t.TempDir())
	n.waitLeader(t)
	flying, open := holdFlight(t, n)
	ctx, cancel := context.WithCancel(context.Background())
	given := n.propose(ctx, setting("given up", "1"))
	waitFor(t, "it waits", func() bool { return n.waiting() == 1 })
	kept := n.propose(context.Background(), setting("kept", "1"))
	waitFor(t, "both wait", func() bool { return n.waiting() == 2 })
	cancel()
	<-given.done
	if !errors.Is(given.err, ErrNotApplied) || errors.Is(given.err, ErrUnknown) {
		t.Errorf("given up while it waited: got %v, want ErrNotApplied", given.err)
	}
	open()
	for _, p := range []*proposed{flying, kept} {
		if <-p.done; p.err != nil {
			t.Error(p.err)
		}
	}
	n.set(t, "after", "1")
	if n.keyInLog(t, "given up") {
		t.Error("the log has the command that was given up")
	}

	gate := make(chan struct{})
	n.machine.gate.Store(&gate)
	ctx, cancel = context.WithCancel(context.Background())
	given = n.propose(ctx, setting("in flight", "1"))
	waitFor(t, "it is in the log", func() bool { return n.keyInLog(t, "in flight") })
	cancel()
	<-given.done
	if !errors.Is(given.err, ErrUnknown) || errors.Is(given.err, ErrNotApplied) {
		t.Errorf("given up in flight: got %v, want ErrUnknown", given.err)
	}
	close(gate)
	n.set(t, "last", "1")
	if _, found := n.machine.store.Get("in flight"); !found {
		t.Error("what was in flight is not applied")
	}
}

// answeredBy is an applier; each call of Apply takes the next function, whose result
// is the future's.
type answeredBy []func() (response any, err error)

func (a *answeredBy) Apply([]byte, time.Duration) raft.ApplyFuture {
	f := (*a)[0]
	*a = (*a)[1:]
	return &answered{answer: f}
}

type answered struct {
	answer   func() (any, error)
	response any
}

func (f *answered) Error() (err error) { f.response, err = f.answer(); return err }
func (f *answered) Response() any      { return f.response }
func (f *answered) Index() uint64      { return 7 }

func newFlight(sizes ...int) (f flight) {
	for _, size := range sizes {
		var entry []*proposal
		for range size {
			entry = append(entry, newProposal(setting("x", "1")))
		}
		f = append(f, entry)
	}
	return f
}

// TestFlightErrors: what becomes of an entry becomes of all its commands, and of no
// others.
func TestFlightErrors(t *testing.T) {
	f := newFlight(2, 3, 1, 2, 2)
	fail := func(err error) func() (any, error) { return func() (any, error) { return nil, err } }
	raftAnswers := answeredBy{
		fail(raft.ErrEnqueueTimeout),
		fail(raft.ErrLeadershipLost),
		fail(raft.ErrNotLeader),
		func() (any, error) { return []command.Result{{Index: 7}, {Index: 8}}, nil },
		fail(raft.ErrRaftShutdown),
	}
	n := &Node{}
	n.proposals.flying = true
	n.fly(&raftAnswers, f)
	if n.proposals.flying {
		t.Error("the flight has not landed")
	}
	for i, want := range []error{ErrNotApplied, ErrUnknown, ErrNotLeader, nil, ErrUnknown} {
		for j, p := range f[i] {
			<-p.done
			for _, class := range []error{ErrNotLeader, ErrNotApplied, ErrUnknown} {
				if errors.Is(p.err, class) != (class == want) {
					t.Errorf("entry %d, command %d: got %v, want %v and no other", i, j, p.err, want)
				}
			}
			if response := []command.Result{{Index: 7}, {Index: 8}}[j%2]; want == nil && (p.response != response || p.index != 7) {
				t.Errorf("entry %d, command %d: got %v at %d, want %v at 7", i, j, p.response, p.index, response)
			}
		}
	}
}

// TestFlightWithoutAnAnswer does not keep later ones on the ground for ever.
func TestFlightWithoutAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		never := make(chan struct{})
		raftAnswers := answeredBy{func() (any, error) { <-never; return nil, raft.ErrRaftShutdown }}
		n := &Node{}
		n.proposals.flying = true
		ended := make(chan struct{})
		go func() { n.fly(&raftAnswers, newFlight(1)); close(ended) }()
		flying := func() bool {
			synctest.Wait()
			n.proposals.mu.Lock()
			defer n.proposals.mu.Unlock()
			return n.proposals.flying
		}
		if !flying() {
			t.Error("it landed without an answer")
		}
		time.Sleep(applyLimit)
		if flying() {
			t.Errorf("it has not landed after %v", applyLimit)
		}
		n.proposals.flying = true // the next flight
		close(never)
		<-ended
		if !flying() {
			t.Error("it landed a second time, in place of the next")
		}
	})
}

// TestProposalsEndWithTheNode: what is in flight then may be applied; what waits is
// not, and never proposed.
func TestProposalsEndWithTheNode(t *testing.T) {
	n := openNode(t, "n1", t.TempDir())
	n.waitLeader(t)
	flying, open := holdFlight(t, n)
	waiting := n.propose(context.Background(), setting("waiting", "1"))
	waitFor(t, "it waits", func() bool { return n.waiting() == 1 })
	closed := make(chan struct{})
	go func() { n.stop(); close(closed) }()
	waitFor(t, "it closes", n.closing.Load)
	open()
	<-flying.done
	<-waiting.done
	<-closed
	if flying.err != nil && !errors.Is(flying.err, ErrUnknown) {
		t.Errorf("in flight: got %v, want ErrUnknown or none", flying.err)
	}
	if !errors.Is(waiting.err, ErrNotApplied) || errors.Is(waiting.err, ErrUnknown) {
		t.Errorf("waiting: got %v, want ErrNotApplied", waiting.err)
	}
}

// TestProposalsThatRaftNeverAnswers end with the node too.
func TestProposalsThatRaftNeverAnswers(t *testing.T) {
	n := openNode(t, "n1", t.TempDir())
	n.waitLeader(t)
	n.proposals.flying = true // and never lands
	flying := n.propose(context.Background(), setting("flying", "1"))
	waitFor(t, "it waits", func() bool { return n.waiting() == 1 })
	n.proposals.mu.Lock()
	n.proposals.waiting = nil // it flies
	n.proposals.mu.Unlock()
	waiting := n.propose(context.Background(), setting("waiting", "1"))
	waitFor(t, "the next waits", func() bool { return n.waiting() == 1 })
	began := time.Now()
	n.stop()
	<-flying.done
	<-waiting.done
	if !errors.Is(flying.err, ErrUnknown) || errors.Is(flying.err, ErrNotApplied) {
		t.Errorf("in flight: got %v, want ErrUnknown", flying.err)
	}
	if !errors.Is(waiting.err, ErrNotApplied) || errors.Is(waiting.err, ErrUnknown) {
		t.Errorf("waiting: got %v, want ErrNotApplied", waiting.err)
	}
	if took := time.Since(began); took > applyLimit*3/4 {
		t.Errorf("they were left without an answer for %v", took)
	}
}
