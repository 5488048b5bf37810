package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/hashicorp/raft"
)

// A volume may forget what it has acknowledged: last night's copy is put in its place, or its
// disk has lied about what it had written. Raft rests on this never happening. Such a node
// votes for a candidate that lacks an entry which it has itself helped to commit, and the
// entry is gone without a word. Its log alone looks like that of a node that was away.
//
// But the other members remember. Each hears from the others, every few seconds, how much they
// have applied. That was committed, and on the disk of the member that reports it. So when a
// member has less in its log than another one has heard it report, by the same volume, its
// volume has forgotten. It learns that at its first contact, before it takes part in anything,
// and ends. (If no other member has been running since, nobody remembers.)

// Acknowledged is what a member is known to have had on its disk.
type Acknowledged struct {
	VolumeID string `json:"volumeId"`
	Index    uint64 `json:"index"` // that it had applied
}

// acknowledged is what this node has heard. Its methods may be called by several goroutines
// at once.
type acknowledged struct {
	mu    sync.Mutex              // guards known
	known map[string]Acknowledged // by member ID
}

// heard notes what a member has reported. A volume that is new may have less than the former one.
func (a *acknowledged) heard(info *Info) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.known == nil {
		a.known = make(map[string]Acknowledged)
	}
	if was, ok := a.known[info.NodeID]; !ok || was.VolumeID != info.VolumeID || was.Index < info.AppliedIndex {
		a.known[info.NodeID] = Acknowledged{VolumeID: info.VolumeID, Index: info.AppliedIndex}
	}
}

// keep forgets every member but servers, so that no more are remembered than there are.
func (a *acknowledged) keep(servers []raft.Server) {
	a.mu.Lock()
	defer a.mu.Unlock()
	maps.DeleteFunc(a.known, func(id string, _ Acknowledged) bool {
		return !slices.ContainsFunc(servers, func(s raft.Server) bool { return string(s.ID) == id })
	})
}

// all returns a copy.
func (a *acknowledged) all() map[string]Acknowledged {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.known)
}

// heard is called with the Info of each member that has answered. It ends this node if that
// member has heard of entries from it that it has no more.
func (n *Node) heard(info *Info) {
	n.versions.heard(info)
	n.acknowledged.heard(info)
	if info.Disk != nil {
		n.rooms.see(info.NodeID, *info.Disk)
	}
	n.urls.heard(info)
	i := n.current.Load()
	if i == nil || n.life.now() != running {
		return
	}
	known := info.Acknowledged[n.config.ID]
	if last := i.raft.LastIndex(); known.VolumeID == i.volume.ID && known.Index > last {
		n.fail(fmt.Errorf("%w: its log ends at index %d, but %s has heard from it that it had applied %d: most likely an "+
			"older copy of it was put back; /leave?nodeId=%s at another member, then start %s with an empty volume and join it",
			errForgotten, last, info.NodeID, known.Index, n.config.ID, n.config.ID))
	}
}

var errForgotten = errors.New("the volume has forgotten what it has acknowledged")

// checkForgotten asks the other members, before this node takes part in anything, and returns
// the error with which heard has ended the node.
func (n *Node) checkForgotten() error {
	n.members.askAll(context.Background(), n.current.Load().servers())
	select {
	case err := <-n.failed:
		return err
	default:
		return nil
	}
}
