package node

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// copyVolume returns a copy of raft.db, to be put back.
func copyVolume(t *testing.T, dir string) (putBack func()) {
	t.Helper()
	path := filepath.Join(dir, "raft.db")
	was, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.WriteFile(path, was, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestForgottenVolume: a member whose volume is an older copy is refused, by what the others have
// heard from it. It may come back with what it had, and with an empty volume.
func TestForgottenVolume(t *testing.T) {
	nodes := openCluster(t, 3)
	leader := leaderOf(t, nodes...)
	at := 0
	for nodes[at] == leader {
		at++
	}
	victim := nodes[at]
	others := append(nodes[:at:at], nodes[at+1:]...)
	dir, address, id := victim.config.Dir, victim.RaftAddress(), victim.config.ID
	leader.set(t, "x", "1")
	checkReplicas(t, nodes...)
	same := func(c *Config) { c.RaftAddress = address }

	victim.stop()
	putBack := copyVolume(t, dir)
	victim = openNode(t, id, dir, same)
	index := leader.set(t, "y", "1")
	waitFor(t, "the others have heard that it has it", func() bool {
		for _, n := range others {
			if n.Info().Acknowledged[id].Index < index {
				return false
			}
		}
		return true
	})
	victim.stop()
	current := copyVolume(t, dir)
	putBack()
	_, err := tryOpen(t, id, dir, same)
	if !errors.Is(err, errForgotten) || !strings.Contains(err.Error(), "/leave?nodeId="+id+" at another member") {
		t.Fatalf("an older copy: got %v, want errForgotten and what to do", err)
	}
	if _, err := tryOpen(t, id, dir, same); !errors.Is(err, errForgotten) {
		t.Errorf("once more: got %v, want errForgotten", err)
	}

	current() // its newest state: nothing is forgotten
	victim = openNode(t, id, dir, same)
	leader.set(t, "z", "1")
	checkReplicas(t, append(others[:2:2], victim)...)

	victim.stop() // an empty volume, as the line says
	if _, err := leader.Leave(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	victim = openNode(t, id, t.TempDir(), same)
	victim.waitLeader(t)
	leader.join(t, victim)
	checkReplicas(t, append(others[:2:2], victim)...)
}

// TestAcknowledged: what is known of a member grows with its volume, and begins anew with another.
func TestAcknowledged(t *testing.T) {
	var a acknowledged
	for _, tt := range []struct {
		volume string
		index  uint64
		want   uint64
	}{
		{volume: "a", index: 7, want: 7}, {volume: "a", index: 5, want: 7}, {volume: "a", index: 9, want: 9},
		{volume: "b", index: 2, want: 2},
	} {
		a.heard(&Info{NodeID: "n2", VolumeID: tt.volume, AppliedIndex: tt.index})
		if got := a.all()["n2"]; got.Index != tt.want || got.VolumeID != tt.volume {
			t.Errorf("after %s %d: got %+v, want %d", tt.volume, tt.index, got, tt.want)
		}
	}
	if a.keep(nil); len(a.all()) != 0 {
		t.Errorf("of no member: got %v, want nothing", a.all())
	}
}
