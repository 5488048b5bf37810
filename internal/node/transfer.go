package node

import (
	"context"
	"fmt"

	"github.com/hashicorp/raft"
)

// transferLag is how many entries a node may be behind and still be handed the
// leadership: it must have them all before it can take it.
const transferLag = 1000

// Transfer hands the leadership to the voter id or, if that is empty, to the most
// caught-up voter that answers. It returns the new leader's ID. Errors wrap
// ErrNotLeader, ErrNoSuchNode, ErrConflict or ErrNotApplied.
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
	to, err := n.successor(ctx, i, i.servers(), id)
	if err != nil {
		return "", err
	}
	err = wait(ctx, i.raft.LeadershipTransferToServer(to.ID, to.Address))
	if ctx.Err() != nil {
		return "", fmt.Errorf("%w: the transfer to %s: no answer in time", ErrUnknown, to.ID)
	}
	if err != nil {
		return "", fmt.Errorf("%w: transfer failed, %s is still the leader: %w", ErrNotApplied, n.config.ID, err)
	}
	return string(to.ID), nil
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
	to, err := n.successor(ctx, i, i.servers(), "")
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

// successor returns the voter to hand over to, or why there is none.
func (n *Node) successor(ctx context.Context, i *instance, servers []raft.Server, id string) (raft.Server, error) {
	var candidates []raft.Server
	for _, server := range servers {
		if string(server.ID) == id || (id == "" && server.Suffrage == raft.Voter && string(server.ID) != n.config.ID) {
			candidates = append(candidates, server)
		}
	}
	switch {
	case len(candidates) == 0 && id != "":
		return raft.Server{}, fmt.Errorf("%w: %s is no member; /status lists them", ErrNoSuchNode, id)
	case len(candidates) == 0:
		return raft.Server{}, fmt.Errorf("%w: %s is the only voter", ErrConflict, n.config.ID)
	case candidates[0].Suffrage != raft.Voter:
		return raft.Server{}, fmt.Errorf("%w: %s has no vote; /join it as a voter first", ErrConflict, id)
	}
	last := i.raft.LastIndex()
	lags := func(i *Info) bool { return i.LastIndex+transferLag < last }
	full := func(i *Info) bool { return i.Health.Space != "" }
	var to raft.Server
	var best *Info // of to: one that has caught up, then one with room on its disk, then the one with the most entries
	for k, info := range n.members.askAll(ctx, candidates) {
		switch {
		case info == nil:
		case best == nil, lags(best) && !lags(info),
			lags(best) == lags(info) && full(best) && !full(info),
			lags(best) == lags(info) && full(best) == full(info) && info.LastIndex > best.LastIndex:
			to, best = candidates[k], info
		}
	}
	if best == nil {
		return raft.Server{}, fmt.Errorf("%w: no voter that could take over answers", ErrConflict)
	}
	if lags(best) {
		return raft.Server{}, fmt.Errorf("%w: %s lags %d entries behind; try again when it has caught up",
			ErrConflict, to.ID, last-best.LastIndex)
	}
	return to, nil
}
