package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	"github.com/sirupsen/logrus"

	"raftkv/internal/command"
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

// result is what one command did, for the client that sent it.
type result struct {
	index   uint64 // of the entry that did it: of an earlier one, when the command is a repeated one
	removed int    // keys that were there
	failed  int    // the pair whose key did not meet the condition, counted from 1; 0: none
	current uint64 // what that key has: the index that set it; 0: it is not there
	reused  bool   // the idempotency key is another command's: nothing was done
	counted bool   // a restore found staged what it should
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
	show, prefix := f.log.IsLevelEnabled(logrus.InfoLevel), appendPrefix(nil, time.Now(), logrus.InfoLevel)
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
				f.lines = appendCommand(f.lines, prefix, c, results[j].(result), l)
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
func apply(tx *kv.Tx, c command.Command, index uint64) result {
	if c.Options == nil {
		return execute(tx, c, index)
	}
	if c.IdempotencyKey == "" {
		return conditional(tx, c, index)
	}
	identity := identify(c)
	if answer, ok := tx.Answer(c.IdempotencyKey); ok {
		r, ok := parseAnswer(answer, identity)
		if !ok {
			return result{index: index, reused: true}
		}
		return r
	}
	r := conditional(tx, c, index)
	tx.Remember(c.IdempotencyKey, r.answer(identity))
	return r
}

// conditional does what c says if every key meets its conditions.
func conditional(tx *kv.Tx, c command.Command, index uint64) result {
	if !c.Match.IsNone() || !c.NoneMatch.IsNone() {
		for i, p := range c.Pairs {
			item, _ := tx.Get(p.Key) // no item: index 0
			if !c.Match.IsNone() && !meets(c.Match, item.Index) || meets(c.NoneMatch, item.Index) {
				return result{index: index, failed: i + 1, current: item.Index}
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

func execute(tx *kv.Tx, c command.Command, index uint64) result {
	r := result{index: index}
	switch c.Kind {
	case command.Set:
		for _, p := range c.Pairs {
			tx.Set(p.Key, p.Value)
		}
	case command.Remove:
		for _, p := range c.Pairs {
			if tx.Remove(p.Key) {
				r.removed++
			}
		}
	case command.RemovePrefix:
		for _, p := range c.Pairs {
			r.removed += tx.RemovePrefix(p.Key)
		}
	case command.Unstage:
		tx.Unstage()
	case command.Stage:
		for _, p := range c.Pairs {
			tx.Stage(p.Key, p.Value)
		}
	case command.StageAnswers:
		for _, p := range c.Pairs {
			tx.StageAnswer(p.Key, string(p.Value))
		}
	case command.Restore:
		r.counted = tx.Restore(int(c.Items), int(c.Answers))
	}
	return r
}

// identify returns what tells c from other commands with the same idempotency key.
func identify(c command.Command) [sha256.Size]byte {
	options := *c.Options
	options.IdempotencyKey = ""
	c.Options = &options
	return sha256.Sum256(command.Append(nil, c))
}

// answer is what the state machine remembers for an idempotency key:
//
//	identity of the command, uvarint index, uvarint removed, uvarint failed, uvarint current
func (r result) answer(identity [sha256.Size]byte) string {
	b := append(make([]byte, 0, len(identity)+4*binary.MaxVarintLen64), identity[:]...)
	for _, v := range []uint64{r.index, uint64(r.removed), uint64(r.failed), r.current} {
		b = binary.AppendUvarint(b, v)
	}
	return string(b)
}

// parseAnswer returns the result in an answer, if it is one of that command.
func parseAnswer(answer string, identity [sha256.Size]byte) (r result, ok bool) {
	rest, ok := strings.CutPrefix(answer, string(identity[:]))
	if !ok {
		return result{}, false
	}
	var v [4]uint64
	for i := range v {
		var n int
		if v[i], n = binary.Uvarint([]byte(rest)); n <= 0 {
			return result{}, false
		}
		rest = rest[n:]
	}
	return result{index: v[0], removed: int(v[1]), failed: int(v[2]), current: v[3]}, rest == ""
}

// appendCommand appends the console lines of what c did: one for each key, for
// instance set key="1" value="1" index=12 term=2.
func appendCommand(line, prefix []byte, c command.Command, r result, l *raft.Log) []byte {
	begin := func() {
		line = append(line, prefix...)
		switch {
		case r.reused:
			line = append(line, "refused, Idempotency-Key of another request: "...)
		case r.index != l.Index:
			line = fmt.Appendf(line, "done before, index=%d: ", r.index)
		case r.failed != 0:
			line = append(line, "condition failed: "...)
		}
	}
	end := func() {
		line = append(line, " index="...)
		line = strconv.AppendUint(line, l.Index, 10)
		line = append(line, " term="...)
		line = strconv.AppendUint(line, l.Term, 10)
		line = append(line, '\n')
	}
	switch c.Kind {
	case command.Set, command.Remove:
		for _, p := range c.Pairs {
			begin()
			if c.Kind == command.Set {
				line = append(line, "set key="...)
				line = command.AppendQuoted(line, p.Key)
				line = append(line, " value="...)
				line = command.AppendQuoted(line, p.Value)
			} else {
				line = append(line, "remove key="...)
				line = command.AppendQuoted(line, p.Key)
			}
			end()
		}
		return line
	case command.RemovePrefix:
		begin()
		line = append(line, "remove prefix="...)
		line = command.AppendQuoted(line, c.Pairs[0].Key)
		line = fmt.Appendf(line, " removed=%d", r.removed)
	case command.Noop:
		begin()
		line = append(line, "no-op"...)
	case command.Unstage:
		begin()
		line = append(line, "begin or give up a restore"...)
	case command.Stage, command.StageAnswers:
		begin()
		line = fmt.Appendf(line, "stage %d of a restore", len(c.Pairs))
	case command.Restore:
		begin()
		line = fmt.Appendf(line, "restore keys=%d complete=%t", c.Items, r.counted)
	}
	end()
	return line
}

// checkBackup reports what in a backup could not be replicated: it may come from a
// program with other limits.
func checkBackup(backup *kv.Store) (err error) {
	backup.Ascend("", func(key string, item kv.Item) bool {
		if len(key) == 0 || len(key) > command.MaxKey || len(item.Value) > command.MaxValue {
			err = fmt.Errorf("it has a key of %d bytes with a value of %d; a key has 1 to %d, a value up to %d", len(key), len(item.Value), command.MaxKey, command.MaxValue)
		}
		return err == nil
	})
	backup.AscendAnswers(func(key, answer string) bool {
		if len(key) == 0 || len(key) > command.MaxIdempotencyKey || len(answer) > command.MaxValue {
			err = fmt.Errorf("it has an idempotency key of %d bytes; it has 1 to %d", len(key), command.MaxIdempotencyKey)
		}
		return err == nil
	})
	return err
}

// stageBytes is about how much of a backup travels in one entry.
const stageBytes = 256 << 10

// restoreCommands yields the commands that make the content of backup the state
// machine's, in order. A backup must not be changed meanwhile.
func restoreCommands(backup *kv.Store) iter.Seq[command.Command] {
	return func(yield func(command.Command) bool) {
		if !yield(command.Command{Kind: command.Unstage}) {
			return
		}
		size, ok := 0, true
		var c command.Command
		stage := func(kind command.Kind, key, value string) bool {
			if size > stageBytes || c.Kind != kind {
				ok = len(c.Pairs) == 0 || yield(c)
				size, c = 0, command.Command{Kind: kind}
			}
			c.Pairs = append(c.Pairs, command.Pair{Key: key, Value: []byte(value)})
			size += len(key) + len(value)
			return ok
		}
		backup.Ascend("", func(key string, item kv.Item) bool { return stage(command.Stage, key, item.Value) })
		backup.AscendAnswers(func(key, answer string) bool { return ok && stage(command.StageAnswers, key, answer) })
		if ok && (len(c.Pairs) == 0 || yield(c)) {
			yield(command.Command{Kind: command.Restore, Items: uint64(backup.Len()), Answers: uint64(backup.Answers())})
		}
	}
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
	f.log.Infof("Restored a snapshot: %d keys, index=%d", f.Keys(), index)
	return nil
}

// Applied implements node.StateMachine.
func (f *fsm) Applied() (index, term uint64) { return f.store.Applied() }

// Chain implements node.StateMachine.
func (f *fsm) Chain() (index uint64, chain [32]byte) { return f.store.Chain() }

// ChainAt implements node.StateMachine.
func (f *fsm) ChainAt(index uint64) (chain [32]byte, ok bool) { return f.store.ChainAt(index) }

// WaitApplied implements node.StateMachine.
func (f *fsm) WaitApplied(ctx context.Context, index uint64) error {
	return f.store.WaitApplied(ctx, index)
}

// Keys implements node.StateMachine.
func (f *fsm) Keys() int { return f.store.Len() }

// Reset implements node.StateMachine.
func (f *fsm) Reset() { f.store.Reset() }
