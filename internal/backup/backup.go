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
	"fmt"
	"iter"

	"raftkv/internal/command"
	"raftkv/internal/kv"
)

// Check returns an error if a backup holds what no request could have written: it may
// come from a program with other limits. It is checked before the first entry, as on the
// way there is nobody left to refuse it.
func Check(backup *kv.Store) (err error) {
	backup.Ascend("", func(key string, item kv.Item) bool {
		if len(key) == 0 || len(key) > command.MaxKey || len(item.Value) > command.MaxValue {
			err = fmt.Errorf("it has a key of %d bytes with a value of %d; a key has 1 to %d, a value up to %d",
				len(key), len(item.Value), command.MaxKey, command.MaxValue)
		}
		return err == nil
	})
	if err != nil {
		return err
	}
	backup.AscendRecords(func(key, record string) bool {
		if len(key) == 0 || len(key) > command.MaxIdempotencyKey || len(record) > command.MaxValue {
			err = fmt.Errorf("it has an idempotency key of %d bytes; it has 1 to %d", len(key), command.MaxIdempotencyKey)
		}
		return err == nil
	})
	if err != nil {
		return err
	}
	backup.AscendLeases(func(key string, lease kv.Lease) bool {
		if lease.TTL > command.MaxTTL {
			err = fmt.Errorf("it has a key with a TTL of %v; it has up to %v", lease.TTL, command.MaxTTL)
		}
		return err == nil
	})
	return err
}

// stageBytes is about how much of a backup one entry holds: enough for the cost of an
// entry not to matter, little enough for other requests to find their place in between.
const stageBytes = 256 << 10

// Commands yields the commands that make the content of backup, idempotency records and leases
// included, the state machine's, in order; each is to be an entry. A Stage is a little
// more than 256 KiB, or one pair that is larger. The backup must not be changed meanwhile.
func Commands(backup *kv.Store) iter.Seq[command.Command] {
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
		backup.Ascend("", func(key string, item kv.Item) bool {
			return stage(command.Stage, key, item.Value)
		})
		backup.AscendRecords(func(key, record string) bool {
			return ok && stage(command.StageRecords, key, record)
		})
		backup.AscendLeases(func(key string, lease kv.Lease) bool { // behind all keys, as one may go with another
			return ok && stage(command.StageLeases, key, string(command.AppendLease(nil, command.Lease(lease))))
		})
		if ok && (len(c.Pairs) == 0 || yield(c)) {
			yield(command.Command{
				Kind:    command.Restore,
				Items:   uint64(backup.Len()),
				Records: uint64(backup.Records()),
			})
		}
	}
}
