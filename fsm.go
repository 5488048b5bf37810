package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/raft"
	"github.com/sirupsen/logrus"

	"raftkv/internal/command"
	"raftkv/internal/console"
	"raftkv/internal/kv"
)

// fsm is the replicated state machine: what the raft log is for. Raft gives every node
// the same entries in the same order (Raft paper, section 2); this makes data of them. All
// replicas are equal because of one rule: the effect of an entry depends on it and on the
// entries before it alone, never on the time, on chance, on the order of a Go map, or on
// anything else that differs between nodes. The console lines are only output.
//
// Raft calls ApplyBatch, Snapshot and Restore from one goroutine, while handlers read the
// kv.Store. With the methods of that, fsm implements node.StateMachine.
type fsm struct {
	*kv.Store
	log   *logrus.Logger
	lines []byte // console lines of the current batch; used by raft's goroutine alone

	hideValues bool          // lines have no values; set before raft runs
	names      command.Names // of the clients of this node
}

func newFSM(log *logrus.Logger) *fsm { return &fsm{Store: kv.New(), log: log} }

// Apply implements raft.FSM; raft.RecoverCluster calls it, all else of raft ApplyBatch.
func (f *fsm) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch implements raft.BatchingFSM. Raft calls it on every node with entries that
// are committed, which are on disk at a majority; after a start, again with those after
// the newest snapshot. A response goes to the raft.ApplyFuture of its entry if this node
// proposed it: a []command.Result, one for each command; nil if the entry has none.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	responses := make([]any, len(logs))
	if f.lines = f.lines[:0]; cap(f.lines) > 1<<20 {
		f.lines = nil // one entry with very many keys
	}
	show := f.log.IsLevelEnabled(logrus.InfoLevel)
	prefix := console.NewPrefix(f.log.Formatter, time.Now(), logrus.InfoLevel)
	prefix.HideValues = f.hideValues
	for i, l := range logs {
		if l.Type != raft.LogCommand {
			f.Update(l.Index, l.Term, nil, func(*kv.Tx) {}) // a membership change: only its index counts
			continue
		}
		commands, err := command.Decode(l.Data)
		if err != nil {
			// The other nodes apply this entry; one that skipped it would have other data than
			// theirs, and nobody would notice. So it stops. Most likely a newer version wrote it.
			panic(fmt.Sprintf("entry %d of the log can't be decoded by this version of raftkv: %v", l.Index, err))
		}
		results := make([]command.Result, len(commands))
		f.Update(l.Index, l.Term, l.Data, func(tx *kv.Tx) {
			for j, c := range commands {
				results[j] = applyOnce(tx, c, l.Index)
			}
		})
		if show {
			f.names.Get(l.Data, commands)
			for j, c := range commands {
				f.lines = console.AppendCommand(f.lines, prefix, c, results[j], l.Index, l.Term)
			}
		}
		responses[i] = results
	}
	if len(f.lines) > 0 {
		_, _ = f.log.Out.Write(f.lines) // one write for all lines: the console must not slow raft down
	}
	return responses
}

// applyOnce applies c unless its idempotency key has a record, whose result it returns: a
// client without an answer sends its command again, and both may be committed (Raft paper,
// section 8).
func applyOnce(tx *kv.Tx, c command.Command, index uint64) command.Result {
	if c.Options == nil || c.IdempotencyKey == "" {
		return applyIf(tx, c, index)
	}
	identity := c.Identity()
	if record, ok := tx.Record(c.IdempotencyKey); ok {
		if r, ok := command.ParseRecord(record, identity); ok {
			return r
		}
		return command.Result{Index: index, Reused: true}
	}
	r := applyIf(tx, c, index)
	tx.AddRecord(c.IdempotencyKey, r.Record(identity))
	return r
}

// applyIf applies c if its conditions hold for every key. They are checked here, not when
// the request arrives, as only here no other command can come in between.
func applyIf(tx *kv.Tx, c command.Command, index uint64) command.Result {
	if c.Options != nil && !(c.Match.IsNone() && c.NoneMatch.IsNone()) {
		for i, p := range c.Pairs {
			item, _ := tx.Get(p.Key) // no item: index 0
			if !c.Match.IsNone() && !c.Match.Holds(item.Index) || c.NoneMatch.Holds(item.Index) {
				return command.Result{Index: index, Failed: i + 1, Current: item.Index}
			}
		}
	}
	if lease := c.Lease(); lease.Key != "" {
		if _, found := tx.Get(lease.Key); !found {
			return command.Result{Index: index, Failed: len(c.Pairs) + 1}
		}
	}
	return execute(tx, c, index)
}

func execute(tx *kv.Tx, c command.Command, index uint64) command.Result {
	r := command.Result{Index: index}
	switch c.Kind { // a Noop has no effect
	case command.Set:
		for _, p := range c.Pairs {
			tx.SetLeased(p.Key, p.Value, kv.Lease(c.Lease()))
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
	case command.StageRecords:
		for _, p := range c.Pairs {
			tx.StageRecord(p.Key, string(p.Value))
		}
	case command.StageLeases:
		for _, p := range c.Pairs {
			lease, _ := command.ParseLease(p.Value) // Decode has
			tx.StageLease(p.Key, kv.Lease(lease))
		}
	case command.Expire:
		r.Txn = new(command.TxnResult)
		for _, timed := range c.Txn.If {
			done := command.OperationResult{Found: tx.Expire(timed.Key, timed.Index)}
			r.Txn.Operations = append(r.Txn.Operations, done)
		}
	case command.Restore:
		r.Counted = tx.Restore(int(c.Items), int(c.Records))
	case command.RaiseFormat:
		tx.RaiseFormat(c.To)
	case command.Txn:
		r.Txn = transact(tx, c.Txn)
	}
	return r
}

// transact carries out the operations of a transaction that its conditions select, or none
// if the key of a lease is not there.
func transact(tx *kv.Tx, t *command.Transaction) *command.TxnResult {
	result := &command.TxnResult{Held: true}
	for _, c := range t.If {
		result.Held = result.Held && c.Holds(found(tx, c.Key))
	}
	branch := t.Branch(command.Result{Txn: result})
	if !leasesHold(tx, branch) {
		return result
	}
	for _, o := range branch {
		item, found := tx.Get(o.Key)
		done := command.OperationResult{Found: found}
		switch o.Op {
		case command.OpSet:
			tx.SetLeased(o.Key, o.Value, kv.Lease(o.Lease))
		case command.OpRemove:
			tx.Remove(o.Key)
		case command.OpGet:
			done.Value, done.Index = item.Value, item.Index
		case command.OpView:
			done.View = tx.View()
		case command.OpRemoveRange:
			done.Removed = tx.RemoveRange(o.Key, o.End)
		case command.OpTouch:
			tx.Touch(o.Key)
		}
		result.Operations = append(result.Operations, done)
	}
	return result
}

// found returns what conditions see of a key.
func found(tx *kv.Tx, key string) command.Found {
	full, ok := tx.GetFull(key)
	return command.Found{Exists: ok, Value: full.Value, Index: full.Index, Created: full.Created, Version: full.Version,
		Lease: full.Lease.Key}
}

// leasesHold reports whether the key of every lease is there when its operation is carried
// out, which may be due to an operation before it.
func leasesHold(tx *kv.Tx, branch []command.Operation) bool {
	changed := make(map[string]bool) // key: it is there
	for _, o := range branch {
		if o.Lease.Key != "" {
			found, known := changed[o.Lease.Key]
			if !known {
				_, found = tx.Get(o.Lease.Key)
			}
			if !found {
				return false
			}
		}
		if o.Op == command.OpSet || o.Op == command.OpRemove {
			changed[o.Key] = o.Op == command.OpSet
		}
	}
	return true
}

// Snapshot implements raft.FSM. Raft calls it when the log has grown, to drop the entries
// that the snapshot replaces, and applies nothing until it returns. So it only clones the
// store, which is copy-on-write: that takes constant time.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) { return snapshot{f.Clone()}, nil }

type snapshot struct{ store *kv.Store }

// Persist implements raft.FSMSnapshot. ApplyBatch may run meanwhile: the clone is apart.
func (s snapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.store.WriteSnapshot(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

// Release implements raft.FSMSnapshot.
func (snapshot) Release() {}

// Restore implements raft.FSM. Raft calls it at start with the newest snapshot, and when
// the leader sends one in the place of entries that it no longer has. A damaged one
// leaves the store as it was. Raft closes r.
func (f *fsm) Restore(r io.ReadCloser) error {
	restore, _, _, err := f.Prepare(r)
	if err == nil {
		restore()
	}
	return err
}

// Prepare implements node.StateMachine: a snapshot of the leader is read as it comes, and
// restored when raft asks for it.
func (f *fsm) Prepare(r io.Reader) (restore func(), index, term uint64, err error) {
	p, err := kv.PrepareSnapshot(r)
	if err != nil {
		return nil, 0, 0, err
	}
	index, term = p.Applied()
	return func() {
		f.Install(p)
		f.log.Infof("Restored a snapshot: %d keys, index=%d", f.Len(), index)
	}, index, term, nil
}
