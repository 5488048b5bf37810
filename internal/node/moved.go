package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/hashicorp/raft"
)

// checkAddress looks whether the members know this node at the address of its raft port. If not, as after a start with
// another port, it has the leader change that; while that can't be done, it is in the node's health.
func (n *Node) checkAddress(ctx context.Context) {
	i := n.current.Load()
	servers := i.servers()
	line := ""
	if own := n.movedFrom(servers); own != nil {
		if err := n.move(ctx, i, servers, *own); err != nil {
			line = fmt.Sprintf("the members know %s at the address %s, but it is at %s: %v; start it with its former port, "+
				"or send /join?nodeId=%s with its new one to the leader", own.ID, own.Address, n.port.Address(), err, own.ID)
		}
	}
	if n.health.set(&n.health.address, line) {
		n.config.Warnf("%s", line)
	}
}

// movedFrom returns this node as servers have it, nil if they have its address.
func (n *Node) movedFrom(servers []raft.Server) *raft.Server {
	own := find(servers, n.config.ID)
	if own == nil || string(own.Address) == n.port.Address() {
		return nil
	}
	return own
}

// find returns the member id of servers, nil if there is none.
func find(servers []raft.Server, id string) *raft.Server {
	for k := range servers {
		if string(servers[k].ID) == id {
			return &servers[k]
		}
	}
	return nil
}

// move has the leader, which may be this node, change the address of this node.
func (n *Node) move(ctx context.Context, i *instance, servers []raft.Server, own raft.Server) error {
	ctx, cancel := context.WithTimeout(ctx, changeLimit)
	defer cancel()
	if i.leads() {
		return n.moveMember(ctx, string(own.ID), n.port.Address())
	}
	if _, err := n.members.askMember(ctx, own); err == nil {
		return nil // it is reached there too, by another name or through a proxy
	}
	for k, info := range n.members.askAll(ctx, servers) {
		if info != nil && info.State == raft.Leader.String() {
			path := "/moved?" + url.Values{"nodeId": {n.config.ID}, "address": {n.port.Address()}}.Encode()
			return n.members.call(ctx, http.MethodPost, servers[k], path, nil)
		}
	}
	return errors.New("no leader answers")
}

// handleMoved answers /moved, which a member calls that is at another address than the configuration has.
func (n *Node) handleMoved(_ *instance, r *http.Request) (any, error) {
	return nil, n.moveMember(r.Context(), r.URL.Query().Get("nodeId"), r.URL.Query().Get("address"))
}

// moveMember changes the address of a member as Join does, which asks the node there for its ID and cluster. It does
// nothing while the member answers at the address that it has: it may be reached by two, and a copy of its volume that
// somebody has started must not take its place.
func (n *Node) moveMember(ctx context.Context, id, address string) error {
	i := n.current.Load()
	if !i.leads() {
		return ErrNotLeader
	}
	member := find(i.servers(), id)
	if member == nil {
		return fmt.Errorf("%w: %s is no member", ErrNoSuchNode, id)
	}
	if _, err := n.members.askMember(ctx, *member); err == nil {
		return nil
	}
	_, err := n.Join(ctx, JoinRequest{ID: id, Address: address, Nonvoter: member.Suffrage != raft.Voter})
	if err == nil {
		n.config.Logf("%s has moved from %s to %s", id, member.Address, address)
	}
	return err
}
