package node

import (
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"raftkv/internal/command"
	"raftkv/internal/peer"
)

// Info is what a node reports about itself.
type Info struct {
	NodeID       string    `json:"nodeId"`
	ClusterID    string    `json:"clusterId"`
	Version      string    `json:"version"`   // of the program
	Format       int       `json:"format"`    // of the cluster: nothing newer is used in it
	MaxFormat    int       `json:"maxFormat"` // the newest cluster format that the program knows; 0: it is too old to say
	State        string    `json:"state"`     // Leader, Follower, Candidate or Shutdown
	Leader       string    `json:"leader"`
	Term         uint64    `json:"term"`
	LastIndex    uint64    `json:"lastIndex"`
	CommitIndex  uint64    `json:"commitIndex"`
	AppliedIndex uint64    `json:"appliedIndex"` // by the state machine's own count
	Hash         string    `json:"hash"`         // of the hash chain over the entries up to there; empty: unknown
	Keys         int       `json:"keys"`
	DataBytes    int       `json:"dataBytes"`      // keys and values, with what the store takes for each (kv.Overhead)
	Disk         *DiskRoom `json:"disk,omitempty"` // of its volume; nil: not known
	MaxDataBytes uint64    `json:"maxDataBytes"`   // what they may take while this node leads; 0: any
	RaftAddress  string    `json:"raftAddress"`
	HTTPAddress  string    `json:"httpAddress"`       // host:port that it listens on
	HTTPURL      string    `json:"httpUrl"`           // where clients reach it; empty: the program is too old to say
	Removed      bool      `json:"removed,omitempty"` // the cluster has taken this node out
	Health       Health    `json:"health"`

	MemberIDs     []string `json:"memberIds"`
	RecoveredFrom string   `json:"recoveredFrom,omitempty"` // the cluster before a recovery

	VolumeID string `json:"volumeId"` // empty: it was made by an older version
	// Acknowledged is what this node has heard of the other members.
	Acknowledged map[string]Acknowledged `json:"acknowledged,omitempty"`

	SnapshotBytes uint64 `json:"snapshotBytes"` // received or written since its start: grows while an install goes on

	LeaderAddress string   `json:"leaderAddress,omitempty"` // of its raft port
	Waiting       string   `json:"waiting,omitempty"`       // what a node without a cluster waits for; empty: it has one
	Seen          []string `json:"seen,omitempty"`          // while it waits: who answers at the addresses of Join
	Nonvoter      bool     `json:"nonvoter,omitempty"`      // it asks to be joined without a vote
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
// its cluster, or has none yet, does not serve it: an error as of ReadIndex.
func (n *Node) Freshness() (Freshness, error) {
	switch n.life.now() {
	case removed:
		return Freshness{}, errRemoved
	case replacing: // the state machine may already be that of the next instance
		return Freshness{}, errReplacing
	}
	if err := n.errWaiting(); err != nil {
		return Freshness{}, err
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
	leaderAddress, leader := r.LeaderWithID()
	waiting, seen := n.waitsFor(i)
	var members []string
	for _, server := range i.servers() {
		members = append(members, string(server.ID))
	}
	applied, sum := n.machine.Hash()
	content, _ := n.machine.Footprint()
	hash := ""
	if sum != [32]byte{} {
		hash = hex.EncodeToString(sum[:])
	}
	recoveredFrom := ""
	if former, ok := i.volume.RecoveredFrom(); ok {
		recoveredFrom = hex.EncodeToString(former[:])
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
		DataBytes:    content,
		MaxDataBytes: n.config.MaxBytes,
		Disk:         n.rooms.of(n.config.ID),
		RaftAddress:  n.port.Address(),
		HTTPAddress:  n.config.HTTPAddress,
		HTTPURL:      n.HTTPURL(),
		Removed:      n.life.now() == removed,
		MemberIDs:    members,
		VolumeID:     i.volume.ID,

		RecoveredFrom: recoveredFrom,

		Acknowledged: n.acknowledged.all(),

		LeaderAddress: string(leaderAddress),
		Waiting:       waiting,
		Seen:          seen,
		Nonvoter:      n.config.Nonvoter,

		SnapshotBytes: i.volume.Snapshots.Written(),
	}
}

// httpURL is where clients reach this node, as far as it knows by itself.
func (n *Node) httpURL() string {
	scheme := "http://"
	if n.config.HTTPS {
		scheme = "https://"
	}
	return scheme + reachable(n.config.HTTPAddress, n.port.Address())
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

// Leader is where the leader answers HTTP.
type Leader struct {
	ID          string
	URL         string // its scheme, host and port, such as http://127.0.0.1:8000
	SameMachine bool   // it runs on the machine of this node
	ReadsMark   bool   // its program is of the version that brought Info.HTTPURL, or newer
	Guessed     bool   // it listens on all addresses, and the URL has the host of its raft port
}

// leaderURL remembers where the leader of a term answers HTTP.
type leaderURL struct {
	mu          sync.Mutex // guards what follows
	term        uint64
	raftAddress raft.ServerAddress
	leader      Leader
}

// Leader returns where the leader answers HTTP. The leader is asked for it once in its
// term. Any error wraps ErrNoLeader or ErrNotApplied.
func (n *Node) Leader(ctx context.Context) (Leader, error) {
	r := n.current.Load().raft
	term := r.CurrentTerm()
	address, id := r.LeaderWithID()
	if n.life.now() == removed {
		return Leader{}, errRemoved
	}
	if err := n.errWaiting(); err != nil {
		return Leader{}, err
	}
	if address == "" {
		return Leader{}, ErrNoLeader
	}
	if leader, ok := n.leader.get(term, address); ok {
		return leader, nil
	}
	info, err := n.members.askMember(ctx, raft.Server{ID: id, Address: address})
	if err != nil {
		return Leader{}, fmt.Errorf("%w: %s at %s does not answer: %w", ErrNoLeader, id, address, err)
	}
	leader := Leader{ID: string(id), URL: info.HTTPURL, SameMachine: isThisMachine(ctx, string(address))}
	if leader.ReadsMark = info.HTTPURL != ""; !leader.ReadsMark {
		leader.URL = "http://" + reachable(info.HTTPAddress, string(address))
	}
	guess := reachable(info.HTTPAddress, info.RaftAddress)
	leader.Guessed = guess != info.HTTPAddress && (leader.URL == "http://"+guess || leader.URL == "https://"+guess)
	n.leader.set(term, address, leader)
	return leader, nil
}

// isThisMachine reports whether the host of address, host:port, is one of this machine's.
func isThisMachine(ctx context.Context, address string) bool {
	host, _, _ := net.SplitHostPort(address)
	addresses, err := net.DefaultResolver.LookupIPAddr(ctx, host)
	if err != nil {
		return false
	}
	own, _ := net.InterfaceAddrs() // none: only loopback is known to be this machine's
	for _, a := range addresses {
		isOwn := func(n net.Addr) bool { o, ok := n.(*net.IPNet); return ok && o.IP.Equal(a.IP) }
		if a.IP.IsLoopback() || slices.ContainsFunc(own, isOwn) {
			return true
		}
	}
	return false
}

func (l *leaderURL) get(term uint64, raftAddress raft.ServerAddress) (leader Leader, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.leader, l.term == term && l.raftAddress == raftAddress && l.leader.URL != ""
}

// set remembers leader, unless that of a later term is known.
func (l *leaderURL) set(term uint64, raftAddress raft.ServerAddress, leader Leader) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if term >= l.term {
		l.term, l.raftAddress, l.leader = term, raftAddress, leader
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
