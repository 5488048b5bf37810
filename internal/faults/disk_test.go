package faults

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"raftkv/internal/testkit"
)

// TestFullDisk lets the disk of the leader, and of a follower, run full under load. The
// node must warn while there is still room, and end with exit code 1 and one line that
// says why, the others go on without it; as long as there is no room it must not come up
// with less than it had; with room it comes back.
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
		h.warned(n, name, room)
		spare := h.random.Int64N(300) << 10
		if err := resize(n.volume, 0, spare); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		var code int
		for k := range 500 {
			_, _ = h.pick(w.others(n)).ask(3*time.Second, "/set", url.Values{"key": {fmt.Sprint("filler", k%10)},
				"value": {strings.Repeat("x", 8<<10)}})
			if !n.running() {
				break
			}
		}
		if code, err = n.ends(bound); err != nil || code != 1 {
			w.fail("%s: got exit code %d, %v, want 1", name, code, err)
		}
		ended := time.Since(began)
		h.saidWhy(n, name, before, "no space left on device")
		if err := h.otherLeader(n); err != nil {
			w.fail("%s: %v", name, err)
		}
		w.t.Logf("%s, %d KiB left: it ended after %v: %s; the others wrote again after %v", name, spare>>10,
			ended.Round(time.Millisecond), n.lastLine(), w.writable(w.others(n)))

		up := 0 // while it has no room
		for range 3 {
			began := len(n.console())
			n.start()
			if err := testkit.Poll(bound, func() error {
				if !n.running() || refusedForRoom.MatchString(n.console()[began:]) {
					return nil
				}
				_, err := n.ask(time.Second, "/readyz", nil)
				return err
			}); err != nil {
				w.fail("%s: started without room, neither ready nor ended, nor does it say that it has no room for a snapshot: "+
					"%v; last line: %s", name, err, n.lastLine())
			}
			if n.running() {
				up++
				n.kill()
			} else if code, _ := n.ends(time.Second); code != 1 || !strings.HasPrefix(n.lastLine(), "raftkv: ") {
				w.fail("%s: started without room: got exit code %d and %q, want 1 and a line that says why", name, code,
					n.lastLine())
			}
		}
		w.t.Logf("%s: of 3 starts without room, %d ran; last line: %s", name, up, n.lastLine())
		if err := resize(n.volume, room, 0); err != nil {
			t.Fatal(err)
		}
		n.start()
		w.noted(name, failures)
	}
	w.finish()
}

// refusedForRoom is what a node prints that needs a snapshot of the leader and has no room for it. It waits for room,
// because it has written nothing that failed.
var refusedForRoom = regexp.MustCompile(`Refused InstallSnapshot of .* bytes, and the disk of the volume has \d+ left`)

// warned leaves a node, which has so much room that it has not warned, less than the 256
// MiB under which it warns: on its console, in /readyz and in /status.
func (w *hand) warned(n *node, name string, room int64) {
	const warning = "MiB left: make room"
	text := func() (ready string, space string) {
		var answer struct{ Health struct{ Space string } }
		if err := testkit.Poll(bound, func() (err error) {
			if ready, err = n.ask(3*time.Second, "/readyz", nil); err != nil {
				return err
			}
			body, err := n.ask(3*time.Second, "/status", nil)
			if err != nil {
				return err
			}
			return json.Unmarshal([]byte(body), &answer)
		}); err != nil {
			w.fail("%s: %v", name, err)
		}
		return strings.TrimSpace(ready), answer.Health.Space
	}
	before := len(n.console())
	if err := testkit.Poll(bound, func() error { // it may warn of another node that has just come back
		if ready, space := text(); !strings.HasPrefix(ready, "OK") || strings.Contains(ready, warning) || space != "" {
			return fmt.Errorf("with room: got %q and health %q, want OK, and no word of room", ready, space)
		}
		return nil
	}); err != nil {
		w.fail("%s: %v", name, err)
	}
	if err := resize(n.volume, room/4, 0); err != nil {
		w.t.Fatal(err)
	}
	if err := testkit.Poll(bound, func() error {
		if !strings.Contains(n.console()[before:], warning) {
			return errors.New("no warning on the console")
		}
		return nil
	}); err != nil {
		w.fail("%s: %v", name, err)
	}
	if ready, space := text(); !strings.HasPrefix(ready, "OK, but ") || !strings.Contains(ready, warning) ||
		!strings.Contains(space, warning) {
		w.fail("%s: got %q and health %q, want both to warn", name, ready, space)
	}
}

// saidWhy checks that a node that has ended by itself said why in one line, the last, and
// nothing like it since its console had so many bytes.
func (w *hand) saidWhy(n *node, name string, before int, why string) {
	text := n.console()[before:]
	said := failures(text)
	if len(said) != 1 || !strings.Contains(said[0], why) || said[0] != n.lastLine() || strings.Contains(text, "panic") {
		w.fail("%s: got the lines %q and last %q, want one that says %s, at the end", name, said, n.lastLine(), why)
	}
}

// failures are the lines of a console by which a node says why it ends.
func failures(console string) (lines []string) {
	for line := range strings.Lines(console) {
		if strings.HasPrefix(line, "raftkv: ") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// hungLimit is after how long a node ends whose disk does not answer.
const hungLimit = 20 * time.Second

// TestHungDisk lets the disk of the leader, and of a follower, stand still for good under
// load. Writes must be taken within hungLimit, and what an election takes; the node must
// say why it ends, answer no more, and end with exit code 1 as soon as the kernel lets
// it; with a disk that answers it comes back. A process that is stopped for as long in
// the middle of a write has no hung disk, and goes on.
func TestHungDisk(t *testing.T) {
	if !*long {
		t.Skip("takes hungLimit for each row: only with -faults")
	}
	w := newWorld(t, "hung", 3, onDisk)
	if !disks {
		t.Skip("the volumes are not on disks of their own")
	}
	w.settle("the start")
	for i, name := range []string{"hung disk of the leader", "hung disk of a follower"} {
		h := &hand{world: w, random: rand.New(rand.NewPCG(*seed, uint64(i))), patience: writesBound}
		w.enter("fault")
		n, err := h.leader()
		if i == 1 && err == nil {
			n, err = h.follower()
		}
		if err != nil {
			t.Fatal(err)
		}
		failures := w.findings()
		h.hung(n, name)
		n.start()
		w.noted(name, failures)
	}
	h := &hand{world: w, random: rand.New(rand.NewPCG(*seed, 2)), patience: writesBound}
	w.enter("fault")
	n, err := h.follower()
	if err != nil {
		t.Fatal(err)
	}
	failures := w.findings()
	h.stoppedWriting(n)
	w.noted("SIGSTOP in the middle of a write", failures)
	w.finish()
}

// noted waits until what has healed has settled, and adds it to what was tried; there
// were so many failures before it.
func (w *world) noted(name string, failures int) {
	w.t.Helper()
	again := w.settle(name)
	tried.note(name+", three", func(r *row) {
		r.times++
		r.found += w.findings() - failures
		r.writes = max(r.writes, again)
	})
}

// stoppedWriting stops a node that waits for its disk for longer than a disk may hang.
func (w *hand) stoppedWriting(n *node) {
	d, err := openDisk(n.volume)
	if err != nil {
		w.t.Fatal(err)
	}
	defer d.close()
	if err := d.freeze(); err != nil {
		w.t.Fatal(err)
	}
	if err := testkit.Poll(bound, func() error {
		if !n.waits() {
			return errors.New("it does not write")
		}
		return nil
	}); err != nil {
		w.t.Fatal(err)
	}
	n.signal(syscall.SIGSTOP)
	if err := d.thaw(); err != nil {
		w.t.Fatal(err)
	}
	time.Sleep(hungLimit + hungLimit/10)
	n.signal(syscall.SIGCONT)
	if err := testkit.Poll(bound, func() error {
		_, err := n.ask(3*time.Second, "/readyz",
			nil)
		return err
	}); err != nil {
		w.fail("after SIGSTOP for longer than a disk may hang: %v; its last line: %s", err, n.lastLine())
	}
}

// hung lets the disk of a node stand still until the node has ended because of that.
func (w *hand) hung(n *node, name string) {
	d, err := openDisk(n.volume)
	if err != nil {
		w.t.Fatal(err)
	}
	defer d.close()
	before := len(n.console())
	if err := d.freeze(); err != nil {
		w.t.Fatal(err)
	}
	began := time.Now()
	written := w.writable(w.others(n))
	w.enter("after") // what was open while it hung is a burden to check
	if written > hungLimit+writesBound {
		w.fail("%s: the others wrote again after %v, want %v", name, written, hungLimit)
	}
	if err := w.otherLeader(n); err != nil {
		w.fail("%s: %v", name, err)
	}
	if err := testkit.Poll(bound, func() error {
		if len(failures(n.console()[before:])) == 0 {
			return errors.New("it does not say why it ends")
		}
		return nil
	}); err != nil {
		w.fail("%s: %v", name, err)
	}
	said := time.Since(began)
	if said > hungLimit+writesBound {
		w.fail("%s: it ended after %v, want %v", name, said, hungLimit)
	}
	if answer, err := n.ask(3*time.Second, "/get", url.Values{"key": {"probe"}, "consistency": {"stale"}}); err == nil {
		w.fail("%s: after it said why it ends, got %q, want no answer", name, answer)
	}
	kept := n.running() // a thread that waits for the disk
	if err := d.thaw(); err != nil {
		w.t.Fatal(err)
	}
	code, err := n.ends(bound)
	if err != nil || code != 1 {
		w.fail("%s: got exit code %d, %v, want 1", name, code, err)
	}
	w.saidWhy(n, name, before, "the disk has not answered for "+hungLimit.String())
	w.t.Logf("%s: the others wrote again after %v; after %v it said %s; the kernel kept it until the thaw: %t",
		name, written, said.Round(time.Millisecond), n.lastLine(), kept)
}

// writable waits until one of nodes takes a write, and returns how long that took.
func (w *world) writable(nodes []*node) time.Duration {
	began := time.Now()
	if err := testkit.Poll(bound, func() (err error) {
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

// TestSmallDisks fills equal disks with data, and with nothing but the history of one key. The cluster refuses in time,
// with 507 and all nodes alive; then it comes up again, and removes work their way out on the same disks.
func TestSmallDisks(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long: not with -short")
	}
	if wires == nil {
		t.Skip("needs a mount namespace of its own")
	}
	const room = 128 << 20
	var nodes []*testkit.Node
	for i := range 3 {
		n := testkit.NewNode(t, binary, fmt.Sprint("n", i+1), "RAFT_SNAPSHOT_BYTES=4194304", "LOG_LEVEL=warn",
			"STORE_MAX_BYTES=1073741824") // no bound that these disks would ever come to
		if err := errors.Join(os.MkdirAll(n.Volume, 0o755), mountMemory(n.Volume, room)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unmount(n.Volume) })
		n.Start(t)
		n.WaitReady(t)
		if nodes = append(nodes, n); i > 0 {
			testkit.Join(t, nodes[0].Client, n.Client, n.RaftPort)
		}
	}
	value := strings.Repeat("v", 1<<20)
	set := func(key string) testkit.Answer {
		return nodes[0].Definite(t, "PUT", "/set?key="+key, value)
	}
	for i := range 300 { // of which the log would not hold a half
		if a := set("one"); a.Status != 200 && a.Status != 507 {
			t.Fatalf("one key, for the %d. time: got %d %q, want 200 or 507", i, a.Status, a.Body)
		}
	}
	count := 0
	var refused testkit.Answer
	for ; count < 100; count++ {
		if refused = set(fmt.Sprint("key", count)); refused.Status != 200 {
			break
		}
	}
	err := refused.OneLine("no room", "disks are nearly full", "nothing was done", "remove keys")
	if refused.Status != 507 || err != nil || count < 5 {
		t.Fatalf("after %d keys: got %d %q, %v, want 507 and a line with what to do",
			count, refused.Status, refused.Body, err)
	}
	for _, n := range nodes {
		n.Kill(t) // which fails the test if it has ended by itself
		n.Start(t)
	}
	nodes[0].Write(t, "/remove?prefix=key")
	testkit.Eventually(t, "a set is accepted again", func() error {
		if a := set("again"); a.Status != 200 {
			return fmt.Errorf("status %d: %s", a.Status, a.Body)
		}
		return nil
	})
	all := testkit.CheckReplicas(t, nodes...)
	if len(all) != 2 || len(all["again"]) != 1<<20 || len(all["one"]) != 1<<20 {
		t.Errorf("got %d keys, want one and again", len(all))
	}
	t.Logf("507 after %d keys of a megabyte on %d MiB: %s", count, room>>20, refused.Body)
}

// TestNoRoomForTheJournal: a node whose disk has no room for its journal says so in one line and leaves nothing of it;
// without a journal it starts, and with room it has one.
func TestNoRoomForTheJournal(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long: not with -short")
	}
	if wires == nil {
		t.Skip("needs a mount namespace of its own")
	}
	n := newNode(t, 1, t.TempDir())
	if err := errors.Join(os.MkdirAll(n.volume, 0o755), mountMemory(n.volume, 8<<20)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unmount(n.volume) })
	n.start()
	code, err := n.ends(bound)
	if said := failures(n.console()); err != nil || code != 1 || len(said) != 1 || said[0] != n.lastLine() ||
		!strings.Contains(said[0], "raft.db.journal of 16 MiB can't be made: make room, or start with RAFT_JOURNAL=off") {
		t.Errorf("no room: got exit code %d, %v, %q, want 1 and a line with what to do", code, err, said)
	}
	journals := func(want int) {
		t.Helper()
		if found, err := filepath.Glob(filepath.Join(n.volume, "raft.db.journal*")); err != nil || len(found) != want {
			t.Errorf("got %q, %v, want %d files", found, err, want)
		}
	}
	journals(0)
	ready := func() {
		t.Helper()
		if err := testkit.Poll(bound, func() error {
			_, err := n.ask(3*time.Second, "/readyz", nil)
			return err
		}); err != nil {
			t.Fatalf("%v; last line: %s", err, n.lastLine())
		}
	}
	n.start("RAFT_JOURNAL=off")
	ready()
	journals(0)
	n.kill()
	if err := resize(n.volume, 64<<20, 0); err != nil {
		t.Fatal(err)
	}
	n.start()
	ready()
	journals(1)
}
