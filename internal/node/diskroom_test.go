package node

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"raftkv/internal/command"
)

// fakeDisk is how much a disk has left.
type fakeDisk struct{ free atomic.Uint64 }

const plenty = 1 << 40

func newFakeDisk() *fakeDisk {
	d := new(fakeDisk)
	d.free.Store(plenty)
	return d
}

func (d *fakeDisk) use(c *Config) {
	c.freeSpace = func(string) (uint64, error) { return d.free.Load(), nil }
}

// proposeUntil proposes c again until the outcome is as wanted.
func (n *testNode) proposeUntil(t *testing.T, what string, c command.Command, want error) {
	t.Helper()
	waitFor(t, what, func() bool {
		_, err := n.Propose(context.Background(), c)
		if want == nil {
			return err == nil
		}
		return errors.Is(err, want)
	})
}

func TestTakesRoom(t *testing.T) {
	for _, test := range []struct {
		name  string
		c     command.Command
		grows int
		want  bool
	}{
		{name: "a set", c: sized("a", 1), grows: 1, want: true},
		{name: "a set of as much", c: sized("a", 1), grows: 0, want: true},
		{name: "a set of less", c: sized("a", 1), grows: -1, want: false},
		{name: "a remove", c: removing(command.Remove, "a"), grows: -1, want: false},
		{name: "a remove of nothing", c: removing(command.Remove, "a"), grows: 0, want: false},
		{name: "a prefix", c: removing(command.RemovePrefix, "a"), grows: 0, want: false},
		{name: "a transaction that reads", c: transaction([]command.Operation{{Op: command.OpGet, Key: "a"}}, nil)},
		{name: "one that sets", c: transaction([]command.Operation{setOp("a", 1)}, nil), grows: 0, want: true},
		{name: "one that may set", c: transaction(nil, []command.Operation{setOp("a", 1)}), grows: 0, want: true},
		{name: "one that makes it less", c: transaction([]command.Operation{setOp("a", 1)}, nil), grows: -1, want: false},
		{name: "a part of a restore", c: command.Command{Kind: command.Stage}, want: true},
		{name: "the end of a restore", c: command.Command{Kind: command.Restore}, want: false},
		{name: "a no-op", c: command.Command{Kind: command.Noop}, want: false},
	} {
		if got := takesRoom(&test.c, test.grows); got != test.want {
			t.Errorf("%s: got %v, want %v", test.name, got, test.want)
		}
	}
}

// TestShort: which members are short of room, by what they last reported and what was proposed since.
func TestShort(t *testing.T) {
	servers := []raft.Server{{ID: "n1"}, {ID: "n2"}, {ID: "n3"}, {ID: "n4", Suffrage: raft.Nonvoter}}
	for _, test := range []struct {
		name      string
		rooms     map[string]DiskRoom
		proposed  int
		old       string // the node that was seen long ago
		wantSelf  bool
		wantShort int
	}{
		{name: "nothing is known"},
		{name: "room", rooms: map[string]DiskRoom{"n1": {Free: 10, Needed: 10}}},
		{name: "less", rooms: map[string]DiskRoom{"n1": {Free: 9, Needed: 10}}, wantSelf: true, wantShort: 1},
		{name: "another", rooms: map[string]DiskRoom{"n1": {Free: 10, Needed: 10}, "n2": {Free: 9, Needed: 10}},
			wantShort: 1},
		{name: "free pages", rooms: map[string]DiskRoom{"n1": {Reusable: 20, Needed: 10}}},
		{name: "half of the free pages", rooms: map[string]DiskRoom{"n1": {Reusable: 19, Needed: 10}},
			wantSelf: true, wantShort: 1},
		{name: "what was proposed since", rooms: map[string]DiskRoom{"n1": {Free: 11, Needed: 10}}, proposed: 2,
			wantSelf: true, wantShort: 1},
		{name: "more than there was", rooms: map[string]DiskRoom{"n1": {Free: 11, Needed: 10}}, proposed: 200,
			wantSelf: true, wantShort: 1},
		{name: "no voter", rooms: map[string]DiskRoom{"n4": {Needed: 10}}},
		{name: "long ago", rooms: map[string]DiskRoom{"n2": {Needed: 10}, "n3": {Needed: 10}}, old: "n2", wantShort: 1},
		{name: "its own, long ago", rooms: map[string]DiskRoom{"n1": {Needed: 10}}, old: "n1", wantSelf: true, wantShort: 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			var d diskRooms
			d.add(1000) // before
			for id, room := range test.rooms {
				d.see(id, room)
			}
			d.add(test.proposed)
			if seen, ok := d.seen[test.old]; ok {
				seen.at = time.Now().Add(-2 * roomKnown)
				d.seen[test.old] = seen
			}
			self, lines, voters, _ := d.short("n1", servers)
			if self != test.wantSelf || len(lines) != test.wantShort || voters != 3 {
				t.Errorf("got %v, %q, %d voters, want %v, %d, 3", self, lines, voters, test.wantSelf, test.wantShort)
			}
		})
	}
}

// TestDiskIsShort: a leader whose disk has too little left refuses what takes room, and nothing else, until it has
// more.
func TestDiskIsShort(t *testing.T) {
	disk := newFakeDisk()
	n := openNode(t, "n1", t.TempDir(), disk.use)
	n.waitLeader(t)
	n.set(t, "key", "value")
	disk.free.Store(1 << 20)
	n.proposeUntil(t, "a set is refused", setting("more", "value"), ErrFull)
	_, err := n.Propose(context.Background(), setting("key", "other"))
	if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "n1 has room for 1 MiB and needs 80") {
		t.Errorf("got %v, want ErrFull with how much there is", err)
	}
	n.set(t, "key", "v")
	if _, err := n.Propose(context.Background(), removing(command.Remove, "none")); err != nil {
		t.Errorf("a remove: got %v, want none", err)
	}
	disk.free.Store(plenty)
	n.proposeUntil(t, "a set is accepted", setting("more", "value"), nil)
}

// TestDisksOfAMajority: with the disk of one of three voters full, two go on; with two, none.
func TestDisksOfAMajority(t *testing.T) {
	disks := []*fakeDisk{newFakeDisk(), newFakeDisk(), newFakeDisk()}
	var nodes []*testNode
	for i, d := range disks {
		nodes = append(nodes, openNode(t, []string{"n1", "n2", "n3"}[i], t.TempDir(), d.use))
	}
	nodes[0].waitLeader(t)
	nodes[0].join(t, nodes[1])
	nodes[0].join(t, nodes[2])
	disks[1].free.Store(1)
	ask := func() { nodes[0].members.askAll(t.Context(), nodes[0].current.Load().servers()) }
	waitFor(t, "n2 is known to be short", func() bool {
		ask()
		_, lines, _, _ := nodes[0].rooms.short("n1", nodes[0].current.Load().servers())
		return len(lines) == 1
	})
	nodes[0].set(t, "with one", "1")
	disks[2].free.Store(1)
	waitFor(t, "n3, too", func() bool {
		ask()
		_, lines, _, _ := nodes[0].rooms.short("n1", nodes[0].current.Load().servers())
		return len(lines) == 2
	})
	nodes[0].proposeUntil(t, "a set is refused", setting("with two", "1"), ErrFull)
	disks[1].free.Store(plenty)
	nodes[0].proposeUntil(t, "a set is accepted", setting("with one again", "1"), nil)
	checkReplicas(t, nodes...)
}

// TestDiskOfTheLeader: when its disk alone is short, another leads.
func TestDiskOfTheLeader(t *testing.T) {
	disk := newFakeDisk()
	nodes := []*testNode{openNode(t, "n1", t.TempDir(), disk.use),
		openNode(t, "n2", t.TempDir(), newFakeDisk().use), openNode(t, "n3", t.TempDir(), newFakeDisk().use)}
	nodes[0].waitLeader(t)
	nodes[0].join(t, nodes[1])
	nodes[0].join(t, nodes[2])
	disk.free.Store(1)
	waitFor(t, "another leads", func() bool {
		return nodes[1].Info().State == "Leader" || nodes[2].Info().State == "Leader"
	})
	disk.free.Store(plenty)
	checkReplicas(t, nodes...)
}

// TestRoomIsMade: while its disk is short, a node lets go of the log and of snapshots that are larger than the data,
// though no snapshot is due.
func TestRoomIsMade(t *testing.T) {
	disk := newFakeDisk()
	n := openNode(t, "n1", t.TempDir(), disk.use)
	n.waitLeader(t)
	for range 48 {
		n.set(t, "key", strings.Repeat("v", 512<<10))
	}
	if got := n.current.Load().volume.Log.BytesAbove(0); got < 20<<20 {
		t.Fatalf("got %d bytes of log, want what was set", got)
	}
	disk.free.Store(1 << 20)
	waitFor(t, "the log is small", func() bool { return n.current.Load().volume.Log.BytesAbove(0) < worthwhile })
	disk.free.Store(plenty)
	n.proposeUntil(t, "a set is accepted", setting("more", "value"), nil)
}
