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

// TestNextBatch: a command is written as its keys, one letter each; ! is one that may
// touch any key, R a restore. The digits tell it from others.
func TestNextBatch(t *testing.T) {
	large, larger := strings.Repeat("v", maxBytes-100), strings.Repeat("v", maxBytes+1)
	for _, test := range []struct{ name, waiting, want, left string }{
		{name: "one", waiting: "a1", want: "a1", left: ""},
		{name: "of different keys", waiting: "a1 b2 cd3", want: "a1 b2 cd3", left: ""},
		{name: "of one key", waiting: "a1 a2 a3", want: "a1 | a2 | a3", left: ""},
		{name: "a key waits, others do not", waiting: "a1 a2 b3 b4 c5", want: "a1 b3 c5 | a2 b4", left: ""},
		{name: "of several keys", waiting: "ab1 bc2 cd3 d4 a5", want: "ab1 | bc2 a5 | cd3 | d4", left: ""},
		{name: "any key", waiting: "a1 b2 !3 c4 !5 !6 a7 d8", want: "a1 b2 | !3 | c4 | !5 | !6 | a7 d8", left: ""},
		{name: "any key, and keys behind it", waiting: "a1 a2 !3 a4 b5", want: "a1 | a2 | !3 | a4 b5", left: ""},
		{name: "as many bytes as may be", waiting: "L1 a2 b3", want: "L1 a2 b3", left: ""},
		{name: "too many bytes", waiting: "L1 M2 b3", want: "L1", left: "M2 b3"},
		{name: "a large one alone", waiting: "X1 b2", want: "X1", left: "b2"},
		{name: "a restore alone", waiting: "R1 b2", want: "R1", left: "b2"},
		{name: "a restore later", waiting: "a1 R2 b3", want: "a1", left: "R2 b3"},
		{name: "a large one later", waiting: "a1 X2 b3", want: "a1", left: "X2 b3"},
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
				switch name[0] {
				case '!':
					c = command.Command{Kind: command.Noop}
				case 'R':
					c = command.Command{Kind: command.Restore}
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
			f, left := nextBatch(waiting)
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

// TestNextBatchKeepsTheOrder: whatever waits, all of it goes, and of two commands with a
// key in common the first goes in an earlier entry.
func TestNextBatchKeepsTheOrder(t *testing.T) {
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
			f, left := nextBatch(waiting)
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
	result command.Result
	err    error
	done   chan struct{}
}

func (n *testNode) propose(ctx context.Context, c command.Command) *proposed {
	p := &proposed{done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.result, p.err = n.Propose(ctx, c)
	}()
	return p
}

func (n *testNode) waiting() int {
	n.batcher.mu.Lock()
	defer n.batcher.mu.Unlock()
	return len(n.batcher.waiting)
}

// holdBatch makes n, which leads a cluster of one, apply nothing until open is
// called, and puts a command in a batch: the next ones wait.
func holdBatch(t *testing.T, n *testNode) (held *proposed, open func()) {
	t.Helper()
	gate := make(chan struct{})
	n.machine.gate.Store(&gate)
	open = sync.OnceFunc(func() { close(gate) })
	t.Cleanup(open)
	held = n.propose(context.Background(), setting("held", "1"))
	waitFor(t, "it is in the log", func() bool { return n.keyInLog(t, "held") })
	return held, open
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
	_, open := holdBatch(t, n)
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
			if want := resultOf(fmt.Sprint(key), before+1+uint64(i)); p.err != nil || p.result != want {
				t.Errorf("command %d of key %d: got %+v, %v; want %+v", i, key, p.result, p.err, want)
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

// TestProposalGivenUp: one that waits is definitely not applied; one in a batch may be.
func TestProposalGivenUp(t *testing.T) {
	n := openNode(t, "n1", t.TempDir())
	n.waitLeader(t)
	held, open := holdBatch(t, n)
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
	for _, p := range []*proposed{held, kept} {
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
		t.Errorf("given up in a batch: got %v, want ErrUnknown", given.err)
	}
	close(gate)
	n.set(t, "last", "1")
	if _, found := n.machine.store.Get("in flight"); !found {
		t.Error("what was in a batch is not applied")
	}
}

// answeredBy is an applier: each call of Apply takes the next function, whose result
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

func newBatch(sizes ...int) (b batch) {
	for _, size := range sizes {
		var entry []*proposal
		for range size {
			entry = append(entry, newProposal(setting("x", "1")))
		}
		b = append(b, entry)
	}
	return b
}

// TestBatchErrors: what becomes of an entry becomes of all its commands, and of no
// others.
func TestBatchErrors(t *testing.T) {
	b := newBatch(2, 3, 1, 2, 2)
	fail := func(err error) func() (any, error) { return func() (any, error) { return nil, err } }
	results := []command.Result{{Index: 7}, {Index: 8}}
	b.propose(&answeredBy{
		fail(raft.ErrEnqueueTimeout),
		fail(raft.ErrLeadershipLost),
		fail(raft.ErrNotLeader),
		func() (any, error) { return results, nil },
		fail(raft.ErrRaftShutdown),
	}, nil)
	for i, want := range []error{ErrNotApplied, ErrUnknown, ErrNotLeader, nil, ErrUnknown} {
		for j, p := range b[i] {
			<-p.done
			for _, class := range []error{ErrNotLeader, ErrNotApplied, ErrUnknown} {
				if errors.Is(p.err, class) != (class == want) {
					t.Errorf("entry %d, command %d: got %v, want %v and no other", i, j, p.err, want)
				}
			}
			if want == nil && p.result != results[j] {
				t.Errorf("entry %d, command %d: got %v, want %v", i, j, p.result, results[j])
			}
		}
	}
}

// TestBatchWithoutAnAnswer does not hold up later ones for ever.
func TestBatchWithoutAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		never := make(chan struct{})
		raftAnswers := &answeredBy{
			func() (any, error) { <-never; return nil, raft.ErrRaftShutdown },
			func() (any, error) { return []command.Result{{Index: 2}}, nil },
		}
		b := &batcher{raft: func() applier { return raftAnswers }}
		type answer struct {
			result command.Result
			err    error
		}
		propose := func() chan answer {
			done := make(chan answer, 1)
			go func() {
				result, err := b.propose(context.Background(), setting("x", "1"))
				done <- answer{result, err}
			}()
			synctest.Wait()
			return done
		}
		first, began := propose(), time.Now()
		second := propose()
		b.mu.Lock()
		if len(b.waiting) != 1 {
			t.Errorf("%d wait while a batch is under way, want 1", len(b.waiting))
		}
		b.mu.Unlock()
		if got := <-second; got.err != nil || got.result.Index != 2 || time.Since(began) != applyLimit {
			t.Errorf("the next one: got %+v after %v, want index 2 after %v", got, time.Since(began), applyLimit)
		}
		close(never)
		if got := <-first; !errors.Is(got.err, ErrUnknown) {
			t.Errorf("without an answer: got %v, want ErrUnknown", got.err)
		}
		synctest.Wait()
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.running {
			t.Error("its goroutine runs although nothing waits")
		}
	})
}

// TestBatcherGivesUp: what a caller may conclude depends on whether its command was in a
// batch when it gave up.
func TestBatcherGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := make(chan struct{})
		var proposed []string
		b := &batcher{raft: func() applier {
			return applierFunc(func(entry []byte) (any, error) {
				commands, err := command.Decode(entry)
				for _, c := range commands {
					proposed = append(proposed, c.Pairs[0].Key)
				}
				<-answer
				return make([]command.Result, len(commands)), err
			})
		}}
		propose := func(ctx context.Context, key string) chan error {
			done := make(chan error, 1)
			go func() {
				_, err := b.propose(ctx, setting(key, "1"))
				done <- err
			}()
			synctest.Wait()
			return done
		}
		ctx, cancel := context.WithCancel(context.Background())
		first, second := propose(ctx, "first"), propose(ctx, "second")
		third := propose(context.Background(), "third")
		cancel()
		if err := <-first; !errors.Is(err, ErrUnknown) {
			t.Errorf("in a batch: got %v, want ErrUnknown", err)
		}
		if err := <-second; !errors.Is(err, ErrNotApplied) {
			t.Errorf("waiting: got %v, want ErrNotApplied", err)
		}
		close(answer)
		if err := <-third; err != nil {
			t.Errorf("kept: got %v, want no error", err)
		}
		if got := strings.Join(proposed, " "); got != "first third" {
			t.Errorf("proposed %q, want first and third", got)
		}
		b.close()
		if err := <-propose(context.Background(), "fourth"); !errors.Is(err, ErrNotApplied) {
			t.Errorf("after close: got %v, want ErrNotApplied", err)
		}
	})
}

// TestBatcherIsFull: a further command is refused at once.
func TestBatcherIsFull(t *testing.T) {
	b := &batcher{running: true, waiting: make([]*proposal, maxWaiting)}
	if _, err := b.propose(context.Background(), setting("x", "1")); !errors.Is(err, ErrNotApplied) {
		t.Errorf("got %v, want ErrNotApplied", err)
	}
}

// applierFunc is an applier that answers with what f returns.
type applierFunc func(entry []byte) (any, error)

func (f applierFunc) Apply(entry []byte, _ time.Duration) raft.ApplyFuture {
	return &answered{answer: func() (any, error) { return f(entry) }}
}

// TestProposalsEndWithTheNode: what is in a batch then may be applied; what waits is
// not, and never proposed.
func TestProposalsEndWithTheNode(t *testing.T) {
	n := openNode(t, "n1", t.TempDir())
	n.waitLeader(t)
	held, open := holdBatch(t, n)
	waiting := n.propose(context.Background(), setting("waiting", "1"))
	waitFor(t, "it waits", func() bool { return n.waiting() == 1 })
	closed := make(chan struct{})
	go func() { n.stop(); close(closed) }()
	waitFor(t, "it closes", func() bool { return n.life.now() == closing })
	open()
	<-held.done
	<-waiting.done
	<-closed
	if held.err != nil && !errors.Is(held.err, ErrUnknown) {
		t.Errorf("in a batch: got %v, want ErrUnknown or none", held.err)
	}
	if !errors.Is(waiting.err, ErrNotApplied) || errors.Is(waiting.err, ErrUnknown) {
		t.Errorf("waiting: got %v, want ErrNotApplied", waiting.err)
	}
}

// TestProposalsThatRaftNeverAnswers end with the node too.
func TestProposalsThatRaftNeverAnswers(t *testing.T) {
	n := openNode(t, "n1", t.TempDir())
	n.waitLeader(t)
	n.batcher.mu.Lock()
	n.batcher.running = true // and never takes the next batch
	n.batcher.mu.Unlock()
	held := n.propose(context.Background(), setting("held", "1"))
	waitFor(t, "it waits", func() bool { return n.waiting() == 1 })
	n.batcher.mu.Lock()
	n.batcher.waiting = nil // it is in a batch
	n.batcher.mu.Unlock()
	waiting := n.propose(context.Background(), setting("waiting", "1"))
	waitFor(t, "the next waits", func() bool { return n.waiting() == 1 })
	began := time.Now()
	n.stop()
	<-held.done
	<-waiting.done
	if !errors.Is(held.err, ErrUnknown) || errors.Is(held.err, ErrNotApplied) {
		t.Errorf("in a batch: got %v, want ErrUnknown", held.err)
	}
	if !errors.Is(waiting.err, ErrNotApplied) || errors.Is(waiting.err, ErrUnknown) {
		t.Errorf("waiting: got %v, want ErrNotApplied", waiting.err)
	}
	if took := time.Since(began); took > applyLimit*3/4 {
		t.Errorf("they were left without an answer for %v", took)
	}
}
