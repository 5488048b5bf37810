package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"raftkv/internal/command"
	"raftkv/internal/peer"
)

// ErrNoRead is returned when a read could not be confirmed to be the newest: there
// is no leader, or it does not reach a majority.
var ErrNoRead = errors.New("the newest state can't be confirmed")

// readLimit bounds a round of reads, an election within it included. A read may wait
// for the end of another round before its own begins.
const readLimit = 1800 * time.Millisecond

var noop = command.Append(nil, command.Command{Kind: command.Noop})

// ReadIndex returns when what this node's state machine holds is at least as new as
// all that any node had acknowledged when ReadIndex was called. It works on every
// node. Its error wraps ErrNoRead or errRemoved.
//
// It is the read index of the Raft dissertation, section 6.4. Raft's VerifyLeader
// is not enough for it: an answer to a heartbeat that was sent before the read began
// counts there. Why a read that this confirms is linearizable:
//
// The leader of term t has an entry of t applied (step 1), so its commit index c
// (step 2) covers every entry acknowledged by earlier leaders: they are all before
// it in its log. Entries acknowledged in term t have been committed here, so c
// covers those acknowledged before step 2 too. What is left are later leaders. One
// of term t' > t needs votes of a majority of the configuration that is the newest
// in its log, which is this leader's or at most one change away from it, because
// members are changed one at a time; such majorities have a voter in common. That
// voter raises its term to t' or beyond before it grants the vote. In step 3, after
// the read began, a majority said that its term is still t: so none had voted for a
// later leader, and no later leader had acknowledged anything before that. Then the
// state at c or later has everything that was acknowledged before the read began.
//
// A follower asks the leader for c and waits until it has applied c itself.
func (n *Node) ReadIndex(ctx context.Context) error {
	index, err := n.reads.next(n.confirm)
	if err != nil {
		return err
	}
	if applied, _ := n.machine.Applied(); applied >= index {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	if err := n.machine.WaitApplied(ctx, index); err != nil {
		return fmt.Errorf("%w: this node has not applied entry %d in time", ErrNoRead, index)
	}
	return nil
}

// rounds shares the work of confirming among the reads that wait for it.
type rounds struct {
	mu      sync.Mutex // guards what follows
	waiting *round     // begins when the one that runs has ended
	running bool
}

type round struct {
	done  chan struct{} // closed when index and err are set
	index uint64
	err   error
}

// next returns what a round returned that began after next was called: a read must
// not use a confirmation from before it arrived. It takes no longer than two rounds: a
// deadline for each read would cost more than its share of a round.
func (rs *rounds) next(run func(context.Context) (uint64, error)) (uint64, error) {
	rs.mu.Lock()
	if rs.waiting == nil {
		rs.waiting = &round{done: make(chan struct{})}
	}
	mine := rs.waiting
	if !rs.running {
		rs.running = true
		go rs.run(run)
	}
	rs.mu.Unlock()
	<-mine.done
	return mine.index, mine.err
}

// run runs rounds until no read waits. Each ends within readLimit, as run must with its
// context, and so does the goroutine soon after the last read.
func (rs *rounds) run(run func(context.Context) (uint64, error)) {
	for {
		runtime.Gosched() // who is about to read joins: a busy leader has fewer rounds
		rs.mu.Lock()
		r := rs.waiting
		rs.waiting = nil
		rs.running = r != nil
		rs.mu.Unlock()
		if r == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), readLimit)
		r.index, r.err = run(ctx)
		cancel()
		close(r.done)
	}
}

// confirm returns the index that this node must have applied, from the leader,
// whoever that is; it outlasts an election.
func (n *Node) confirm(ctx context.Context) (uint64, error) {
	for {
		index, err := n.confirmOnce(ctx)
		if err == nil || errors.Is(err, errRemoved) {
			return index, err
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("%w: %w", ErrNoRead, err)
		case <-n.ending.Done():
			return 0, fmt.Errorf("%w: this node is shutting down", ErrNoRead)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (n *Node) confirmOnce(ctx context.Context) (uint64, error) {
	i := n.current.Load()
	if n.removed.Load() {
		return 0, errRemoved
	}
	if i.raft.State() == raft.Leader {
		return n.confirmLeadership(ctx, i)
	}
	address, _ := i.raft.LeaderWithID()
	if address == "" {
		return 0, ErrNoLeader
	}
	var answer readIndexAnswer
	ctx, cancel := context.WithTimeout(ctx, memberTimeout)
	defer cancel()
	path := fmt.Sprintf("/readindex?nodeId=%s&commit=%d&last=%d", n.config.ID, i.raft.CommitIndex(), i.raft.LastIndex())
	if err := n.call(ctx, http.MethodGet, string(address), path, &answer); err != nil {
		return 0, err
	}
	// It may have the entry on its way here, or not know yet that it is committed.
	for i.raft.CommitIndex() < answer.Index && ctx.Err() == nil {
		if i.raft.LastIndex() < answer.Index {
			time.Sleep(time.Millisecond / 2)
			continue
		}
		n.askCommitted(ctx, address, answer.Index)
		break
	}
	return answer.Index, nil
}

// How long a follower waits for a further entry, which would tell it that the last one
// is committed: after a lone entry, and after one of several or when it has asked.
const (
	learnDelay = 5 * time.Millisecond
	learnPause = 50 * time.Millisecond
)

// entriesStored puts quiet off. While it has not fired since the last entries, or learn
// has just asked, more are likely to follow, and each would be asked for.
func (n *Node) entriesStored() {
	if running := n.quiet.Reset(learnDelay); running {
		n.quiet.Reset(learnPause)
	}
}

// learn asks the leader, until the node ends, whether the last entry is committed when
// no further one comes to tell: a follower applies a lone write at once, although
// commitTimeout is long. While entries keep coming, quiet does not fire.
func (n *Node) learn() {
	for {
		select {
		case <-n.ending.Done():
			return
		case <-n.quiet.C:
		}
		i := n.current.Load() // may be stopped meanwhile: it is only looked at
		last := i.volume.Log.Last()
		if i.raft.State() != raft.Follower || i.raft.CommitIndex() >= last {
			continue
		}
		n.quiet.Reset(learnPause)
		if address, _ := i.raft.LeaderWithID(); address != "" {
			n.askCommitted(n.ending, address, last)
		}
	}
}

// askCommitted has the leader tell this node, which has the entry at index, that it is
// committed, if it is.
func (n *Node) askCommitted(ctx context.Context, leader raft.ServerAddress, index uint64) {
	ctx, cancel := context.WithTimeout(ctx, memberTimeout)
	defer cancel()
	path := fmt.Sprintf("/committed?nodeId=%s&index=%d", n.config.ID, index)
	_ = n.call(ctx, http.MethodGet, string(leader), path, nil)
}

// confirmLeadership is one round, at the leader: the four steps of DESIGN section 4.
func (n *Node) confirmLeadership(ctx context.Context, i *instance) (uint64, error) {
	r := i.raft
	term := r.CurrentTerm()
	if r.State() != raft.Leader {
		return 0, ErrNotLeader
	}
	if _, applied := n.machine.Applied(); applied != term {
		// Raft's own first entry of a term does not reach the state machine.
		deadline, _ := ctx.Deadline()
		if err := wait(ctx, r.Apply(noop, max(time.Until(deadline), time.Millisecond))); err != nil {
			return 0, err
		}
		if _, applied := n.machine.Applied(); applied != term {
			return 0, ErrNotLeader
		}
	}
	commit := r.CommitIndex()
	if err := n.config.confirmTerm(ctx, r, term); err != nil {
		return 0, err
	}
	if r.State() != raft.Leader || r.CurrentTerm() != term {
		return 0, ErrNotLeader
	}
	return commit, nil
}

// majorityAt asks the voters for their term and returns nil when a majority of
// them, this node included, says term. It asks as many as it needs, and the others
// when those let it wait; one that hangs is asked once at a time.
func (n *Node) majorityAt(ctx context.Context, r *raft.Raft, term uint64) error {
	servers, err := configuration(ctx, r)
	if err != nil {
		return err
	}
	voters, own := 0, 0
	var others []raft.Server
	for _, server := range servers {
		switch {
		case server.Suffrage != raft.Voter:
			continue
		case string(server.ID) == n.config.ID:
			own = 1
		default:
			others = append(others, server)
		}
		voters++
	}
	need := voters/2 + 1 - own
	slices.SortStableFunc(others, func(a, b raft.Server) int { // who owes an answer comes last
		return cmp.Compare(n.voter(a).owes.Load(), n.voter(b).owes.Load())
	})

	ctx, cancel := context.WithTimeout(ctx, memberTimeout)
	defer cancel()
	answers := make(chan bool, len(others))
	ask := func(servers []raft.Server) {
		for _, server := range servers {
			go func() {
				got, err := n.askTerm(server)
				answers <- err == nil && got == term
			}()
		}
	}
	first := min(need, len(others))
	ask(others[:first])
	rest, late := others[first:], time.NewTimer(askLate)
	defer late.Stop()
	for left := len(others); need > 0 && left >= need; {
		said := false
		select {
		case said = <-answers:
			left--
		case <-late.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		if said {
			need--
			continue
		}
		ask(rest)
		rest = nil
	}
	if need > 0 {
		return fmt.Errorf("%s does not reach a majority of the %d voters", n.config.ID, voters)
	}
	return nil
}

// askLate is how long a round waits for the voters that it needs before it asks the
// others too.
const askLate = 5 * time.Millisecond

// voter is what this node knows of one that it asks for its term.
type voter struct {
	rounds              // of asking it, one at a time
	conn   net.Conn     // for the rounds; nil: none
	owes   atomic.Int32 // 1: it has not answered yet, or wrongly
}

func (n *Node) voter(server raft.Server) *voter {
	v, ok := n.voters.Load(server)
	if !ok {
		v, _ = n.voters.LoadOrStore(server, new(voter))
	}
	return v.(*voter)
}

// askTerm asks a voter for its term. A question that nobody waits for any more goes on:
// to break it off would cost the connection.
func (n *Node) askTerm(server raft.Server) (uint64, error) {
	v := n.voter(server)
	return v.next(func(ctx context.Context) (term uint64, err error) {
		v.owes.Store(1)
		ctx, cancel := context.WithTimeout(ctx, memberTimeout)
		defer cancel()
		for again := v.conn != nil; ; again = false { // the voter may have been started anew
			if v.conn == nil {
				if v.conn, err = n.port.DialTerm(ctx, string(server.Address)); err != nil {
					return 0, err
				}
			}
			if term, err = peer.AskTerm(ctx, v.conn, string(server.ID)); err == nil {
				v.owes.Store(0)
				return term, nil
			}
			if v.conn = nil; !again {
				return 0, err
			}
		}
	})
}

// term is the answer to a member that asks for the term of a node.
func (n *Node) term(nodeID string) uint64 {
	if nodeID != n.config.ID {
		return 0
	}
	return n.current.Load().raft.CurrentTerm()
}

// readIndexAnswer is what the leader says to a follower that has a read.
type readIndexAnswer struct{ Index uint64 }

// answerReadIndex answers a follower, which says what it has. The reads of all
// followers and of this node share rounds.
func (n *Node) answerReadIndex(w http.ResponseWriter, request *http.Request) error {
	i := n.current.Load()
	if i.raft.State() != raft.Leader {
		return ErrNotLeader
	}
	index, err := n.reads.next(n.confirm)
	if err != nil {
		return err
	}
	query := request.URL.Query()
	commit, _ := strconv.ParseUint(query.Get("commit"), 10, 64)
	last, _ := strconv.ParseUint(query.Get("last"), 10, 64)
	if commit < index && index <= last {
		n.tellCommitted(i, raft.ServerID(query.Get("nodeId")), index)
	}
	return answerJSON(w, readIndexAnswer{index})
}

// answerCommitted tells a follower that has the entry at index that it is committed,
// if it is.
func (n *Node) answerCommitted(request *http.Request) error {
	i, query := n.current.Load(), request.URL.Query()
	index, _ := strconv.ParseUint(query.Get("index"), 10, 64)
	if i.raft.State() != raft.Leader || index > i.raft.CommitIndex() {
		return ErrNotLeader
	}
	n.tellCommitted(i, raft.ServerID(query.Get("nodeId")), index)
	return nil
}

// tellCommitted tells a follower that has the entry at index that it is committed.
// Raft tells it with the next AppendEntries only, after CommitTimeout when there is
// nothing to replicate; this is the AppendEntries that it would be. An error means
// that the follower learns it later.
func (n *Node) tellCommitted(i *instance, id raft.ServerID, index uint64) {
	future := i.raft.GetConfiguration()
	var entry raft.Log
	if future.Error() != nil || i.log.GetLog(index, &entry) != nil {
		return
	}
	for _, server := range future.Configuration().Servers {
		if server.ID != id {
			continue
		}
		_ = i.transport.NetworkTransport.AppendEntries(id, server.Address, &raft.AppendEntriesRequest{
			RPCHeader:         n.header(i),
			Term:              entry.Term,
			PrevLogEntry:      index,
			PrevLogTerm:       entry.Term,
			LeaderCommitIndex: index,
		}, new(raft.AppendEntriesResponse))
	}
}
