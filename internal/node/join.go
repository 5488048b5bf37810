package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"raftkv/internal/peer"
)

// ErrConflict is returned when the cluster can't take a node; the text says why.
// Nothing was changed on either side.
var ErrConflict = errors.New("the cluster can't take this node")

const (
	// changeLimit bounds one change of raft's configuration.
	changeLimit = 10 * time.Second
	// stallLimit is how long a joining node may make no progress.
	stallLimit = 30 * time.Second
)

// Joined is what Join did.
type Joined struct {
	Index   uint64 // of the last configuration entry; 0 when the node was a member already
	Members int
}

// Join makes the node id at raftAddress a voter. It asks that node first who it
// is, so that a typing error can't cost the quorum; adopts it, if it is only its
// own empty cluster; adds it without a vote, waits until it has caught up, and
// gives it its vote (DESIGN section 5). Errors wrap ErrNotLeader, ErrConflict,
// ErrNotApplied or ErrUnknown.
func (n *Node) Join(ctx context.Context, id, raftAddress string) (Joined, error) {
	n.joining.Lock()
	defer n.joining.Unlock()
	r := n.current.Load().raft
	if r.State() != raft.Leader {
		return Joined{}, ErrNotLeader
	}
	servers, err := configuration(ctx, r)
	if err != nil {
		return Joined{}, fmt.Errorf("%w: %w", ErrNotApplied, err)
	}
	for _, server := range servers {
		sameID, sameAddress := string(server.ID) == id, string(server.Address) == raftAddress
		switch {
		case sameID && sameAddress && server.Suffrage == raft.Voter:
			return Joined{Members: len(servers)}, nil
		case sameAddress && !sameID:
			return Joined{}, fmt.Errorf("%w: %s is the address of member %s; correct raftPort, or take that member out first", ErrConflict, raftAddress, server.ID)
		}
	}
	if err := n.adopt(ctx, id, raftAddress); err != nil {
		return Joined{}, err
	}
	if _, err := change(ctx, r.AddNonvoter(raft.ServerID(id), raft.ServerAddress(raftAddress), 0, enqueueLimit)); err != nil {
		return Joined{}, err
	}
	if err := n.catchUp(ctx, raftAddress); err != nil {
		_, removeErr := change(context.WithoutCancel(ctx), r.RemoveServer(raft.ServerID(id), 0, enqueueLimit))
		return Joined{}, errors.Join(fmt.Errorf("%w: %s does not catch up: %w", ErrConflict, id, err), removeErr)
	}
	index, err := change(ctx, r.AddVoter(raft.ServerID(id), raft.ServerAddress(raftAddress), 0, enqueueLimit))
	if err != nil {
		return Joined{}, err
	}
	if servers, err = configuration(ctx, r); err != nil {
		return Joined{}, fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	return Joined{Index: index, Members: len(servers)}, nil
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

// adopt makes sure that the node at raftAddress is id and of this cluster.
func (n *Node) adopt(ctx context.Context, id, raftAddress string) error {
	info, err := n.ask(ctx, raftAddress)
	if err != nil {
		return fmt.Errorf("%w: no raftkv node answers at %s: %w; start it, or correct raftPort", ErrConflict, raftAddress, err)
	}
	if info.NodeID != id {
		return fmt.Errorf("%w: the node at %s is %s, not %s; correct nodeId or raftPort", ErrConflict, raftAddress, info.NodeID, id)
	}
	if info.ClusterID == n.port.ClusterID().String() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, changeLimit+applyLimit)
	defer cancel()
	if err := n.call(ctx, http.MethodPost, raftAddress, "/adopt", nil, nil); err != nil {
		return fmt.Errorf("%w: %w", ErrConflict, err)
	}
	return nil
}

// catchUp returns when the node at raftAddress has in its log what this one had
// when it was called, and has applied what this one had applied.
func (n *Node) catchUp(ctx context.Context, raftAddress string) error {
	target, last := n.machine.Applied(), n.current.Load().raft.LastIndex()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	var best uint64
	for progress := time.Now(); ; {
		info, err := n.ask(ctx, raftAddress)
		switch {
		case err == nil && info.AppliedIndex >= target && info.LastIndex >= last:
			return nil
		case err == nil && info.LastIndex > best:
			best, progress = info.LastIndex, time.Now()
		case time.Since(progress) > stallLimit:
			return fmt.Errorf("no progress for %v at index %d of %d", stallLimit, best, last)
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// calls are the node-to-node HTTP calls that this node answers.
func (n *Node) calls() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /info", func(w http.ResponseWriter, r *http.Request) { writeJSON(w, n.Info()) })
	mux.HandleFunc("POST /adopt", func(w http.ResponseWriter, r *http.Request) {
		if err := n.beAdopted(peer.Caller(r)); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
		}
	})
	return mux
}

// beAdopted makes this node, which must be only its own empty cluster, a node
// without a log in the given cluster, waiting for its leader. On an error that
// wraps ErrConflict nothing has changed; after any other, the node has failed.
func (n *Node) beAdopted(cluster peer.ClusterID) error {
	if !n.joining.TryLock() {
		return fmt.Errorf("%w: %s is changing a membership itself; try again", ErrConflict, n.config.ID)
	}
	defer n.joining.Unlock()
	n.proposing.Lock() // proposals wait, and then go to the new instance
	defer n.proposing.Unlock()
	if n.closing.Load() {
		return fmt.Errorf("%w: %s is shutting down", ErrConflict, n.config.ID)
	}
	old := n.current.Load()
	if err := n.adoptable(old.raft); err != nil {
		return err
	}
	n.config.Logf("Adopted by cluster %s: dropping the log of this empty cluster", cluster)
	err := errors.Join(old.raft.Shutdown().Error(), old.volume.close())
	if err == nil {
		err = createVolume(n.config.Dir, n.config.ID, cluster, nil)
	}
	if err == nil {
		err = n.start()
	}
	if err != nil {
		n.fail(fmt.Errorf("adoption: %w", err))
	}
	return err
}

// adoptable returns an error, with what to do, unless this node is a cluster of
// one, or of none, that holds nothing.
func (n *Node) adoptable(r *raft.Raft) error {
	ctx, cancel := context.WithTimeout(context.Background(), changeLimit)
	defer cancel()
	servers, err := configuration(ctx, r)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrConflict, err)
	}
	if len(servers) > 1 || (len(servers) == 1 && string(servers[0].ID) != n.config.ID) {
		return fmt.Errorf("%w: %s is a member of another cluster, of %d nodes; take it out of that first", ErrConflict, n.config.ID, len(servers))
	}
	if len(servers) == 1 {
		// What was proposed before, even if its caller gave up, is applied first.
		if err := wait(ctx, r.Barrier(enqueueLimit)); err != nil {
			return fmt.Errorf("%w: %s does not lead its own cluster yet: %w; try again", ErrConflict, n.config.ID, err)
		}
	}
	if keys := n.machine.Keys(); keys > 0 {
		return fmt.Errorf("%w: %s holds data of its own (%d keys), which joining would lose; empty its volume, or join the other way round", ErrConflict, n.config.ID, keys)
	}
	return nil
}

// call makes a node-to-node HTTP call. An answer other than 200 is an error with
// the answer's text.
func (n *Node) call(ctx context.Context, method, raftAddress, path string, body, answer any) error {
	var b []byte
	if body != nil {
		var err error
		if b, err = json.Marshal(body); err != nil {
			return err
		}
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://"+raftAddress+path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	response, err := n.port.Client().Do(request)
	if err != nil {
		var wrapped *url.Error // method and URL mean nothing to who reads it
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		if errors.Is(err, context.DeadlineExceeded) {
			return errors.New("no answer in time")
		}
		return err
	}
	defer func() { _ = response.Body.Close() }()
	const limit = 1 << 20
	text, err := io.ReadAll(io.LimitReader(response.Body, limit))
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return errors.New(strings.TrimPrefix(strings.TrimSpace(string(text)), ErrConflict.Error()+": "))
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(text, answer)
}
