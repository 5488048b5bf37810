package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/hashicorp/raft"

	"raftkv/internal/peer"
)

const (
	// changeLimit bounds one change of raft's configuration.
	changeLimit = 10 * time.Second
	// catchUpTimeout is how long a joining node may make no progress.
	catchUpTimeout = 30 * time.Second
)

// JoinRequest names the node to join.
type JoinRequest struct {
	ID       string
	Address  string // of its raft port
	Nonvoter bool   // a read replica
	// Progress, if not nil, is called about once a second while the node catches
	// up: it has so many entries of so many.
	Progress func(has, of uint64)
}

func (j JoinRequest) server() raft.Server {
	return raft.Server{ID: raft.ServerID(j.ID), Address: raft.ServerAddress(j.Address)}
}

// Joined is what Join did.
type Joined struct {
	Index   uint64 // of the last configuration entry; 0 when nothing had to be changed
	Members int
}

// Join makes a node a member. It asks that node first for its ID and whether it reaches
// this node, so that a typing error can't cost the quorum; adopts it, if it is only its own empty cluster; adds
// it without a vote, waits until it has caught up, and only then gives it its vote
// (docs/design.md, "Membership"; catching up first: the Raft dissertation, section 4.2.1).
// When it fails on the way, the node is removed and released again, unless this node is being closed: a removal whose
// end it does not see, and a release that it can't send, would leave a joiner that waits for a person (RAFT_JOIN). The
// next leader then finds a member without a vote, and is asked for that. The member lock is not
// held while it catches up: other nodes may leave and join, and this one may too. Errors wrap
// ErrNotLeader, ErrConflict, ErrNotApplied or ErrUnknown.
func (n *Node) Join(ctx context.Context, j JoinRequest) (Joined, error) {
	ctx, cancel := n.life.untilEnd(ctx)
	defer cancel()
	if err := n.lockMembers(ctx); err != nil {
		return Joined{}, err
	}
	defer n.unlockMembers()
	i := n.current.Load()
	if !i.leads() {
		return Joined{}, ErrNotLeader
	}
	servers := i.servers()
	suffrage := raft.Voter
	if j.Nonvoter {
		suffrage = raft.Nonvoter
	}
	var present *raft.Server
	for _, server := range servers {
		if string(server.ID) == j.ID {
			present = &server
		} else if string(server.Address) == j.Address {
			return Joined{}, fmt.Errorf("%w: %s is the address of member %s; correct raftPort, or /leave?nodeId=%s first",
				ErrConflict, j.Address, server.ID, server.ID)
		}
	}
	if j.ID == n.config.ID && len(servers) == 1 && string(servers[0].Address) == j.Address {
		return Joined{},
			fmt.Errorf("%w: %s is this node, which is alone in its cluster; send the request to a member of the "+
				"cluster that it is to join", ErrConflict, j.ID)
	}
	adopted, err := n.adopt(ctx, i, j, present)
	if err != nil {
		return Joined{}, err
	}
	if present != nil && string(present.Address) == j.Address && present.Suffrage == suffrage {
		return Joined{Members: len(servers)}, nil
	}
	index, out, err := n.add(ctx, i.raft, j, present)
	if err != nil {
		// Only a node that is surely no member may drop its log: it could be a voter.
		if adopted && out {
			n.release(ctx, j.server())
		}
		return Joined{}, err
	}
	return Joined{Index: index, Members: len(i.servers())}, nil
}

// add changes the configuration; a node that is new to it comes in without a vote.
// When it fails, out reports whether the node is surely not in it.
func (n *Node) add(ctx context.Context, r *raft.Raft, j JoinRequest, present *raft.Server) (
	index uint64, out bool, err error) {
	id, address := raft.ServerID(j.ID), raft.ServerAddress(j.Address)
	if present != nil && present.Suffrage == raft.Voter && j.Nonvoter {
		return 0, false, fmt.Errorf("%w: %s is a voter; /leave?nodeId=%s first, then join it without a vote",
			ErrConflict, j.ID, j.ID)
	}
	if present != nil && present.Suffrage == raft.Voter { // it has moved
		n.port.CloseStreams(string(present.Address))
		index, err = change(ctx, r.AddVoter(id, address, 0, enqueueLimit))
		return index, false, err
	}
	index, err = change(ctx, r.AddNonvoter(id, address, 0, enqueueLimit))
	if err != nil && (present != nil || !errors.Is(err, ErrUnknown)) {
		return 0, present == nil, err
	}
	if err == nil {
		// A slow joiner must not hold up other changes of the membership. So they may have undone or finished
		// this one when the lock is taken again; whatever holds it is done within bounds.
		n.unlockMembers()
		err = n.catchUp(ctx, r, j)
		n.membership <- struct{}{}
		suffrage, in := joining(r, j)
		switch {
		case n.current.Load().raft != r || r.State() != raft.Leader:
			return 0, false, errLeadershipLost(j)
		case !in:
			return 0, false, errTakenOut(j)
		case suffrage == raft.Voter && j.Nonvoter:
			return 0, false, fmt.Errorf("%w: %s was given a vote by another join meanwhile", ErrConflict, j.ID)
		case suffrage == raft.Voter:
			return index, false, nil
		}
	}
	if err == nil && !j.Nonvoter {
		if index, err = change(ctx, r.AddVoter(id, address, 0, enqueueLimit)); err != nil {
			err = fmt.Errorf("%w: %s is in, without a vote: %v; send it again", ErrUnknown, j.ID, err)
		}
	}
	if err != nil && n.life.ctx.Err() != nil {
		return 0, false, fmt.Errorf("%w: this node is shutting down, and %s may be in, without a vote: "+
			"send it again at another", ErrUnknown, j.ID)
	}
	if err != nil && present == nil && r.State() == raft.Leader {
		_, removeErr := change(context.WithoutCancel(ctx), r.RemoveServer(id, 0, enqueueLimit))
		n.port.CloseStreams(j.Address)
		if removeErr != nil {
			return 0, false, fmt.Errorf("%w: %v; and %s was not taken out again: %v; /leave?nodeId=%s",
				ErrUnknown, err, j.ID, removeErr, j.ID)
		}
		out = true
	}
	return index, out, err
}

// joining returns the suffrage that the node has in the configuration at the address that it joins with, false if it is
// not there.
func joining(r *raft.Raft, j JoinRequest) (raft.ServerSuffrage, bool) {
	for _, server := range r.GetConfiguration().Configuration().Servers {
		if string(server.ID) == j.ID && string(server.Address) == j.Address {
			return server.Suffrage, true
		}
	}
	return raft.Nonvoter, false
}

func errTakenOut(j JoinRequest) error {
	return fmt.Errorf("%w: %s was taken out, or moved, by another request while it was catching up", ErrConflict, j.ID)
}

func errLeadershipLost(j JoinRequest) error {
	return fmt.Errorf("%w: leadership was lost while %s was catching up; send it again", ErrUnknown, j.ID)
}

// committed returns when all that is in the log of the leader now is committed, its
// configuration too.
func committed(ctx context.Context, r *raft.Raft) error {
	ctx, cancel := context.WithTimeout(ctx, changeLimit)
	defer cancel()
	for last := r.LastIndex(); r.CommitIndex() < last; {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: the last change of the members is not committed", ErrNotApplied)
		case <-time.After(5 * time.Millisecond):
		}
	}
	if r.State() != raft.Leader {
		return ErrNotLeader
	}
	return nil
}

// change waits for a change of the configuration.
func change(ctx context.Context, future raft.IndexFuture) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, changeLimit)
	defer cancel()
	if err := wait(ctx, future); err != nil {
		return 0, outcome(err)
	}
	return future.Index(), nil
}

// adopt makes sure that the node at j.Address is j.ID, runs, reaches this node, and is of
// this cluster. It returns whether the node was another cluster before. A member that
// does not answer at the address it has is left as it is.
func (n *Node) adopt(ctx context.Context, i *instance, j JoinRequest, present *raft.Server) (adopted bool, err error) {
	began := time.Now()
	info, err := n.members.ask(ctx, j.Address)
	same := err == nil && info.ClusterID == n.port.ClusterID().String()
	switch {
	case err != nil && present != nil && string(present.Address) == j.Address:
		return false, nil
	case err != nil:
		return false, n.noNodeAt(ctx, j.Address, began, err)
	case info.NodeID != j.ID:
		return false, fmt.Errorf("%w: the node at %s is %s, not %s; correct nodeId or raftPort",
			ErrConflict, j.Address, info.NodeID, j.ID)
	case same && !info.Removed && present != nil && string(present.Address) == j.Address:
		return false, nil
	case same && !info.Removed:
		return false, n.mayBeAdded(ctx, j, &info)
	case same && present != nil && string(present.Address) == j.Address:
		// It was removed, late, after it had been joined again. Its log is what a member needs.
	case present != nil && n.runs(ctx, *present):
		return false, fmt.Errorf("%w: %s is the name of a member that runs at %s; start the node at %s with another "+
			"RAFT_NODE_ID and an empty volume, then join it by that name", ErrConflict, j.ID, present.Address, j.Address)
	case present != nil:
		return false, fmt.Errorf("%w: %s is a member, but the node at %s has lost its volume; "+
			"/leave?nodeId=%s first, then join it", ErrConflict, j.ID, j.Address, j.ID)
	}
	if err := n.mayBeAdded(ctx, j, &info); err != nil {
		return false, err
	}
	// What raft calls the configuration may not be committed: a node whose removal is
	// not may yet be asked for its vote, and must not be adopted without its log.
	if err := committed(ctx, i.raft); err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, changeLimit+applyLimit)
	defer cancel()
	if err := n.members.call(ctx, http.MethodPost, j.server(), "/adopt", nil); err != nil {
		if !errors.Is(err, ErrConflict) {
			err = fmt.Errorf("%w: %w", ErrConflict, err)
		}
		return false, err
	}
	return !same, nil
}

// noNodeAt returns the error for an address at which no raftkv node has answered the question of began. Beyond loopback
// it comes after the same time and is the same whether nobody listens there, or something else does: clients that may
// have nodes joined could otherwise scan the network of this one. The console has the reason.
func (n *Node) noNodeAt(ctx context.Context, address string, began time.Time, reason error) error {
	const advice = "start it, or correct raftHost and raftPort"
	host, _, _ := net.SplitHostPort(address)
	if net.ParseIP(host).IsLoopback() {
		return fmt.Errorf("%w: no raftkv node answers at %s: %w; %s", ErrConflict, address, reason, advice)
	}
	n.config.Logf("No raftkv node answers at %s: %v", address, reason)
	wait := time.NewTimer(time.Until(began.Add(memberTimeout)))
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-ctx.Done():
	}
	return fmt.Errorf("%w: no raftkv node answers at %s; %s; the console of %s has the reason", ErrConflict, address,
		advice, n.config.ID)
}

// reachedBy returns nil if the joiner, which has answered with info, reaches this node at the
// address that the other members have for it. It asks the joiner, unless that is of a program
// that does not know the question.
func (n *Node) reachedBy(ctx context.Context, j JoinRequest, info *Info) error {
	if info.older() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*memberTimeout) // the joiner asks within memberTimeout
	defer cancel()
	path := "/reach?" + url.Values{"nodeId": {n.config.ID}, "address": {n.port.Address()}}.Encode()
	if err := n.members.call(ctx, http.MethodGet, j.server(), path, nil); err != nil {
		return fmt.Errorf("%w: %s at %s does not reach %s at %s: %v; start %s with a RAFT_SERVER_HOST or RAFT_ADVERTISE "+
			"that %s reaches",
			ErrConflict, j.ID, j.Address, n.config.ID, n.port.Address(), err, n.config.ID, j.ID)
	}
	return nil
}

// handleReach answers /reach: whether this node, which is to be joined, reaches the leader of the
// caller's cluster at an address. It does not belong to that cluster yet.
func (n *Node) handleReach(r *http.Request) error {
	query := r.URL.Query()
	id, address := query.Get("nodeId"), query.Get("address")
	info, err := n.members.ask(r.Context(), address)
	if err == nil && (info.NodeID != id || info.ClusterID != peer.Caller(r).String()) {
		err = fmt.Errorf("%s of cluster %s answers there", info.NodeID, info.ClusterID)
	}
	return err
}

// mayBeAdded returns an error unless a node that is to join knows the cluster format, and
// reaches this node.
func (n *Node) mayBeAdded(ctx context.Context, j JoinRequest, info *Info) error {
	if err := n.mayJoin(info); err != nil {
		return err
	}
	return n.reachedBy(ctx, j, info)
}

// runs reports whether a member answers at its own address.
func (n *Node) runs(ctx context.Context, member raft.Server) bool {
	if string(member.ID) == n.config.ID {
		return true
	}
	_, err := n.members.askMember(ctx, member)
	return err == nil
}

// release undoes the adoption of a node that was not added, if the node answers. If it
// does not, it releases itself when it hears of no leader (see watch).
func (n *Node) release(ctx context.Context, joiner raft.Server) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), changeLimit)
	defer cancel()
	ctx, stop := n.life.untilEnd(ctx)
	defer stop()
	if err := n.members.call(ctx, http.MethodPost, joiner, "/release", nil); err != nil {
		n.config.Logf("The node at %s could not be released: %v", joiner.Address, err)
	}
}

// catchUp returns when the node has in its log what this one had when it was
// called, and has applied what this one had applied. The member lock is not held.
func (n *Node) catchUp(ctx context.Context, r *raft.Raft, j JoinRequest) error {
	applied, _ := n.machine.Applied()
	last := r.LastIndex()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	var best Info
	reported := time.Now()
	for progress := time.Now(); ; {
		info, err := n.members.ask(ctx, j.Address)
		if err == nil && info.AppliedIndex >= applied && info.LastIndex >= last {
			return nil
		}
		if err == nil && (info.LastIndex > best.LastIndex || info.AppliedIndex > best.AppliedIndex ||
			info.SnapshotBytes > best.SnapshotBytes) {
			best, progress = info, time.Now()
		}
		if j.Progress != nil && time.Since(reported) >= time.Second {
			j.Progress(max(best.LastIndex, best.AppliedIndex), last)
			reported = time.Now()
		}
		if r.State() != raft.Leader {
			return errLeadershipLost(j)
		}
		if _, in := joining(r, j); !in {
			return errTakenOut(j)
		}
		if time.Since(progress) > n.config.catchUp {
			return fmt.Errorf("%w: %s does not catch up: no progress for %v at entry %d of %d; it was taken out again",
				ErrConflict, j.ID, n.config.catchUp, max(best.LastIndex, best.AppliedIndex), last)
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrUnknown, ctx.Err())
		}
	}
}
