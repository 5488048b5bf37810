package node

import (
	"fmt"
	"maps"
	"slices"

	"raftkv/internal/peer"
)

// Links of this node to other members can be cut and healed, in the lab (Config.Lab), to see what a cluster makes of a
// partition. Only the raft port takes part: clients still reach the node. A cut lasts until it is healed or the process
// ends. The far side needs no cut of its own, if it is in the lab too: this side neither dials it nor answers it.

// Cut cuts the link to the member from, or those to all other members if from is empty: what this node dials (out), and
// what it is dialed by (in). It returns the IDs of the members. The error wraps ErrNoSuchNode if there is no such other
// member. It does nothing unless the lab is on.
func (n *Node) Cut(from string, out, in bool) (members []string, err error) {
	for _, server := range n.current.Load().servers() {
		id := string(server.ID)
		if id != n.config.ID && (from == "" || from == id) {
			n.port.Cut(id, peer.Cut{Address: string(server.Address), Out: out, In: in})
			members = append(members, id)
		}
	}
	switch {
	case members != nil:
		return members, nil
	case from == "":
		return nil, fmt.Errorf("%w: %s has no other members", ErrNoSuchNode, n.config.ID)
	}
	return nil, fmt.Errorf("%w: %s is no other member", ErrNoSuchNode, from)
}

// Heal heals the link to from, or all if from is empty, and returns the IDs to which links were cut, in order. A link
// that is not cut is no error.
func (n *Node) Heal(from string) (members []string) {
	cuts := n.port.Cuts()
	if from == "" {
		n.port.Heal()
		return slices.Sorted(maps.Keys(cuts))
	}
	if _, ok := cuts[from]; ok {
		n.port.Cut(from, peer.Cut{})
		return []string{from}
	}
	return nil
}

// Cuts returns the links of this node that are cut, by the ID of the member. It must not be changed.
func (n *Node) Cuts() map[string]peer.Cut { return n.port.Cuts() }
