package node

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"raftkv/internal/peer"
	"raftkv/internal/storage"
)

// A node with Config.Join and an empty volume waits, without a cluster: its volume is new, of a
// cluster ID of its own, and empty. As it has no configuration, raft never stands for election.
// It asks all nodes of Join for their Info, again and again. If they have a cluster, it asks the
// leader of that to join it. Only if every one of them has answered that it waits, too, and all
// see the same nodes at the same addresses, does the first of them bootstrap itself; the others
// then join it. Why there are never two clusters is argued in docs/design.md, "A cluster without
// a person".

const (
	// joinRetryMin and joinRetryMax bound the time between two rounds of questions; it doubles.
	joinRetryMin = 100 * time.Millisecond
	joinRetryMax = 2 * time.Second
	// joinLimit bounds one request to be joined. The leader goes on after it, and is asked again.
	joinLimit = 20 * time.Second
	// joinLineAfter is how long the same thing must be waited for until a line tells it, joinLineEvery the least
	// time between two lines, and joinLineAgain that between two of the same text.
	joinLineAfter, joinLineEvery, joinLineAgain = time.Second, 5 * time.Second, time.Minute
	// decisionLimit is how old the answers may be by which a node bootstraps itself.
	decisionLimit = 2 * time.Second
)

// autojoin is what a node with Config.Join waits for. Its methods may be called by several
// goroutines at once.
type autojoin struct {
	joining sync.Map // on the leader: ID of a node that has asked to be joined: struct{}{}, while it is

	mu   sync.Mutex // guards what follows
	line string
	seen []string
}

func (a *autojoin) get() (line string, seen []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.line, a.seen
}

func (a *autojoin) setLine(line string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.line = line
}

// setSeen reports whether seen is new.
func (a *autojoin) setSeen(seen []string) (changed bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	changed = !slices.Equal(a.seen, seen)
	a.seen = seen
	return changed
}

// waitsFor returns what the node waits for, if it has no cluster yet, and which nodes it sees;
// else empty.
func (n *Node) waitsFor(i *instance) (line string, seen []string) {
	if len(n.config.Join) == 0 || len(i.servers()) > 0 {
		return "", nil
	}
	line, seen = n.auto.get()
	line = cmp.Or(line, "it is about to ask "+strings.Join(n.config.Join, ", "))
	return "waiting for a cluster (RAFT_JOIN): " + line, seen
}

// errWaiting returns what this node waits for as an error that wraps ErrNotApplied; nil: nothing.
func (n *Node) errWaiting() error {
	if line, _ := n.waitsFor(n.current.Load()); line != "" {
		return fmt.Errorf("%w: %s", ErrNotApplied, line)
	}
	return nil
}

// create makes the first volume of this node: that of a new cluster of one or, with Join, one
// without a cluster.
func (n *Node) create() error {
	if len(n.config.Join) == 0 {
		return n.bootstrap()
	}
	return storage.Create(n.config.Dir, n.config.ID, peer.NewClusterID(), nil)
}

// joinByItself makes a node with Join a member, and sees to it that it has its vote, until the
// node ends. It does nothing while it is one.
func (n *Node) joinByItself() {
	if len(n.config.Join) == 0 {
		return
	}
	var (
		delay         time.Duration
		line, printed string
		since, at     time.Time // when line has begun, and when printed was
	)
	for {
		select {
		case <-n.life.ctx.Done():
			return
		case <-time.After(delay):
		}
		i := n.current.Load()
		delay = min(max(2*delay, joinRetryMin), joinRetryMax)
		changed := false
		was := line
		switch {
		case n.life.now() != running:
			continue
		case len(i.servers()) == 0:
			line, changed = n.joinRound(n.life.ctx, i)
		case n.lacksVote(i):
			leader, _ := i.raft.LeaderWithID()
			if line = "it has no vote yet, and no leader is known"; leader != "" {
				line = n.askToBeJoined(n.life.ctx, string(leader))
			}
		default:
			line = ""
		}
		n.auto.setLine(line)
		if line != was {
			since = time.Now()
		}
		if line != was || changed {
			delay = joinRetryMin
		}
		pause := joinLineEvery
		if line == printed {
			pause = joinLineAgain
		}
		if line != "" && time.Since(since) >= joinLineAfter && time.Since(at) >= pause {
			n.config.Logf("Waiting to be joined (RAFT_JOIN): %s", line)
			printed, at = line, time.Now()
		}
	}
}

// lacksVote reports whether this node is a member without the vote that it is to have: the leader
// that joined it has failed on the way.
func (n *Node) lacksVote(i *instance) bool {
	return !n.config.Nonvoter && slices.ContainsFunc(i.servers(), func(s raft.Server) bool {
		return string(s.ID) == n.config.ID && s.Suffrage == raft.Nonvoter
	})
}

// joinRound asks all nodes of Join, and does what decide says. It returns what is waited for;
// changed reports whether other nodes were seen than before.
func (n *Node) joinRound(ctx context.Context, i *instance) (line string, changed bool) {
	began := time.Now()
	addresses, err := seedAddresses(ctx, n.config.Join)
	if err != nil {
		return err.Error(), false
	}
	seeds := make([]seed, len(addresses))
	var asked sync.WaitGroup
	for k, address := range addresses {
		seeds[k].address = address
		asked.Go(func() { seeds[k].info, seeds[k].err = n.members.ask(ctx, address) })
	}
	asked.Wait()
	d := decide(n.config.ID, peer.ClusterID(i.volume.Cluster).String(), seeds)
	changed = n.auto.setSeen(d.seen)
	switch {
	case d.leader != "":
		return n.askToBeJoined(ctx, d.leader), changed
	case d.bootstrap:
		if err := n.bootstrapFirst(began); err != nil {
			return err.Error(), changed
		}
		return "", true
	}
	return d.line, changed
}

// seedAddresses returns the addresses to ask, sorted. One name stands for all addresses that it
// resolves to; several names are not resolved, as they are the same for all nodes.
func seedAddresses(ctx context.Context, join []string) ([]string, error) {
	if len(join) > 1 {
		return slices.Sorted(slices.Values(join)), nil
	}
	host, port, err := net.SplitHostPort(join[0])
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, changeLimit)
	defer cancel()
	found, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		return nil, fmt.Errorf("RAFT_JOIN: %w", err)
	}
	var addresses []string
	for _, ip := range found {
		addresses = append(addresses, net.JoinHostPort(ip, port))
	}
	slices.Sort(addresses)
	return slices.Compact(addresses), nil
}

// seed is what came of the question to one address.
type seed struct {
	address string
	info    Info
	err     error
}

// identity names a node that waits: its cluster ID, random, is that of its volume alone.
func (s *seed) identity() string { return s.info.NodeID + " " + s.info.ClusterID }

// decision is what a node that waits does after a round of questions: it asks leader, at a raft
// address, to be joined, or bootstraps itself, or waits for what line says.
type decision struct {
	leader    string
	bootstrap bool
	line      string
	seen      []string // address and identity of each seed
}

// decide returns what the node nodeID, whose volume is that of clusterID, does when the seeds,
// sorted by address, have answered, or have not.
func decide(nodeID, clusterID string, seeds []seed) (d decision) {
	var silent, removed, cluster []string // descriptions
	clusters, nodes := make(map[string]bool), make(map[string]string)
	var first *seed
	sameName := ""
	for k := range seeds {
		s := &seeds[k]
		at := s.info.NodeID + " at " + s.address
		switch {
		case s.err != nil:
			d.seen = append(d.seen, s.address+" no answer")
			silent = append(silent, fmt.Sprintf("%s (%v)", s.address, s.err))
			continue
		case s.info.Removed:
			removed = append(removed, at)
		case s.info.Waiting == "":
			cluster = append(cluster, at)
			clusters[s.info.ClusterID] = true
			d.leader = cmp.Or(s.info.LeaderAddress, d.leader)
		case first == nil && !s.info.Nonvoter:
			first = s
		}
		seen := s.address + " " + s.identity()
		if s.info.Nonvoter {
			seen += " nonvoter"
		}
		d.seen = append(d.seen, seen)
		if other, ok := nodes[s.info.NodeID]; ok && other != s.identity() {
			sameName = s.info.NodeID
		}
		nodes[s.info.NodeID] = s.identity()
	}
	leader := d.leader
	d.leader = ""
	switch own := nodeID + " " + clusterID; {
	case len(clusters) > 1:
		d.line = "these belong to different clusters, and it can't be known which is meant: " + strings.Join(cluster, ", ")
	case len(clusters) == 1 && leader == "":
		d.line = "the cluster of " + strings.Join(cluster, ", ") + " has no leader"
	case len(clusters) == 1:
		d.leader = leader
	case len(silent) > 0:
		d.line = "no answer from " + strings.Join(silent, ", ") + ", which may have a cluster"
	case len(removed) > 0:
		d.line = strings.Join(removed, ", ") + ": removed from a cluster; empty the volume"
	case sameName != "":
		d.line = "two nodes have the name " + sameName + ": give each its own RAFT_NODE_ID"
	case len(nodes) < 2:
		d.line = "RAFT_JOIN leads to " + seeds[0].info.NodeID + " alone: name all nodes, or begin with one without RAFT_JOIN"
	case first == nil:
		d.line = "none of these is to be a voter (RAFT_SUFFRAGE)"
	case first.identity() != own:
		d.line = first.info.NodeID + " at " + first.address + " is to begin the cluster"
	default:
		for _, s := range seeds {
			if s.identity() != own && !slices.Equal(s.info.Seen, d.seen) {
				d.line = fmt.Sprintf("%s at %s sees other nodes by its RAFT_JOIN, [%s], than this one, [%s]: it must be the same",
					s.info.NodeID, s.address, strings.Join(s.info.Seen, ", "), strings.Join(d.seen, ", "))
				return d
			}
		}
		d.bootstrap = true
	}
	return d
}

// bootstrapFirst makes this node, which waits, a cluster of one, by the answers of questions that
// were asked at began. An error that wraps ErrConflict means that nothing has changed.
func (n *Node) bootstrapFirst(began time.Time) error {
	return n.replace(func(i *instance, _ state) (wipe func() error, err error) {
		if len(i.servers()) > 0 || time.Since(began) > decisionLimit {
			return nil, fmt.Errorf("%w: the answers of the others are too old", ErrConflict)
		}
		return func() error {
			if len(i.servers()) > 0 { // a leader has sent its entries this very moment
				return nil
			}
			return n.bootstrap()
		}, nil
	})
}

// askToBeJoined asks a leader to join this node, and returns what is still to be waited for;
// empty: nothing.
func (n *Node) askToBeJoined(ctx context.Context, leader string) (line string) {
	n.auto.setLine("the leader at " + leader + " joins it")
	ctx, cancel := context.WithTimeout(ctx, joinLimit)
	defer cancel()
	query := url.Values{"nodeId": {n.config.ID}, "address": {n.port.Address()}}
	if n.config.Nonvoter {
		query.Set("suffrage", "nonvoter")
	}
	to := raft.Server{Address: raft.ServerAddress(leader)}
	if err := n.members.call(ctx, http.MethodPost, to, "/joinme?"+query.Encode(), nil); err != nil {
		return fmt.Sprintf("the leader at %s: %v (it is asked again)", leader, err)
	}
	return ""
}

// handleJoinMe answers /joinme: a node asks this one, the leader, to be joined. It goes on when the
// caller no longer waits.
func (n *Node) handleJoinMe(r *http.Request) error {
	query := r.URL.Query()
	j := JoinRequest{ID: query.Get("nodeId"), Address: query.Get("address"), Nonvoter: query.Get("suffrage") == "nonvoter"}
	if _, _, err := net.SplitHostPort(j.Address); err != nil || j.ID == "" {
		return fmt.Errorf("%w: want nodeId and address, got %q and %q", ErrConflict, j.ID, j.Address)
	}
	if _, under := n.auto.joining.LoadOrStore(j.ID, struct{}{}); under {
		return fmt.Errorf("%w: %s is being joined", ErrNotApplied, j.ID)
	}
	defer n.auto.joining.Delete(j.ID)
	joined, err := n.Join(context.WithoutCancel(r.Context()), j)
	if err == nil && joined.Index > 0 {
		n.config.Logf("%s at %s has joined by itself (RAFT_JOIN), members=%d", j.ID, j.Address, joined.Members)
	}
	return err
}
