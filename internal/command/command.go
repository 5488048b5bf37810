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
	"cmp"
	"slices"
	"strings"
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
const Format = 4

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
	case c.Kind == Txn && c.Txn.hasRange():
		return 4
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

// hasRange reports whether t has a condition or an operation that is known since format 4.
func (t *Transaction) hasRange() bool {
	since4 := func(o Operation) bool { return o.Op > opSetLeased }
	return slices.ContainsFunc(t.If, func(c Compare) bool { return c.What == Related }) ||
		slices.ContainsFunc(t.Then, since4) || slices.ContainsFunc(t.Else, since4)
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

	Index uint64 // of HasIndex, and of Related with a property that is a number
	Value []byte // of HasValue, and of Related with a property that is not

	Of Property // of Related, as the next one
	Is Relation
}

// Found is a key as conditions see it. The zero Found is one that does not exist.
type Found struct {
	Exists                  bool
	Value                   string
	Index, Created, Version uint64 // see kv.Full
	Lease                   string // the key that it goes with; empty: none
}

// Holds reports whether c holds for a key.
func (c *Compare) Holds(f Found) bool {
	switch c.What {
	case Absent:
		return !f.Exists
	case HasIndex:
		return f.Exists && f.Index == c.Index
	case HasValue:
		return f.Exists && f.Value == string(c.Value)
	case Related:
		return c.related(f)
	}
	return f.Exists
}

// related is Holds of a Related. A key that does not exist has no value, which is in no relation to another, and 0 for
// every number, as in etcd.
func (c *Compare) related(f Found) bool {
	switch c.Of {
	case OfValue:
		return f.Exists && c.Is.holds(strings.Compare(f.Value, string(c.Value)))
	case OfLease:
		return c.Is.holds(strings.Compare(f.Lease, string(c.Value)))
	case OfCreated:
		return c.Is.holds(cmp.Compare(f.Created, c.Index))
	case OfVersion:
		return c.Is.holds(cmp.Compare(f.Version, c.Index))
	}
	return c.Is.holds(cmp.Compare(f.Index, c.Index))
}

// What a key is compared with. Its values are on disk and are never renumbered.
type What byte

const (
	Absent   What = 0 // the key does not exist
	Exists   What = 1
	HasIndex What = 2 // the key was last set by the entry at this index
	HasValue What = 3

	// Since format 4.
	Related What = 4 // a property of the key is in a relation to a number or a value
)

// Property is what a Related compares. Its values are on disk and are never renumbered.
type Property byte

const (
	OfIndex   Property = 1 // that last set the key
	OfCreated Property = 2 // the index of the entry that made the key
	OfVersion Property = 3 // how often the key was set since
	OfValue   Property = 4
	OfLease   Property = 5 // the key that it goes with, as a text
)

// isText reports whether p is compared with Compare.Value, not Compare.Index.
func (p Property) isText() bool { return p >= OfValue }

// Relation is that of a key's property to what it is compared with. Its values are on disk and are never renumbered.
type Relation byte

const (
	Equal    Relation = 1
	NotEqual Relation = 2
	Greater  Relation = 3
	Less     Relation = 4
)

// holds reports whether the relation is that of order: negative for less, 0 for equal, positive for greater.
func (r Relation) holds(order int) bool {
	switch r {
	case Equal:
		return order == 0
	case NotEqual:
		return order != 0
	case Greater:
		return order > 0
	}
	return order < 0
}

// Operation of a Transaction.
type Operation struct {
	Op    Op
	Key   string
	End   string // of OpView and OpRemoveRange: the first key behind their range, which begins at Key; empty: none
	Value []byte // of OpSet
	Lease Lease  // of OpSet
}

// Op is what an Operation does. Its values are on disk and are never renumbered.
type Op byte

const (
	OpSet    Op = 1
	OpRemove Op = 2
	OpGet    Op = 3

	// Since format 4.
	OpView        Op = 5 // the store as it is when the operation's turn comes, to read a range of keys from
	OpRemoveRange Op = 6
	OpTouch       Op = 7 // sets a key, if it is there, as it was set last: its TTL begins anew
)

// RangePrefix returns the longest text that all strings from one on, before end, begin with; an empty end is behind
// all of them.
func RangePrefix(from, end string) string {
	n := 0
	for n < len(from) && n < len(end) && from[n] == end[n] {
		n++
	}
	if n < len(from) && n+1 == len(end) && from[n]+1 == end[n] { // end is the first behind all that begin so
		n++
	}
	return from[:n]
}
