package node

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"raftkv/internal/storage"
)

// A start takes about as long for what storage verifies as for what raft reads again.
const verifiedAt = 0.6

const (
	// quietStart is how long a start may take before it is in the log, and startLines how often it is from then on.
	quietStart = 2 * time.Second
	startLines = time.Second
)

// ErrStartAborted is wrapped by the error of Open when Config.Progress has returned one.
var ErrStartAborted = errors.New("the start was aborted")

// starting reports how far a start is. Its methods may be called by several goroutines at once: some of raft's read
// before NewRaft returns.
type starting struct {
	config   *Config
	progress func(fraction float64) error

	mu      sync.Mutex // guards what follows
	next    time.Time  // when the next line is due
	aborted error      // by progress
}

// newStarting is for one call of start. Only in Open a start may be aborted: a node that moves to another cluster has
// nothing else to fall back to.
func (n *Node) newStarting() *starting {
	s := &starting{config: &n.config, next: time.Now().Add(quietStart)}
	if n.current.Load() == nil {
		s.progress = n.config.Progress
	}
	return s
}

// report calls Config.Progress and logs a line now and then. Its error wraps ErrStartAborted.
func (s *starting) report(fraction float64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Now().After(s.next) {
		s.next = time.Now().Add(startLines)
		s.config.Logf("Starting: %d %% of volume %s is read", int(fraction*100), s.config.Dir)
	}
	if s.progress == nil || s.aborted != nil {
		return s.aborted
	}
	if err := s.progress(fraction); err != nil {
		s.aborted = fmt.Errorf("%w: %w", ErrStartAborted, err)
	}
	return s.aborted
}

// verified reports what storage has verified.
func (s *starting) verified(fraction float64) error { return s.report(verifiedAt * fraction) }

// watch reports what raft reads from v, until end. The size of a snapshot is not known: meanwhile the fraction stays.
func (s *starting) watch(v *storage.Volume) {
	v.Snapshots.OnRead(func() error { return s.report(verifiedAt) })
	v.Log.OnRead(func(index uint64) error {
		return s.report(verifiedAt + (1-verifiedAt)*float64(index)/float64(max(v.Log.Last(), index)))
	})
}

// end returns why the start was aborted, which raft does not return for a snapshot; nil: it was not.
func (s *starting) end(v *storage.Volume) error {
	v.Snapshots.OnRead(nil)
	v.Log.OnRead(nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.aborted
}
