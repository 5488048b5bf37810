package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	"github.com/sirupsen/logrus"

	"raftkv/internal/command"
	"raftkv/internal/console"
	"raftkv/internal/kv"
)

// fsm is the state machine: the same commands in the same order make the same
// store on every node. Nothing in it depends on time, chance or I/O (the console
// only tells). It implements node.StateMachine.
type fsm struct {
	store *kv.Store
	log   *logrus.Logger
	lines []byte // console lines of the batch under way; used by raft's goroutine alone
}

func newFSM(log *logrus.Logger) *fsm { return &fsm{store: kv.New(), log: log} }

// Apply implements raft.FSM.
func (f *fsm) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch implements raft.BatchingFSM. The response to an entry is a []any: for
// each of its commands the result. The console lines of a batch are one write.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	responses := make([]any, len(logs))
	if f.lines = f.lines[:0]; cap(f.lines) > 1<<20 {
		f.lines = nil // one entry with very many keys
	}
	show, prefix := f.log.IsLevelEnabled(logrus.InfoLevel), console.AppendPrefix(nil, time.Now(), logrus.InfoLevel)
	for i, l := range logs {
		if l.Type != raft.LogCommand {
			// A change of the members: nothing to do but to know that it came by.
			f.store.Update(l.Index, l.Term, nil, func(*kv.Tx) {})
			continue
		}
		commands, err := command.Decode(l.Data)
		if err != nil {
			// The cluster agreed on what this node can't follow: going on would
			// make it differ. An older binary after a newer one, most likely.
			panic(fmt.Sprintf("entry %d of the log can't be decoded by this version of raftkv: %v", l.Index, err))
		}
		results := make([]any, len(commands))
		f.store.Update(l.Index, l.Term, l.Data, func(tx *kv.Tx) {
			for j, c := range commands {
				results[j] = apply(tx, c, l.Index)
			}
		})
		if show {
			for j, c := range commands {
				f.lines = console.AppendCommand(f.lines, prefix, c, results[j].(command.Result), l.Index, l.Term)
			}
		}
		responses[i] = results
	}
	if len(f.lines) > 0 {
		_, _ = f.log.Out.Write(f.lines)
	}
	return responses
}

// apply does what c says, once for each idempotency key.
func apply(tx *kv.Tx, c command.Command, index uint64) command.Result {
	if c.Options == nil {
		return execute(tx, c, index)
	}
	if c.IdempotencyKey == "" {
		return conditional(tx, c, index)
	}
	identity := c.Identity()
	if answer, ok := tx.Record(c.IdempotencyKey); ok {
		r, ok := command.ParseAnswer(answer, identity)
		if !ok {
			return command.Result{Index: index, Reused: true}
		}
		return r
	}
	r := conditional(tx, c, index)
	tx.AddRecord(c.IdempotencyKey, r.Answer(identity))
	return r
}

// conditional does what c says if every key meets its conditions.
func conditional(tx *kv.Tx, c command.Command, index uint64) command.Result {
	if !c.Match.IsNone() || !c.NoneMatch.IsNone() {
		for i, p := range c.Pairs {
			item, _ := tx.Get(p.Key) // no item: index 0
			if !c.Match.IsNone() && !meets(c.Match, item.Index) || meets(c.NoneMatch, item.Index) {
				return command.Result{Index: index, Failed: i + 1, Current: item.Index}
			}
		}
	}
	return execute(tx, c, index)
}

// meets reports whether a key that was last set by the entry at index, 0 for none,
// is what the condition asks for.
func meets(condition command.Condition, index uint64) bool {
	return index != 0 && (condition.Any || slices.Contains(condition.Indexes, index))
}

func execute(tx *kv.Tx, c command.Command, index uint64) command.Result {
	r := command.Result{Index: index}
	switch c.Kind {
	case command.Set:
		for _, p := range c.Pairs {
			tx.Set(p.Key, p.Value)
		}
	case command.Remove:
		for _, p := range c.Pairs {
			if tx.Remove(p.Key) {
				r.Removed++
			}
		}
	case command.RemovePrefix:
		for _, p := range c.Pairs {
			r.Removed += tx.RemovePrefix(p.Key)
		}
	case command.Unstage:
		tx.Unstage()
	case command.Stage:
		for _, p := range c.Pairs {
			tx.Stage(p.Key, p.Value)
		}
	case command.StageAnswers:
		for _, p := range c.Pairs {
			tx.StageRecord(p.Key, string(p.Value))
		}
	case command.Restore:
		r.Counted = tx.Restore(int(c.Items), int(c.Answers))
	}
	return r
}

// Snapshot implements raft.FSM; it takes constant time.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) { return snapshot{f.store.Clone()}, nil }

type snapshot struct{ store *kv.Store }

// Persist implements raft.FSMSnapshot.
func (s snapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.store.WriteSnapshot(sink); err != nil {
		_ = sink.Cancel()
		return err
	}
	return sink.Close()
}

// Release implements raft.FSMSnapshot.
func (snapshot) Release() {}

// Restore implements raft.FSM. A damaged snapshot leaves the store as it was.
func (f *fsm) Restore(snapshot io.ReadCloser) error {
	if err := f.store.ReadSnapshot(snapshot); err != nil {
		return err
	}
	index, _ := f.Applied()
	f.log.Infof("Restored a snapshot: %d keys, index=%d", f.Len(), index)
	return nil
}

// Applied implements node.StateMachine.
func (f *fsm) Applied() (index, term uint64) { return f.store.Applied() }

// Hash implements node.StateMachine.
func (f *fsm) Hash() (index uint64, hash [32]byte) { return f.store.Hash() }

// HashAt implements node.StateMachine.
func (f *fsm) HashAt(index uint64) (hash [32]byte, ok bool) { return f.store.HashAt(index) }

// WaitApplied implements node.StateMachine.
func (f *fsm) WaitApplied(ctx context.Context, index uint64) error {
	return f.store.WaitApplied(ctx, index)
}

// Len implements node.StateMachine.
func (f *fsm) Len() int { return f.store.Len() }

// Reset implements node.StateMachine.
func (f *fsm) Reset() { f.store.Reset() }
