package faults

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"raftkv/internal/testkit"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// fault is something that happens to a cluster.
type fault struct {
	name  string
	needs needs
	size  int  // it needs so many nodes
	mixes bool // it may happen together with others
	// do lets it happen, and returns before it heals: nil when it has surely happened,
	// errNothing when there was nothing that it could happen to.
	do func(w *hand) error
}

// needs is what a fault needs of the machine.
type needs int

const (
	nothing  needs = iota
	links          // a network of their own for the nodes
	ownDisks       // a disk of its own for each node
)

// possible reports whether a fault can happen to a cluster of so many nodes here, which
// have their disks by now.
func (f fault) possible(size int) bool {
	return size >= f.size && (f.needs != links || wires != nil) && (f.needs != ownDisks || disks) &&
		(f.name != "clocks that jump" || clockBinary != "")
}

var errNothing = errors.New("nothing to do it to")

var all = []fault{
	{"kill -9 of one", nothing, 0, true, func(w *hand) error { return w.killed(w.pick(w.nodes)) }},
	{"kill -9 of the leader", nothing, 0, true, func(w *hand) error {
		leader, err := w.leader()
		if err != nil {
			return err
		}
		return errors.Join(w.killed(leader), w.otherLeader(leader))
	}},
	{"kill -9 of all", nothing, 0, false, func(w *hand) error { return w.killed(w.nodes...) }},
	{"kill -9 of a majority", nothing, 0, false, func(w *hand) error {
		if err := w.killed(w.shuffled()[:len(w.nodes)/2+1]...); err != nil {
			return err
		}
		time.Sleep(w.between(500*time.Millisecond, 2*time.Second))
		return nil
	}},
	{"kill -9, again and again", nothing, 0, true, func(w *hand) error {
		for range 4 {
			n := w.pick(w.nodes)
			if err := w.killed(n); err != nil {
				return err
			}
			time.Sleep(w.between(10*time.Millisecond, 400*time.Millisecond))
			n.start()
			time.Sleep(w.between(10*time.Millisecond, 400*time.Millisecond))
		}
		return nil
	}},
	{"SIGSTOP of the leader", nothing, 0, true, func(w *hand) error {
		leader, err := w.leader()
		if err != nil {
			return err
		}
		leader.signal(syscall.SIGSTOP)
		return w.otherLeader(leader)
	}},
	{"SIGSTOP of one", nothing, 0, true, func(w *hand) error {
		w.pick(w.nodes).signal(syscall.SIGSTOP)
		time.Sleep(w.between(2*electionTimeout, 6*electionTimeout))
		return nil
	}},
	{"SIGSTOP of all but one", nothing, 0, false, func(w *hand) error {
		for _, n := range w.shuffled()[1:] {
			n.signal(syscall.SIGSTOP)
		}
		time.Sleep(w.between(2*electionTimeout, 6*electionTimeout))
		return nil
	}},
	{"SIGTERM of the leader", nothing, 0, true, func(w *hand) error {
		leader, err := w.leader()
		if err != nil {
			return err
		}
		return errors.Join(w.stopped(leader), w.otherLeader(leader))
	}},
	{"SIGTERM of each in turn", nothing, 0, false, func(w *hand) error {
		for _, n := range w.shuffled() {
			if err := w.stopped(n); err != nil {
				return err
			}
			n.start()
			if err := testkit.Poll(bound, func() error {
				_, err := n.ask(3*time.Second, "/readyz",
					nil)
				return err
			}); err != nil {
				return err
			}
		}
		return nil
	}},
	{"transfers of leadership", nothing, 0, true, transfers},
	{"leave and join of one", nothing, 0, false, func(w *hand) error {
		n, err := w.follower()
		if err != nil {
			return err
		}
		return w.leftAndJoined(n)
	}},
	{"leave and join of the leader", nothing, 0, false, func(w *hand) error {
		leader, err := w.leader()
		if err != nil {
			return err
		}
		return w.leftAndJoined(leader)
	}},
	{"joins that are refused", nothing, 0, true, refusedJoins},
	{"power cut of all", ownDisks, 0, false, func(w *hand) error { return w.powerCut(w.nodes...) }},
	{"power cut of a majority", ownDisks, 0, false,
		func(w *hand) error { return w.powerCut(w.shuffled()[:len(w.nodes)/2+1]...) }},
	{"slow disk of one", ownDisks, 0, true, func(w *hand) error {
		n, err := w.leader()
		if err == nil && w.random.IntN(2) == 0 {
			n, err = w.follower()
		}
		if err != nil {
			return err
		}
		return w.slowDisks(n)
	}},
	{"slow disk of all", ownDisks, 0, false, func(w *hand) error { return w.slowDisks(w.nodes...) }},
	{"clocks that jump", nothing, 0, false, clockJumps},
	{"damage to raft.db", nothing, 0, false, func(w *hand) error { return w.damaged("raft.db") }},
	{"damage to snapshots", nothing, 0, false, func(w *hand) error {
		return w.damaged(filepath.Join("snapshots",
			"*-*-*[0-9]", "state.bin"))
	}},
	{"kill -9 during a snapshot install", nothing, 0, false, killInstalling},

	{"isolated leader", links, 0, true, func(w *hand) error {
		leader, err := w.leader()
		if err != nil {
			return err
		}
		w.split([]*node{leader}, w.others(leader))
		return w.otherLeader(leader)
	}},
	{"isolated follower", links, 0, true, func(w *hand) error {
		n, err := w.follower()
		if err != nil {
			return err
		}
		w.split([]*node{n}, w.others(n))
		time.Sleep(w.between(2*electionTimeout, 8*electionTimeout))
		return nil
	}},
	{"leader with a minority", links, 5, true, func(w *hand) error {
		leader, err := w.leader()
		if err != nil {
			return err
		}
		minority := []*node{leader, w.pick(w.others(leader))}
		w.split(minority, w.others(minority...))
		return w.otherLeader(minority...)
	}},
	{"nobody reaches anybody", links, 0, false, func(w *hand) error {
		for _, n := range w.nodes {
			w.split([]*node{n}, w.others(n))
		}
		time.Sleep(w.between(4*electionTimeout, 10*electionTimeout))
		return nil
	}},
	{"leader that is not heard", links, 0, true, func(w *hand) error {
		leader, err := w.leader()
		if err != nil {
			return err
		}
		w.oneWay([]*node{leader}, w.others(leader), link{cut: true})
		return w.otherLeader(leader)
	}},
	{"leader that hears nobody", links, 0, true, func(w *hand) error {
		leader, err := w.leader()
		if err != nil {
			return err
		}
		w.oneWay(w.others(leader), []*node{leader}, link{cut: true})
		return w.otherLeader(leader)
	}},
	{"follower that is not heard", links, 0, true, func(w *hand) error {
		n, err := w.follower()
		if err != nil {
			return err
		}
		w.oneWay([]*node{n}, w.others(n), link{cut: true})
		time.Sleep(w.between(4*electionTimeout, 8*electionTimeout))
		return nil
	}},
	{"a bridge: two halves that share one node", links, 0, true, func(w *hand) error {
		s := w.shuffled()
		half := (len(s) - 1) / 2
		w.split(s[:half], s[half+1:])
		time.Sleep(w.between(4*electionTimeout, 10*electionTimeout))
		return nil
	}},
	{"flapping links", links, 0, true, func(w *hand) error {
		for range 12 {
			n := w.pick(w.nodes)
			w.split([]*node{n}, w.others(n))
			time.Sleep(w.between(20*time.Millisecond, 2*electionTimeout))
			wires.heal()
			time.Sleep(w.between(20*time.Millisecond, electionTimeout))
		}
		return nil
	}},
	{"leader cut off again and again", links, 0, true, func(w *hand) error {
		for range 3 {
			leader, err := w.leader()
			if err != nil {
				return err
			}
			w.split([]*node{leader}, w.others(leader))
			if err := w.otherLeader(leader); err != nil {
				return err
			}
			wires.heal()
		}
		return nil
	}},
	{"transfer of leadership by a leader that is cut off", links, 0, false, cutTransfer},
	{"delay", links, 0, true, func(w *hand) error {
		return w.bad(link{delay: w.between(5*time.Millisecond, 60*time.Millisecond), jitter: time.Millisecond})
	}},
	{"reordering", links, 0, true, func(w *hand) error {
		return w.bad(link{jitter: w.between(5*time.Millisecond, 60*time.Millisecond)})
	}},
	{"loss", links, 0, true, func(w *hand) error { return w.bad(link{loss: 0.02 + 0.2*w.random.Float64()}) }},
	{"loss, doubling, delay and reordering", links, 0, true, func(w *hand) error {
		return w.bad(link{loss: 0.05, double: 0.2, delay: 5 * time.Millisecond, jitter: 30 * time.Millisecond})
	}},
}

func TestThreeNodes(t *testing.T) { schedule(t, "three", 3, 0.5, 48*time.Second) }
func TestFiveNodes(t *testing.T)  { schedule(t, "five", 5, 0.3, 32*time.Second) }

// schedule lets faults happen to a cluster, in an order that the seed decides, for a
// part of the duration of the long version, or for so long in the short one.
func schedule(t *testing.T, name string, size int, part float64, short time.Duration) {
	if testing.Short() {
		t.Skip("takes long: not with -short")
	}
	limit := short
	if *long {
		limit = time.Duration(part * float64(*duration))
	}
	wanted, err := regexp.Compile(*only)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	w := newWorld(t, name, size, onDisk)
	w.disks = disks
	w.settle("the start")
	var order []fault
	for _, f := range all {
		if f.possible(size) && wanted.MatchString(f.name) {
			order = append(order, f)
		}
	}
	if len(order) == 0 {
		t.Skipf("no fault that can happen here matches %q", *only)
	}
	mixes := slices.DeleteFunc(slices.Clone(order), func(f fault) bool { return !f.mixes })
	next := 0
	one := func() fault {
		if next%len(order) == 0 {
			w.random.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		}
		next++
		return order[(next-1)%len(order)]
	}
	for time.Since(began) < limit {
		if w.rounds%4 != 0 || len(mixes) < 3 {
			w.round(one())
			continue
		}
		var mix []fault
		for many := 2 + w.random.IntN(2); len(mix) < many; {
			f := mixes[w.random.IntN(len(mixes))]
			if !slices.ContainsFunc(mix, func(g fault) bool { return g.name == f.name }) {
				mix = append(mix, f)
			}
		}
		w.round(mix...)
	}
	if *long && *only == "" && *duration >= wholeDeck {
		for range 3 { // what there was nothing to do it to may have it now
			for _, f := range w.missing(order) {
				w.round(f)
			}
		}
		for _, f := range w.missing(order) {
			t.Errorf("%s: %s never happened", name, f.name)
		}
	}
	w.finish()
	if w.rounds < 4 {
		t.Errorf("%s: got %d rounds, want at least 4", name, w.rounds)
	}
}

// wholeDeck is from which duration on every fault must happen at least once.
const wholeDeck = 8 * time.Minute

// missing is which of these faults have not happened yet.
func (w *world) missing(faults []fault) []fault {
	return slices.DeleteFunc(slices.Clone(faults), func(f fault) (happened bool) {
		tried.note(f.name+", "+w.name, func(r *row) { happened = r.times > 0 })
		return happened
	})
}

// disks is whether onDisk works here.
var disks = true

// onDisk gives a node a disk of its own, of which all can be taken that is not on it
// when the power fails.
func onDisk(n *node) {
	if wires == nil || !disks {
		disks = false
		return
	}
	if err := mountDisk(n.volume); err != nil {
		disks = false
		n.t.Logf("NO POWER CUTS AND NO SLOW DISKS: %v", err)
		return
	}
	n.t.Cleanup(func() { _ = unmount(n.volume) })
}

// shuffled is all nodes, in an order that the seed decides.
func (w *hand) shuffled() []*node {
	s := slices.Clone(w.nodes)
	w.random.Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] })
	return s
}

// killed kills nodes, all at once.
func (w *hand) killed(nodes ...*node) error {
	for _, n := range nodes {
		n.signal(syscall.SIGKILL)
	}
	for _, n := range nodes {
		if _, err := n.ends(bound); err != nil {
			return err
		}
		if status, ok := n.state().Sys().(syscall.WaitStatus); !ok || !status.Signaled() {
			return fmt.Errorf("%w: %s had ended before: %v", errNothing, n.id, n.state())
		}
	}
	return nil
}

// stopped stops a node in order: exit code 0, within 10 s, of which 5 s are promised.
func (w *hand) stopped(n *node) error {
	if !n.active() {
		return fmt.Errorf("%w: %s does not run", errNothing, n.id)
	}
	n.signal(syscall.SIGTERM)
	code, err := n.ends(10 * time.Second)
	if err != nil && !n.active() { // another fault has sent SIGSTOP
		n.signal(syscall.SIGCONT)
		code, err = n.ends(10 * time.Second)
	}
	if status, ok := n.state().Sys().(syscall.WaitStatus); err == nil && ok && status.Signal() == syscall.SIGKILL {
		return fmt.Errorf("%w: another fault has killed %s", errNothing, n.id)
	}
	if err != nil || code != 0 {
		w.fail("%s after SIGTERM: got exit code %d, %v, want 0; its last line: %s", n.id, code, err, n.lastLine())
	}
	return nil
}

func transfers(w *hand) error {
	moved := 0
	for range 6 {
		leader, err := w.leader()
		if err != nil {
			return err
		}
		to := w.pick(w.others(leader))
		if _, err := leader.ask(5*time.Second, "/transfer", url.Values{"nodeId": {to.id}}); err == nil {
			moved++
		}
		time.Sleep(w.between(10*time.Millisecond, 300*time.Millisecond))
	}
	if moved == 0 {
		return errors.New("none succeeded")
	}
	return nil
}

// cutTransfer cuts a leader off while it hands over to a node that it does not reach,
// and makes it the leader again: it must take writes then (hashicorp/raft issue 696).
func cutTransfer(w *hand) error {
	old, err := w.leader()
	if err != nil {
		return err
	}
	to := w.pick(w.others(old))
	w.split([]*node{old}, []*node{to})
	for range 2 {
		go func() { _, _ = old.ask(5*time.Second, "/transfer", url.Values{"nodeId": {to.id}}) }()
		time.Sleep(w.between(10*time.Millisecond, electionTimeout))
	}
	w.split([]*node{old}, w.others(old))
	if err := w.otherLeader(old); err != nil {
		return err
	}
	wires.heal()
	return testkit.Poll(w.patience, func() error {
		leader, err := w.leader()
		if err != nil || leader == old {
			return err
		}
		if _, err := leader.ask(5*time.Second, "/transfer", url.Values{"nodeId": {old.id}}); err != nil {
			return err
		}
		return errors.New("not yet")
	})
}

func (w *hand) leftAndJoined(n *node) error {
	if err := w.left(n); err != nil {
		return err
	}
	time.Sleep(w.between(10*time.Millisecond, 500*time.Millisecond))
	w.join(n)
	return nil
}

// refusedJoins asks for a node that has data of its own, and for one that is not there:
// nothing must change, on either side.
func refusedJoins(w *hand) error {
	leader, err := w.leader()
	if err != nil {
		return err
	}
	s := newNode(w.t, 200, w.dir)
	s.start()
	defer s.kill()
	if err := testkit.Poll(bound, func() error {
		_, err := s.ask(3*time.Second, "/set", url.Values{"key": {"own"}, "value": {"data"}})
		return err
	}); err != nil {
		return err
	}
	for _, port := range []string{s.raft, "1"} {
		_, err = leader.ask(20*time.Second, "/join", url.Values{"nodeId": {s.id}, "raftPort": {port}, "raftHost": {s.host}})
		if err == nil {
			w.fail("join of a node with data of its own, or of none: got 200, want 409")
		} else if !strings.Contains(err.Error(), ": 409 ") {
			return fmt.Errorf("%w: %w", errNothing, err) // the leadership moved
		}
	}
	if got, err := s.ask(3*time.Second, "/get", url.Values{"key": {"own"}}); err != nil || got != "data" {
		w.fail("a node that was not joined: got %q, %v, want its own data", got, err)
	}
	return nil
}

// powerCut kills nodes and takes from their disks what was not yet on them.
func (w *hand) powerCut(nodes ...*node) error {
	if !w.disks {
		return fmt.Errorf("%w: the volumes are not on disks of their own", errNothing)
	}
	if err := w.killed(nodes...); err != nil {
		return err
	}
	for _, n := range nodes {
		if err := cut(n.volume); err != nil {
			w.t.Errorf("power cut of %s: %v", n.id, err)
		}
	}
	return nil
}

// slowDisks makes the disks of nodes stand still, all at once, again and again for a
// while. Each node must have waited for its own, and while all stand still no write may
// be acknowledged.
func (w *hand) slowDisks(nodes ...*node) error {
	var still []*disk
	for _, n := range nodes {
		d, err := openDisk(n.volume)
		if err != nil {
			return err
		}
		defer d.close()
		still = append(still, d)
	}
	var probes sync.WaitGroup
	times := 0
	waited, held := make(map[*node]int), len(nodes) < len(w.nodes)
	for end := time.Now().Add(w.between(time.Second, 3*time.Second)); ; time.Sleep(w.between(2*time.Millisecond,
		8*time.Millisecond)) {
		happened := len(waited) == len(nodes) && held
		if now := time.Now(); happened && now.After(end) {
			break
		} else if now.After(end.Add(w.patience)) {
			return fmt.Errorf("%d of %d nodes waited for their disks, a write waited: %t", len(waited), len(nodes), held)
		}
		times++
		for _, i := range w.random.Perm(len(still)) {
			if err := still[i].freeze(); err != nil {
				return err
			}
			time.Sleep(w.between(0, 6*time.Millisecond)) // followers that stand still get entries of a leader that does not yet
		}
		answered := make(chan error, 1)
		to := w.pick(w.nodes)
		probes.Go(func() {
			_, err := to.ask(5*time.Second, "/set", url.Values{"key": {"probe"}, "value": {"slow"}})
			answered <- err
		})
		time.Sleep(w.between(20*time.Millisecond, 150*time.Millisecond))
		for _, n := range nodes {
			if n.waits() {
				waited[n]++
			}
		}
		if len(nodes) == len(w.nodes) {
			select {
			case err := <-answered:
				if err == nil {
					w.fail("%s: a write was acknowledged while all disks stood still", to.id)
				}
			default:
				held = true
			}
		}
		for _, d := range still {
			if err := d.thaw(); err != nil {
				return err
			}
		}
	}
	probes.Wait()
	for _, n := range nodes {
		w.t.Logf("%s waited for its disk, %d of %d times", n.id, waited[n], times)
	}
	return nil
}

// left takes a node out of the cluster.
func (w *world) left(n *node) error {
	return testkit.Poll(bound, func() error {
		err := w.try("/leave", url.Values{"nodeId": {n.id}}, n)
		if err != nil && strings.Contains(err.Error(), " 404 ") {
			return nil // an earlier try has done it
		}
		return err
	})
}

// damaged damages a file of a node's volume while it is down. The node must come back
// as it was, or refuse to start with one line that names the volume; then it gets a new
// volume, and is taken out and joined again.
func (w *hand) damaged(pattern string) error {
	var n *node
	if err := testkit.Poll(20*time.Second, func() error { // raft takes a snapshot after 5 to 10 s
		for _, n = range w.shuffled() {
			if paths, _ := filepath.Glob(filepath.Join(n.volume, pattern)); len(paths) > 0 {
				return nil
			}
		}
		return fmt.Errorf("%w: no node has %s", errNothing, pattern)
	}); err != nil {
		return err
	}
	if err := w.killed(n); err != nil {
		return err
	}
	paths, _ := filepath.Glob(filepath.Join(n.volume, pattern))
	if len(paths) == 0 {
		return fmt.Errorf("%w: %s has no %s any more", errNothing, n.id, pattern)
	}
	path := slices.MaxFunc(paths, func(a, b string) int {
		return cmp.Compare(modified(a),
			modified(b))
	}) // the one that counts
	b, err := os.ReadFile(path)
	if err != nil || len(b) == 0 {
		return fmt.Errorf("%s: %d bytes, %v", path, len(b), err)
	}
	at, how := w.random.IntN(len(b)), ""
	switch w.random.IntN(4) {
	case 0:
		how = "a bit is flipped"
		b[at] ^= 1 << w.random.IntN(8)
	case 1:
		how = "a sector is lost"
		at = at / 512 * 512
		clear(b[at:min(at+512, len(b))])
	case 2:
		how = "the end is lost"
		b = b[:at]
	case 3:
		how = "garbage is written"
		for i := at; i < min(at+100, len(b)); i++ {
			b[i] = byte(w.random.Uint32())
		}
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		return err
	}
	n.open.Lock() // in case it comes up with nothing
	n.shut.Store(true)
	n.open.Unlock()
	n.start()
	err = testkit.Poll(bound, func() error {
		if !n.running() {
			return nil
		}
		_, err := n.ask(3*time.Second, "/readyz", nil)
		return err
	})
	if err != nil {
		w.fail("%s, %s, %s at %d: neither ready nor ended: %v", n.id, filepath.Base(path), how, at, err)
		return nil
	}
	what := fmt.Sprintf("%s: %s at %d", filepath.Base(path), how, at)
	if n.running() {
		tried.note("· of damaged volumes, came back whole", func(r *row) { r.times++ })
		w.t.Logf("%s: %s came back", what, n.id)
		n.open.Lock()
		n.shut.Store(false) // settle compares what it has
		n.open.Unlock()
		return nil
	}
	tried.note("· of damaged volumes, refused", func(r *row) { r.times++ })
	w.t.Logf("%s: %s refused: %s", what, n.id, n.lastLine())
	if code := n.state().ExitCode(); code != 1 || !strings.HasPrefix(n.lastLine(), "raftkv: volume "+n.volume) {
		w.fail("%s: %s: got exit code %d and %q, want 1 and a line that names the volume", what, n.id, code, n.lastLine())
	}
	return w.replaced(n)
}

// modified is when a file was last written.
func modified(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.ModTime().UnixNano()
}

// replaced gives a node that is down, and that clients leave alone, a new volume, and
// takes it out and joins it again.
func (w *hand) replaced(n *node) error {
	if err := w.emptied(n); err != nil {
		return err
	}
	n.start()
	w.join(n)
	return nil
}

// emptied takes a node that is down out of the cluster, and its volume away.
func (w *hand) emptied(n *node) error {
	if err := w.left(n); err != nil {
		return err
	}
	entries, err := os.ReadDir(n.volume) // the directory may be where a disk is mounted
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := os.RemoveAll(filepath.Join(n.volume, entry.Name())); err != nil {
			return err
		}
	}
	n.open.Lock()
	defer n.open.Unlock()
	if wires != nil { // so that no answer from before leads to it while it is another cluster
		n.http = fmt.Sprint(8000 + w.rounds)
	} else {
		n.http = testkit.FreePort(w.t)
	}
	return nil
}

// killInstalling gives a node a new volume, and kills it while a snapshot is being
// installed, a few times, before it is a member again.
func killInstalling(w *hand) error {
	leader, err := w.leader()
	if err != nil {
		return err
	}
	snapshots, _ := filepath.Glob(filepath.Join(leader.volume, "snapshots", "*-*-*[0-9]"))
	if len(snapshots) < 2 { // the log is whole until then
		return fmt.Errorf("%w: %s has %d snapshots", errNothing, leader.id, len(snapshots))
	}
	body := strings.Repeat("x", 64<<10)
	for i := range 20 {
		_, _ = leader.ask(3*time.Second, "/set", url.Values{"key": {fmt.Sprint("blob", i)}, "value": {body}})
	}
	n := w.pick(w.others(leader))
	if err := w.killed(n); err != nil {
		return err
	}
	n.open.Lock()
	n.shut.Store(true)
	n.open.Unlock()
	if err := w.emptied(n); err != nil {
		return err
	}
	if wires != nil {
		w.oneWay(w.others(n), []*node{n}, link{delay: 40 * time.Millisecond}) // so that it takes a while
	}
	n.start()
	joined := make(chan struct{})
	go func() {
		defer close(joined)
		w.join(n)
	}()
	killed := 0
	for range 3 {
		err := testkit.Poll(bound, func() error {
			select {
			case <-joined:
				return nil
			default:
			}
			if found, _ := filepath.Glob(filepath.Join(n.volume, "snapshots", "*.tmp")); len(found) == 0 {
				return errors.New("no install")
			}
			return nil
		})
		if err != nil {
			w.t.Logf("the install: %v", err)
			break
		}
		select {
		case <-joined:
		default:
			if err := w.killed(n); err != nil {
				return err
			}
			if found, _ := filepath.Glob(filepath.Join(n.volume, "snapshots", "*.tmp")); len(found) > 0 {
				killed++
			}
			n.start()
		}
	}
	if wires != nil {
		wires.heal()
	}
	<-joined
	if killed == 0 {
		return fmt.Errorf("%w: it was never killed in the middle", errNothing)
	}
	return nil
}

// split cuts all ways between two groups of nodes.
func (w *world) split(a, b []*node) {
	w.oneWay(a, b, link{cut: true})
	w.oneWay(b, a, link{cut: true})
}

func (w *world) oneWay(from, to []*node, l link) {
	for _, a := range from {
		for _, b := range to {
			if a != b {
				wires.set(a.number, b.number, l)
			}
		}
	}
}

// bad makes all links between nodes such links for a while.
func (w *hand) bad(l link) error {
	before := wires.harm()
	w.oneWay(w.nodes, w.nodes, l)
	time.Sleep(w.between(time.Second, 3*time.Second))
	if wires.harm() == before {
		return errors.New("no packet was harmed")
	}
	return nil
}
