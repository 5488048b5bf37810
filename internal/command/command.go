// Package command is what travels in the raft log: commands, the encoding of a log entry,
// and what the state machine records about a command.
//
// One entry is a batch of commands, as requests that arrive while others are being
// replicated share the next entry (group commit). [Append] encodes a batch, [Decode]
// decodes it. The state machine turns each [Command] into a [Result]; for a command with
// an idempotency key it keeps the Result as an idempotency record, by which it recognizes
// the same command when a client sends it again ([Command.Identity], [Result.Record]).
//
// Three formats are fixed here, and each has a version of its own, as each lives in
// places of its own and must stay readable there: entries (codec.go; raft's log), the
// canonical form of a command (result.go; only its hash is kept) and idempotency records
// (result.go; snapshots and backups).
package command

import "slices"

// Limits in bytes. They are checked where a request becomes a command; Append and
// Decode know nothing of them, so that other limits can never make an old log
// unreadable.
const (
	MaxKey            = 1024
	MaxValue          = 1 << 20
	MaxIdempotencyKey = 255
)

// Format is the newest cluster format that this program knows: which kinds of entries, calls
// between nodes and files there are (CHANGELOG.md, "Formats"). Nothing newer than the least
// of all members' formats is used in a cluster.
const Format = 2

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
)

// Pair is a key and, in a Set, Stage or StageRecords, its value. In others the
// value is nil.
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

// Command is one request: all of its pairs take effect, or none does.
type Command struct {
	Kind  Kind
	Pairs []Pair

	*Options              // of a Set, Remove or RemovePrefix; nil: none
	Items, Records uint64 // of a Restore: how many are staged
}

// Options of a command. It has no effect unless Match, if it is not none, holds for
// every key and NoneMatch for no key.
type Options struct {
	IdempotencyKey   string // empty: none
	Match, NoneMatch Condition
}
