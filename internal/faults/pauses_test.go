package faults

import (
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"raftkv/internal/lincheck"
	"raftkv/internal/testkit"
)

// TestPausedLeader stops the leader by SIGSTOP for longer than an election takes, and
// has writes and reads wait in its sockets for SIGCONT, in a cluster whose elections are
// quick: what makes hashicorp/raft as it comes diverge without a word after some 4 to 46
// pauses (its issue 695), and answer a read with what was true before the pause in some
// of a hundred (its VerifyLeader).
func TestPausedLeader(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long: not with -short")
	}
	pauses := 50
	if *long {
		pauses = 300
	}
	w := newWorld(t, "paused", 3, nil, "RAFT_ELECTION_TIMEOUT=100ms", "RAFT_SNAPSHOT_THRESHOLD=5000")
	w.settle("the start")
	w.stop() // those of this test suffice
	h := &hand{world: w, random: rand.New(rand.NewPCG(*seed, 3)), patience: writesBound}
	var elected, old, caught int
	for i := range pauses {
		leader, err := h.leader()
		if err != nil {
			t.Fatal(err)
		}
		group := fmt.Sprintf("p%d.", i)
		history := w.recorder()
		client := func(id int, n *node) *lincheck.Client {
			return lincheck.NewClient(id, n.base(), history, rand.New(rand.NewPCG(*seed, uint64(i*1000+id))), w.problem)
		}
		client(i*100, leader).Set(group, []string{group + "a", group + "b"}, "", false)

		// Writes that are under way in the leader, and reads and writes that come while it
		// is stopped and wait in its sockets.
		var waiting sync.WaitGroup
		goOn := make(chan struct{})
		for k := range 10 {
			c := client(i*100+1+k, leader)
			own := fmt.Sprintf("w%d.%d.", i, k%5) // apart: what is open for ever takes long to check
			waiting.Go(func() {
				for {
					if out := c.Set(own, []string{own + "a"}, "", false); out.Result != lincheck.NotApplied {
						w.mu.Lock()
						caught++
						w.mu.Unlock()
					}
					select {
					case <-goOn:
						return
					case <-time.After(time.Duration(k) * time.Millisecond / 2):
					}
				}
			})
		}
		time.Sleep(h.between(10*time.Millisecond, 30*time.Millisecond))
		leader.signal(syscall.SIGSTOP)
		for k := range 12 {
			c := client(i*100+30+k, leader)
			key := group + string("abc"[k%3])
			waiting.Go(func() {
				switch k % 4 {
				case 0:
					own := fmt.Sprintf("w%d.%d.", i, 5+k)
					c.Set(own, []string{own + "a"}, "", false)
				case 1:
					c.List(group)
				default:
					c.Get(group, key)
				}
			})
		}
		rest := w.others(leader)
		if _, err := h.leaderOf(h.patience, rest); err != nil {
			w.fail("pause %d: %v", i, err)
			close(goOn)
			leader.signal(syscall.SIGCONT)
			break
		}
		elected++
		var others sync.WaitGroup
		for k := range 4 {
			c := client(i*100+50+k, rest[k%2])
			others.Go(func() {
				c.Set(group, []string{group + string("abc"[k%3])}, "", false)
				c.Get(group, group+string("abc"[k%3]))
			})
		}
		if i%4 != 0 {
			others.Wait() // acknowledged before the old leader goes on, and before these begin
			for k := range 24 {
				c := client(i*100+70+k, leader)
				waiting.Go(func() { c.Get(group, group+string("abc"[k%3])) })
			}
		}
		time.Sleep(h.between(time.Millisecond, 30*time.Millisecond))
		close(goOn)
		leader.signal(syscall.SIGCONT)
		waiting.Wait()
		others.Wait()
		if i%5 != 4 && i != pauses-1 {
			continue
		}
		old += w.calm(fmt.Sprintf("pause %d", i))
		if w.findings() > 0 {
			break
		}
	}
	tried.note("SIGSTOP of the leader with requests in its sockets, three",
		func(r *row) { r.times += elected; r.found += w.findings() })
	t.Logf("seed %d: %d pauses, %d with a new leader, %d operations done, %d writes sent to leaders that were "+
		"about to stop", *seed, pauses, elected, old, caught)
	if w.findings() == 0 && (elected < pauses || old < 5*pauses || caught < 5*pauses) {
		t.Error("too little was done")
	}
	w.goroutines()
}

// calm checks that all nodes become ready and hold the same, and what clients were told
// since it was last called, none of which may be under way. It returns how many operations
// were done.
func (w *world) calm(name string) (done int) {
	w.t.Helper()
	for _, n := range w.nodes {
		if err := testkit.Poll(bound, func() error {
			_, err := n.ask(3*time.Second, "/readyz",
				nil)
			return err
		}); err != nil {
			w.fail("%s: %s: %v", name, n.id, err)
		}
	}
	last, err := w.leaderOf(writesBound, w.nodes)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := last.ask(5*time.Second, "/set", url.Values{"key": {"probe"}, "value": {name}}); err != nil &&
		!strings.Contains(err.Error(), " 503 ") {
		w.t.Logf("%s: a last write: %v", name, err)
	}
	w.replicas(name, w.nodes)
	history := w.recorder()
	if err := history.Check(30*time.Second, w.dir); err != nil {
		w.fail("by %s: %v", name, err)
	}
	for kind := range kinds {
		done += history.Count(kind, lincheck.Done)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tell(name)
	w.history = lincheck.NewRecorder()
	return done
}
