// Package backup verifies a backup and turns it into the commands that restore it.
package backup

import (
	"fmt"
	"iter"

	"raftkv/internal/command"
	"raftkv/internal/kv"
)

// Check reports what in a backup could not be replicated: it may come from a
// program with other limits.
func Check(backup *kv.Store) (err error) {
	backup.Ascend("", func(key string, item kv.Item) bool {
		if len(key) == 0 || len(key) > command.MaxKey || len(item.Value) > command.MaxValue {
			err = fmt.Errorf("it has a key of %d bytes with a value of %d; a key has 1 to %d, a value up to %d", len(key), len(item.Value), command.MaxKey, command.MaxValue)
		}
		return err == nil
	})
	backup.AscendRecords(func(key, answer string) bool {
		if len(key) == 0 || len(key) > command.MaxIdempotencyKey || len(answer) > command.MaxValue {
			err = fmt.Errorf("it has an idempotency key of %d bytes; it has 1 to %d", len(key), command.MaxIdempotencyKey)
		}
		return err == nil
	})
	return err
}

// stageBytes is about how much of a backup travels in one entry.
const stageBytes = 256 << 10

// Commands yields the commands that make the content of backup the state
// machine's, in order. A backup must not be changed meanwhile.
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
		backup.Ascend("", func(key string, item kv.Item) bool { return stage(command.Stage, key, item.Value) })
		backup.AscendRecords(func(key, answer string) bool { return ok && stage(command.StageRecords, key, answer) })
		if ok && (len(c.Pairs) == 0 || yield(c)) {
			yield(command.Command{Kind: command.Restore, Items: uint64(backup.Len()), Records: uint64(backup.Records())})
		}
	}
}
