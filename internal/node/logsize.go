package node

import (
	"errors"

	"github.com/hashicorp/raft"
)

// Raft takes a snapshot when the log has grown by SnapshotThreshold entries, and keeps TrailingLogs
// of them behind it, whatever their size. With values of a megabyte that is gigabytes on the disk,
// which a start has to read. So both are bounded in bytes here too: by Config.SnapshotBytes, or by
// the size of the data if they are larger, because a snapshot writes all of them.

// boundLog has raft keep no more of the log behind its next snapshot than fits, and takes one
// when that much has come since the last. It returns at once.
func (n *Node) boundLog() {
	if n.life.now() != running {
		return
	}
	i := n.current.Load()
	limit := n.logBound()
	n.longAfter.Store(limit)
	behind := limit
	if n.short() {
		behind = shortTrailing
	}
	log := i.volume.Log
	trailing := n.config.SnapshotThreshold
	if last := log.Last(); log.BytesAbove(0) > behind {
		trailing = min(trailing, last-min(last, log.IndexBefore(behind)))
	}
	if i.trailing.Swap(trailing) != trailing {
		c := n.raftConfig()
		err := i.raft.ReloadConfig(raft.ReloadableConfig{
			TrailingLogs:      trailing,
			SnapshotInterval:  c.SnapshotInterval,
			SnapshotThreshold: c.SnapshotThreshold,
			HeartbeatTimeout:  c.HeartbeatTimeout,
			ElectionTimeout:   c.ElectionTimeout,
		})
		if err != nil {
			n.config.Warnf("The log can't be bounded to %d entries: %v", trailing, err)
		}
	}
	if i.logAboveSnapshot() > limit {
		n.takeSnapshot(i)
	}
}

// logAboveSnapshot returns about how many bytes of the log the newest snapshot does not have.
func (i *instance) logAboveSnapshot() uint64 {
	return i.volume.Log.BytesAbove(i.volume.Snapshots.NewestIndex())
}

// logBound is after how many bytes of the log a snapshot is due.
func (n *Node) logBound() uint64 { return max(n.config.SnapshotBytes, uint64(n.machine.Size())) }

// takeSnapshot has raft take a snapshot, unless one is under way already. It returns at once.
func (n *Node) takeSnapshot(i *instance) {
	if !n.snapshotting.CompareAndSwap(false, true) {
		return
	}
	n.life.background.Go(func() {
		defer n.snapshotting.Store(false)
		err := wait(n.life.ctx, i.raft.Snapshot())
		if err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) && n.life.ctx.Err() == nil {
			n.config.Logf("No snapshot was taken for the size of the log or the disk: %v", err) // tried again at the next look
		}
	})
}
