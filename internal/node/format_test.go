package node

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"raftkv/internal/command"
	"raftkv/internal/storage"
)

// knows makes a node report that its program knows formats up to this one.
func knows(format int) func(*Config) { return func(c *Config) { c.maxFormat = format } }

// newest is a command that needs the newest cluster format.
var newest = command.Command{Kind: command.Txn, Txn: &command.Transaction{}}

func TestFormatOf(t *testing.T) {
	for _, tt := range []struct {
		name string
		info Info
		want int
	}{
		{name: "the first programs", info: Info{NodeID: "n1"}, want: 0},
		{name: "before there were formats", info: Info{NodeID: "n1", Version: "devel"}, want: 1},
		{name: "this program", info: Info{NodeID: "n1", Version: "devel", MaxFormat: command.Format}, want: command.Format},
		{name: "a later one", info: Info{NodeID: "n1", Version: "v9", MaxFormat: 9}, want: 9},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := formatOf(&tt.info); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}

// TestFormatGate: a command that an older member does not know is never proposed, but refused
// with the member to upgrade; once all members know it the cluster format rises, and then an
// older node can't join.
func TestFormatGate(t *testing.T) {
	ctx := context.Background()
	n1, n2 := openNode(t, "n1", t.TempDir()), openNode(t, "n2", t.TempDir(), knows(1))
	n1.waitLeader(t)
	n1.join(t, n2)
	refused := func(want string) {
		t.Helper()
		last := n1.Info().LastIndex
		if _, err := n1.Propose(ctx, newest); !errors.Is(err, ErrNotApplied) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want ErrNotApplied: … %s", err, want)
		}
		if got := n1.Info(); got.LastIndex != last || got.Format != 1 {
			t.Errorf("the log went from %d to %d, format %d: want no entry, and 1", last, got.LastIndex, got.Format)
		}
	}
	refused("it needs format 2: upgrade n2 (version unknown, which knows format 1) first")
	waitFor(t, "n1 gives no marks, for n2 does not know them", func() bool { _, mixed := n1.History(); return mixed })

	// Not even a member that is away may be too old.
	address := n2.RaftAddress()
	n2.stop()
	n3 := openNode(t, "n3", t.TempDir())
	n1.versions.heard(&Info{NodeID: "n2", MaxFormat: command.Format}) // what it was before counts for nothing
	refusedAway := func() bool {
		_, err := n1.Propose(ctx, newest)
		return err != nil && strings.Contains(err.Error(), "n2 does not answer: start it, or take it out with /leave")
	}
	if !refusedAway() {
		_, err := n1.Propose(ctx, newest)
		t.Errorf("with n2 away: got %v, want that it does not answer", err)
	}

	n2 = openNode(t, "n2", n2.config.Dir, func(c *Config) { c.RaftAddress = address }) // upgraded
	n1.waitLeader(t)
	n1.join(t, n3)
	waitFor(t, "n1 proposes it", func() bool {
		_, err := n1.Propose(ctx, newest)
		return err == nil
	})
	if got := n1.Info().Format; got != 2 {
		t.Errorf("cluster format: got %d, want 2", got)
	}
	for _, n := range []*testNode{n1, n2, n3} {
		waitFor(t, n.config.ID+" gives marks", func() bool {
			mark, mixed := n.History()
			return !mixed && mark == n1.Info().ClusterID[:8]
		})
	}

	waitFor(t, "n1 refuses a connection whose preface names nobody", func() bool {
		c, err := net.Dial("tcp", n1.RaftAddress())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		cluster := n1.port.ClusterID()
		_, _ = c.Write(append([]byte{0xB1}, cluster[:]...))
		answer := make([]byte, 1)
		n, _ := c.Read(answer)
		return n == 0 || answer[0] != 1
	})

	old := openNode(t, "n4", t.TempDir(), knows(1))
	_, err := n1.Join(ctx, JoinRequest{ID: "n4", Address: old.RaftAddress()})
	const want = "the cluster has format 2, too new for n4 (version unknown, which knows format 1): " +
		"upgrade it, then join it"
	if !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), want) {
		t.Errorf("join of an older node: got %v, want ErrConflict: … %s", err, want)
	}
	if got := old.Info().ClusterID; got == n1.Info().ClusterID {
		t.Error("the refused node is in the cluster")
	}
	checkReplicas(t, n1, n2, n3)
}

// TestFirstPrograms: what the first programs do not know waits for the upgrade of a member that
// is known to run one, and for no other.
func TestFirstPrograms(t *testing.T) {
	n := openNode(t, "n1", t.TempDir())
	n.waitLeader(t)
	conditional := setting("k", "v")
	conditional.Options = &command.Options{NoneMatch: command.Condition{Any: true}}
	propose := func(c command.Command) error {
		_, err := n.Propose(context.Background(), c)
		return err
	}
	n.versions.heard(&Info{NodeID: "n1"})
	n.versions.heard(&Info{NodeID: "stranger"})
	if err := propose(conditional); !errors.Is(err, ErrNotApplied) || !strings.Contains(err.Error(), "upgrade n1 ") {
		t.Errorf("a conditional set: got %v, want ErrNotApplied: … upgrade n1", err)
	}
	if err := propose(setting("k", "v")); err != nil {
		t.Errorf("a set: got %v, want nil", err)
	}
	n.versions.heard(&Info{NodeID: "n1", Version: "devel"})
	if err := propose(conditional); err != nil {
		t.Errorf("a conditional set after the upgrade: got %v, want nil", err)
	}
	n.versions.keep([]raft.Server{{ID: "n1"}})
	if got := n.versions.tooOld([]raft.Server{{ID: "stranger"}}, 1); len(got) > 0 {
		t.Errorf("remembered: got %v, want no node that is no member", got)
	}
}

// TestFollowerDoesNotRaise: a follower answers that it does not lead, whatever the command needs.
func TestFollowerDoesNotRaise(t *testing.T) {
	n1, n2 := openNode(t, "n1", t.TempDir()), openNode(t, "n2", t.TempDir())
	n1.waitLeader(t)
	n1.join(t, n2)
	if _, err := n2.Propose(context.Background(), newest); !errors.Is(err, ErrNotLeader) {
		t.Errorf("got %v, want ErrNotLeader", err)
	}
	checkReplicas(t, n1, n2)
}

// TestUnreadableSnapshot: a volume whose snapshots this program can't read is refused with the
// reason, and not with raft's line alone, which only says that it can't.
func TestUnreadableSnapshot(t *testing.T) {
	n := openNode(t, "n1", t.TempDir())
	n.waitLeader(t)
	n.set(t, "k", "v")
	if err := n.current.Load().raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	n.stop()
	_, err := Open(n.config, unreadable{n.machine})
	if err == nil || !strings.Contains(err.Error(), "its version is 9") || errors.Is(err, storage.ErrCorrupt) {
		t.Errorf("got %v, want … its version is 9", err)
	}
}

type unreadable struct{ machine }

func (unreadable) Restore(io.ReadCloser) error { return errors.New("its version is 9") }

// TestMinFormat: a leader raises the format that its clients need by itself, as soon as every member knows it.
func TestMinFormat(t *testing.T) {
	n1 := openNode(t, "n1", t.TempDir(), func(c *Config) { c.MinFormat = 4 })
	n2 := openNode(t, "n2", t.TempDir(), knows(3))
	n1.waitLeader(t)
	waitFor(t, "n1 alone has format 4", func() bool { return n1.Info().Format == 4 })
	if _, err := n1.Join(t.Context(), JoinRequest{ID: "n2", Address: n2.RaftAddress()}); !errors.Is(err, ErrConflict) {
		t.Errorf("join of a node that knows format 3: got %v, want ErrConflict", err)
	}
}
