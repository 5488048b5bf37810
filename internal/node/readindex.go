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

// readLimit bounds a round of reads, an election within it included. A read may wait
// for the end of another round before its own begins.
const readLimit = 1800 * time.Millisecond

var noop = command.Append(nil, command.Command{Kind: command.Noop})

// ReadIndex returns when what this node's state machine holds is at least as new as
// all that any node had acknowledged when ReadIndex was called. It works on every
// node, within ctx. Its error wraps ErrNotLinearizable, or is that of a removed node
// or of one without a cluster.
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
	if err := n.errWaiting(); err != nil {
		return err
	}
	index, err := n.reads.next(ctx, n.confirm)
	if err != nil {
		return err
	}
	if applied, _ := n.machine.Applied(); applied >= index {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	if err := n.machine.WaitApplied(ctx, index); err != nil {
		return fmt.Errorf("%w: this node has not applied entry %d in time", ErrNotLinearizable, index)
	}
	return nil
}

// rounds shares the work of a question among the callers that wait for its answer.
type rounds struct {
	mu      sync.Mutex // guards what follows
	waiting *round     // begins when the one that runs has ended
	running bool
}

type round struct {
	done  chan struct{} // closed when value and err are set
	value uint64
	err   error
}

// next returns what a round of run returned that began after next was called: a read must
// not use a confirmation from before it arrived. It returns after two rounds at the
// latest, or when ctx ends, with an error that wraps ErrNotLinearizable.
func (rs *rounds) next(ctx context.Context, run func(context.Context) (uint64, error)) (uint64, error) {
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
	select {
	case <-mine.done:
		return mine.value, mine.err
	case <-ctx.Done():
		return 0, fmt.Errorf("%w: %w", ErrNotLinearizable, ctx.Err())
	}
}

// run runs rounds until no caller waits. Each ends within readLimit, as run must with its
// context, and so does the goroutine soon after the last caller.
func (rs *rounds) run(run func(context.Context) (uint64, error)) {
	for {
		runtime.Gosched() // readers that are about to arrive join: a busy leader has fewer rounds
		rs.mu.Lock()
		r := rs.waiting
		rs.waiting = nil
		rs.running = r != nil
		rs.mu.Unlock()
		if r == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), readLimit)
		r.value, r.err = run(ctx)
		cancel()
		close(r.done)
	}
}

// readIndex confirms, for the reads that wait, that this node still leads. Its methods
// may be called by several goroutines at once.
type readIndex struct {
	rounds // of confirm: each is shared by the reads that wait for it

	self string
	dial func(ctx context.Context, address string) (net.Conn, error)  // for peer.AskTerm
	info func(ctx context.Context, member raft.Server) (*Info, error) // as members.askMember

	mu     sync.Mutex             // guards voters
	voters map[raft.Server]*voter // those asked so far that are still members
}

func newReadIndex(self string, dial func(ctx context.Context, address string) (net.Conn, error),
	info func(ctx context.Context, member raft.Server) (*Info, error)) *readIndex {
	return &readIndex{self: self, dial: dial, info: info, voters: make(map[raft.Server]*voter)}
}

// confirm returns the index that this node must have applied. It comes from the leader,
// whichever node that is, and outlasts an election.
func (n *Node) confirm(ctx context.Context) (uint64, error) {
	for {
		index, err := n.confirmOnce(ctx)
		if err == nil || errors.Is(err, errRemoved) {
			return index, err
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("%w: %w", ErrNotLinearizable, err)
		case <-n.life.ctx.Done():
			return 0, fmt.Errorf("%w: this node is shutting down", ErrNotLinearizable)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (n *Node) confirmOnce(ctx context.Context) (uint64, error) {
	i := n.current.Load()
	if n.life.now() == removed {
		return 0, errRemoved
	}
	if i.leads() {
		return n.confirmLeadership(ctx, i)
	}
	address, id := i.raft.LeaderWithID()
	leader := raft.Server{ID: id, Address: address}
	if address == "" {
		return 0, ErrNoLeader
	}
	var answer readIndexAnswer
	ctx, cancel := context.WithTimeout(ctx, memberTimeout)
	defer cancel()
	path := fmt.Sprintf("/readindex?nodeId=%s&commit=%d&last=%d", n.config.ID, i.raft.CommitIndex(), i.raft.LastIndex())
	if err := n.members.call(ctx, http.MethodGet, leader, path, &answer); err != nil {
		return 0, err
	}
	// The entry may be on its way to here, or this node does not know yet that it is committed.
	for i.raft.CommitIndex() < answer.Index && ctx.Err() == nil {
		if i.raft.LastIndex() < answer.Index {
			time.Sleep(time.Millisecond / 2)
			continue
		}
		n.requestCommitIndex(ctx, leader, answer.Index)
		break
	}
	return answer.Index, nil
}

// confirmLeadership is one round, at the leader: the steps in the comment of ReadIndex.
func (n *Node) confirmLeadership(ctx context.Context, i *instance) (uint64, error) {
	r := i.raft
	term := r.CurrentTerm()
	if !i.leads() {
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
	if err := n.config.confirmTerm(ctx, i, term); err != nil {
		return 0, err
	}
	if !i.leads() || r.CurrentTerm() != term {
		return 0, ErrNotLeader
	}
	return commit, nil
}

// majorityAt asks the voters of i's cluster for their term and returns nil when a majority
// of them, this node included, returns term.
func (x *readIndex) majorityAt(ctx context.Context, i *instance, term uint64) error {
	others, need, total := x.others(i.servers())
	ctx, cancel := context.WithTimeout(ctx, memberTimeout)
	defer cancel()
	err := quorum(ctx, need, others, func(v *voter) bool {
		got, err := x.askTerm(v)
		return err == nil && got == term
	})
	if errors.Is(err, errNoQuorum) {
		return fmt.Errorf("%s does not reach a majority of the %d voters", x.self, total)
	}
	return err
}

// others returns the voters but this node, in the order to ask them, how many of them
// must confirm a term, and how many voters there are in total. It forgets every voter that
// is none any more.
func (x *readIndex) others(servers []raft.Server) (others []*voter, need, total int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	own := 0
	for _, server := range servers {
		if server.Suffrage != raft.Voter {
			continue
		}
		total++
		if string(server.ID) == x.self {
			own = 1
			continue
		}
		v := x.voters[server]
		if v == nil {
			v = &voter{server: server}
			x.voters[server] = v
		}
		others = append(others, v)
	}
	if len(x.voters) > len(others) {
		for server, v := range x.voters {
			if !slices.Contains(others, v) {
				delete(x.voters, server)
				v.forget()
			}
		}
	}
	slices.SortStableFunc(others, func(a, b *voter) int { // a voter with a pending question comes last
		return cmp.Compare(a.pending.Load(), b.pending.Load())
	})
	return others, total/2 + 1 - own, total
}

// askOthersAfter is how long quorum waits for the voters that it needs before it asks the
// others too.
const askOthersAfter = 5 * time.Millisecond

var errNoQuorum = errors.New("no quorum")

// quorum returns nil once need of voters have confirmed, errNoQuorum when so many have not
// that they can't, and ctx's error at its end. It asks as many as it needs, in their order,
// and the others when those take askOthersAfter or do not confirm. It does not wait for an
// ask whose answer it no longer needs.
func quorum[V any](ctx context.Context, need int, voters []V, ask func(V) bool) error {
	if need <= 0 {
		return nil
	}
	if need > len(voters) {
		return errNoQuorum
	}
	answers := make(chan bool, len(voters))
	start := func(voters []V) {
		for _, v := range voters {
			go func() { answers <- ask(v) }()
		}
	}
	start(voters[:need])
	rest, late := voters[need:], time.NewTimer(askOthersAfter)
	defer late.Stop()
	for left := len(voters); need > 0; {
		confirmed := false
		select {
		case confirmed = <-answers:
			left--
		case <-late.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		if confirmed {
			need--
			continue
		}
		if left < need {
			return errNoQuorum
		}
		start(rest)
		rest = nil
	}
	return nil
}

// voter is another voter, as this node asks it for its term.
type voter struct {
	server  raft.Server
	rounds               // of asking it, one at a time
	pending atomic.Int32 // 1: the last question has no answer yet, or got a wrong one
	older   bool         // its program knew no questions for the term, when last asked; used by the round alone

	connMu    sync.Mutex // guards what follows
	conn      net.Conn   // nil: none; used by the round alone
	forgotten bool
}

// askTerm asks v for its term. A question whose answer nobody needs any more goes on: to
// break it off would cost the connection. A voter of a program that knows no such
// questions is asked for its Info, in which its term is as live: both are asked within
// the round, so after the caller has taken the commit index.
func (x *readIndex) askTerm(v *voter) (uint64, error) {
	return v.next(context.Background(), func(ctx context.Context) (uint64, error) {
		v.pending.Store(1)
		ctx, cancel := context.WithTimeout(ctx, memberTimeout)
		defer cancel()
		if v.older {
			if term, err := x.termInInfo(ctx, v); err == nil {
				return term, nil
			}
		}
		conn := v.take()
		for again := conn != nil; ; again = false { // the voter may have been restarted
			if conn == nil {
				var err error
				conn, err = x.dial(ctx, string(v.server.Address))
				if errors.Is(err, peer.ErrNotRaftkv) {
					return x.termInInfo(ctx, v)
				}
				if err != nil {
					return 0, err
				}
			}
			term, err := peer.AskTerm(ctx, conn, string(v.server.ID))
			if err == nil {
				v.keep(conn)
				v.pending.Store(0)
				return term, nil
			}
			if conn = nil; !again {
				return 0, err
			}
		}
	})
}

// termInInfo asks v, whose program must be an older one, for the term in its Info.
func (x *readIndex) termInInfo(ctx context.Context, v *voter) (uint64, error) {
	info, err := x.info(ctx, v.server)
	if err == nil && !info.older() {
		err = fmt.Errorf("%s answers no question for its term", v.server.ID)
	}
	if v.older = err == nil; err != nil {
		return 0, err
	}
	v.pending.Store(0)
	return info.Term, nil
}

// take returns the connection of the last question, if there is one.
func (v *voter) take() net.Conn {
	v.connMu.Lock()
	defer v.connMu.Unlock()
	conn := v.conn
	v.conn = nil
	return conn
}

// keep keeps conn for the next question, and closes it when there will be none.
func (v *voter) keep(conn net.Conn) {
	v.connMu.Lock()
	defer v.connMu.Unlock()
	if v.forgotten {
		_ = conn.Close()
		return
	}
	v.conn = conn
}

// forget closes the connection, now or when the question under way is answered.
func (v *voter) forget() {
	v.connMu.Lock()
	defer v.connMu.Unlock()
	v.forgotten = true
	if v.conn != nil {
		_ = v.conn.Close()
		v.conn = nil
	}
}

// term is the answer to a member that asks for the term of the node with that ID. It is 0,
// in which no node leads, for another ID, and while the raft port belongs already to the
// next instance of raft.
func (n *Node) term(nodeID string) uint64 {
	i := n.current.Load()
	if nodeID != n.config.ID || n.life.now() == replacing {
		return 0
	}
	return i.raft.CurrentTerm()
}

// readIndexAnswer is the leader's answer to a follower that has a read.
type readIndexAnswer struct{ Index uint64 }

// handleReadIndex answers a follower, which sends what it has. The reads of all followers
// and of this node share rounds.
func (n *Node) handleReadIndex(i *instance, r *http.Request) (any, error) {
	if !i.leads() {
		return nil, ErrNotLeader
	}
	index, err := n.reads.next(r.Context(), n.confirm)
	if err != nil {
		return nil, err
	}
	query := r.URL.Query()
	commit, _ := strconv.ParseUint(query.Get("commit"), 10, 64)
	last, _ := strconv.ParseUint(query.Get("last"), 10, 64)
	if commit < index && index <= last {
		n.sendCommitIndex(i, raft.ServerID(query.Get("nodeId")), index)
	}
	return readIndexAnswer{index}, nil
}
