// Package node owns raft.Raft: it opens the volume of one node, runs raft on it,
// takes proposals and changes of membership, and closes everything in order. What
// hashicorp/raft 1.7.3 leaves to its users (DESIGN section 4) is dealt with here.
package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"raftkv/internal/peer"
)

// StateMachine is what the node replicates. The methods beyond raft.BatchingFSM
// may be called at any time, by several goroutines.
type StateMachine interface {
	raft.BatchingFSM
	// Applied is the index of the last command applied, as the state machine
	// itself counts it: raft's AppliedIndex means queued for it only.
	Applied() uint64
	// Keys is how many keys it holds.
	Keys() int
	// Reset empties it. Called only while no raft instance uses it.
	Reset()
}

// Config is what a Node needs to know. All fields are required.
type Config struct {
	ID                string
	Dir               string        // the volume; made if it is not there
	RaftAddress       string        // host:port to listen on, and to be reached at
	HTTPAddress       string        // host:port where clients reach this node; the host may be unspecified
	SnapshotThreshold uint64        // entries in the log before a snapshot is taken
	ElectionTimeout   time.Duration // without a leader before an election; at least 50 ms
	RaftLog           hclog.Logger  // raft's own lines
	Logf              func(format string, args ...any)

	disk func(logAndStable) logAndStable // tests put a failing disk here; nil: none
}

// Node is one member of a cluster, or a cluster of one. Its methods may be called
// by several goroutines.
type Node struct {
	config  Config
	machine StateMachine
	port    *peer.Port
	failed  chan error // of capacity 1: the first failure

	current   atomic.Pointer[instance]
	proposing sync.RWMutex // read: a proposal is under way; write: the instance is being replaced
	joining   sync.Mutex   // held for a change of membership: one at a time
	closeOnce sync.Once
	closing   atomic.Bool
	closeErr  error

	leaderMu sync.Mutex // guards leader
	leader   leaderHTTP
}

// instance is raft on a volume. A node that is adopted gets a new one.
type instance struct {
	raft   *raft.Raft
	volume *volume
}

// writeLimit is how long one write of the disk may take before the node ends
// itself: a leader with a hung disk still heartbeats and would stay leader for
// ever (hashicorp/raft issue 503).
const writeLimit = 20 * time.Second

// snapshotCheck is how often raft looks whether a snapshot is due (at random,
// between this and twice this).
const snapshotCheck = 5 * time.Second

// Open opens the raft port and the volume and starts raft. A node whose volume is
// empty bootstraps itself as a cluster of one.
func Open(config Config, machine StateMachine) (*Node, error) {
	port, err := peer.Listen(config.RaftAddress, config.Logf)
	if err != nil {
		return nil, err
	}
	n := &Node{config: config, machine: machine, port: port, failed: make(chan error, 1)}
	if err := n.open(); err != nil {
		if errors.Is(err, errDamaged) {
			err = fmt.Errorf("%w: nothing in it was changed; move it away, start this node with an empty one and join it to its cluster again", err)
		}
		return nil, errors.Join(fmt.Errorf("volume %s: %w", config.Dir, err), port.Close())
	}
	port.Serve(n.calls())
	return n, nil
}

func (n *Node) open() error {
	if err := os.MkdirAll(n.config.Dir, 0o755); err != nil {
		return err
	}
	fresh, err := isNew(n.config.Dir)
	if err != nil {
		return err
	}
	if fresh {
		cluster := peer.NewClusterID()
		n.config.Logf("Bootstrapping %s as a cluster of one, cluster ID %s", n.config.ID, cluster)
		configuration := raft.Configuration{Servers: []raft.Server{{
			ID:      raft.ServerID(n.config.ID),
			Address: raft.ServerAddress(n.port.Address()),
		}}}
		if err := createVolume(n.config.Dir, n.config.ID, cluster, &configuration); err != nil {
			return err
		}
	}
	return n.start()
}

// start opens the volume and runs raft on it.
func (n *Node) start() error {
	v, err := openVolume(n.config.Dir, n.config.ID, n.config.RaftLog.Named("snapshot"))
	if err != nil {
		return err
	}
	v.store.fail, v.store.limit = n.fail, writeLimit
	if n.config.disk != nil {
		v.store.bolt = n.config.disk(v.store.bolt)
	}
	n.port.SetClusterID(v.cluster)
	n.machine.Reset()
	r, err := newRaft(n.raftConfig(), n.machine, v, newTransport(n.port.Stream(), n.config.RaftLog))
	if errors.Is(err, errStopped) {
		err = <-n.failed
	}
	if err != nil {
		return errors.Join(err, v.close())
	}
	n.current.Store(&instance{raft: r, volume: v})
	return nil
}

func (n *Node) raftConfig() *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(n.config.ID)
	c.Logger = n.config.RaftLog
	c.HeartbeatTimeout = n.config.ElectionTimeout
	c.ElectionTimeout = n.config.ElectionTimeout
	c.LeaderLeaseTimeout = n.config.ElectionTimeout / 2
	c.CommitTimeout = 10 * time.Millisecond
	c.SnapshotInterval = snapshotCheck
	c.SnapshotThreshold = n.config.SnapshotThreshold
	c.TrailingLogs = n.config.SnapshotThreshold
	c.ShutdownOnRemove = false // a removed node stays, quiet, and can be joined again
	c.NoLegacyTelemetry = true
	return c
}

// errStopped is returned when the store has ended the goroutine that called it,
// after it called fail.
var errStopped = errors.New("stopped by the store")

// newRaft is raft.NewRaft in a goroutine of its own: the store ends the goroutine
// of what fails, and raft panics when an entry is missing.
func newRaft(c *raft.Config, machine raft.FSM, v *volume, t raft.Transport) (r *raft.Raft, err error) {
	cache, err := raft.NewLogCache(512, v.store)
	if err != nil {
		return nil, err
	}
	err = errStopped
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("%w: %v", errDamaged, p)
			}
		}()
		r, err = raft.NewRaft(c, machine, cache, v.store, v.snapshots, t)
	}()
	<-done
	return r, err
}

// transport is raft's network transport with heartbeats off the fast path. There,
// a heartbeat of a newer term raises the term on the connection's own goroutine
// while the leader's loop stamps an entry with it: an entry of a term that this
// node does not lead, and, when the true leader has another of the same index and
// term, replicas that differ for ever (hashicorp/raft issue 695).
type transport struct{ *raft.NetworkTransport }

// SetHeartbeatHandler does nothing, so that heartbeats take raft's main loop.
func (transport) SetHeartbeatHandler(func(raft.RPC)) {}

func newTransport(stream raft.StreamLayer, log hclog.Logger) transport {
	return transport{raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream:  stream,
		MaxPool: 3,
		Timeout: 10 * time.Second,
		Logger:  log,
	})}
}

// fail ends the node: the first call's error comes out of Failed.
func (n *Node) fail(err error) {
	select {
	case n.failed <- err:
	default:
	}
}

// Failed receives the error that makes the node unable to go on. The process must
// end: what raft does from then on is not answered for.
func (n *Node) Failed() <-chan error { return n.failed }

// RaftAddress is where other nodes reach this one.
func (n *Node) RaftAddress() string { return n.port.Address() }

// StepDown hands leadership over if this node leads and another voter is there to
// take it, within ctx.
func (n *Node) StepDown(ctx context.Context) error {
	r := n.current.Load().raft
	if r.State() != raft.Leader || !othersVote(r, n.config.ID) {
		return nil
	}
	return wait(ctx, r.LeadershipTransfer())
}

func othersVote(r *raft.Raft, id string) bool {
	configuration := r.GetConfiguration()
	if configuration.Error() != nil {
		return false
	}
	for _, server := range configuration.Configuration().Servers {
		if server.Suffrage == raft.Voter && string(server.ID) != id {
			return true
		}
	}
	return false
}

// Close stops raft, the raft port and the volume, in that order, within ctx. It
// may be called more than once.
func (n *Node) Close(ctx context.Context) error {
	n.closing.Store(true)
	n.closeOnce.Do(func() {
		done := make(chan error, 1)
		go func() { done <- n.close() }()
		select {
		case n.closeErr = <-done:
		case <-ctx.Done():
			n.closeErr = fmt.Errorf("close node: %w", ctx.Err())
		}
	})
	return n.closeErr
}

func (n *Node) close() error {
	n.joining.Lock() // not while an adoption replaces the instance
	defer n.joining.Unlock()
	i := n.current.Load()
	return errors.Join(i.raft.Shutdown().Error(), n.port.Close(), i.volume.close())
}
