// Package backup verifies a backup and stages it as entries of the raft log.
//
// A backup is a snapshot of the state machine, as GET /snapshot returns it. Handing one
// to raft on a single node (raft.Restore) would put the leader's data ahead of what its
// followers have, and a node that fails in between would leave them apart. So a backup
// is restored by replicated commands, as any other change: they fill a staging area on
// every node, and the last one makes it the content in one step, if nothing is missing.
// Until then, and if that never comes, readers see what there was before.
package backup

import (
	"errors"
	"fmt"
	"io"
	"iter"

	"raftkv/internal/command"
	"raftkv/internal/kv"
)

// refusal is the error for a backup that holds what no request could have written: it may
// come from a program with other limits. It is looked for before the first entry, as on the
// way there is nobody left to refuse it.
type refusal string

func (r refusal) Error() string { return string(r) }

// checker looks for that.
var checker = kv.Visitor{
	Item: func(key, value string) error {
		if len(key) == 0 || len(key) > command.MaxKey || len(value) > command.MaxValue {
			return refusal(fmt.Sprintf("it has a key of %d bytes with a value of %d; a key has 1 to %d, a value up to %d",
				len(key), len(value), command.MaxKey, command.MaxValue))
		}
		return nil
	},
	Record: func(key, record string) error {
		if len(key) == 0 || len(key) > command.MaxIdempotencyKey || len(record) > command.MaxValue {
			return refusal(fmt.Sprintf("it has an idempotency key of %d bytes; it has 1 to %d", len(key),
				command.MaxIdempotencyKey))
		}
		return nil
	},
	Lease: func(_ string, lease kv.Lease) error {
		if lease.TTL > command.MaxTTL {
			return refusal(fmt.Sprintf("it has a key with a TTL of %v; it has up to %v", lease.TTL, command.MaxTTL))
		}
		return nil
	},
}

// stageBytes is about how much of a backup one entry holds: enough for the cost of an
// entry not to matter, little enough for other requests to find their place in between.
const stageBytes = 256 << 10

// errStopped ends a scan whose commands are not wanted any more.
var errStopped = errors.New("stopped")

// Commands yields the commands that make the content of b, idempotency records and leases
// included, the state machine's, in order; each is to be an entry. A Stage is a little
// more than 256 KiB, or one pair that is larger, and no more of b is in memory. If the file can't be
// read any more, they end before the last one, and b.err is why.
func (b *Backup) Commands() iter.Seq[command.Command] {
	return func(yield func(command.Command) bool) {
		if !yield(command.Command{Kind: command.Unstage}) {
			return
		}
		size := 0
		var c command.Command
		flush := func() error {
			full := c
			if size, c = 0, (command.Command{}); len(full.Pairs) > 0 && !yield(full) {
				return errStopped
			}
			return nil
		}
		stage := func(kind command.Kind, key, value string) error {
			if size > stageBytes || c.Kind != kind {
				if err := flush(); err != nil {
					return err
				}
				c.Kind = kind
			}
			c.Pairs = append(c.Pairs, command.Pair{Key: key, Value: []byte(value)})
			size += len(key) + len(value)
			return nil
		}
		_, b.err = b.file.Seek(0, io.SeekStart)
		if b.err == nil {
			_, _, b.err = kv.ScanSnapshot(b.file, 0, kv.Visitor{
				Item:   func(key, value string) error { return stage(command.Stage, key, value) },
				Record: func(key, record string) error { return stage(command.StageRecords, key, record) },
				Lease: func(key string, lease kv.Lease) error { // behind all keys, as one may go with another
					return stage(command.StageLeases, key, string(command.AppendLease(nil, command.Lease(lease))))
				},
			})
		}
		if b.err == nil {
			b.err = flush()
		}
		if errors.Is(b.err, errStopped) {
			b.err = nil
			return
		}
		if b.err == nil {
			yield(command.Command{Kind: command.Restore, Items: uint64(b.items), Records: uint64(b.records)})
		}
	}
}
