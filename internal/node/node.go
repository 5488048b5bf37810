// Package node owns raft.Raft: it opens the volume of one node, runs raft on it,
// takes proposals and changes of membership, and closes everything in order. What
// hashicorp/raft 1.7.3 leaves to its users (DESIGN section 4) is dealt with here.
package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"raftkv/internal/peer"
	"raftkv/internal/storage"
)

// StateMachine is what the node replicates. The methods beyond raft.BatchingFSM
// may be called at any time, by several goroutines.
type StateMachine interface {
	raft.BatchingFSM
	// Applied is the index and term of the last entry applied (a command or a change
	// of the members), as the state machine itself counts it: raft's AppliedIndex
	// means queued for it only.
	Applied() (index, term uint64)
	// WaitApplied waits, within ctx, until Applied is index or greater.
	WaitApplied(ctx context.Context, index uint64) error
	// Hash is the index of Applied and a hash over all entries up to there, zero if
	// unknown; HashAt is what it was at one of the last indexes applied.
	Hash() (index uint64, hash [32]byte)
	HashAt(index uint64) (hash [32]byte, ok bool)
	// Len is how many keys it holds.
	Len() int
	// Reset empties it. Called only while no raft instance uses it.
	Reset()
}

// Config is what a Node needs to know. All fields but Dial are required.
type Config struct {
	ID                string
	Version           string        // of this program, for Info
	Dir               string        // the volume; made if it is not there
	RaftAddress       string        // host:port to listen on, and to be reached at
	HTTPAddress       string        // host:port where clients reach this node; the host may be unspecified
	SnapshotThreshold uint64        // entries in the log before a snapshot is taken
	ElectionTimeout   time.Duration // without a leader before an election; at least 50 ms
	RaftLog           hclog.Logger  // raft's own lines
	Logf, Warnf       func(format string, args ...any)
	Dial              peer.Dialer // reaches the raft ports of other nodes; nil: TCP

	// For tests; zero values mean none, stallLimit, freeLimit, commitTimeout, lowSpace and
	// majorityAt.
	disk        func(storage.LogAndStable) storage.LogAndStable // between store and raft-boltdb
	stall, free time.Duration
	commit      time.Duration
	lowSpace    uint64
	confirmTerm func(ctx context.Context, r *raft.Raft, term uint64) error
}

// Node is one member of a cluster, or a cluster of one. Its methods may be called
// by several goroutines.
type Node struct {
	config  Config
	machine StateMachine
	port    *peer.Port
	failed  chan error // of capacity 1: the first failure
	lock    *os.File   // of the volume

	current   atomic.Pointer[instance]
	removed   atomic.Bool  // the cluster has taken this node out; raft is stopped
	proposing sync.RWMutex // read: a proposal is under way; write: the instance is being replaced
	joining   sync.Mutex   // held for a change of membership: one at a time
	watching  sync.WaitGroup
	ending    context.Context // ended first thing in StepDown and Close: what waits for other nodes gives up
	end       context.CancelFunc
	closeOnce sync.Once
	closing   atomic.Bool
	stopped   chan struct{} // closed when Close has stopped raft
	closeErr  error

	healthMu sync.Mutex // guards health
	health   Health

	leaderMu sync.Mutex // guards leader
	leader   leaderHTTP

	reads     rounds
	voters    sync.Map // raft.Server: *voter
	proposals proposals
	quiet     *time.Timer // fires when no entry has been stored for a while: see learn
}

// instance is raft on a volume. A node that is adopted gets a new one.
type instance struct {
	raft      *raft.Raft
	log       raft.LogStore // as raft sees it
	transport *peer.Transport
	volume    *storage.Volume
}

// stop ends raft. Raft waits for its calls to other nodes, up to 10 s for one that
// does not answer: closing their connections ends them.
func (i *instance) stop() error {
	stopped := i.raft.Shutdown()
	return errors.Join(i.transport.Close(), stopped.Error())
}

// writeLimit is how long one write of the disk may take before the node ends
// itself: a leader with a hung disk still heartbeats and would stay leader for
// ever (hashicorp/raft issue 503).
const writeLimit = 20 * time.Second

// snapshotCheck is how often raft looks whether a snapshot is due (at random,
// between this and twice this).
const snapshotCheck = 5 * time.Second

// commitTimeout is after which time, and up to twice that, a leader with nothing to
// replicate tells its followers what is committed, and tries one again that failed. A
// follower does not wait for it: see learn.
const commitTimeout = 250 * time.Millisecond

// Open opens the raft port and the volume and starts raft. A node whose volume is
// empty bootstraps itself as a cluster of one.
func Open(config Config, machine StateMachine) (*Node, error) {
	port, err := peer.Listen(config.RaftAddress, config.Logf)
	if err != nil {
		return nil, fmt.Errorf("raft port: %w", err)
	}
	if config.Dial != nil {
		port.Dial = config.Dial
	}
	config.stall, config.free = cmp.Or(config.stall, stallLimit), cmp.Or(config.free, freeLimit)
	config.commit, config.lowSpace = cmp.Or(config.commit, commitTimeout), cmp.Or(config.lowSpace, lowSpace)
	n := &Node{config: config, machine: machine, port: port, failed: make(chan error, 1), stopped: make(chan struct{}), quiet: time.NewTimer(learnDelay)}
	if n.config.confirmTerm == nil {
		n.config.confirmTerm = n.majorityAt
	}
	n.ending, n.end = context.WithCancel(context.Background())
	if err := n.open(); err != nil {
		if errors.Is(err, storage.ErrCorrupt) {
			err = fmt.Errorf("%w: it is left as it is; move it away and start this node with an empty one; if it was a member of a cluster, /leave and /join it there", err)
		}
		return nil, errors.Join(fmt.Errorf("volume %s: %w", config.Dir, err), port.Close())
	}
	port.Serve(n.calls(), n.term)
	n.watching.Go(func() { n.watch() })
	n.watching.Go(func() { n.learn() })
	return n, nil
}

func (n *Node) open() error {
	if err := os.MkdirAll(n.config.Dir, 0o755); err != nil {
		return err
	}
	lock, err := storage.Lock(n.config.Dir)
	if err != nil {
		return err
	}
	if err := n.openLocked(); err != nil {
		return errors.Join(err, lock.Close())
	}
	n.lock = lock
	return nil
}

func (n *Node) openLocked() error {
	fresh, err := storage.IsNew(n.config.Dir)
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(n.config.Dir, storage.RecoveryFile)); fresh && err == nil {
		return fmt.Errorf("%s is there, but no volume to recover: take it away to start with an empty one", storage.RecoveryFile)
	}
	if fresh {
		if err := n.bootstrap(); err != nil {
			return err
		}
	}
	return n.start()
}

// bootstrap makes the volume that of a new cluster of one.
func (n *Node) bootstrap() error {
	cluster := peer.NewClusterID()
	err := storage.Create(n.config.Dir, n.config.ID, cluster, &raft.Configuration{Servers: []raft.Server{{
		ID:      raft.ServerID(n.config.ID),
		Address: raft.ServerAddress(n.port.Address()),
	}}})
	if err == nil {
		n.config.Logf("Bootstrapping %s as a cluster of one, cluster ID %s", n.config.ID, cluster)
	}
	return err
}

// start opens the volume and runs raft on it.
func (n *Node) start() error {
	v, err := storage.Open(n.config.Dir, storage.Options{
		NodeID:       n.config.ID,
		Logger:       n.config.RaftLog.Named("snapshot"),
		Fatal:        n.fail,
		WriteTimeout: writeLimit,
		OnAppend:     n.entriesStored,
		Wrap:         n.config.disk,
	})
	if err != nil {
		return err
	}
	recovery, err := storage.ReadRecovery(n.config.Dir, n.config.ID)
	if err == nil && recovery != nil {
		err = v.Recover(*recovery)
	}
	if err != nil {
		return errors.Join(err, v.Close())
	}
	n.port.SetClusterID(v.Cluster)
	n.machine.Reset()
	config := n.raftConfig()
	t := peer.NewTransport(n.port.Stream(), n.config.RaftLog, config.HeartbeatTimeout/4)
	cache, err := raft.NewLogCache(512, v.Log)
	if err != nil {
		return errors.Join(err, t.Close(), v.Close())
	}
	r, err := newRaft(config, n.machine, v, cache, t, recovery)
	if err == nil && recovery != nil {
		n.config.Logf("Recovered from %s as cluster %s: the members are now %v", storage.RecoveryFile, n.port.ClusterID(), recovery.Servers)
		err = v.FinishRecovery()
	}
	if errors.Is(err, errStopped) {
		err = <-n.failed
	}
	if err != nil {
		return errors.Join(err, t.Close(), v.Close())
	}
	stillLeads := func(term uint64, id raft.ServerID, address raft.ServerAddress) bool {
		future := r.GetConfiguration()
		return r.State() == raft.Leader && r.CurrentTerm() == term && future.Error() == nil &&
			slices.ContainsFunc(future.Configuration().Servers, func(s raft.Server) bool { return s.ID == id && s.Address == address })
	}
	t.SetStillLeads(stillLeads)
	n.current.Store(&instance{raft: r, log: cache, transport: t, volume: v})
	return nil
}

func (n *Node) raftConfig() *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(n.config.ID)
	c.Logger = n.config.RaftLog
	// A follower notices a dead leader after one to three times HeartbeatTimeout: it
	// looks at random intervals of one to two. No read rests on the lease.
	c.HeartbeatTimeout = n.config.ElectionTimeout * 3 / 5
	c.ElectionTimeout = n.config.ElectionTimeout
	c.LeaderLeaseTimeout = c.HeartbeatTimeout
	c.CommitTimeout = n.config.commit
	c.SnapshotInterval = snapshotCheck
	c.SnapshotThreshold = n.config.SnapshotThreshold
	c.TrailingLogs = n.config.SnapshotThreshold
	c.ShutdownOnRemove = false // a removed node stays, quiet, and can be joined again
	c.NoLegacyTelemetry = true
	// Apply does not wait for raft to take an entry: raft writes those of a flight
	// together. Its timeout still bounds what it did: with an ErrEnqueueTimeout, the
	// entry was never taken.
	c.BatchApplyCh = true
	return c
}

// errStopped is returned when the store has ended the goroutine that called it,
// after it called fail.
var errStopped = errors.New("stopped by the store")

// newRaft is raft.NewRaft in a goroutine of its own: the store ends the goroutine
// of what fails, and raft panics when an entry is missing.
func newRaft(c *raft.Config, machine StateMachine, v *storage.Volume, log raft.LogStore, t raft.Transport, recovery *raft.Configuration) (r *raft.Raft, err error) {
	err = errStopped
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("%w: %v", storage.ErrCorrupt, p)
			}
		}()
		if recovery != nil {
			if err = raft.RecoverCluster(c, machine, v.Log, v.Log, v.Snapshots, t, *recovery); err != nil {
				err = fmt.Errorf("%s: %w", storage.RecoveryFile, err)
				return
			}
			machine.Reset()
		}
		r, err = raft.NewRaft(c, machine, log, v.Log, v.Snapshots, t)
	}()
	<-done
	return r, err
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
	n.end()
	_, err := n.Transfer(ctx, "")
	if errors.Is(err, ErrNotLeader) || errors.Is(err, ErrConflict) {
		return nil
	}
	return err
}

// untilEnd is ctx that ends with the node too.
func (n *Node) untilEnd(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(n.ending, cancel)
	return ctx, func() { stop(); cancel() }
}

// lockMembers takes joining, within ctx and changeLimit: no other change of membership
// is under way then, until the caller unlocks it.
func (n *Node) lockMembers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, changeLimit)
	defer cancel()
	for !n.joining.TryLock() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: another change of membership is under way", ErrNotApplied)
		case <-time.After(5 * time.Millisecond):
		}
	}
	if n.removed.Load() {
		n.joining.Unlock()
		return errRemoved
	}
	return nil
}

// Close stops raft, the raft port and the volume, in that order, within ctx. It
// may be called more than once.
func (n *Node) Close(ctx context.Context) error {
	n.closing.Store(true)
	n.end()
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
	n.watching.Wait()
	n.joining.Lock() // not while an adoption replaces the instance
	defer n.joining.Unlock()
	i := n.current.Load()
	stopped := i.stop()
	close(n.stopped)
	return errors.Join(stopped, n.port.Close(), i.volume.Close(), n.lock.Close())
}
