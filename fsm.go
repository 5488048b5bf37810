package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
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
	removed int // keys that were there
}

func newFSM(log *logrus.Logger) *fsm { return &fsm{store: kv.New(), log: log} }

// Apply implements raft.FSM.
func (f *fsm) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch implements raft.BatchingFSM. The response to an entry is a []result,
// one for each of its commands. The console lines of a batch are one write.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	responses := make([]any, len(logs))
	if f.lines = f.lines[:0]; cap(f.lines) > 1<<20 {
		f.lines = nil // one entry with very many keys
	}
	show, now := f.log.IsLevelEnabled(logrus.InfoLevel), time.Now()
	for i, l := range logs {
		if l.Type != raft.LogCommand {
			// A change of the members: nothing to do but to know that it came by.
			f.store.Update(l.Index, l.Term, func(*kv.Tx) {})
			continue
		}
		commands, err := command.Decode(l.Data)
		if err != nil {
			// The cluster agreed on what this node can't follow: going on would
			// make it differ. An older binary after a newer one, most likely.
			panic(fmt.Sprintf("entry %d of the log can't be decoded by this version of raftkv: %v", l.Index, err))
		}
		results := make([]result, len(commands))
		f.store.Update(l.Index, l.Term, func(tx *kv.Tx) {
			for j, c := range commands {
				results[j] = apply(tx, c)
			}
		})
		responses[i] = results
		for _, c := range commands {
			if show {
				f.lines = appendCommand(f.lines, now, c, l)
			}
		}
	}
	if len(f.lines) > 0 {
		_, _ = f.log.Out.Write(f.lines)
	}
	return responses
}

func apply(tx *kv.Tx, c command.Command) (r result) {
	for _, p := range c.Pairs {
		switch c.Kind {
		case command.Set:
			tx.Set(p.Key, p.Value)
		case command.Remove:
			if tx.Remove(p.Key) {
				r.removed++
			}
		}
	}
	return r
}

// appendCommand appends a console line for each key of c, for instance
// set key="1" value="1" index=12 term=2.
func appendCommand(line []byte, now time.Time, c command.Command, l *raft.Log) []byte {
	if c.Kind == command.Noop {
		line = appendPrefix(line, now, logrus.InfoLevel)
		return fmt.Appendf(line, "no-op index=%d term=%d\n", l.Index, l.Term)
	}
	for _, p := range c.Pairs {
		line = appendPrefix(line, now, logrus.InfoLevel)
		if c.Kind == command.Set {
			line = append(line, "set key="...)
			line = appendShort(line, p.Key)
			line = append(line, " value="...)
			line = appendShort(line, p.Value)
		} else {
			line = append(line, "remove key="...)
			line = appendShort(line, p.Key)
		}
		line = append(line, " index="...)
		line = strconv.AppendUint(line, l.Index, 10)
		line = append(line, " term="...)
		line = strconv.AppendUint(line, l.Term, 10)
		line = append(line, '\n')
	}
	return line
}

// shown is how many bytes of a key or value the console shows.
const shown = 64

// appendShort appends s quoted and escaped, so that no key can forge a line, and
// cut to shown bytes, with the full length behind it.
func appendShort[S string | []byte](line []byte, s S) []byte {
	if len(s) <= shown {
		return strconv.AppendQuote(line, string(s))
	}
	line = strconv.AppendQuote(line, string(s[:shown]))
	line = append(line, "...("...)
	line = strconv.AppendInt(line, int64(len(s)), 10)
	return append(line, " bytes)"...)
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

// WaitApplied implements node.StateMachine.
func (f *fsm) WaitApplied(ctx context.Context, index uint64) error {
	return f.store.WaitApplied(ctx, index)
}

// Keys implements node.StateMachine.
func (f *fsm) Keys() int { return f.store.Len() }

// Reset implements node.StateMachine.
func (f *fsm) Reset() { f.store.Reset() }
