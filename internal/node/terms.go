package node

import (
	"sync"

	"github.com/hashicorp/raft"
)

// terms keeps what the console has about the leader, so that it has each change once: Term 3: n2 leads.
type terms struct {
	mu     sync.Mutex // guards what follows
	term   uint64
	leader raft.ServerID // "": none
}

// changed reports whether it is news that leader, "" for none, leads in term.
func (t *terms) changed(term uint64, leader raft.ServerID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.term == term && t.leader == leader {
		return false
	}
	t.term, t.leader = term, leader
	return true
}

// observeLeaders counts and prints the leaders that r has now and hears of, and that it has none. Raft calls the filter
// in its own goroutine; nothing is sent.
func (n *Node) observeLeaders(r *raft.Raft) {
	r.RegisterObserver(raft.NewObserver(nil, false, func(seen *raft.Observation) bool {
		switch data := seen.Data.(type) {
		case raft.LeaderObservation:
			n.leads(data.LeaderID, r.CurrentTerm())
		case raft.RaftState:
			if data == raft.Candidate { // raft reports no leader as a change only
				n.leads("", r.CurrentTerm())
			}
		}
		return false
	}))
	if _, leader := r.LeaderWithID(); leader != "" { // before there was an observer
		n.leads(leader, r.CurrentTerm())
	}
}

// leads counts and prints the leader of a term; "" for none.
func (n *Node) leads(leader raft.ServerID, term uint64) {
	n.observed.leads(leader, term)
	switch {
	case !n.terms.changed(term, leader):
	case leader == "" && n.life.now() != running: // raft ends, and another line has the reason
	case leader == "":
		n.config.Logf("Term %d: no leader", term)
	default:
		n.config.Logf("Term %d: %s leads", term, leader)
	}
}

// voted prints a vote of this node, which is on disk.
func (n *Node) voted(term uint64, candidate string) {
	name := candidate
	if candidate == n.port.Address() {
		name = n.config.ID
	} else if i := n.current.Load(); i != nil {
		for _, server := range i.servers() {
			if string(server.Address) == candidate {
				name = string(server.ID)
			}
		}
	}
	n.config.Logf("Term %d: voted for %s", term, name)
}
