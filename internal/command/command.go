// Package command is what travels in the raft log: commands, the encoding of a log entry,
// and what the state machine records about a command.
//
// One entry is a batch of commands, as requests that arrive while others are being
// replicated share the next entry (group commit). [Append] encodes a batch, [Decode]
// decodes it. The state machine turns each [Command] into a [Result]; for a command with
// an idempotency key it keeps the Result as an idempotency record, by which it recognizes
// the same command when a client sends it again ([Command.Identity], [Result.Record]).
// Which commands a cluster may use at all is a matter of its format ([Command.Format]).
//
// Three formats are fixed here, and each has a version of its own, as each lives in
// places of its own and must stay readable there: entries (codec.go; raft's log), the
// canonical form of a command (result.go; only its hash is kept) and idempotency records
// (result.go; snapshots and backups).
package command

import (
	"slices"
	"time"
)

// Limits in bytes. They are checked where a request becomes a command; Append and
// Decode know nothing of them, so that other limits can never make an old log
// unreadable.
const (
	MaxKey            = 1024
	MaxValue          = 1 << 20
	MaxIdempotencyKey = 255
)

// Limits of a Lease's TTL.
const (
	MinTTL = time.Second
	MaxTTL = 30 * 24 * time.Hour
)

// Format is the newest cluster format that this program knows: which kinds of entries, calls
// between nodes and files there are (CHANGELOG.md, "Formats"). Nothing newer than the least
// of all members' formats is used in a cluster. An entry that needs format 2 or a later one
// has it as its version.
const Format = 3

// Kind is what a command does. Its values are on disk and are never renumbered.
type Kind byte

const (
	Set          Kind = 1
	Remove       Kind = 2
	Noop         Kind = 3 // has no effect, but an index
	RemovePrefix Kind = 4 // removes all keys that begin with the key of a pair

	// A backup is restored in several entries: Unstage, then Stage and StageRecords
	// as often as needed, which no reader sees, then Restore, which makes what is staged
	// the content if it is as much as its counts require.
	Unstage      Kind = 5
	Stage        Kind = 6
	StageRecords Kind = 7 // idempotency keys and their records
	Restore      Kind = 8

	// Since format 2.
	RaiseFormat Kind = 9  // raises the cluster format to that of the command
	Txn         Kind = 10 // conditions on keys, then one of two lists of operations

	// Since format 3.
	Expire      Kind = 11 // removes the keys of Txn.If that still have that index and a TTL
	StageLeases Kind = 12 // keys that are staged and, as values, their leases (AppendLease)
)

// Pair is a key and, in a Set, Stage, StageRecords or StageLeases, its value. In others
// the value is nil.
type Pair struct {
	Key   string
	Value []byte
}

// Condition is on the index of the entry that last set a key. The zero Condition
// is none.
type Condition struct {
	Any     bool     // any index: the key exists
	Indexes []uint64 // or one of these; 0 is never a key's
}

// IsNone reports whether c is no condition at all.
func (c Condition) IsNone() bool { return !c.Any && len(c.Indexes) == 0 }

// Holds reports whether c holds for a key that was last set by the entry at index, 0
// for a key that does not exist. No condition does not hold.
func (c Condition) Holds(index uint64) bool {
	return index != 0 && (c.Any || slices.Contains(c.Indexes, index))
}

// Lease is what ends the keys of a set. The zero Lease is none: they stay.
type Lease struct {
	TTL time.Duration // a key that is not set again for so long goes, in milliseconds; 0: none
	Key string        // the keys go with this one, in the same entry; empty: with none
}

// Command is one request: all of its pairs take effect, or none does.
type Command struct {
	Kind  Kind
	Pairs []Pair

	// By is the name of the client, where it has one. It is for the console of the node that
	// proposes c, and is not in the log.
	By string

	*Options                    // of a Set, Remove, RemovePrefix or Txn; nil: none
	Items, Records uint64       // of a Restore: how many are staged
	To             uint64       // of a RaiseFormat: the cluster format, 2 or more
	Txn            *Transaction // of a Txn; of an Expire: one with HasIndex conditions alone
}

// Format returns the least cluster format in which c may be used: 0, that of the first
// programs, for those without a condition or an idempotency key that set or remove keys.
func (c *Command) Format() int {
	switch {
	case c.Kind >= Expire, c.Lease() != Lease{}, c.Kind == Txn && c.Txn.hasLease():
		return 3
	case c.Kind >= RaiseFormat:
		return 2
	case c.Kind > Noop || c.options() != 0:
		return 1
	}
	return 0
}

// EntryFormat returns the least cluster format in which an entry may be used, by its
// version: 1 for the entries from before there were formats.
func EntryFormat(entry []byte) int {
	if len(entry) == 0 {
		return 0
	}
	return int(entry[0])
}

// Options of a command. It has no effect unless Match, if it is not none, holds for
// every key and NoneMatch for no key. A Txn has neither of the two.
type Options struct {
	IdempotencyKey   string // empty: none
	Match, NoneMatch Condition
	Lease            Lease // of a Set, all keys of which get it; it has no effect unless Lease.Key is there
}

// Lease returns that of a Set; none for other commands.
func (c *Command) Lease() Lease {
	if c.Kind != Set || c.Options == nil {
		return Lease{}
	}
	return c.Options.Lease
}

// Transaction is what a Txn does, in one entry: if all conditions hold, the operations of
// Then, and else those of Else, in their order. Each sees what the one before it did.
type Transaction struct {
	If         []Compare
	Then, Else []Operation
}

func (t *Transaction) hasLease() bool {
	leased := func(o Operation) bool { return o.Op == OpSet && o.Lease != Lease{} }
	return slices.ContainsFunc(t.Then, leased) || slices.ContainsFunc(t.Else, leased)
}

// Branch returns the operations that a Txn with this result has selected: none if it was
// refused.
func (t *Transaction) Branch(r Result) []Operation {
	switch {
	case r.Txn == nil:
		return nil
	case r.Txn.Held:
		return t.Then
	}
	return t.Else
}

// Done returns the operations that a Txn with this result has carried out: those of Branch,
// or none if the key of a Lease was not there.
func (t *Transaction) Done(r Result) []Operation {
	branch := t.Branch(r)
	if r.Txn != nil && len(r.Txn.Operations) < len(branch) {
		return nil
	}
	return branch
}

// Compare is a condition of a Transaction on one key.
type Compare struct {
	Key  string
	What What

	Index uint64 // of HasIndex
	Value []byte // of HasValue
}

// Holds reports whether c holds for a key that was found, with this index and value, or not.
func (c *Compare) Holds(found bool, index uint64, value string) bool {
	switch c.What {
	case Absent:
		return !found
	case HasIndex:
		return found && index == c.Index
	case HasValue:
		return found && value == string(c.Value)
	}
	return found
}

// What a key is compared with. Its values are on disk and are never renumbered.
type What byte

const (
	Absent   What = 0 // the key does not exist
	Exists   What = 1
	HasIndex What = 2 // the key was last set by the entry at this index
	HasValue What = 3
)

// Operation of a Transaction.
type Operation struct {
	Op    Op
	Key   string
	Value []byte // of OpSet
	Lease Lease  // of OpSet
}

// Op is what an Operation does. Its values are on disk and are never renumbered.
type Op byte

const (
	OpSet    Op = 1
	OpRemove Op = 2
	OpGet    Op = 3
)
