package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"raftkv/internal/peer"
	"raftkv/internal/storage"
)

// handleAdopt answers /adopt. It makes this node, which must be only its own empty cluster, a node
// without a log in the given cluster, waiting for its leader. A node that was
// removed from that same cluster comes back with the log that it has. On an error
// that wraps ErrConflict nothing has changed; after any other, the node has failed.
func (n *Node) handleAdopt(cluster peer.ClusterID) error {
	return n.replace(func(i *instance, was state) (wipe func() error, err error) {
		if cluster == n.port.ClusterID() {
			n.config.Logf("Back in cluster %s", cluster)
			return nil, nil
		}
		if err := n.adoptable(i, was); err != nil {
			return nil, err
		}
		n.config.Logf("Adopted by cluster %s: dropping the log of this empty cluster", cluster)
		return func() error { return storage.Create(n.config.Dir, n.config.ID, cluster, nil) }, nil
	})
}

// handleRelease answers /release. It undoes handleAdopt: the node is its own empty cluster
// again. It is refused by a voter: what that has acknowledged must not be lost.
func (n *Node) handleRelease() error {
	return n.replace(func(i *instance, _ state) (wipe func() error, err error) {
		refuseVoter := func() error {
			for _, server := range i.servers() {
				if string(server.ID) == n.config.ID && server.Suffrage == raft.Voter {
					return fmt.Errorf("%w: %s is a voter", ErrConflict, n.config.ID)
				}
			}
			return nil
		}
		return func() error {
			if err := refuseVoter(); err != nil {
				n.config.Logf("Not released: %v", err) // it got its vote this very moment
				return nil
			}
			n.config.Logf("Released by cluster %s", n.port.ClusterID())
			return n.create()
		}, refuseVoter()
	})
}

// handleRemoved answers /removed, by the leader: this node is no member any more. It logs
// that and is inactive: no elections, and every request is refused.
//
// Once ctx has ended, its caller waits no more and may have joined this node again: nothing
// is done then. A node that was removed learns it from the others, too (see watch).
func (n *Node) handleRemoved(ctx context.Context) error {
	return n.withRaftPaused(func(i *instance, was state) (state, error) {
		if was == removed || ctx.Err() != nil {
			return was, nil
		}
		n.config.Logf("%s was removed from cluster %s: it is inactive until it is joined again",
			n.config.ID, n.port.ClusterID())
		if err := i.stop(); err != nil {
			n.fail(fmt.Errorf("removal: %w", err))
			return removed, err
		}
		return removed, nil
	})
}

// withRaftPaused runs do while no proposal and no change of the membership is under way.
// It gets the state in which the node was, and returns that in which it goes on.
func (n *Node) withRaftPaused(do func(i *instance, was state) (state, error)) error {
	select {
	case n.membership <- struct{}{}:
	default:
		return fmt.Errorf("%w: %s is changing a membership itself; try again", ErrConflict, n.config.ID)
	}
	defer n.unlockMembers()
	was, ok := n.life.pause()
	if !ok {
		return fmt.Errorf("%w: %s is shutting down", ErrConflict, n.config.ID)
	}
	next, err := do(n.current.Load(), was)
	n.life.resume(next)
	return err
}

// replace stops raft, runs what check returned, and starts raft again: the only place that
// swaps the instance. When check fails nothing has happened; after any other error the
// node has failed.
func (n *Node) replace(check func(i *instance, was state) (wipe func() error, err error)) error {
	return n.withRaftPaused(func(i *instance, was state) (state, error) {
		wipe, err := check(i, was)
		if err != nil {
			return was, err
		}
		err = errors.Join(i.stop(), i.closeVolume())
		if err == nil && wipe != nil {
			err = wipe()
		}
		if err == nil {
			err = n.start()
		}
		if err != nil {
			n.fail(fmt.Errorf("change of cluster: %w", err))
			return was, err
		}
		n.health.forgetReplicas()
		return running, nil
	})
}

// adoptable returns an error, with what to do, unless this node is a cluster of
// one, or of none, that holds nothing. A removed node's data are the cluster's it
// was removed from; another may not take it.
func (n *Node) adoptable(i *instance, was state) error {
	servers := i.servers()
	ctx, cancel := context.WithTimeout(context.Background(), changeLimit)
	defer cancel()
	if len(servers) > 1 || (len(servers) == 1 && string(servers[0].ID) != n.config.ID) {
		return fmt.Errorf("%w: %s is a member of another cluster, of %d nodes; take it out of that, and empty its volume",
			ErrConflict, n.config.ID, len(servers))
	}
	holdsData := func() error {
		if keys := n.machine.Len(); keys > 0 {
			return fmt.Errorf("%w: %s holds data of its own (%d keys), which joining would lose; empty its volume, "+
				"or join the other way round", ErrConflict, n.config.ID, keys)
		}
		return nil
	}
	if err := holdsData(); err != nil {
		return err
	}
	if len(servers) == 1 && was != removed {
		// What was proposed before, even if its caller gave up, is applied first. A
		// node that has just started has yet to elect itself.
		// (Not a barrier: it would never reach the state machine, see ReadIndex.)
		err := wait(ctx, i.raft.Apply(noop, enqueueLimit))
		for errors.Is(err, raft.ErrNotLeader) && ctx.Err() == nil {
			time.Sleep(20 * time.Millisecond)
			err = wait(ctx, i.raft.Apply(noop, enqueueLimit))
		}
		if err != nil {
			return fmt.Errorf("%w: %s does not lead its own cluster: %w; try again", ErrConflict, n.config.ID, err)
		}
	}
	return holdsData()
}
