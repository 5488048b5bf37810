package node

import (
	"errors"
	"math"
	"time"

	"github.com/hashicorp/raft"

	"raftkv/internal/peer"
	"raftkv/internal/storage"
)

// Raft takes a snapshot when the log has grown by SnapshotThreshold entries, and keeps TrailingLogs
// of them behind it, whatever their size. With values of a megabyte that is gigabytes on the disk,
// which a start has to read. So both are bounded in bytes here too: by Config.SnapshotBytes, or by
// the size of the data if they are larger, because a snapshot writes all of them.

// logLimit is how many bytes of the log may come before a snapshot is due.
func (n *Node) logLimit() uint64 { return max(n.config.SnapshotBytes, uint64(n.machine.Size())) }

// servedAfter returns the index after which entries are kept for the members that are being served: a snapshot that
// they are sent, or the entries that they are catching up on, must not be overtaken by the next compaction. One that
// is further behind than logLimit gets a snapshot.
func (n *Node) servedAfter(t *peer.Transport, log *storage.Log) uint64 {
	served := t.Served()
	if served < math.MaxUint64 && log.BytesAbove(served) > n.logLimit() {
		return math.MaxUint64
	}
	return served
}

// snapshotCost is what an install costs beyond its bytes, counted in bytes: it is written twice and replaces the data.
const snapshotCost = 1 << 20

// hide has raft not see the entries of a leader's log that are more to send than the newest snapshot, which ends with
// entry newest, unless a member is being served from there.
func (i *instance) hide(newest uint64) {
	hidden := uint64(0)
	if log := i.volume.Log; i.leads() && newest > 0 {
		after := log.IndexBefore(log.BytesAbove(newest) + uint64(i.volume.Snapshots.Newest()) + snapshotCost)
		hidden = hiddenUpTo(after, newest, i.transport.Served(), i.log.hidden.Load())
	}
	i.log.hidden.Store(hidden)
}

// hiddenUpTo returns the index below which the log is hidden: after, but nothing that the snapshot lacks, which ends
// with newest, nor what a member needs that is being served from the index served. What was hidden stays so: an
// AppendEntries is retried while its member is away (peer.Transport), and a member that takes it at last still needs
// all the rest.
func hiddenUpTo(after, newest, served, was uint64) uint64 {
	return min(after, newest, max(served, was))
}

// logPause is how long watchLog waits between two looks.
const logPause = 100 * time.Millisecond

// logGrew has watchLog look at the log if a snapshot is due for its size. It is called with each append.
func (n *Node) logGrew() {
	i := n.current.Load()
	if i == nil || n.snapshotting.Load() {
		return
	}
	if newest, _ := i.volume.Snapshots.NewestEntry(); i.volume.Log.BytesAbove(newest) > n.logLimit() {
		select {
		case n.due <- struct{}{}:
		default: // it will look anyhow
		}
	}
}

// watchLog bounds the log as soon as it is due: until the next look of watch, a fast disk takes gigabytes.
func (n *Node) watchLog() {
	for {
		select {
		case <-n.life.ctx.Done():
			return
		case <-n.due:
			n.boundLog()
		}
		select { // a snapshot that fails at once must not be tried with each append
		case <-n.life.ctx.Done():
			return
		case <-time.After(logPause):
		}
	}
}

// boundLog has raft keep no more of the log behind its next snapshot than fits, and takes one
// when that much has come since the last. It returns at once.
func (n *Node) boundLog() {
	if n.life.now() != running {
		return
	}
	i := n.current.Load()
	limit, log := n.logLimit(), i.volume.Log
	newest, _ := i.volume.Snapshots.NewestEntry()
	i.hide(newest)
	behind := limit
	if n.short() {
		behind = shortTrailing
	}
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
	newest, _ := i.volume.Snapshots.NewestEntry()
	return i.volume.Log.BytesAbove(newest)
}

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
