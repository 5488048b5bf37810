package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/hashicorp/raft"
)

// transferLag is how many entries a node may be behind and still be handed the
// leadership: it must have them all before it can take it.
const transferLag = 1000

// Leave takes a node out of the cluster; the leader itself hands over first, and
// its successor takes it out. It returns how many members are left. Errors wrap
// ErrNotLeader, ErrNoSuchNode, ErrConflict, ErrNotApplied or ErrUnknown.
func (n *Node) Leave(ctx context.Context, id string) (members int, err error) {
	ctx, cancel := n.untilEnd(ctx)
	defer cancel()
	if err := n.lockMembers(ctx); err != nil {
		return 0, err
	}
	defer n.joining.Unlock()
	r := n.current.Load().raft
	if r.State() != raft.Leader {
		return 0, ErrNotLeader
	}
	servers, err := configuration(ctx, r)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrNotApplied, err)
	}
	leaving, err := n.mayLeave(ctx, servers, id)
	if err != nil {
		return 0, err
	}
	if id == n.config.ID {
		return len(servers) - 1, n.leaveItself(ctx, r)
	}
	_, err = change(ctx, r.RemoveServer(leaving.ID, 0, enqueueLimit))
	n.port.CloseStreams(string(leaving.Address))
	if err != nil {
		return 0, err
	}
	// It may be dead; if it lives, it learns it from the others too (see watch).
	told, cancel := context.WithTimeout(context.WithoutCancel(ctx), memberTimeout)
	defer cancel()
	if err := n.call(told, http.MethodPost, string(leaving.Address), "/removed", nil); err != nil {
		n.config.Logf("%s could not be told that it was removed: %v", id, err)
	}
	return len(servers) - 1, nil
}

// mayLeave returns the member id, or why it must stay: the voters that are left
// must be able to go on.
func (n *Node) mayLeave(ctx context.Context, servers []raft.Server, id string) (raft.Server, error) {
	var leaving *raft.Server
	var left []raft.Server // voters that would be left
	for _, server := range servers {
		if string(server.ID) == id {
			leaving = &server
		} else if server.Suffrage == raft.Voter {
			left = append(left, server)
		}
	}
	if leaving == nil {
		return raft.Server{}, fmt.Errorf("%w: %s is no member; /status lists them", ErrNoSuchNode, id)
	}
	if leaving.Suffrage != raft.Voter {
		return *leaving, nil
	}
	if len(left) == 0 {
		return raft.Server{}, fmt.Errorf("%w: %s is the last voter; join another first", ErrConflict, id)
	}
	reached := 0
	for i, info := range n.askAll(ctx, left) {
		if string(left[i].ID) == n.config.ID || info != nil {
			reached++
		}
	}
	if need := len(left)/2 + 1; reached < need {
		return raft.Server{}, fmt.Errorf("%w: without %s only %d of %d voters answer, %d are needed; take out one that does not answer first", ErrConflict, id, reached, len(left), need)
	}
	return *leaving, nil
}

// leaveItself hands over and asks the new leader to take this node out.
func (n *Node) leaveItself(ctx context.Context, r *raft.Raft) error {
	if _, err := n.transfer(ctx, r, ""); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, changeLimit)
	defer cancel()
	path := "/leave?" + url.Values{"nodeId": {n.config.ID}}.Encode()
	// The new leader answers "not yet" until it has committed in its own term. It
	// tells this node that it was removed before it answers, so the lock that
	// beRemoved needs is given up.
	n.joining.Unlock()
	defer n.joining.Lock()
	for asked := false; ; {
		address, leader := r.LeaderWithID()
		err := ErrNotLeader
		if string(leader) != n.config.ID && address != "" {
			err = n.call(ctx, http.MethodPost, string(address), path, nil)
		}
		switch {
		case err == nil, n.removed.Load(), asked && errors.Is(err, ErrNoSuchNode):
			return nil
		case errors.Is(err, ErrConflict):
			return err
		}
		asked = asked || !errors.Is(err, ErrNotLeader) // it may have been done unheard
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: leadership was handed over, but %s was not taken out: %w", ErrUnknown, n.config.ID, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Transfer hands the leadership to the voter id or, if that is empty, to the most
// caught-up voter that answers. It returns the new leader's ID. Errors wrap
// ErrNotLeader, ErrNoSuchNode, ErrConflict or ErrNotApplied.
func (n *Node) Transfer(ctx context.Context, id string) (leader string, err error) {
	if err := n.lockMembers(ctx); err != nil {
		return "", err
	}
	defer n.joining.Unlock()
	r := n.current.Load().raft
	if r.State() != raft.Leader {
		return "", ErrNotLeader
	}
	return n.transfer(ctx, r, id)
}

func (n *Node) transfer(ctx context.Context, r *raft.Raft, id string) (leader string, err error) {
	servers, err := configuration(ctx, r)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNotApplied, err)
	}
	if id == n.config.ID {
		return id, nil
	}
	to, err := n.successor(ctx, r, servers, id)
	if err != nil {
		return "", err
	}
	err = wait(ctx, r.LeadershipTransferToServer(to.ID, to.Address))
	if ctx.Err() != nil {
		return "", fmt.Errorf("%w: the transfer to %s: no answer in time", ErrUnknown, to.ID)
	}
	if err != nil {
		return "", fmt.Errorf("%w: %s leads on: %w", ErrNotApplied, n.config.ID, err)
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
	if i.raft.State() != raft.Leader {
		return nil
	}
	servers, err := configuration(ctx, i.raft)
	if err != nil {
		return err
	}
	to, err := n.successor(ctx, i.raft, servers, "")
	if err != nil {
		return err
	}
	told := make(chan error, 1)
	go func() { // until the transport is closed
		told <- i.transport.TimeoutNow(to.ID, to.Address, &raft.TimeoutNowRequest{RPCHeader: n.header(i)}, new(raft.TimeoutNowResponse))
	}()
	select {
	case err = <-told:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// header is that of raft's messages.
func (n *Node) header(i *instance) raft.RPCHeader {
	return raft.RPCHeader{
		ProtocolVersion: raft.ProtocolVersionMax,
		ID:              []byte(n.config.ID),
		Addr:            i.transport.EncodePeer(raft.ServerID(n.config.ID), i.transport.LocalAddr()),
	}
}

// successor returns the voter to hand over to, or why there is none.
func (n *Node) successor(ctx context.Context, r *raft.Raft, servers []raft.Server, id string) (raft.Server, error) {
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
	last := r.LastIndex()
	lags := func(i *Info) bool { return i.LastIndex+transferLag < last }
	full := func(i *Info) bool { return i.Health.Space != "" }
	var to raft.Server
	var best *Info // of to: one that has caught up, then one with room on its disk, then the one with the most entries
	for i, info := range n.askAll(ctx, candidates) {
		switch {
		case info == nil:
		case best == nil, lags(best) && !lags(info),
			lags(best) == lags(info) && full(best) && !full(info),
			lags(best) == lags(info) && full(best) == full(info) && info.LastIndex > best.LastIndex:
			to, best = candidates[i], info
		}
	}
	if best == nil {
		return raft.Server{}, fmt.Errorf("%w: no voter that could take over answers", ErrConflict)
	}
	if lags(best) {
		return raft.Server{}, fmt.Errorf("%w: %s lags %d entries behind; try again when it has caught up", ErrConflict, to.ID, last-best.LastIndex)
	}
	return to, nil
}
