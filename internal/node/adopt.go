package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"raftkv/internal/peer"
	"raftkv/internal/storage"
)

// What a node lets be done to it: adopted by a cluster, released from one that it
// did not get into, removed from one.

// beAdopted makes this node, which must be only its own empty cluster, a node
// without a log in the given cluster, waiting for its leader. A node that was
// removed from that same cluster comes back with the log that it has. On an error
// that wraps ErrConflict nothing has changed; after any other, the node has failed.
func (n *Node) beAdopted(cluster peer.ClusterID) error {
	return n.replace(func(r *raft.Raft) (wipe func() error, err error) {
		if cluster == n.port.ClusterID() {
			n.config.Logf("Back in cluster %s", cluster)
			return nil, nil
		}
		if err := n.adoptable(r); err != nil {
			return nil, err
		}
		n.config.Logf("Adopted by cluster %s: dropping the log of this empty cluster", cluster)
		return func() error { return storage.Create(n.config.Dir, n.config.ID, cluster, nil) }, nil
	})
}

// beReleased undoes beAdopted: the node is its own empty cluster again. It is
// refused by a voter: what that has acknowledged must not be lost.
func (n *Node) beReleased() error {
	refuseVoter := func(r *raft.Raft) error {
		servers, err := boundedConfiguration(r)
		for _, server := range servers {
			if string(server.ID) == n.config.ID && server.Suffrage == raft.Voter {
				return fmt.Errorf("%w: %s is a voter", ErrConflict, n.config.ID)
			}
		}
		return err
	}
	return n.replace(func(r *raft.Raft) (wipe func() error, err error) {
		return func() error {
			if err := refuseVoter(r); err != nil {
				n.config.Logf("Not released: %v", err) // it got its vote this very moment
				return nil
			}
			n.config.Logf("Released by cluster %s", n.port.ClusterID())
			return n.bootstrap()
		}, refuseVoter(r)
	})
}

// beRemoved is told by the leader: this node is no member any more. It says so and
// stays quiet: no elections, no answers but that.
func (n *Node) beRemoved() error {
	return n.exclusively(func(i *instance) error {
		if n.removed.Swap(true) {
			return nil
		}
		n.config.Logf("%s was removed from cluster %s: it takes no part until it is joined again", n.config.ID, n.port.ClusterID())
		if err := i.stop(); err != nil {
			n.fail(fmt.Errorf("removal: %w", err))
			return err
		}
		return nil
	})
}

// exclusively runs do while no proposal and no change of membership is under way.
func (n *Node) exclusively(do func(i *instance) error) error {
	if !n.joining.TryLock() {
		return fmt.Errorf("%w: %s is changing a membership itself; try again", ErrConflict, n.config.ID)
	}
	defer n.joining.Unlock()
	n.proposing.Lock() // proposals wait, and then go to the new instance
	defer n.proposing.Unlock()
	if n.closing.Load() {
		return fmt.Errorf("%w: %s is shutting down", ErrConflict, n.config.ID)
	}
	return do(n.current.Load())
}

// replace stops raft, runs what check returned, and starts raft anew. When check
// fails nothing has happened.
func (n *Node) replace(check func(r *raft.Raft) (wipe func() error, err error)) error {
	return n.exclusively(func(i *instance) error {
		wipe, err := check(i.raft)
		if err != nil {
			return err
		}
		err = errors.Join(i.stop(), i.volume.Close())
		if err == nil && wipe != nil {
			err = wipe()
		}
		if err == nil {
			n.removed.Store(false)
			err = n.start()
		}
		if err != nil {
			n.fail(fmt.Errorf("change of cluster: %w", err))
		}
		return err
	})
}

// adoptable returns an error, with what to do, unless this node is a cluster of
// one, or of none, that holds nothing. A removed node's data are the cluster's it
// was removed from; another may not take it.
func (n *Node) adoptable(r *raft.Raft) error {
	servers, err := boundedConfiguration(r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), changeLimit)
	defer cancel()
	if len(servers) > 1 || (len(servers) == 1 && string(servers[0].ID) != n.config.ID) {
		return fmt.Errorf("%w: %s is a member of another cluster, of %d nodes; take it out of that, and empty its volume", ErrConflict, n.config.ID, len(servers))
	}
	holdsData := func() error {
		if keys := n.machine.Len(); keys > 0 {
			return fmt.Errorf("%w: %s holds data of its own (%d keys), which joining would lose; empty its volume, or join the other way round", ErrConflict, n.config.ID, keys)
		}
		return nil
	}
	if err := holdsData(); err != nil {
		return err
	}
	if len(servers) == 1 && !n.removed.Load() {
		// What was proposed before, even if its caller gave up, is applied first. A
		// node that has just started has yet to elect itself.
		// (Not a barrier: it would never reach the state machine, see ReadIndex.)
		err := wait(ctx, r.Apply(noop, enqueueLimit))
		for errors.Is(err, raft.ErrNotLeader) && ctx.Err() == nil {
			time.Sleep(20 * time.Millisecond)
			err = wait(ctx, r.Apply(noop, enqueueLimit))
		}
		if err != nil {
			return fmt.Errorf("%w: %s does not lead its own cluster: %w; try again", ErrConflict, n.config.ID, err)
		}
	}
	return holdsData()
}

func boundedConfiguration(r *raft.Raft) ([]raft.Server, error) {
	ctx, cancel := context.WithTimeout(context.Background(), changeLimit)
	defer cancel()
	servers, err := configuration(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConflict, err)
	}
	return servers, nil
}

const (
	// watchInterval is how often a node without a leader asks the others for one.
	watchInterval = 2 * time.Second
	// freeLimit is how long an adopted node waits for the first word of its leader.
	freeLimit = 60 * time.Second
)

// watch looks after the node until it ends: its disk, whether the replicas are equal,
// and whether it hears of a leader. One that was removed while it was away must learn
// it from the others, and one whose adopting leader died before it was added must not
// wait for ever.
func (n *Node) watch() {
	tick := time.NewTicker(min(watchInterval, n.config.free))
	defer tick.Stop()
	missing, began := 0, time.Now()
	for {
		select {
		case <-n.ending.Done():
			return
		case <-tick.C:
		}
		n.checkSpace()
		n.checkReplicas(n.ending)
		r := n.current.Load().raft
		servers, err := boundedConfiguration(r)
		if _, leader := r.LeaderWithID(); err != nil || leader != "" || n.removed.Load() {
			missing, began = 0, time.Now()
			continue
		}
		if len(servers) == 0 {
			if time.Since(began) > n.config.free {
				began = time.Now()
				_ = n.beReleased() // tried again, should it be refused
			}
			continue
		}
		// Twice, some time apart: a removal that a leader has only begun may yet fail.
		if !n.missingAt(servers) {
			missing = 0
		} else if missing++; missing >= 3 {
			missing = 0
			_ = n.beRemoved()
		}
	}
}

// missingAt reports whether a member that leads the cluster does not count this
// node among its members.
func (n *Node) missingAt(servers []raft.Server) bool {
	for _, info := range n.askAll(n.ending, servers) {
		if info != nil && info.State == raft.Leader.String() {
			return !slices.Contains(info.MemberIDs, n.config.ID)
		}
	}
	return false
}
