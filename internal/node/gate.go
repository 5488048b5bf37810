package node

import (
	"fmt"
	"io"

	"github.com/hashicorp/raft"
	"github.com/shirou/gopsutil/v4/disk"

	"raftkv/internal/command"
	"raftkv/internal/peer"
)

// gate is what requests to raft are checked by that come to i.
func (n *Node) gate(i *instance) *peer.Gate {
	return &peer.Gate{
		Known:        i.known,
		TermAt:       i.termAt,
		CheckCommand: command.Check,
		Receive: func(request *raft.InstallSnapshotRequest, members raft.Configuration, r io.Reader) (func(), error) {
			return n.receive(i, request, members, r)
		},
		Refused: n.config.Warnf,
	}
}

// known implements Known of peer.Gate.
func (i *instance) known() (term uint64, leader string, committed uint64) {
	// Raft forgets the leader before it raises the term (raft.go: setState), so that between two equal terms there is
	// no leader of another.
	term = i.raft.CurrentTerm()
	_, id := i.raft.LeaderWithID()
	if i.raft.CurrentTerm() != term {
		id = ""
	}
	// After a start raft does not know what is committed, but for what a snapshot has: that counts as applied.
	return term, string(id), max(i.raft.CommitIndex(), i.raft.AppliedIndex())
}

// termAt returns the term of an entry that the log has, or that is the last of the newest snapshot.
func (i *instance) termAt(index uint64) (term uint64, ok bool) {
	var entry raft.Log
	if i.readEntry(index, &entry) {
		return entry.Term, true
	}
	newest, term := i.volume.Snapshots.NewestEntry()
	return term, newest == index
}

// receive implements Receive of peer.Gate.
func (n *Node) receive(i *instance, request *raft.InstallSnapshotRequest, members raft.Configuration,
	r io.Reader) (discard func(), err error) {
	if usage, err := disk.Usage(n.config.Dir); err == nil && usage.Free < uint64(request.Size) {
		return nil, fmt.Errorf("it has %d bytes, and the disk of the volume has %d left", request.Size, usage.Free)
	}
	received, err := i.volume.Snapshots.Receive(request.LastLogIndex, request.LastLogTerm, members,
		request.ConfigurationIndex, i.transport, request.Size, r, func(state io.Reader) (restore func(), err error) {
			restore, index, term, err := n.machine.Prepare(state)
			if err == nil && (index > request.LastLogIndex || term > request.LastLogTerm) {
				err = fmt.Errorf("the data are those of entry %d of term %d", index, term)
			}
			return restore, err
		})
	if err != nil {
		return nil, err
	}
	return func() { _ = received.Discard() }, nil
}
