package node

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"raftkv/internal/histogram"
	"raftkv/internal/peer"
)

// Outcomes of a proposal, as Observed counts them.
const (
	applied = iota
	notApplied
	notLeader
	noRoom
	unknown
	outcomes
)

// observed is what a node counts for its metrics. It is written on the path of a proposal, so with atomics only.
type observed struct {
	proposals     [outcomes]atomic.Uint64
	batches       *histogram.Histogram // commands of a batch
	writes        *histogram.Histogram // seconds of a write of the log, its fsync included
	snapshots     *histogram.Histogram // seconds of a snapshot, taken or received
	entries       atomic.Uint64
	leaderChanges atomic.Uint64

	mu         sync.Mutex // guards what follows, which no proposal touches
	disk       *Disk
	members    map[string]MemberView // by ID; empty unless this node leads
	leader     raft.ServerID         // the last one that was counted, with its term
	leaderTerm uint64
}

func newObserved() *observed {
	return &observed{
		batches:   histogram.New(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
		writes:    histogram.New(.0005, .001, .002, .004, .008, .016, .032, .064, .128, .256, .512, 1, 2, 4, 8, 16),
		snapshots: histogram.New(.01, .03, .1, .3, 1, 3, 10, 30, 100, 300),
		members:   make(map[string]MemberView),
	}
}

// Disk is what the volume takes, and what its disk has left.
type Disk struct{ FreeBytes, LogBytes uint64 }

// MemberView is another member, as this node saw it when it compared the replicas for the last time (watch).
type MemberView struct {
	Up    bool      // it answered
	Last  time.Time // when it answered last; zero: never
	Lag   uint64    // entries that this node had applied and it had not: when it was asked last, or now if it is not up
	State string    // Equal, Different or Unknown

	applied uint64 // by it, when it answered last
}

// Observed is what a node has counted since its start, and what it knows without asking any other node.
type Observed struct {
	Info
	Proposals     map[string]uint64 // by outcome: applied, not_applied, not_leader, no_room, unknown
	Batches       *histogram.Histogram
	Writes        *histogram.Histogram
	Snapshots     *histogram.Histogram
	Entries       uint64 // proposed by this node
	LeaderChanges uint64
	LastContact   time.Duration         // since the leader was last heard, 0 for the leader; negative: never
	Disk          *Disk                 // nil: not known yet
	Members       map[string]MemberView // by ID, of the others that were looked at; only while this node leads
	Unseen        int                   // members that were not looked at yet; only while this node leads
	Newest        int64                 // bytes of the newest snapshot on disk; 0: there is none
	RaftPort      peer.Counts
}

// Observe returns what there is to know now. It asks no other node.
func (n *Node) Observe() Observed {
	i, o := n.current.Load(), n.observed
	result := Observed{
		Info: n.Info(), Batches: o.batches, Writes: o.writes, Snapshots: o.snapshots,
		Newest: i.volume.Snapshots.Newest(), RaftPort: n.port.Counts(),
		Entries: o.entries.Load(), LeaderChanges: o.leaderChanges.Load(), LastContact: -1,
		Proposals: map[string]uint64{
			"applied": o.proposals[applied].Load(), "not_applied": o.proposals[notApplied].Load(),
			"not_leader": o.proposals[notLeader].Load(), "no_room": o.proposals[noRoom].Load(),
			"unknown": o.proposals[unknown].Load(),
		},
		Members: make(map[string]MemberView),
	}
	if contact := i.raft.LastContact(); i.leads() {
		result.LastContact = 0
	} else if !contact.IsZero() {
		result.LastContact = time.Since(contact)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	result.Disk = o.disk
	if i.leads() {
		for _, server := range i.servers() {
			id := string(server.ID)
			if view, ok := o.members[id]; ok {
				if !view.Up && !view.Last.IsZero() {
					view.Lag = behind(result.AppliedIndex, view.applied)
				}
				result.Members[id] = view
			} else if id != n.config.ID {
				result.Unseen++
			}
		}
	}
	return result
}

// proposal counts what became of a proposal.
func (o *observed) proposal(err error) {
	code, coded := CodeOf(err)
	outcome := unknown
	switch {
	case err == nil:
		outcome = applied
	case coded && code == ErrNotLeader:
		outcome = notLeader
	case coded && code == ErrFull:
		outcome = noRoom
	case coded && code == ErrNotApplied:
		outcome = notApplied
	}
	o.proposals[outcome].Add(1)
}

// batch counts a batch that is proposed.
func (o *observed) batch(b batch) {
	commands := 0
	for _, entry := range b {
		commands += len(entry)
	}
	o.batches.Observe(float64(commands))
	o.entries.Add(uint64(len(b)))
}

// space keeps how full the disk of dir is.
func (o *observed) space(dir string, free uint64) {
	disk := &Disk{FreeBytes: free}
	if info, err := os.Stat(filepath.Join(dir, "raft.db")); err == nil {
		disk.LogBytes = uint64(info.Size())
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.disk = disk
}

// keep forgets the members that are not among servers, and all if this node does not lead: by the time that it leads
// again, what it saw is old.
func (o *observed) keep(leads bool, servers []raft.Server) {
	o.mu.Lock()
	defer o.mu.Unlock()
	maps.DeleteFunc(o.members, func(id string, _ MemberView) bool {
		return !leads || !slices.ContainsFunc(servers, func(s raft.Server) bool { return string(s.ID) == id })
	})
}

// compared keeps what came of a comparison with another member, when this node had applied own entries. It is for a
// leader, after keep.
func (o *observed) compared(found comparison, own uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	id := string(found.server.ID)
	view := o.members[id]
	view.Up, view.State = found.info != nil, found.state
	if view.Up {
		view.Last, view.applied = time.Now(), found.info.AppliedIndex
		view.Lag = behind(own, view.applied)
	}
	o.members[id] = view
}

// behind is how many of own entries are not among those that another node has applied.
func behind(own, applied uint64) uint64 { return own - min(own, applied) }

// leads counts the leader of a term, once. Raft reports one anew after it has not heard from it for a while, or has
// heard of its new address; and "" while there is none, which is not counted. Another election that the same node wins
// is a change of leader: in between there was none.
func (o *observed) leads(leader raft.ServerID, term uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if leader == "" || leader == o.leader && term == o.leaderTerm {
		return
	}
	o.leader, o.leaderTerm = leader, term
	o.leaderChanges.Add(1)
}
