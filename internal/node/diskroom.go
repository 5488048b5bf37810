package node

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"github.com/shirou/gopsutil/v4/disk"

	"raftkv/internal/command"
)

// A write that fails for want of space ends a node, which then can't start again on that disk either: with equal disks
// that are full at the same time, a cluster would be lost. So a leader refuses what takes room in good time, while each
// disk has still as much as the way out needs: a snapshot, which lets the log behind it go, and the log until then.

const (
	// roomReserve is what a disk should have left beyond a snapshot and the bound of the log, in bytes.
	roomReserve = 16 << 20
	// roomAge is how old what is known of the disks may be for a command to be refused for it.
	roomAge = 250 * time.Millisecond
	// roomKnown is after what time without an answer nothing is known of the disk of another node any more.
	roomKnown = 10 * time.Second
	// shortTrailing is how many bytes of the log are kept behind a snapshot for followers while the disk is short.
	shortTrailing = 1 << 20
	// worthwhile is how many bytes of the log, or of snapshots that are larger than the data by now, are worth a
	// snapshot while the disk is short.
	worthwhile = 8 << 20
)

// DiskRoom is what the disk of a volume has room for, in bytes.
type DiskRoom struct {
	Free     uint64 `json:"freeBytes"`     // for users other than root
	Reusable uint64 `json:"reusableBytes"` // in raft.db, which does not shrink
	// Needed is for snapshots, for the bound of the log, and for what raft.db is to take of the journal; with less, sets
	// are refused.
	Needed uint64 `json:"neededBytes"`
}

// left returns what there is room for, when so many bytes were proposed since. Of the free pages of raft.db half count:
// a large entry needs pages side by side.
func (r DiskRoom) left(since uint64) uint64 {
	room := r.Free + r.Reusable/2
	return room - min(room, since)
}

// diskRooms is what a node knows of its own disk and, if it leads, of those of the members. Its methods may be called
// by several goroutines at once.
type diskRooms struct {
	mu       sync.Mutex // guards what follows
	proposed uint64     // bytes, by this node, ever
	seen     map[string]seenRoom
}

// seenRoom is the room of a node, as it was at a time.
type seenRoom struct {
	room     DiskRoom
	at       time.Time
	proposed uint64 // of diskRooms, then
}

// see notes the room of a node.
func (d *diskRooms) see(nodeID string, room DiskRoom) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.seen == nil {
		d.seen = make(map[string]seenRoom)
	}
	d.seen[nodeID] = seenRoom{room, time.Now(), d.proposed}
}

// add notes that so many bytes are proposed.
func (d *diskRooms) add(bytes int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.proposed += uint64(bytes)
}

// of returns what is known of a node; nil: nothing is.
func (d *diskRooms) of(nodeID string) *DiskRoom {
	d.mu.Lock()
	defer d.mu.Unlock()
	if seen, ok := d.seen[nodeID]; ok {
		return &seen.room
	}
	return nil
}

// age returns how long ago the room of a node was seen; very long: never.
func (d *diskRooms) age(nodeID string) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return time.Since(d.seen[nodeID].at)
}

// keep forgets all nodes but self and servers, so that no more are remembered than there are.
func (d *diskRooms) keep(self string, servers []raft.Server) {
	d.mu.Lock()
	defer d.mu.Unlock()
	maps.DeleteFunc(d.seen, func(id string, _ seenRoom) bool {
		return id != self && !slices.ContainsFunc(servers, func(s raft.Server) bool { return string(s.ID) == id })
	})
}

// short returns whether self is short of room, which of the voters are known to be, described for a person, how many
// voters there are, and when the oldest of this was seen. A node of which nothing is known is not short.
func (d *diskRooms) short(
	self string, servers []raft.Server,
) (isShort bool, lines []string, voters int, oldest time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range servers {
		if s.Suffrage != raft.Voter {
			continue
		}
		voters++
		seen, ok := d.seen[string(s.ID)]
		if !ok || string(s.ID) != self && time.Since(seen.at) > roomKnown {
			continue
		}
		if oldest.IsZero() || seen.at.Before(oldest) {
			oldest = seen.at
		}
		if left := seen.room.left(d.proposed - seen.proposed); left < seen.room.Needed {
			lines = append(lines, fmt.Sprintf("%s has room for %d MiB and needs %d", s.ID, left>>20, seen.room.Needed>>20))
			isShort = isShort || string(s.ID) == self
		}
	}
	return isShort, lines, voters, oldest
}

// errDisk returns an error that wraps ErrFull if the disk of this node, or those of so many voters that the rest is no
// majority, are short of room: as it was seen within roomAge, for which the members are asked again, within
// memberTimeout.
func (n *Node) errDisk(servers []raft.Server) error {
	for asked := false; ; asked = true {
		self, lines, voters, oldest := n.rooms.short(n.config.ID, servers)
		if !self && voters-len(lines) > voters/2 {
			return nil
		}
		if asked || time.Since(oldest) < roomAge {
			return fmt.Errorf("%w: the disks are nearly full, as snapshots and the log need what is left: %s: nothing was "+
				"done; remove keys, or make the disks larger", ErrFull, strings.Join(lines, ", "))
		}
		n.checkSpace()
		n.members.askAll(n.life.ctx, servers)
	}
}

// takesRoom reports whether c is refused while the disks are short: it sets a key, and does not make the data smaller.
// What it takes of the log counts then, however large the value is that it replaces.
func takesRoom(c *command.Command, grows int) bool {
	switch c.Kind {
	case command.Set:
		return grows >= 0
	case command.Txn:
		sets := func(o command.Operation) bool { return o.Op == command.OpSet }
		return grows >= 0 && (slices.ContainsFunc(c.Txn.Then, sets) || slices.ContainsFunc(c.Txn.Else, sets))
	case command.Stage, command.StageRecords, command.StageLeases:
		return true
	}
	return false
}

// answerInfo returns Info for another node: what it has about the disk is not older than roomAge.
func (n *Node) answerInfo() Info {
	if n.rooms.age(n.config.ID) > roomAge {
		n.checkSpace()
	}
	return n.Info()
}

// checkSpace looks at the disk of the volume.
func (n *Node) checkSpace() {
	free, err := n.config.freeSpace(n.config.Dir)
	if err != nil {
		return
	}
	n.observed.space(n.config.Dir, free)
	i := n.current.Load()
	content, staged := n.machine.Footprint()
	// Two snapshots are kept, and the older one goes when the next is complete. Those that are there may be of less data.
	snapshot := uint64(content + staged)
	snapshots := max(snapshot, 3*snapshot-min(3*snapshot, i.volume.Snapshots.Bytes()))
	room := DiskRoom{
		Free:     free,
		Reusable: i.volume.Reusable(),
		Needed:   snapshots + n.logLimit() + i.volume.Pending() + roomReserve,
	}
	n.rooms.see(n.config.ID, room)
	line := ""
	if free < n.config.lowSpace || room.left(0) < room.Needed/4*5 {
		line = fmt.Sprintf("the disk of %s has %d MiB left: make room, for with less than %d sets are refused, and the "+
			"first write that fails ends this node", n.config.Dir, free>>20, room.Needed>>20)
	}
	if n.health.set(&n.health.space, line) {
		n.config.Warnf("%s", line)
	}
}

// Dir is the directory of the volume.
func (n *Node) Dir() string { return n.config.Dir }

// SpareDisk returns how many bytes the disk of the volume has beside what snapshots and the log need; at least 1, as 0
// would be no bound.
func (n *Node) SpareDisk() uint64 {
	n.checkSpace()
	room := n.rooms.of(n.config.ID)
	if room == nil { // the free space can't be found out
		return math.MaxInt64
	}
	return max(1, room.Free-min(room.Free, room.Needed))
}

// freeSpace returns how many bytes users other than root may take of the disk of dir.
func freeSpace(dir string) (uint64, error) {
	usage, err := disk.Usage(dir)
	if err != nil {
		return 0, err
	}
	return usage.Free, nil
}

// short reports whether the disk of this node is known to be short of room.
func (n *Node) short() bool {
	room := n.rooms.of(n.config.ID)
	return room != nil && room.left(0) < room.Needed
}

// makeRoom has raft take a snapshot while the disk of this node is short, if that lets enough of the log or of older
// and larger snapshots go: the usual reasons for one may never come, when only small commands are accepted. Two
// snapshots are kept, so it takes two, and an entry between them: a leader proposes one.
func (n *Node) makeRoom() {
	i := n.current.Load()
	if n.life.now() != running {
		return
	}
	if i.leads() && n.errDisk(i.servers()) != nil {
		_ = i.raft.Apply(noop, enqueueLimit) // tried again at the next look
		n.handOverForRoom(i)
	}
	if !n.short() {
		return
	}
	content, staged := n.machine.Footprint()
	snapshots := i.volume.Snapshots.Bytes()
	if i.volume.Log.BytesAbove(0) > worthwhile || snapshots > 2*uint64(content+staged)+worthwhile {
		n.takeSnapshot(i)
	}
}

// handOverForRoom hands the leadership over if only this node's disk is short, and a majority without it has room.
func (n *Node) handOverForRoom(i *instance) {
	self, lines, voters, _ := n.rooms.short(n.config.ID, i.servers())
	if !self || voters-len(lines) <= voters/2 || time.Since(n.handedOver) < adoptTimeout/6 {
		return
	}
	n.handedOver = time.Now()
	ctx, cancel := context.WithTimeout(n.life.ctx, changeLimit)
	defer cancel()
	if to, err := n.Transfer(ctx, ""); err == nil {
		n.config.Logf("The disk is nearly full: %s leads, whose disk has room", to)
	}
}
