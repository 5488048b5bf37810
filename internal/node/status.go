package node

import (
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"raftkv/internal/command"
	"raftkv/internal/peer"
)

// Info is what a node reports about itself.
type Info struct {
	NodeID       string `json:"nodeId"`
	ClusterID    string `json:"clusterId"`
	Version      string `json:"version"`   // of the program
	Format       int    `json:"format"`    // of the cluster: nothing newer is used in it
	MaxFormat    int    `json:"maxFormat"` // the newest cluster format that the program knows; 0: it is too old to say
	State        string `json:"state"`     // Leader, Follower, Candidate or Shutdown
	Leader       string `json:"leader"`
	Term         uint64 `json:"term"`
	LastIndex    uint64 `json:"lastIndex"`
	CommitIndex  uint64 `json:"commitIndex"`
	AppliedIndex uint64 `json:"appliedIndex"` // by the state machine's own count
	Hash         string `json:"hash"`         // of the hash chain over the entries up to there; empty: unknown
	Keys         int    `json:"keys"`
	RaftAddress  string `json:"raftAddress"`
	HTTPAddress  string `json:"httpAddress"`
	Removed      bool   `json:"removed,omitempty"` // the cluster has taken this node out
	Health       Health `json:"health"`

	MemberIDs     []string `json:"memberIds"`
	SnapshotBytes uint64   `json:"snapshotBytes"` // received or written since its start: grows while an install goes on
}

// Member is one member of the cluster: what the configuration has about it and,
// when it answered, what it reports about itself.
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

// Freshness is how old the answer to a stale read may be.
type Freshness struct {
	AppliedIndex uint64
	Leader       string // ID; empty: none is known
	LastContact  string // since the leader was last heard, as a duration, such as 12ms; never
}

// Freshness returns how old what this node holds may be. A node that was removed from
// its cluster does not serve it: an error as of ReadIndex.
func (n *Node) Freshness() (Freshness, error) {
	switch n.life.now() {
	case removed:
		return Freshness{}, errRemoved
	case replacing: // the state machine may already be that of the next instance
		return Freshness{}, errReplacing
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
func (n *Node) Leads() bool { return n.current.Load().leads() }

// Info returns what this node reports about itself.
func (n *Node) Info() Info {
	i := n.current.Load()
	r := i.raft
	_, leader := r.LeaderWithID()
	var members []string
	for _, server := range i.servers() {
		members = append(members, string(server.ID))
	}
	applied, sum := n.machine.Hash()
	hash := ""
	if sum != [32]byte{} {
		hash = hex.EncodeToString(sum[:])
	}
	return Info{
		NodeID:       n.config.ID,
		ClusterID:    peer.ClusterID(i.volume.Cluster).String(),
		Version:      n.config.Version,
		Format:       n.machine.Format(),
		MaxFormat:    cmp.Or(n.config.maxFormat, command.Format),
		State:        r.State().String(),
		Leader:       string(leader),
		Term:         r.CurrentTerm(),
		LastIndex:    r.LastIndex(),
		CommitIndex:  r.CommitIndex(),
		AppliedIndex: applied,
		Hash:         hash,
		Health:       n.Health(),
		Keys:         n.machine.Len(),
		RaftAddress:  n.port.Address(),
		HTTPAddress:  n.config.HTTPAddress,
		Removed:      n.life.now() == removed,
		MemberIDs:    members,

		SnapshotBytes: i.volume.Snapshots.Written(),
	}
}

// Status asks every member and compares the replicas, all at once, within memberTimeout.
func (n *Node) Status(ctx context.Context) Status {
	i := n.current.Load()
	servers := i.servers()
	status := Status{Info: n.Info(), Members: []Member{}}
	if contact := i.raft.LastContact(); !contact.IsZero() {
		ms := time.Since(contact).Milliseconds()
		status.LastContactMS = &ms
	}
	if i.leads() {
		status.LastContactMS = new(int64)
	}
	others := n.compareAll(ctx, servers)
	status.Replicas = n.summarize(status.Info, others)
	infos := map[string]*Info{n.config.ID: &status.Info}
	for _, c := range others {
		infos[string(c.server.ID)] = c.info
	}
	for _, server := range servers {
		info := infos[string(server.ID)]
		status.Members = append(status.Members, Member{
			NodeID:      string(server.ID),
			RaftAddress: string(server.Address),
			Suffrage:    server.Suffrage.String(),
			Reachable:   info != nil,
			Info:        info,
		})
	}
	return status
}

// leaderURL remembers where the leader of a term answers HTTP.
type leaderURL struct {
	mu          sync.Mutex // guards what follows
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
	if n.life.now() == removed {
		return "", "", errRemoved
	}
	if address == "" {
		return "", "", ErrNoLeader
	}
	if url, ok := n.leader.get(term, address); ok {
		return string(leader), url, nil
	}
	info, err := n.members.askMember(ctx, raft.Server{ID: leader, Address: address})
	if err != nil {
		return "", "", fmt.Errorf("%w: %s at %s does not answer: %w", ErrNoLeader, leader, address, err)
	}
	url = "http://" + reachable(info.HTTPAddress, string(address))
	n.leader.set(term, address, url)
	return string(leader), url, nil
}

func (l *leaderURL) get(term uint64, raftAddress raft.ServerAddress) (url string, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.url, l.term == term && l.raftAddress == raftAddress && l.url != ""
}

// set remembers url, unless that of a later term is known.
func (l *leaderURL) set(term uint64, raftAddress raft.ServerAddress, url string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if term >= l.term {
		l.term, l.raftAddress, l.url = term, raftAddress, url
	}
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
