package faults

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"sync"
	"testing"
	"time"

	"raftkv/internal/lincheck"
	"raftkv/internal/testkit"
)

// What a cluster must bear when some of its packets are late: the switch holds them, by
// what they carry, until the moment at which they do harm. Both scenes have a leader that
// does not know that another was elected.

// TestLateTimeoutNow has the leader's word that another shall lead come so late that the
// leader has given up and leads on. The other is elected, by the third, and the first that
// the old leader hears of the newer term is a heartbeat; then it is given writes. Where
// raft takes heartbeats off its main loop, as it does as it comes, the old leader appends
// them as entries of a term that it does not lead (hashicorp/raft issue 695).
func TestLateTimeoutNow(t *testing.T) {
	late(t, "TimeoutNow that is late, then a heartbeat before all else, three", func(s *scene) error {
		wires.watch(s.old, s.next, segment.timeoutNow)
		if err := s.transfer(); err == nil {
			return fmt.Errorf("%w: %s has handed over", errNothing, s.old.id)
		}
		// From old to the others: the answer would tell it of the newer term. Raft does not
		// look at that of a heartbeat.
		tells := func(g segment) bool { return g.request() && !g.heartbeat() }
		wires.watch(s.old, s.next, tells)
		wires.watch(s.old, s.third, tells)
		wires.watch(s.next, s.old, segment.request)
		wires.release(s.old, s.next, segment.timeoutNow)
		if err := s.succeeded(); err != nil {
			return err
		}
		wires.watch(s.next, s.old, tells)
		wires.release(s.next, s.old, segment.heartbeat)
		if err := testkit.Poll(bound, func() error {
			if s.old.leads() {
				return errors.New("it has not heard of it")
			}
			return nil
		}); err != nil {
			return err
		}
		for k := range 4 {
			c := s.client(s.old)
			s.asked.Go(func() { c.Set(s.group, []string{s.group + string("bcde"[k])}, "", false) })
		}
		time.Sleep(20 * time.Millisecond)
		return nil
	})
}

// TestLateAnswer has an answer to the leader be on its way while another is elected, and
// the old leader get it once it has reads that began after the other had acknowledged a
// write. Raft's VerifyLeader takes such an answer for the proof that it still leads.
func TestLateAnswer(t *testing.T) {
	late(t, "answer from before an election after it, three", func(s *scene) error {
		beats := make(map[uint16]bool) // of the ports from which old asks: whether by a heartbeat
		wires.watch(s.old, s.third, func(g segment) bool {
			beats[g.from] = g.heartbeat()
			return false
		})
		wires.watch(s.third, s.old, segment.answer)
		if err := testkit.Poll(s.patience, func() error {
			if !wires.held(s.third, s.old, func(g segment) bool { return beats[g.to] }) {
				return fmt.Errorf("%w: %s has answered no heartbeat", errNothing, s.third.id)
			}
			return nil
		}); err != nil {
			return err
		}
		deaf := false
		wires.watch(s.old, s.next, func(g segment) bool {
			deaf = deaf || g.timeoutNow()
			return false
		})
		wires.watch(s.next, s.old, func(segment) bool { return deaf })
		s.asked.Go(func() { _ = s.transfer() })
		if err := s.succeeded(); err != nil {
			return err
		}
		for range 4 {
			c := s.client(s.old)
			s.asked.Go(func() { c.Get(s.group, s.group+"a") })
		}
		time.Sleep(10 * time.Millisecond) // until they wait
		wires.release(s.third, s.old, segment.answer)
		time.Sleep(30 * time.Millisecond)
		return nil
	})
}

// scene is a cluster whose leader, old, is about to be followed by next, with the vote of
// third.
type scene struct {
	*hand
	old, next, third *node
	group            string // of keys
	asked            sync.WaitGroup
	clients          int
}

// late has a scene played several times, each with all links good before and after it. It
// may return errNothing when the machine was too slow for it.
func late(t *testing.T, name string, play func(s *scene) error) {
	if testing.Short() {
		t.Skip("takes long: not with -short")
	}
	if wires == nil {
		t.Skip("needs a network of its own")
	}
	times := 5
	if *long {
		times = 50
	}
	w := newWorld(t, "late", 3, nil, "RAFT_ELECTION_TIMEOUT=1s")
	w.settle("the start")
	w.stop() // those of the scene suffice
	h := &hand{world: w, random: rand.New(rand.NewPCG(*seed, 4)), patience: writesAgain}
	played, missed := 0, 0
	for i := range times {
		old, err := h.leader()
		if err != nil {
			t.Fatal(err)
		}
		next := h.pick(w.others(old))
		s := &scene{hand: h, old: old, next: next, third: w.others(old, next)[0], group: fmt.Sprintf("l%d.", i),
			clients: i * 100}
		s.client(old).Set(s.group, []string{s.group + "a", s.group + "b"}, "", false)
		err = play(s)
		wires.heal()
		s.asked.Wait()
		switch {
		case err == nil:
			played++
		case errors.Is(err, errNothing):
			missed++
			t.Logf("scene %d: %v", i, err)
		default:
			w.fail("scene %d: %v", i, err)
		}
		w.calm(fmt.Sprintf("scene %d", i))
		if w.findings() > 0 {
			break
		}
	}
	tried.note(name, func(r *row) { r.times += played; r.missed += missed; r.found += w.findings() })
	t.Logf("seed %d: %d scenes played, %d could not be, %v", *seed, played, missed, wires)
	if missed > times/2 {
		t.Errorf("%d of %d scenes could not be played, want half of them at most", missed, times)
	}
	w.goroutines()
}

// client returns one of a node.
func (s *scene) client(n *node) *lincheck.Client {
	s.clients++
	return lincheck.NewClient(s.clients, n.base(), s.recorder(), s.random, s.problem)
}

// transfer asks old to hand over to next.
func (s *scene) transfer() error {
	_, err := s.old.ask(5*time.Second, "/transfer", url.Values{"nodeId": {s.next.id}})
	return err
}

// succeeded returns when next leads and has acknowledged a write, and old does not know.
// Its error is errNothing: the machine may have been too slow for that.
func (s *scene) succeeded() error {
	if leader, err := s.leaderOf(s.patience, s.others(s.old)); err != nil || leader != s.next {
		return fmt.Errorf("%w: %s does not lead: %v", errNothing, s.next.id, err)
	}
	if out := s.client(s.next).Set(s.group, []string{s.group + "a"}, "", false); out.Result != lincheck.Done {
		return fmt.Errorf("%w: a write through %s: %s", errNothing, s.next.id, out.Result)
	}
	if !s.old.leads() {
		return fmt.Errorf("%w: %s knows that it is followed", errNothing, s.old.id)
	}
	return nil
}
