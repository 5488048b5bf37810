package node

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// ErrNoLeader is returned when no leader is known to this node.
var ErrNoLeader = errors.New("no leader is known")

// Info is what a node says of itself.
type Info struct {
	NodeID       string `json:"nodeId"`
	ClusterID    string `json:"clusterId"`
	Version      string `json:"version"` // of the program
	State        string `json:"state"`   // Leader, Follower, Candidate or Shutdown
	Leader       string `json:"leader"`
	Term         uint64 `json:"term"`
	LastIndex    uint64 `json:"lastIndex"`
	CommitIndex  uint64 `json:"commitIndex"`
	AppliedIndex uint64 `json:"appliedIndex"` // by the state machine's own count
	Chain        string `json:"chain"`        // hash over all entries up to there; empty: unknown
	Keys         int    `json:"keys"`
	RaftAddress  string `json:"raftAddress"`
	HTTPAddress  string `json:"httpAddress"`
	Removed      bool   `json:"removed,omitempty"` // the cluster has taken this node out
	Health       Health `json:"health"`

	MemberIDs     []string `json:"memberIds"`
	SnapshotBytes uint64   `json:"snapshotBytes"` // received or written since its start: tells that an install goes on
}

// Member is one member of the cluster: what the configuration says of it and,
// when it could be asked, what it says of itself.
type Member struct {
	NodeID      string `json:"nodeId"`
	RaftAddress string `json:"raftAddress"`
	Suffrage    string `json:"suffrage"`
	Reachable   bool   `json:"reachable"`
	*Info       `json:"info,omitempty"`
}

// Status is a node and all the members it knows of.
type Status struct {
	Info
	LastContactMS *int64   `json:"lastContactMs"` // since the leader was last heard; null: never
	Replicas      Replicas `json:"replicas"`
	Members       []Member `json:"members"`
}

// memberTimeout is how long a member may take to say its Info.
const memberTimeout = 500 * time.Millisecond

// Freshness is what a stale read tells of its age.
type Freshness struct {
	AppliedIndex uint64
	Leader       string // ID; empty: none is known
	LastContact  string // since the leader was last heard, as a duration, such as 12ms; never
}

// Freshness tells how old what this node holds may be. A node that was removed from
// its cluster does not serve it: an error as of ReadIndex.
func (n *Node) Freshness() (Freshness, error) {
	if n.removed.Load() {
		return Freshness{}, errRemoved
	}
	r := n.current.Load().raft
	_, leader := r.LeaderWithID()
	applied, _ := n.machine.Applied()
	f := Freshness{AppliedIndex: applied, Leader: string(leader), LastContact: "never"}
	if contact := r.LastContact(); r.State() == raft.Leader {
		f.LastContact = "0s"
	} else if !contact.IsZero() {
		f.LastContact = time.Since(contact).Round(time.Millisecond).String()
	}
	return f, nil
}

// Leads reports whether this node takes itself for the leader.
func (n *Node) Leads() bool { return n.current.Load().raft.State() == raft.Leader }

// Info returns what this node says of itself.
func (n *Node) Info() Info {
	i := n.current.Load()
	r := i.raft
	_, leader := r.LeaderWithID()
	var members []string
	if future := r.GetConfiguration(); future.Error() == nil {
		for _, server := range future.Configuration().Servers {
			members = append(members, string(server.ID))
		}
	}
	applied, chain := n.machine.Hash()
	hash := ""
	if chain != [32]byte{} {
		hash = hex.EncodeToString(chain[:])
	}
	return Info{
		NodeID:       n.config.ID,
		ClusterID:    n.port.ClusterID().String(),
		Version:      n.config.Version,
		State:        r.State().String(),
		Leader:       string(leader),
		Term:         r.CurrentTerm(),
		LastIndex:    r.LastIndex(),
		CommitIndex:  r.CommitIndex(),
		AppliedIndex: applied,
		Chain:        hash,
		Health:       n.Health(),
		Keys:         n.machine.Len(),
		RaftAddress:  n.port.Address(),
		HTTPAddress:  n.config.HTTPAddress,
		Removed:      n.removed.Load(),
		MemberIDs:    members,

		SnapshotBytes: i.volume.Snapshots.Written(),
	}
}

// Status asks every member, all at once, and returns within about memberTimeout.
func (n *Node) Status(ctx context.Context) (Status, error) {
	r := n.current.Load().raft
	servers, err := configuration(ctx, r)
	if err != nil {
		return Status{}, err
	}
	status := Status{Info: n.Info(), Members: make([]Member, len(servers))}
	if contact := r.LastContact(); !contact.IsZero() {
		ms := time.Since(contact).Milliseconds()
		status.LastContactMS = &ms
	}
	if r.State() == raft.Leader {
		status.LastContactMS = new(int64)
	}
	infos := n.askAll(ctx, servers)
	status.Replicas = n.compare(ctx, status.Info, infos)
	for i, info := range infos {
		server := servers[i]
		m := Member{NodeID: string(server.ID), RaftAddress: string(server.Address), Suffrage: server.Suffrage.String(), Info: info}
		if m.NodeID == n.config.ID {
			m.Info = &status.Info
		}
		m.Reachable = m.Info != nil
		status.Members[i] = m
	}
	return status, nil
}

// askAll asks the other ones of servers for their Info, all at once, within
// memberTimeout. It has nil for who did not answer, or is not who it should be, and
// for this node itself.
func (n *Node) askAll(ctx context.Context, servers []raft.Server) []*Info {
	infos := make([]*Info, len(servers))
	var asked sync.WaitGroup
	for i, server := range servers {
		if string(server.ID) == n.config.ID {
			continue
		}
		asked.Go(func() {
			info, err := n.ask(ctx, string(server.Address))
			if err == nil && info.NodeID == string(server.ID) && info.ClusterID == n.port.ClusterID().String() {
				infos[i] = &info
			}
		})
	}
	asked.Wait()
	return infos
}

// configuration returns the members of the cluster as this node knows them.
func configuration(ctx context.Context, r *raft.Raft) ([]raft.Server, error) {
	future := r.GetConfiguration()
	if err := wait(ctx, future); err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	return future.Configuration().Servers, nil
}

// ask asks the node at a raft address for its Info.
func (n *Node) ask(ctx context.Context, raftAddress string) (Info, error) {
	ctx, cancel := context.WithTimeout(ctx, memberTimeout)
	defer cancel()
	var info Info
	return info, n.call(ctx, http.MethodGet, raftAddress, "/info", &info)
}

// leaderHTTP is where the leader of a term answers HTTP.
type leaderHTTP struct {
	term        uint64
	raftAddress raft.ServerAddress
	url         string
}

// LeaderURL returns the ID of the leader and the start of its URLs, for instance
// http://127.0.0.1:8000. The leader is asked for it once in its term.
func (n *Node) LeaderURL(ctx context.Context) (id, url string, err error) {
	r := n.current.Load().raft
	term := r.CurrentTerm()
	address, leader := r.LeaderWithID()
	if n.removed.Load() {
		return "", "", errRemoved
	}
	if address == "" {
		return "", "", ErrNoLeader
	}
	n.leaderMu.Lock()
	known := n.leader
	n.leaderMu.Unlock()
	if known.term != term || known.raftAddress != address { // asked without the lock: it may hang
		info, err := n.ask(ctx, string(address))
		if err == nil && (info.NodeID != string(leader) || info.ClusterID != n.port.ClusterID().String()) {
			err = errors.New("another node answers there")
		}
		if err != nil {
			return "", "", fmt.Errorf("%w: %s at %s does not answer: %w", ErrNoLeader, leader, address, err)
		}
		known = leaderHTTP{term, address, "http://" + reachable(info.HTTPAddress, string(address))}
		n.leaderMu.Lock()
		if known.term >= n.leader.term {
			n.leader = known
		}
		n.leaderMu.Unlock()
	}
	return string(leader), known.url, nil
}

// reachable is address with an unspecified host (0.0.0.0) replaced by the host of
// known.
func reachable(address, known string) string {
	host, port, err := net.SplitHostPort(address)
	if ip := net.ParseIP(host); err == nil && (host == "" || (ip != nil && ip.IsUnspecified())) {
		if knownHost, _, err := net.SplitHostPort(known); err == nil {
			return net.JoinHostPort(knownHost, port)
		}
	}
	return address
}
