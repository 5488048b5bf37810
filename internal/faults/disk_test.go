package faults

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"
)

// TestFullDisk lets the disk of the leader, and of a follower, run full under load. The
// node must end with exit code 1 and one line that says why, the others go on without
// it; as long as there is no room it must not come up with less than it had; with room
// it comes back.
func TestFullDisk(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long: not with -short")
	}
	if wires == nil {
		t.Skip("needs a mount namespace of its own")
	}
	const room = 512 << 20
	w := newWorld(t, "disk", 3, func(n *node) {
		if err := errors.Join(os.MkdirAll(n.volume, 0o755), mountMemory(n.volume, room)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unmount(n.volume) })
	})
	w.settle("the start")
	times := 1
	if *long {
		times = 5
	}
	for i := range 2 * times {
		h := &hand{world: w, random: rand.New(rand.NewPCG(*seed, uint64(i))), patience: writesBound}
		w.enter("fault")
		leader, err := h.leader()
		if err != nil {
			t.Fatal(err)
		}
		n, name := leader, "full disk of the leader"
		if i%2 == 1 {
			n, name = h.pick(w.others(leader)), "full disk of a follower"
		}
		before, failures := len(n.console()), w.findings()
		spare := h.random.Int64N(300) << 10
		if err := resize(n.volume, 0, spare); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		var code int
		for k := range 500 {
			_, _ = h.pick(w.others(n)).ask(3*time.Second, "/set", url.Values{"key": {fmt.Sprint("filler", k%10)}, "value": {strings.Repeat("x", 8<<10)}})
			if !n.running() {
				break
			}
		}
		if code, err = n.ends(bound); err != nil || code != 1 {
			w.fail("%s: got exit code %d, %v, want 1", name, code, err)
		}
		ended := time.Since(began)
		var said []string
		for line := range strings.Lines(n.console()[before:]) {
			if strings.HasPrefix(line, "raftkv: ") {
				said = append(said, strings.TrimSpace(line))
			}
		}
		if len(said) != 1 || !strings.Contains(said[0], "no space left on device") || said[0] != n.lastLine() || strings.Contains(n.console()[before:], "panic") {
			w.fail("%s: got the lines %q and last %q, want one that says why, at the end", name, said, n.lastLine())
		}
		if err := h.otherLeader(n); err != nil {
			w.fail("%s: %v", name, err)
		}
		w.t.Logf("%s, %d KiB left: it ended after %v: %s; the others wrote again after %v", name, spare>>10, ended.Round(time.Millisecond), n.lastLine(), w.writable(w.others(n)))

		up := 0 // while it has no room
		for range 3 {
			n.start()
			if err := await(bound, func() error {
				if n.running() {
					_, err := n.ask(time.Second, "/readyz", nil)
					return err
				}
				return nil
			}); err != nil {
				w.fail("%s: started without room, neither ready nor ended: %v; last line: %s", name, err, n.lastLine())
			}
			if n.running() {
				up++
				n.kill()
			} else if code, _ := n.ends(time.Second); code != 1 || !strings.HasPrefix(n.lastLine(), "raftkv: ") {
				w.fail("%s: started without room: got exit code %d and %q, want 1 and a line that says why", name, code, n.lastLine())
			}
		}
		w.t.Logf("%s: of 3 starts without room, %d ran; last line: %s", name, up, n.lastLine())
		if err := resize(n.volume, room, 0); err != nil {
			t.Fatal(err)
		}
		n.start()
		again := w.settle(name)
		tried.note(name+", three", func(r *row) {
			r.times++
			r.found += w.findings() - failures
			r.writes = max(r.writes, again)
		})
	}
	w.finish()
}

// writable waits until one of nodes takes a write, and returns how long that took.
func (w *world) writable(nodes []*node) time.Duration {
	began := time.Now()
	if err := await(bound, func() (err error) {
		for _, n := range nodes {
			if _, err = n.ask(time.Second, "/set", url.Values{"key": {"probe"}, "value": {"writable"}}); err == nil {
				return nil
			}
		}
		return err
	}); err != nil {
		w.fail("a write: %v", err)
	}
	return time.Since(began).Round(time.Millisecond)
}
