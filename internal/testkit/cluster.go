package testkit

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// Peer is a node that a test may ask.
type Peer interface{ At() Client }

// Statuses asks all nodes at once for their Status.
func Statuses[P Peer](nodes ...P) ([]Status, error) {
	return askAll(nodes, func(c Client) (Status, error) { return c.Status() })
}

// askAll calls ask for all nodes at once, and returns what they answer, or the error of one.
func askAll[P Peer, R any](nodes []P, ask func(Client) (R, error)) ([]R, error) {
	answers, errs := make([]R, len(nodes)), make([]error, len(nodes))
	var asked sync.WaitGroup
	for i, node := range nodes {
		asked.Go(func() { answers[i], errs[i] = ask(node.At()) })
	}
	asked.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return answers, nil
}

// leaderNow returns the leader and the others, or an error while not all agree on it in its term, or its log is not
// committed to the end: a new leader begins with an entry of its own.
func leaderNow[P Peer](nodes []P) (leader P, others []P, term uint64, err error) {
	all, err := Statuses(nodes...)
	if err != nil {
		return leader, nil, 0, err
	}
	for i, s := range all {
		if s.State != "Leader" {
			others = append(others, nodes[i])
			continue
		}
		leader, term = nodes[i], s.Term
		if s.CommitIndex < s.LastIndex {
			err = fmt.Errorf("%s has committed %d of %d", s.NodeID, s.CommitIndex, s.LastIndex)
		}
	}
	if err == nil && len(others) != len(nodes)-1 {
		err = fmt.Errorf("%d of %d follow", len(others), len(nodes))
	}
	for _, s := range all {
		if err == nil && (s.Term != term || s.Leader != leader.At().ID) {
			err = fmt.Errorf("%s follows %q in term %d, want %s in term %d", s.NodeID, s.Leader, s.Term, leader.At().ID, term)
		}
	}
	return leader, others, term, err
}

// Leader waits until all nodes agree on one of them as the leader.
func Leader[P Peer](t testing.TB, nodes ...P) (leader P, others []P) {
	t.Helper()
	Eventually(t, "one leader", func() (err error) {
		leader, others, _, err = leaderNow(nodes)
		return err
	})
	return leader, others
}

// UnderOneLeader calls check with the leader and the other nodes. The error that check returns ends t, unless the
// leadership changed meanwhile: then check is called again.
func UnderOneLeader[P Peer](t testing.TB, nodes []P, check func(leader P, others []P) error) {
	t.Helper()
	Eventually(t, "one leader throughout", func() error {
		leader, others, term, err := leaderNow(nodes)
		if err != nil {
			return err
		}
		err = check(leader, others)
		if _, _, after, changed := leaderNow(nodes); changed != nil || after != term {
			return fmt.Errorf("the leadership changed; before that: %v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		return nil
	})
}

// Join joins a node through another one, again until it is acknowledged: to join a member does nothing. It returns the
// answer.
func Join(t testing.TB, member, joiner Client, raftPort string) Answer {
	t.Helper()
	a := Answer{}
	Eventually(t, "join of "+joiner.ID, func() (err error) {
		a, err = Acknowledged(member.Request(t, "GET", JoinPath(joiner.ID, raftPort), ""))
		return err
	})
	return a
}

// JoinPath is a /join of a node on loopback.
func JoinPath(id, raftPort string) string { return "/join?nodeId=" + id + "&raftPort=" + raftPort }

// Replica is what a node holds.
type Replica struct {
	Status
	List string // as Client.List has it
}

// Values is the List as a map of values by key.
func (r Replica) Values() (map[string]string, error) { return valuesOf(r.List) }

// Replicas waits until all nodes have applied the same index, and nothing more while they are asked what they hold.
func Replicas[P Peer](limit time.Duration, nodes ...P) (all []Replica, err error) {
	err = Poll(limit, func() error {
		before, err := Statuses(nodes...)
		if err != nil {
			return err
		}
		lists, err := askAll(nodes, func(c Client) (string, error) { return c.List() })
		if err != nil {
			return err
		}
		after, err := Statuses(nodes...)
		if err != nil {
			return err
		}
		all = nil
		for i, s := range after {
			want := before[0].AppliedIndex
			if before[i].AppliedIndex != want || s.AppliedIndex != want {
				return fmt.Errorf("%s has applied %d, then %d; %s %d", s.NodeID, before[i].AppliedIndex, s.AppliedIndex,
					before[0].NodeID, want)
			}
			if got := strings.Count(lists[i], "\n"); got != s.Keys {
				return fmt.Errorf("%s has %d keys by its list, %d by its status", s.NodeID, got, s.Keys)
			}
			all = append(all, Replica{Status: s, List: lists[i]})
		}
		return nil
	})
	return all, err
}

// Compare returns an error unless all replicas hold the same, byte for byte, to which they came by the same entries.
func Compare(all []Replica) error {
	first := all[0]
	for _, r := range all {
		if r.List != first.List {
			return fmt.Errorf("replicas differ: %s", difference(first, r))
		}
		if r.Hash == "" || r.Hash != first.Hash {
			return fmt.Errorf("%s came to %d by other entries than %s: their hashes are %q and %q",
				r.NodeID, r.AppliedIndex, first.NodeID, r.Hash, first.Hash)
		}
	}
	return nil
}

// difference is the first line in which two lists differ.
func difference(a, b Replica) string {
	ofA, ofB := strings.Split(a.List, "\n"), strings.Split(b.List, "\n")
	for i := range min(len(ofA), len(ofB)) {
		if ofA[i] != ofB[i] {
			return fmt.Sprintf("%s has %.500s, %s has %.500s", a.NodeID, ofA[i], b.NodeID, ofB[i])
		}
	}
	return fmt.Sprintf("%s has %d lines, %s has %d", a.NodeID, len(ofA), b.NodeID, len(ofB))
}

// CheckReplicas waits until all nodes have applied the same, checks that they hold the same data, and returns it.
func CheckReplicas[P Peer](t testing.TB, nodes ...P) map[string]string {
	t.Helper()
	all, err := Replicas(Bound, nodes...)
	if err != nil {
		t.Fatal(err)
	}
	if err := Compare(all); err != nil {
		t.Error(err)
	}
	values, err := all[0].Values()
	if err != nil {
		t.Fatal(err)
	}
	return values
}
