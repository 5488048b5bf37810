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

// Leave removes a node from the cluster; the leader itself hands over first, and
// its successor removes it. It returns how many members are left. Errors wrap
// ErrNotLeader, ErrNoSuchNode, ErrConflict, ErrNotApplied or ErrUnknown.
func (n *Node) Leave(ctx context.Context, id string) (members int, err error) {
	ctx, cancel := n.life.untilEnd(ctx)
	defer cancel()
	if id == n.config.ID {
		return n.leaveItself(ctx)
	}
	if err := n.lockMembers(ctx); err != nil {
		return 0, err
	}
	defer n.unlockMembers()
	i := n.current.Load()
	leaving, left, err := n.mayLeave(ctx, i, id)
	if err != nil {
		return 0, err
	}
	_, err = change(ctx, i.raft.RemoveServer(leaving.ID, 0, enqueueLimit))
	n.port.CloseStreams(string(leaving.Address))
	if err != nil {
		return 0, err
	}
	// It may be dead; if it lives, it learns it from the others too (see watch).
	informed, cancel := context.WithTimeout(context.WithoutCancel(ctx), memberTimeout)
	defer cancel()
	if err := n.members.call(informed, http.MethodPost, leaving, "/removed", nil); err != nil {
		n.config.Logf("%s could not be told that it was removed: %v", id, err)
	}
	return left, nil
}

// mayLeave returns the member id and how many members there are without it, or why it
// must stay: the voters that are left must be able to go on.
func (n *Node) mayLeave(ctx context.Context, i *instance, id string) (leaving raft.Server, left int, err error) {
	if !i.leads() {
		return leaving, 0, ErrNotLeader
	}
	servers := i.servers()
	found := false
	var voters []raft.Server // that would be left
	for _, server := range servers {
		if string(server.ID) == id {
			leaving, found = server, true
		} else if server.Suffrage == raft.Voter {
			voters = append(voters, server)
		}
	}
	switch {
	case !found:
		return leaving, 0, fmt.Errorf("%w: %s is no member; /status lists them", ErrNoSuchNode, id)
	case leaving.Suffrage != raft.Voter:
		return leaving, len(servers) - 1, nil
	case len(voters) == 0:
		return leaving, 0, fmt.Errorf("%w: %s is the last voter; join another first", ErrConflict, id)
	}
	reached := 0
	for k, info := range n.members.askAll(ctx, voters) {
		if string(voters[k].ID) == n.config.ID || info != nil {
			reached++
		}
	}
	if need := len(voters)/2 + 1; reached < need {
		return leaving, 0, fmt.Errorf("%w: without %s only %d of %d voters answer, %d are needed; "+
			"take out one that does not answer first", ErrConflict, id, reached, len(voters), need)
	}
	return leaving, len(servers) - 1, nil
}

// leaveItself hands the leadership over and asks the new leader to remove this node. It
// holds the member lock for the first of the two only: the new leader tells this node that
// it was removed before it answers, and handleRemoved needs the lock.
func (n *Node) leaveItself(ctx context.Context) (members int, err error) {
	i, left, err := n.handOver(ctx)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, changeLimit)
	defer cancel()
	path := "/leave?" + url.Values{"nodeId": {n.config.ID}}.Encode()
	// The new leader answers with ErrNotApplied until it has committed in its own term.
	for asked := false; ; {
		address, leader := i.raft.LeaderWithID()
		var err error = ErrNotLeader
		if string(leader) != n.config.ID && address != "" {
			err = n.members.call(ctx, http.MethodPost, raft.Server{ID: leader, Address: address}, path, nil)
		}
		switch {
		case err == nil, n.life.now() == removed, asked && errors.Is(err, ErrNoSuchNode):
			return left, nil
		case errors.Is(err, ErrConflict):
			return 0, err
		}
		asked = asked || !errors.Is(err, ErrNotLeader) // it may have been done, and the answer lost
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("%w: leadership was handed over, but %s was not removed: %w", ErrUnknown, n.config.ID, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// handOver hands the leadership over if this node may leave. It returns how many members
// there are without it.
func (n *Node) handOver(ctx context.Context) (i *instance, left int, err error) {
	if err := n.lockMembers(ctx); err != nil {
		return nil, 0, err
	}
	defer n.unlockMembers()
	i = n.current.Load()
	if _, left, err = n.mayLeave(ctx, i, n.config.ID); err != nil {
		return nil, 0, err
	}
	_, err = n.transfer(ctx, i, "")
	return i, left, err
}
