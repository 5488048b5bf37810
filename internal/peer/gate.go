package peer

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Gate is what is to be known of a node to check what other members send to raft. Raft trusts them whole: it panics at
// a nil entry and at a configuration that can't be decoded, at each start again; it overwrites entries that are
// committed; it counts terms on beyond 2^64 and so to 0; it takes older snapshots over newer data (raft.go). A member
// that is faulty, or of another version, must not end the others.
//
// The functions may be called by several goroutines at once, and must not wait for raft.
type Gate struct {
	// Known returns the term of the node, the ID of the leader in that term, empty if it has not heard of one, and an
	// index up to which its log is committed.
	Known func() (term uint64, leader string, committed uint64)
	// TermAt returns the term of the entry at an index up to Known's. ok is false if the log does not have it any more.
	TermAt func(index uint64) (term uint64, ok bool)
	// CheckCommand returns an error if the state machine can't decode the data of a command.
	CheckCommand func(data []byte) error
	// Receive takes the state of a snapshot off r, verifies it, and keeps it for when raft installs the snapshot.
	// discard removes it, if raft has not. After an error there is nothing to discard.
	Receive func(request *raft.InstallSnapshotRequest, members raft.Configuration, r io.Reader) (discard func(), err error)
	// Refused prints a line about a request that was refused.
	Refused func(format string, args ...any)
}

// maxTermJump is how much higher than its own a term may be that a node with entries takes over. With an election
// every 10 ms it takes a year to get there.
const maxTermJump = 1 << 32

// check returns why request, which came from the node with the ID from, is not passed on to raft; empty: it is not
// known from which. The term of the node, and what it has committed, may change while raft has not got the request: see
// Transport.order.
func (g *Gate) check(request any, from string) error {
	header := request.(raft.WithRPCHeader).GetRPCHeader()
	if len(header.ID) == 0 || len(header.Addr) == 0 {
		return refuse("it does not name its sender")
	}
	if from != "" && string(header.ID) != from {
		return refuse("it is in the name of %.64q", header.ID)
	}
	term, leader, committed := g.Known()
	leads := func(requested uint64) error { // a term has one leader (Raft paper, section 5.2)
		if requested == term && leader != "" && leader != string(header.ID) {
			return refuse("%s leads in term %d", leader, term)
		}
		return checkTerm(requested, term, committed)
	}
	switch r := request.(type) {
	case *raft.AppendEntriesRequest:
		if err := leads(r.Term); err != nil {
			return err
		}
		return g.checkEntries(r, committed)
	case *raft.RequestVoteRequest:
		return checkVote(r.Term, r.LastLogTerm, r.LastLogIndex, term, committed)
	case *raft.RequestPreVoteRequest:
		return checkVote(r.Term, r.LastLogTerm, r.LastLogIndex, term, committed)
	case *raft.InstallSnapshotRequest:
		if err := leads(r.Term); err != nil {
			return err
		}
		return g.checkSnapshot(r, term, committed)
	}
	return nil
}

// checkTerm checks the term of a request.
func checkTerm(requested, own, committed uint64) error {
	switch {
	case requested == 0:
		return refuse("its term is 0")
	case committed > 0 && requested > own && requested-own > maxTermJump:
		return refuse("its term is %d and this node's %d: no cluster gets there", requested, own)
	}
	return nil
}

func checkVote(term, lastTerm, lastIndex, own, committed uint64) error {
	if lastTerm > term || (lastTerm == 0) != (lastIndex == 0) {
		return refuse("it asks for a vote in term %d with a last entry %d of term %d", term, lastIndex, lastTerm)
	}
	return checkTerm(term, own, committed)
}

// checkEntries checks that the entries follow one another and what is before them, have terms that a log can have, and
// do not contradict what is committed.
func (g *Gate) checkEntries(a *raft.AppendEntriesRequest, committed uint64) error {
	index, term := a.PrevLogEntry, a.PrevLogTerm
	if term > a.Term || (index == 0) != (term == 0) {
		return refuse("its entries follow one at %d of term %d, in term %d", index, term, a.Term)
	}
	for _, l := range a.Entries {
		if index++; l.Index != index {
			return refuse("entry %d is where %d should be", l.Index, index)
		}
		if l.Term < term || l.Term > a.Term || l.Term == 0 {
			return refuse("entry %d is of term %d, after one of %d and in term %d", index, l.Term, term, a.Term)
		}
		term = l.Term
		switch l.Type {
		case raft.LogCommand:
			if err := g.CheckCommand(l.Data); err != nil {
				return refuse("entry %d can't be decoded by this version: %.200q", index, err.Error())
			}
		case raft.LogConfiguration:
			if _, err := configurationOf(l.Data); err != nil {
				return refuse("entry %d has no members that a cluster can have: %v", index, err)
			}
		case raft.LogNoop, raft.LogBarrier:
		default:
			return refuse("entry %d is of the unknown type %d", index, l.Type)
		}
		if index <= committed {
			if own, ok := g.TermAt(index); !ok || own != term {
				return refuse("entry %d of term %d is another than this node's, which is committed", index, term)
			}
		}
	}
	return nil
}

// checkSnapshot checks what comes before the state of a snapshot. A snapshot that ends where the node is committed is
// let through: see Transport.install.
func (g *Gate) checkSnapshot(s *raft.InstallSnapshotRequest, term, committed uint64) error {
	switch {
	case s.SnapshotVersion != raft.SnapshotVersionMax:
		return refuse("the snapshot is of the unknown version %d", s.SnapshotVersion)
	case s.Term < term:
		return refuse("the snapshot is sent in term %d, and this is %d", s.Term, term)
	case s.LastLogIndex == 0 || s.LastLogTerm == 0 || s.LastLogTerm > s.Term:
		return refuse("the snapshot is of entry %d of term %d, in term %d", s.LastLogIndex, s.LastLogTerm, s.Term)
	case s.LastLogIndex < committed:
		return refuse("the snapshot is of entry %d, and this node has committed %d", s.LastLogIndex, committed)
	case s.ConfigurationIndex > s.LastLogIndex:
		return refuse("the snapshot is of entry %d, with members of %d", s.LastLogIndex, s.ConfigurationIndex)
	case s.Size == 0:
		return refuse("the snapshot is empty")
	}
	if s.LastLogIndex == committed {
		if own, ok := g.TermAt(committed); ok && own != s.LastLogTerm {
			return refuse("the snapshot is of entry %d of term %d, which is another than this node's", committed,
				s.LastLogTerm)
		}
	}
	if _, err := configurationOf(s.Configuration); err != nil {
		return refuse("the snapshot has no members that a cluster can have: %v", err)
	}
	return nil
}

// configurationOf decodes the members of a cluster as raft has encoded them. An error is that raft could not, which
// then panics, or that no cluster can have them.
func configurationOf(data []byte) (c raft.Configuration, err error) {
	w := wire{r: bufio.NewReader(bytes.NewReader(data)), left: len(data)}
	c = w.configuration()
	if w.err != nil {
		return c, w.err
	}
	ids, addresses, voters := make(map[raft.ServerID]bool), make(map[raft.ServerAddress]bool), 0
	for _, s := range c.Servers {
		if s.ID == "" || s.Address == "" {
			return c, refuse("a member without an ID or an address")
		}
		if ids[s.ID] || addresses[s.Address] {
			return c, refuse("%s at %s is there twice", s.ID, s.Address)
		}
		ids[s.ID], addresses[s.Address] = true, true
		if s.Suffrage == raft.Voter {
			voters++
		}
	}
	if voters == 0 {
		return c, refuse("no member has a vote")
	}
	return c, nil
}

// refusedAgain is how long no line is printed about refusals that are as one before.
const refusedAgain = 30 * time.Second

// refusals decides which of them are printed. It may be used by several goroutines at once.
type refusals struct {
	mu   sync.Mutex // guards what follows
	last map[string]time.Time
	more map[string]int // that were not printed since
}

// again reports whether a refusal for that reason of what sender has sent is printed, and how many were not since.
func (r *refusals) again(sender, reason string, now time.Time) (printed bool, more int) {
	key := sender + "\x00" + reason
	r.mu.Lock()
	defer r.mu.Unlock()
	if last, ok := r.last[key]; ok && now.Sub(last) < refusedAgain {
		r.more[key]++
		return false, 0
	}
	if r.last == nil || len(r.last) >= 1024 { // many senders: forget, rather than grow
		r.last, r.more = make(map[string]time.Time), make(map[string]int)
	}
	more = r.more[key]
	r.last[key], r.more[key] = now, 0
	return true, more
}

// sender describes the sender of a request for the console: the node ID from the preface, if there is one, and the
// address.
func sender(from, host string) string {
	if from == "" {
		return host
	}
	return fmt.Sprintf("%s at %s", from, host)
}
