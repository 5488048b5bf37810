package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"raftkv/internal/peer"
)

// transferLag is how many entries a node may be behind and still be handed the
// leadership: it must have them all before it can take it.
const transferLag = 1000

// Transfer hands the leadership to the voter id or, if that is empty, to the most
// caught-up voter that answers. It returns the new leader's ID. Errors wrap
// ErrNotLeader, ErrNoSuchNode, ErrConflict, ErrNotApplied or ErrUnknown. It proposes a no-op
// command, so that the new leader proves that its disk writes.
func (n *Node) Transfer(ctx context.Context, id string) (leader string, err error) {
	if err := n.lockMembers(ctx); err != nil {
		return "", err
	}
	defer n.unlockMembers()
	i := n.current.Load()
	if !i.leads() {
		return "", ErrNotLeader
	}
	return n.transfer(ctx, i, id)
}

func (n *Node) transfer(ctx context.Context, i *instance, id string) (leader string, err error) {
	if id == n.config.ID {
		return id, nil
	}
	if _, err := n.candidates(i.servers(), id); err != nil {
		return "", err
	}
	to, err := n.provenSuccessor(ctx, i, id)
	if err != nil {
		return "", err
	}
	err = wait(ctx, i.raft.LeadershipTransferToServer(to.ID, to.Address))
	select {
	case n.transferred <- struct{}{}:
	default:
	}
	if ctx.Err() != nil {
		return "", fmt.Errorf("%w: the transfer to %s: no answer in time", ErrUnknown, to.ID)
	}
	if err != nil {
		return "", fmt.Errorf("%w: transfer failed, %s is still the leader: %w", ErrNotApplied, n.config.ID, err)
	}
	return string(to.ID), nil
}

// provenSuccessor returns the voter to hand over to, which has proved that its disk writes: it
// has in its log an entry that did not exist before. A voter whose disk hangs answers calls and
// even heartbeats, but can't vote for itself. The same entry proves that the transfer before
// this one was taken up, whichever way it ended: raft has sent the voter something since, and
// takes entries. If raft 1.7.3 is asked for a second transfer to a voter while its first one
// waits for an answer, it may take no entries any more, for ever (leadershipTransfer in
// raft.go sends to a full channel; hashicorp/raft issue 696).
func (n *Node) provenSuccessor(ctx context.Context, i *instance, id string) (raft.Server, error) {
	limited, cancel := context.WithTimeout(ctx, changeLimit)
	defer cancel()
	proof := i.raft.Apply(noop, enqueueLimit)
	switch err := wait(limited, proof); {
	case errors.Is(err, raft.ErrNotLeader):
		return raft.Server{}, ErrNotLeader
	case err != nil: // what becomes of a no-op makes no difference
		return raft.Server{}, fmt.Errorf("%w: no transfer was begun: %v", ErrNotApplied, err)
	}
	for begin := time.Now(); ; {
		to, err := n.successor(ctx, i, i.servers(), id, proof.Index())
		if !errors.Is(err, errNotWritten) || time.Since(begin) > memberTimeout {
			return to, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// watchTransfers ends the node if raft still takes no entries when a transfer of the leadership
// has ended: a supervisor starts it again, which is the only way out (hashicorp/raft issue 696;
// raft keeps the flag in later terms too). provenSuccessor is there so that this does not
// happen. It looks only after a transfer, while this node leads, until raft takes entries.
func (n *Node) watchTransfers() {
	timeout := n.config.ElectionTimeout
	poll := time.NewTicker(timeout / 2)
	defer poll.Stop()
	for open := false; ; {
		var since time.Time // of the flag; zero: it is not known to be set
		if !open {
			select {
			case <-n.life.ctx.Done():
				return
			case <-n.transferred:
				open = true
			}
		}
		for open {
			select {
			case <-n.life.ctx.Done():
				return
			case <-n.transferred:
				since = time.Time{}
				continue
			case <-poll.C:
			}
			i := n.current.Load()
			if !i.leads() {
				since = time.Time{}
				continue
			}
			set, known := transferInProgress(n.life.ctx, i.raft, timeout)
			switch open = set || !known; {
			case !set:
				since = time.Time{}
			case since.IsZero():
				since = time.Now()
			// Raft's own limits are two election timeouts and, for the message, the transport's.
			case time.Since(since) > 2*timeout+peer.TimeoutNowLimit:
				n.fail(fmt.Errorf("raft has refused all writes for %v because of a leadership transfer that has ended, and "+
					"would do so for ever (hashicorp/raft issue 696): start this node again",
					time.Since(since).Round(time.Millisecond)))
				return
			}
		}
	}
}

// transferInProgress reports whether raft, which leads, refuses entries because of a transfer of
// the leadership, within limit. known is false if raft gives no answer. It asks for a change of a
// configuration that does not exist, which raft refuses for one reason or the other.
func transferInProgress(ctx context.Context, r *raft.Raft, limit time.Duration) (set, known bool) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := wait(ctx, r.RemoveServer("", math.MaxUint64, limit))
	set = errors.Is(err, raft.ErrLeadershipTransferInProgress)
	return set, set || !errors.Is(err, raft.ErrEnqueueTimeout) && !errors.Is(err, raft.ErrNotLeader) && ctx.Err() == nil
}

// GiveUp is for a node that has failed. If it leads, it has the voter that it would hand
// over to stand for election at once, within ctx, so that the others need not wait for
// the election timeout. Raft itself, whose loop may have ended or hang in a write of the
// disk, is not asked: the message is the one its own transfer sends (TimeoutNow, Raft
// dissertation section 3.10). It only makes the voter a candidate, so nothing rests on it.
func (n *Node) GiveUp(ctx context.Context) error {
	i := n.current.Load()
	if !i.leads() {
		return nil
	}
	to, err := n.successor(ctx, i, i.servers(), "", 0)
	if err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() { // until the transport is closed
		request := &raft.TimeoutNowRequest{RPCHeader: i.header(n.config.ID)}
		sent <- i.transport.TimeoutNow(to.ID, to.Address, request, new(raft.TimeoutNowResponse))
	}()
	select {
	case err = <-sent:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// candidates returns the voters that could be handed over to, or why there is none: id alone
// or, if that is empty, all but this node.
func (n *Node) candidates(servers []raft.Server, id string) (candidates []raft.Server, err error) {
	for _, server := range servers {
		if string(server.ID) == id || (id == "" && server.Suffrage == raft.Voter && string(server.ID) != n.config.ID) {
			candidates = append(candidates, server)
		}
	}
	switch {
	case len(candidates) == 0 && id != "":
		return nil, fmt.Errorf("%w: %s is no member; /status lists them", ErrNoSuchNode, id)
	case len(candidates) == 0:
		return nil, fmt.Errorf("%w: %s is the only voter", ErrConflict, n.config.ID)
	case candidates[0].Suffrage != raft.Voter:
		return nil, fmt.Errorf("%w: %s has no vote; /join it as a voter first", ErrConflict, id)
	}
	return candidates, nil
}

// errNotWritten is returned when the voter to hand over to does not have an entry yet.
var errNotWritten = fmt.Errorf("%w: the next leader must prove that its disk writes", ErrConflict)

// successor returns the voter to hand over to, which must have the entry at index, or why there
// is none.
func (n *Node) successor(ctx context.Context, i *instance, servers []raft.Server, id string, index uint64) (
	raft.Server, error) {
	candidates, err := n.candidates(servers, id)
	if err != nil {
		return raft.Server{}, err
	}
	last := i.raft.LastIndex()
	// The first of these in which two candidates differ decides between them.
	rank := func(i *Info) []bool {
		return []bool{i.LastIndex >= index, i.LastIndex+transferLag >= last, i.Health.Space == ""}
	}
	var to raft.Server
	var best *Info // of to
	for k, info := range n.members.askAll(ctx, candidates) {
		if info != nil && (best == nil || cmp.Or(compareBools(rank(info), rank(best)),
			cmp.Compare(info.LastIndex, best.LastIndex)) > 0) {
			to, best = candidates[k], info
		}
	}
	switch {
	case best == nil:
		return raft.Server{}, fmt.Errorf("%w: no voter that could take over answers", ErrConflict)
	case best.LastIndex+transferLag < last:
		return raft.Server{}, fmt.Errorf("%w: %s lags %d entries behind; try again when it has caught up",
			ErrConflict, to.ID, last-best.LastIndex)
	case best.LastIndex < index:
		return raft.Server{}, fmt.Errorf("%w: %s has not written entry %d within %v; see whether its disk hangs, "+
			"then try again", errNotWritten, to.ID, index, memberTimeout)
	}
	return to, nil
}

// compareBools compares the first elements in which a and b differ: true is greater.
func compareBools(a, b []bool) int {
	return slices.CompareFunc(a, b, func(a, b bool) int {
		switch {
		case a == b:
			return 0
		case a:
			return 1
		}
		return -1
	})
}
