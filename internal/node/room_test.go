package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"raftkv/internal/command"
	"raftkv/internal/kv"
)

// applyTo does to a store what the state machine does, without conditions.
func applyTo(s *kv.Store, c *command.Command) {
	index, _ := s.Applied()
	s.Update(index+1, 1, nil, func(tx *kv.Tx) {
		switch c.Kind {
		case command.Set:
			for _, p := range c.Pairs {
				tx.Set(p.Key, p.Value)
			}
		case command.Remove:
			for _, p := range c.Pairs {
				tx.Remove(p.Key)
			}
		case command.RemovePrefix:
			tx.RemovePrefix(c.Pairs[0].Key)
		case command.Txn:
			for _, o := range c.Txn.Then {
				if o.Op == command.OpSet {
					tx.Set(o.Key, o.Value)
				} else if o.Op == command.OpRemove {
					tx.Remove(o.Key)
				} else if o.Op == command.OpRemoveRange {
					tx.RemoveRange(o.Key, o.End)
				}
			}
		}
		if c.Options != nil && c.IdempotencyKey != "" {
			tx.AddRecord(c.IdempotencyKey, "")
		}
	})
}

// sized is the command that sets each of keys, one letter each, to a value of so many bytes.
func sized(keys string, value int) command.Command {
	c := command.Command{Kind: command.Set}
	for _, key := range keys {
		c.Pairs = append(c.Pairs, command.Pair{Key: string(key), Value: make([]byte, value)})
	}
	return c
}

func removing(kind command.Kind, keys ...string) command.Command {
	c := command.Command{Kind: kind}
	for _, key := range keys {
		c.Pairs = append(c.Pairs, command.Pair{Key: key})
	}
	return c
}

func withKey(c command.Command, idempotencyKey string) command.Command {
	c.Options = &command.Options{IdempotencyKey: idempotencyKey}
	return c
}

func transaction(then, otherwise []command.Operation) command.Command {
	return command.Command{Kind: command.Txn, Txn: &command.Transaction{Then: then, Else: otherwise}}
}

func setOp(key string, value int) command.Operation {
	return command.Operation{Op: command.OpSet, Key: key, Value: make([]byte, value)}
}

// TestAdmission: the store has the keys a and b, with values of 1,000 bytes, and the record of idempotency key "done".
// There is room for one key more with such a value.
func TestAdmission(t *testing.T) {
	item := kv.ItemFootprint("k", 1000, kv.Lease{})
	for _, test := range []struct {
		name  string
		batch []command.Command
		want  string // + admitted, - refused
	}{
		{name: "what fits", batch: []command.Command{sized("c", 1000)}, want: "+"},
		{name: "a byte more", batch: []command.Command{sized("c", 1001)}, want: "-"},
		{name: "what is in the batch before counts", batch: []command.Command{sized("c", 1000), sized("d", 0)}, want: "+-"},
		{name: "what is refused does not count", batch: []command.Command{sized("c", 1001), sized("c", 1000)}, want: "-+"},
		{name: "each key counts", batch: []command.Command{sized("cd", 400), sized("cd", 450)}, want: "+-"},
		{name: "all or nothing", batch: []command.Command{sized("cd", 500), sized("c", 1000)}, want: "-+"},
		{name: "a value in the place of another", batch: []command.Command{sized("c", 1000), sized("ab", 1000)}, want: "++"},
		{name: "a smaller one", batch: []command.Command{sized("c", 1000), sized("a", 999), sized("a", 1000)}, want: "++-"},
		{name: "one grows as another shrinks", batch: []command.Command{sized("c", 1000),
			{Kind: command.Set, Pairs: []command.Pair{
				{Key: "a", Value: make([]byte, 1500)}, {Key: "b", Value: make([]byte, 500)}}}},
			want: "++"},
		{name: "removes", batch: []command.Command{sized("c", 1000), removing(command.Remove, "a", "none"),
			removing(command.RemovePrefix, "b")}, want: "+++"},
		{name: "a remove may fail", batch: []command.Command{sized("c", 1000), removing(command.Remove, "a"),
			sized("d", 1000)}, want: "++-"},
		{name: "a key that may be removed", batch: []command.Command{sized("c", 1000), removing(command.Remove, "a"),
			sized("a", 1000)}, want: "++-"},
		{name: "a key whose prefix may be removed", batch: []command.Command{sized("c", 1000),
			removing(command.RemovePrefix, ""), sized("a", 1000)}, want: "++-"},
		{name: "a key of the batch whose prefix may be removed", batch: []command.Command{sized("a", 1000),
			removing(command.RemovePrefix, "a"), sized("c", 1000), sized("a", 1000)}, want: "+++-"},
		{name: "a repetition", batch: []command.Command{sized("c", 1000), withKey(sized("d", 1000), "done")}, want: "++"},
		{name: "a repetition in the batch", batch: []command.Command{withKey(sized("c", 1000), "key"),
			withKey(sized("c", 1000), "key")}, want: "++"},
		{name: "a key of another command in the batch", batch: []command.Command{withKey(sized("c", 1000), "key"),
			withKey(sized("d", 1000), "key")}, want: "+-"},
		{name: "a refused command is no repetition", batch: []command.Command{withKey(sized("c", 1001), "key"),
			withKey(sized("c", 1001), "key")}, want: "--"},
		{name: "a transaction", batch: []command.Command{transaction([]command.Operation{setOp("c", 1000)}, nil)}, want: "+"},
		{name: "a transaction, a byte more", batch: []command.Command{
			transaction([]command.Operation{setOp("c", 1001)}, nil)}, want: "-"},
		{name: "the other branch", batch: []command.Command{
			transaction(nil, []command.Operation{setOp("c", 1000), setOp("d", 0)})}, want: "-"},
		{name: "the larger branch counts", batch: []command.Command{transaction([]command.Operation{setOp("c", 1000)},
			[]command.Operation{setOp("a", 1)}), sized("d", 0)}, want: "+-"},
		{name: "a key that a branch may have made smaller", batch: []command.Command{
			transaction([]command.Operation{setOp("c", 1000)}, []command.Operation{setOp("a", 1)}),
			sized("a", 1000)}, want: "+-"},
		{name: "a transaction that moves", batch: []command.Command{sized("c", 1000), transaction([]command.Operation{
			{Op: command.OpRemove, Key: "a"}, setOp("d", 1000)}, nil)}, want: "++"},
		{name: "a transaction that sets a key twice", batch: []command.Command{transaction([]command.Operation{
			setOp("c", 2000), setOp("c", 1000)}, nil)}, want: "+"},
		{name: "a transaction that only reads", batch: []command.Command{sized("c", 1000), transaction([]command.Operation{
			{Op: command.OpGet, Key: "a"}}, nil)}, want: "++"},
		{name: "no command of a client", batch: []command.Command{sized("c", 1000), {Kind: command.Noop}}, want: "++"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := kv.New()
			c := withKey(sized("ab", 1000), "done")
			applyTo(s, &c)
			a := newAdmission(s, 3*item)
			got := ""
			for i := range test.batch {
				err := a.admit(&test.batch[i])
				if err == nil {
					got += "+"
					continue
				}
				got += "-"
				if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "STORE_MAX_BYTES") {
					t.Errorf("command %d: got %v, want ErrFull and the variable", i, err)
				}
			}
			if got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

// TestAdmissionOfARestore: what is staged is looked at before it becomes the content.
func TestAdmissionOfARestore(t *testing.T) {
	s := kv.New()
	s.Update(1, 1, nil, func(tx *kv.Tx) { tx.Stage("k", make([]byte, 1000)) })
	restore := command.Command{Kind: command.Restore, Items: 1}
	fits := kv.ItemFootprint("k", 1000, kv.Lease{})
	if err := newAdmission(s, fits).admit(&restore); err != nil {
		t.Errorf("as much as may be: got %v, want none", err)
	}
	if err := newAdmission(s, fits-1).admit(&restore); !errors.Is(err, ErrFull) {
		t.Errorf("a byte more: got %v, want ErrFull", err)
	}
}

// TestAdmissionKeepsTheBound: whichever commands of a batch take effect, the data stay within their bound, and no
// command that makes them smaller is refused.
func TestAdmissionKeepsTheBound(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 0))
		key := func() string { return string(rune('a' + r.IntN(6))) }
		random := func() command.Command {
			switch r.IntN(6) {
			case 0:
				return removing(command.Remove, key())
			case 1:
				return removing(command.RemovePrefix, key())
			case 2:
				ops := func() (all []command.Operation) {
					for range r.IntN(4) {
						if o := setOp(key(), r.IntN(3000)); r.IntN(3) > 0 {
							all = append(all, o)
						} else if from := key(); r.IntN(2) == 0 {
							all = append(all, command.Operation{Op: command.OpRemove, Key: from})
						} else {
							all = append(all, command.Operation{Op: command.OpRemoveRange, Key: from, End: string(from[0] + 2)})
						}
					}
					return all
				}
				return transaction(ops(), ops())
			}
			return sized(key(), r.IntN(3000))
		}
		start := kv.New()
		if seed%2 == 1 { // keys that are set again take more
			start.Update(1, 1, nil, func(tx *kv.Tx) { tx.RaiseFormat(4) })
		}
		for range 4 {
			c := random()
			applyTo(start, &c)
		}
		size, _ := start.Footprint()
		most := size + r.IntN(4000)
		a := newAdmission(start, most)
		var admitted []command.Command
		for range 12 {
			c := random()
			if a.admit(&c) == nil {
				admitted = append(admitted, c)
			} else if c.Kind == command.Remove || c.Kind == command.RemovePrefix {
				t.Fatalf("seed %d: a remove is refused", seed)
			}
		}
		for range 30 {
			s := start.Clone()
			for _, c := range admitted {
				if r.IntN(4) == 0 {
					continue // its condition does not hold
				}
				if c.Kind == command.Txn && r.IntN(2) == 0 {
					c = transaction(c.Txn.Else, nil)
				}
				applyTo(s, &c)
				if got, _ := s.Footprint(); got > most {
					t.Fatalf("seed %d: got %d bytes, want %d at most", seed, got, most)
				}
			}
		}
	}
}

// TestMaxBytes: a leader refuses what is beyond the bound, what waits is reckoned with, and removes make room again.
func TestMaxBytes(t *testing.T) {
	value := strings.Repeat("v", 300<<10)
	n := openNode(t, "n1", t.TempDir(), func(c *Config) { c.MaxBytes = 1 << 20 })
	n.waitLeader(t)
	for i := range 2 {
		n.set(t, fmt.Sprint("key", i), value)
	}
	if n.checkData(); n.Health().Data != "" {
		t.Errorf("at 59 %%: got the warning %q, want none", n.Health().Data)
	}
	_, open := holdBatch(t, n)
	var all []*proposed
	for i := range 4 {
		all = append(all, n.propose(context.Background(), setting(fmt.Sprint("more", i), value)))
		waitFor(t, "it waits", func() bool { return n.waiting() == i+1 })
	}
	open()
	refused := 0
	for _, p := range all {
		if <-p.done; errors.Is(p.err, ErrFull) {
			refused++
		} else if p.err != nil {
			t.Error(p.err)
		}
	}
	if refused != 3 {
		t.Errorf("got %d of 4 refused, want 3: there is room for one", refused)
	}
	if n.checkData(); !strings.Contains(n.Health().Data, "the data take 87 % of the 1048576 bytes") {
		t.Errorf("got the warning %q, want one with 87 %%", n.Health().Data)
	}
	if got := n.Observe(); got.Proposals["no_room"] != 3 || got.DataBytes < 900<<10 || got.MaxDataBytes != 1<<20 {
		t.Errorf("got %v, %d of %d bytes, want 3 refused and how much is there",
			got.Proposals, got.DataBytes, got.MaxDataBytes)
	}
	n.set(t, "key0", value+"a little more")
	remove := func(key string) error {
		_, err := n.Propose(context.Background(), command.Command{Kind: command.Remove, Pairs: []command.Pair{{Key: key}}})
		return err
	}
	if err := remove("key0"); err != nil { // machine of these tests sets it to nothing
		t.Fatal(err)
	}
	n.set(t, "again", value)
	if n.checkData(); n.Health().Data == "" {
		t.Error("got no warning, want one")
	}
}

// TestMaxBytesOfANewLeader: what earlier leaders have proposed and is not applied yet counts, too.
func TestMaxBytesOfANewLeader(t *testing.T) {
	value := strings.Repeat("v", 600<<10)
	n := openNode(t, "n1", t.TempDir(), func(c *Config) { c.MaxBytes = 1 << 20 })
	n.waitLeader(t)
	gate := make(chan struct{})
	n.machine.gate.Store(&gate)
	earlier := n.current.Load().raft.Apply(command.Append(nil, setting("earlier", value)), 0)
	waitFor(t, "it is in the log", func() bool { return n.keyInLog(t, "earlier") })
	p := n.propose(context.Background(), setting("now", value))
	waitFor(t, "it is looked at", func() bool {
		n.batcher.mu.Lock()
		defer n.batcher.mu.Unlock()
		return n.batcher.running && len(n.batcher.waiting) == 0
	})
	close(gate)
	if err := earlier.Error(); err != nil {
		t.Fatal(err)
	}
	if <-p.done; !errors.Is(p.err, ErrFull) {
		t.Errorf("got %v, want ErrFull", p.err)
	}
	n.set(t, "small", "1") // in the same term, by now settled
}

// TestMaxBytesIsTheLeaders: a node that does not lead refuses nothing for its own bound.
func TestMaxBytesIsTheLeaders(t *testing.T) {
	n1 := openNode(t, "n1", t.TempDir(), func(c *Config) { c.MaxBytes = 2 << 20 })
	n2 := openNode(t, "n2", t.TempDir(), func(c *Config) { c.MaxBytes = 1 })
	n1.waitLeader(t)
	n1.join(t, n2)
	n2.settled = n2.current.Load().raft.CurrentTerm() // as in the term in which it has led
	if _, err := n2.Propose(context.Background(), setting("k", "v")); !errors.Is(err, ErrNotLeader) {
		t.Errorf("at the follower: got %v, want ErrNotLeader", err)
	}
	n1.set(t, "k", strings.Repeat("v", 1000))
	checkReplicas(t, n1, n2)
}
