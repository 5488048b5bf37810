// Package node runs one member of a cluster: it opens the volume, runs hashicorp/raft on
// it, takes writes, linearizable reads and changes of the membership, and closes everything
// in order. What raft 1.7.3 leaves to its users is done here, in package storage and in
// package peer (docs/design.md, "What hashicorp/raft leaves to its users").
//
// A Node is made of parts that are read one by one: batch.go has group commit, the way of a
// write into raft's log; readindex.go confirms that a read is the newest; commit.go has
// followers learn at once what is committed; join.go, leave.go, adopt.go, autojoin.go and
// transfer.go change the membership; gate.go checks what other nodes send to raft; expiry.go ends
// keys with a TTL; status.go, health.go and serving.go report; rpc.go is how nodes call each other,
// forward.go how a follower sends a request on to the leader, errors.go what they may answer;
// life.go draws the states of a node.
package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"raftkv/internal/certs"
	"raftkv/internal/command"
	"raftkv/internal/events"
	"raftkv/internal/kv"
	"raftkv/internal/peer"
	"raftkv/internal/storage"
)

// StateMachine is what the node replicates. The methods beyond raft.BatchingFSM
// may be called at any time, by several goroutines.
type StateMachine interface {
	raft.BatchingFSM
	// Prepare reads a snapshot to its end and verifies it. restore does what Restore would with it, at once; index and
	// term are those of Applied in it. It is called beside ApplyBatch, restore as Restore is.
	Prepare(r io.Reader) (restore func(), index, term uint64, err error)
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
	// Size is how many bytes its keys and values are.
	Size() int
	sizer
	// Len is how many keys it holds.
	Len() int
	// TimedKeys, TimedLen and IsTimed are about the keys with a TTL: see kv.Store.
	TimedKeys(after kv.Timed, limit int) (keys []kv.Timed, epoch uint64)
	TimedLen() int
	IsTimed(key string, index uint64) bool
	// Reset empties it. Called only while no raft instance uses it.
	Reset()
}

// Config is what a Node needs to know. All fields but Advertise, Join, Nonvoter, HTTPURL, MaxBytes,
// Certs, Security, Dial, Lab, MinFormat and Progress are required.
type Config struct {
	ID                string
	Version           string        // of this program, for Info
	Dir               string        // the volume; made if it is not there
	RaftAddress       string        // host:port to listen on
	Advertise         string        // host:port or host, with the same port, to be reached at; empty: at RaftAddress
	Join              []string      // host:port of the nodes that form a cluster (autojoin.go); nil: it bootstraps itself
	Nonvoter          bool          // with Join: it asks for no vote
	HTTPAddress       string        // host:port that HTTP listens on; the host may be unspecified
	HTTPS             bool          // clients reach HTTPAddress by https
	HTTPURL           string        // where clients reach that; empty: at HTTPAddress, or the host of RaftAddress
	SnapshotThreshold uint64        // entries in the log before a snapshot is taken
	SnapshotBytes     uint64        // the same in bytes, or the size of the data if that is more: see boundLog
	MaxBytes          uint64        // of StateMachine.Footprint, for what this node proposes: see admit; 0: no bound
	ElectionTimeout   time.Duration // without a leader before an election; at least 50 ms
	RaftLog           hclog.Logger  // raft's own lines
	Logf, Warnf       func(format string, args ...any)
	Dial              peer.Dialer   // reaches the raft ports of other nodes; nil: TCP
	Certs             *certs.Node   // that nodes show to each other; nil: none
	Security          func() string // returns the line of Health.Security; asked often; nil: there is none
	Lab               bool          // links to other members can be cut (lab.go)
	MinFormat         int           // of the cluster: while this node leads, it raises it to that when it can; 0: any

	// Names keeps the names of clients for StateMachine, while their commands are proposed; nil: nobody wants them.
	Names *command.Names

	// Progress is called often with the fraction of Open that is done, 0 to 1; an error ends Open with it. nil: none.
	Progress func(fraction float64) error

	// For tests; zero values mean none, catchUpTimeout, adoptTimeout, commitTimeout, lowSpace
	// and majorityAt.
	disk           func(storage.LogAndStable) storage.LogAndStable // put below the log
	catchUp, adopt time.Duration
	recovery       time.Duration // 0: recoveryTimeout
	commit         time.Duration
	lowSpace       uint64
	freeSpace      func(dir string) (bytes uint64, err error) // nil: freeSpace
	maxFormat      int                                        // that this node reports; 0: command.Format
	confirmTerm    func(ctx context.Context, i *instance, term uint64) error
}

// Node is one member of a cluster, or a cluster of one. Its methods may be called
// by several goroutines at once.
type Node struct {
	config  Config
	machine StateMachine
	port    *peer.Port
	lock    io.Closer  // of the volume
	failed  chan error // of capacity 1: the first failure

	life       life // running, replacing, removed, closing, closed
	current    atomic.Pointer[instance]
	membership chan struct{} // the member lock, of capacity 1: see lockMembers

	transferred chan struct{} // of capacity 1: raft was asked for a transfer of the leadership, see watchTransfers

	batcher   *batcher    // writes
	rooms     diskRooms   // of the disks
	settled   uint64      // the term in which this node leads and has applied what came before; of admit alone
	reads     *readIndex  // linearizable reads
	idleTimer *time.Timer // fires when no entry has been appended for a while: see pollCommitIndex
	members   *members    // calls to other nodes
	versions  versions    // of the other members

	acknowledged acknowledged  // by the other members
	snapshotting atomic.Bool   // takeSnapshot has raft take one
	due          chan struct{} // of capacity 1: the log has grown beyond its bound, see watchLog
	handedOver   time.Time     // when handOverForRoom last did; of watch alone
	leader       leaderURL
	expiry       *expiry
	health       health
	serving      serving

	forwarded atomic.Pointer[http.Handler] // of SetForwarded
	forwards  chan struct{}                // a semaphore: see Forward
	together  together
	auto      autojoin

	observed *observed // for metrics
	terms    terms     // for the console
	events   events.Recorder
	urls     memberURLs
}

// instance is raft on a volume. A node that is adopted gets a new one.
type instance struct {
	raft      *raft.Raft
	log       *installed // as raft sees it
	transport *peer.Transport
	volume    *storage.Volume
	trailing  atomic.Uint64 // raft's TrailingLogs, as boundLog has set them; 0: it has not yet

	cache   *storage.Cache // below log
	vote    vote
	reading sync.RWMutex // held while the log is read for a frame, and while the volume is closed
	closed  bool         // the volume; guarded by reading
}

// stop ends raft. Raft waits for its calls to other nodes, up to 10 s for one that
// does not answer: closing their connections ends them. It also waits for its snapshots.
func (i *instance) stop() error {
	i.volume.Snapshots.Abort()
	stopped := i.raft.Shutdown()
	return errors.Join(i.transport.Close(), stopped.Error())
}

// leads reports whether this instance takes itself for the leader.
func (i *instance) leads() bool { return i.raft.State() == raft.Leader }

// servers returns the members of the cluster as this instance knows them, which may not
// be committed yet. In raft 1.7.3, GetConfiguration never blocks and never fails (api.go).
func (i *instance) servers() []raft.Server {
	return i.raft.GetConfiguration().Configuration().Servers
}

// header is that of a message to raft on another node, which this node sends beside raft.
func (i *instance) header(nodeID string) raft.RPCHeader {
	return raft.RPCHeader{
		ProtocolVersion: raft.ProtocolVersionMax,
		ID:              []byte(nodeID),
		Addr:            i.transport.EncodePeer(raft.ServerID(nodeID), i.transport.LocalAddr()),
	}
}

// writeLimit is how long one write of the disk may take before the node ends
// itself: a leader with a hung disk still heartbeats and would stay leader for
// ever (hashicorp/raft issue 503).
const writeLimit = 20 * time.Second

// snapshotCheck is how often raft looks whether a snapshot is due (at random,
// between this and twice this).
const snapshotCheck = 5 * time.Second

// logCacheBytes bounds the entries that are kept in memory, for followers that are a little behind.
const logCacheBytes = 16 << 20

// Open opens the raft port and the volume and starts raft. A node whose volume is
// empty bootstraps itself as a cluster of one, unless it is to Join others.
func Open(config Config, machine StateMachine) (*Node, error) {
	port, err := peer.Listen(config.RaftAddress, config.Logf)
	if err != nil {
		return nil, fmt.Errorf("raft port: %w", err)
	}
	port.NodeID = config.ID
	port.Advertise(config.Advertise)
	if config.Dial != nil {
		port.Dial = config.Dial
	}
	port.Secure(config.Certs)
	if config.Lab {
		port.EnableLab()
	}
	config.catchUp, config.adopt = cmp.Or(config.catchUp, catchUpTimeout), cmp.Or(config.adopt, adoptTimeout)
	config.recovery = cmp.Or(config.recovery, recoveryTimeout)
	config.commit, config.lowSpace = cmp.Or(config.commit, commitTimeout), cmp.Or(config.lowSpace, lowSpace)
	n := &Node{
		config:     config,
		machine:    machine,
		port:       port,
		failed:     make(chan error, 1),
		membership: make(chan struct{}, 1),

		transferred: make(chan struct{}, 1),
		due:         make(chan struct{}, 1),
		forwards:    make(chan struct{}, maxForwards),

		idleTimer: time.NewTimer(idleAfterOne),
		observed:  newObserved(),
		members:   &members{self: config.ID, client: port.Client(), clusterID: port.ClusterID},
	}
	n.members.heard = n.heard
	n.together.ctx, n.together.cancel = context.WithCancel(context.Background())
	port.Older = n.members.isOlder
	n.reads = newReadIndex(config.ID, port.DialTerm, n.members.askMember)
	n.life.init()
	n.batcher = &batcher{
		raft: func() applier { return n.current.Load().raft }, stopped: n.life.stopped, onBatch: n.observed.batch,
		admit: n.admit, names: n.config.Names,
	}
	if n.config.freeSpace == nil {
		n.config.freeSpace = freeSpace
	}
	if n.config.confirmTerm == nil {
		n.config.confirmTerm = n.reads.majorityAt
	}
	if err := n.open(); err != nil {
		switch {
		case errors.Is(err, storage.ErrNewer):
			err = fmt.Errorf("%w: it is as it was; start that version on it", err)
		case errors.Is(err, storage.ErrCorrupt):
			err = fmt.Errorf("%w: it is left as it is; move it away and start this node with an empty one; "+
				"if it was a member of a cluster, /leave and /join it there", err)
		}
		return nil, errors.Join(fmt.Errorf("volume %s: %w", config.Dir, err), port.Close())
	}
	if err := n.checkForgotten(); err != nil {
		ctx, cancel := context.WithTimeout(context.Background(), changeLimit)
		defer cancel()
		return nil, errors.Join(fmt.Errorf("volume %s: %w", config.Dir, err), n.Close(ctx))
	}
	if own := n.movedFrom(n.current.Load().servers()); own != nil {
		config.Warnf("The members know %s at the address %s, but it is at %s: it will have that changed",
			own.ID, own.Address, n.port.Address())
	}
	n.checkSpace()
	port.Serve(n.rpcHandler(), n.term)
	n.checkSecurity()
	n.life.background.Go(n.watch)
	n.life.background.Go(n.pollCommitIndex)
	n.life.background.Go(n.watchLog)
	n.life.background.Go(n.watchTransfers)
	n.life.background.Go(n.joinByItself)
	n.expiry = newExpiry(n)
	n.life.background.Go(n.expireKeys)
	n.life.background.Go(n.raiseToMin)
	n.serving.set(nil, nil)
	n.life.background.Go(n.watchServing)
	return n, nil
}

func (n *Node) open() error {
	if err := os.MkdirAll(n.config.Dir, 0o700); err != nil {
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
		return fmt.Errorf("%s is there, but no volume to recover: take it away to start with an empty one",
			storage.RecoveryFile)
	}
	if fresh {
		if err := n.create(); err != nil {
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
	starting := n.newStarting()
	v, err := storage.Open(n.config.Dir, storage.Options{
		NodeID:       n.config.ID,
		Logger:       n.config.RaftLog.Named("snapshot"),
		Fatal:        n.fail,
		WriteTimeout: writeLimit,
		OnAppend:     n.onAppend,
		EntryFormat:  command.EntryFormat,
		MaxFormat:    command.Format,
		OnWrite:      func(took time.Duration) { n.observed.writes.Observe(took.Seconds()) },
		OnVote:       n.voted,
		OnSnapshot: func(_ int64, took time.Duration) {
			n.observed.snapshots.Observe(took.Seconds())
			n.events.Add(events.Event{Kind: events.Took})
		},
		Wrap:     n.config.disk,
		Logf:     n.config.Logf,
		Progress: starting.verified,
	})
	if err != nil {
		return err
	}
	recovery, err := storage.ReadRecovery(n.config.Dir, n.config.ID, n.port.Address())
	switch {
	case err != nil:
	case recovery == nil:
		err = v.ForgetRecovery()
	default:
		var cluster peer.ClusterID
		if cluster, err = n.recoveredCluster(v, recovery, func() error { return starting.report(verifiedAt) }); err == nil {
			err = v.Recover(cluster)
		}
	}
	if err != nil {
		return errors.Join(err, v.Close())
	}
	n.port.SetClusterID(v.Cluster)
	n.machine.Reset()
	config := n.raftConfig()
	t := peer.NewTransport(n.port.Stream(), n.config.RaftLog, config.HeartbeatTimeout/4)
	replayed := &replay{Log: v.Log, machine: n.machine, limit: replayBytes}
	cache := storage.NewCache(replayed, logCacheBytes)
	log := &installed{LogStore: cache, newest: v.Snapshots.NewestEntry}
	v.Snapshots.OnInstalled(func(index, term uint64) { cache.Discard(v.Log, index, term) })
	v.Log.KeepAfter(func() uint64 { return n.servedAfter(t, v.Log) })
	i := &instance{log: log, cache: cache, transport: t, volume: v}
	seen := seams{log: &seenLog{log, v.Log, &n.events}, stable: newSeenStable(v.Log, &i.vote, &n.events, n.idAt),
		transport: &seenTransport{t, &n.events}}
	starting.watch(v)
	r, err := newRaft(config, n.machine, v, seen, recovery)
	if aborted := starting.end(v); aborted != nil {
		if err = aborted; r != nil {
			stopped := r.Shutdown()
			err = errors.Join(err, t.Close(), stopped.Error())
		}
	}
	if err == nil && recovery != nil {
		n.config.Logf("Recovered from %s as cluster %s: the members are now %v",
			storage.RecoveryFile, n.port.ClusterID(), recovery.Servers)
		err = v.FinishRecovery()
	}
	if errors.Is(err, errStopped) {
		err = <-n.failed
	}
	if err != nil {
		return errors.Join(err, t.Close(), v.Close())
	}
	replayed.raft.Store(r)
	log.raft.Store(r)
	i.raft = r
	t.SetStillLeads(func(term uint64, id raft.ServerID, address raft.ServerAddress) bool {
		isMember := func(s raft.Server) bool { return s.ID == id && s.Address == address }
		return i.leads() && r.CurrentTerm() == term && slices.ContainsFunc(i.servers(), isMember)
	})
	n.current.Store(i)
	t.SetGate(n.gate(i))
	n.observeLeaders(r)
	n.watchStates(r)
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
	// For each AppendEntries raft reads so many entries, of which only those are sent that
	// fit (peer.Transport): with large ones, more would be read for nothing.
	c.MaxAppendEntries = 16
	c.ShutdownOnRemove = false // a removed node stays, quiet, and can be joined again
	c.NoLegacyTelemetry = true
	// Apply does not wait for raft to take an entry: raft writes those of a batch
	// together. Its timeout still bounds what it did: with an ErrEnqueueTimeout, the
	// entry was never taken.
	c.BatchApplyCh = true
	return c
}

// errStopped is returned when the log has ended the goroutine that called it, after it
// called fail.
var errStopped = errors.New("stopped by the log")

// restorer keeps the last error of Restore, which NewRaft only logs.
type restorer struct {
	StateMachine
	err error // written by the goroutine of newRaft, until NewRaft returns
}

// Restore implements raft.FSM. Raft's loop waits for it when a snapshot of the leader is installed: that was prepared.
func (r *restorer) Restore(snapshot io.ReadCloser) error {
	if w, ok := snapshot.(raft.ReadCloserWrapper); ok {
		if state, ok := w.WrappedReadCloser().(*storage.PreparedState); ok {
			state.Restore()
			return nil
		}
	}
	err := r.StateMachine.Restore(snapshot)
	r.err = err
	return err
}

// seams are what raft is given of a volume and of the port, with what watches it (view.go).
type seams struct {
	log       raft.LogStore
	stable    raft.StableStore
	transport raft.Transport
}

// newRaft is raft.NewRaft in a goroutine of its own: the log ends the goroutine that meets
// a failure (storage.Log), and raft panics when an entry is missing.
func newRaft(c *raft.Config, machine StateMachine, v *storage.Volume, s seams, recovery *raft.Configuration,
) (r *raft.Raft, err error) {
	err = errStopped
	done := make(chan struct{})
	restoring := &restorer{StateMachine: machine}
	go func() {
		defer close(done)
		defer func() {
			if err != nil && restoring.err != nil {
				err = fmt.Errorf("%w: %w", err, restoring.err)
			}
		}()
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("%w: %v", storage.ErrCorrupt, p)
			}
		}()
		if recovery != nil {
			if err = raft.RecoverCluster(c, restoring, v.Log, v.Log, v.Snapshots, s.transport, *recovery); err != nil {
				err = fmt.Errorf("%s: %w", storage.RecoveryFile, err)
				return
			}
			machine.Reset()
		}
		r, err = raft.NewRaft(c, restoring, s.log, s.stable, v.Snapshots, s.transport)
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

// ID is that of this node.
func (n *Node) ID() string { return n.config.ID }

// RaftAddress is where other nodes reach this one.
func (n *Node) RaftAddress() string { return n.port.Address() }

// StepDown hands leadership over if this node leads and another voter is there to
// take it, within ctx.
func (n *Node) StepDown(ctx context.Context) error {
	n.life.cancel()
	_, err := n.Transfer(ctx, "")
	if errors.Is(err, ErrNotLeader) || errors.Is(err, ErrConflict) || errors.Is(err, errRemoved) {
		return nil
	}
	return err
}

// lockMembers takes the member lock, within ctx and changeLimit: until unlockMembers, no
// other change of the membership is under way.
func (n *Node) lockMembers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, changeLimit)
	defer cancel()
	select {
	case n.membership <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("%w: another change of membership is under way", ErrNotApplied)
	}
	if n.life.now() == removed {
		n.unlockMembers()
		return errRemoved
	}
	return nil
}

func (n *Node) unlockMembers() { <-n.membership }

// Close stops raft, the raft port and the volume, in that order, within ctx. It
// may be called more than once.
func (n *Node) Close(ctx context.Context) error {
	n.life.closeOnce.Do(func() {
		n.life.end(closing)
		n.life.cancel()
		n.together.cancel()
		n.batcher.close()
		done := make(chan error, 1)
		go func() { done <- n.close() }()
		select {
		case n.life.closeErr = <-done:
		case <-ctx.Done():
			n.life.closeErr = fmt.Errorf("close node: %w", ctx.Err())
		}
	})
	return n.life.closeErr
}

func (n *Node) close() error {
	n.life.background.Wait()
	n.membership <- struct{}{} // not while the instance is replaced
	defer n.unlockMembers()
	i := n.current.Load()
	stopped := i.stop()
	close(n.life.stopped)
	defer n.life.end(closed)
	return errors.Join(stopped, n.port.Close(), i.closeVolume(), n.lock.Close())
}
