package e2e

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"raftkv/internal/testkit"
)

// TestSnapshotsAndDamage kills a node that has snapshots and restarts it, then
// damages copies of its volume: a node on one refuses to start, or has everything.
func TestSnapshotsAndDamage(t *testing.T) {
	slow(t)
	t.Parallel()
	n := testkit.NewNode(t, binary(t), "n1")
	n.Env = []string{"RAFT_SNAPSHOT_THRESHOLD=50", "RAFT_ELECTION_TIMEOUT=50ms"}
	n.Start(t)
	want := make(map[string]string)
	written := 0
	write := func(count int) {
		for range count {
			key, value := fmt.Sprintf("key-%03d", written*7%150), fmt.Sprint("value-", written)
			n.Set(t, key, value)
			want[key] = value
			written++
		}
	}
	copyOf := func(t testing.TB, volume string) *testkit.Node {
		c := testkit.NewNode(t, binary(t), "n1")
		c.Env = n.Env
		if err := os.CopyFS(c.Volume, os.DirFS(volume)); err != nil {
			t.Fatal(err)
		}
		return c
	}

	write(150)
	var bases []*testkit.Node // copies of the volume with one snapshot, and with two
	var wants []map[string]string
	for count := 1; count <= 2; count++ {
		testkit.Eventually(t, fmt.Sprintf("%d snapshots", count), func() error { // taken while it is written to
			write(10)
			if got := len(snapshots(t, n)); got != count {
				return fmt.Errorf("got %d", got)
			}
			return nil
		})
		write(20) // fewer than make a snapshot
		n.Kill(t)
		bases, wants = append(bases, copyOf(t, n.Volume)), append(wants, maps.Clone(want))
		unfinished := filepath.Join(n.Volume, "snapshots", "2-99-1700000000000.tmp")
		half := filepath.Join(unfinished, "state.bin")
		if err := errors.Join(os.Mkdir(unfinished, 0o755), os.WriteFile(half, []byte("half"), 0o644)); err != nil {
			t.Fatal(err)
		}
		n.Start(t)
		n.WantValues(t, want)
		if _, err := os.Stat(unfinished); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("unfinished snapshot after the restart: got %v, want it removed", err)
		}
		write(100)
	}
	n.Stop(t, syscall.SIGTERM)

	random := rand.New(rand.NewPCG(1, 2)) // always the same places
	type damage struct {
		name string
		do   func(t testing.TB, n *testkit.Node)
	}
	raftDB := func(n *testkit.Node) string { return filepath.Join(n.Volume, "raft.db") }
	inNewest := func(file string) func(*testkit.Node) string {
		return func(n *testkit.Node) string { all := snapshots(t, n); return filepath.Join(all[len(all)-1], file) }
	}
	edit := func(path func(*testkit.Node) string, change func(b []byte) []byte) func(testing.TB, *testkit.Node) {
		return func(t testing.TB, n *testkit.Node) {
			b, err := os.ReadFile(path(n))
			if err == nil {
				err = os.WriteFile(path(n), change(b), 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	truncate := func(part float64) func(b []byte) []byte {
		return func(b []byte) []byte { return b[:int(part*float64(len(b)))] }
	}
	flip := func(part float64, mask byte) func(b []byte) []byte {
		return func(b []byte) []byte { b[int(part*float64(len(b)))] ^= mask; return b }
	}
	zeroSector := func(part float64) func(b []byte) []byte {
		return func(b []byte) []byte {
			at := int(part*float64(len(b))) / 512 * 512
			clear(b[at:min(at+512, len(b))])
			return b
		}
	}
	remove := func(path func(*testkit.Node) string) func(testing.TB, *testkit.Node) {
		return func(t testing.TB, n *testkit.Node) {
			if err := os.RemoveAll(path(n)); err != nil {
				t.Fatal(err)
			}
		}
	}
	damages := []damage{
		{"raft.db emptied", edit(raftDB, truncate(0))},
		{"raft.db cut to a tenth", edit(raftDB, truncate(0.1))},
		{"raft.db cut to a half", edit(raftDB, truncate(0.5))},
		{"raft.db without its last page", edit(raftDB, func(b []byte) []byte { return b[:len(b)-os.Getpagesize()] })},
		{"raft.db deleted", remove(raftDB)},
		{"first meta page", edit(raftDB, func(b []byte) []byte { b[40] ^= 1; return b })},
		{"second meta page", edit(raftDB, func(b []byte) []byte { b[os.Getpagesize()+40] ^= 1; return b })},
		{"state.bin cut to a half", edit(inNewest("state.bin"), truncate(0.5))},
		{"state.bin emptied", edit(inNewest("state.bin"), truncate(0))},
		{"state.bin deleted", remove(inNewest("state.bin"))},
		{"meta.json cut to a half", edit(inNewest("meta.json"), truncate(0.5))},
		{"meta.json emptied", edit(inNewest("meta.json"), truncate(0))},
		{"meta.json deleted", remove(inNewest("meta.json"))},
		{"newest snapshot deleted", remove(inNewest(""))},
		{"all snapshots deleted", remove(func(n *testkit.Node) string { return filepath.Join(n.Volume, "snapshots") })},
		{"state.bin of all snapshots", func(t testing.TB, n *testkit.Node) {
			for _, dir := range snapshots(t, n) {
				edit(func(*testkit.Node) string { return filepath.Join(dir, "state.bin") }, flip(0.7, 0x10))(t, n)
			}
		}},
	}
	for range 6 {
		part, mask := random.Float64(), byte(1<<random.IntN(8))
		damages = append(damages,
			damage{fmt.Sprintf("raft.db byte at %.4f xor %#x", part, mask), edit(raftDB, flip(part, mask))},
			damage{fmt.Sprintf("raft.db sector at %.4f zeroed", part), edit(raftDB, zeroSector(part))})
	}
	for range 3 {
		part, mask := random.Float64(), byte(1<<random.IntN(8))
		damages = append(damages,
			damage{fmt.Sprintf("state.bin byte at %.4f xor %#x", part, mask), edit(inNewest("state.bin"), flip(part, mask))},
			damage{fmt.Sprintf("meta.json byte at %.4f xor %#x", part, mask), edit(inNewest("meta.json"), flip(part, mask))})
	}
	var refused, started int
	for i, base := range bases {
		for _, damage := range damages {
			t.Run(fmt.Sprintf("%d snapshots/%s", i+1, damage.name), func(t *testing.T) {
				n := copyOf(t, base.Volume)
				damage.do(t, n)
				before := read(t, raftDB(n))
				n.Run(t)
				if !n.BecomesReady(t) {
					refused++
					wantRefused(t, n.Process, 1, n.Volume)
					if after := read(t, raftDB(n)); !bytes.Equal(before, after) {
						t.Error("raft.db was changed by a node that refused it")
					}
					return
				}
				started++
				n.WantValues(t, wants[i])
				n.Stop(t, syscall.SIGTERM)
			})
		}
	}
	t.Logf("damaged volumes: %d refused, %d started with everything", refused, started)
	if refused == 0 || started == 0 {
		t.Errorf("damaged volumes: got %d refused and %d started, want some of each", refused, started)
	}
}

// read returns the content of a file; nil when it does not exist.
func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return b
}

// snapshots returns the paths of the snapshots that are whole in the volume of a node, the newest last.
func snapshots(t testing.TB, n *testkit.Node) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(n.Volume, "snapshots", "*-*-*[0-9]")) // not .tmp
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(found, func(a, b string) int { return cmp.Compare(indexOf(t, a), indexOf(t, b)) })
	return found
}

// indexOf is the index up to which a snapshot has all entries; it is in its name.
func indexOf(t testing.TB, snapshot string) uint64 {
	t.Helper()
	index, err := strconv.ParseUint(strings.Split(filepath.Base(snapshot), "-")[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return index
}
