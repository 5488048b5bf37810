package storage

import (
	"errors"
	"fmt"
	"io"
	"reflect"

	"github.com/hashicorp/raft"
)

// Received is a snapshot that came from another node: whole, verified and synced, but not yet one of the volume. Raft
// would read it off the wire in its only loop (raft.go: installSnapshot), which is deaf as long as that takes. Here the
// bytes are on the disk before raft hears of them: when it creates the snapshot that it has been told to install, it is
// given this one, and writes nothing.
type Received struct {
	snapshots *Snapshots
	sink      *pacedSink
	meta      snapshotHeader
	size      int64  // of the state
	restore   func() // of Receive
}

// Receive takes the state of a snapshot, size bytes, off r, and puts it on the disk as it comes. prepare reads what is
// written, to its end, and returns an error if it is no state of a snapshot; restore makes it the content of the state
// machine, which Open gives the chance to. After an error nothing is left. One snapshot is received at a time: raft is
// offered the one that was received last.
func (s *Snapshots) Receive(index, term uint64, configuration raft.Configuration, configurationIndex uint64,
	transport raft.Transport, size int64, r io.Reader,
	prepare func(io.Reader) (restore func(), err error)) (*Received, error) {
	sink, err := s.create(raft.SnapshotVersionMax, index, term, configuration, configurationIndex, transport)
	if err != nil {
		s.failure.Store(&err)
		return nil, err
	}
	counted := &countingReader{r: io.LimitReader(r, size)}
	restore, err := prepare(io.TeeReader(counted, sink))
	if err == nil && counted.n != size {
		err = fmt.Errorf("%d bytes came, not %d", counted.n, size)
	}
	if err == nil {
		err = sink.file.Sync()
	}
	if err != nil {
		return nil, errors.Join(err, sink.Cancel())
	}
	received := &Received{snapshots: s, sink: sink, size: size, restore: restore,
		meta: snapshotHeader{index, term, configuration, configurationIndex}}
	s.received.Store(received)
	return received, nil
}

// Discard removes the snapshot, unless raft has taken it. What is prepared of it is not to be restored any more.
func (r *Received) Discard() error {
	r.snapshots.prepared.CompareAndSwap(r, nil)
	if r.snapshots.received.CompareAndSwap(r, nil) {
		return r.sink.Cancel()
	}
	return nil
}

// takeReceived returns the sink of the snapshot that was received, if it has this metadata; nil: it has not.
func (s *Snapshots) takeReceived(meta snapshotHeader) raft.SnapshotSink {
	r := s.received.Load()
	if r == nil || !reflect.DeepEqual(r.meta, meta) || !s.received.CompareAndSwap(r, nil) {
		return nil
	}
	return &receivedSink{pacedSink: r.sink, received: r}
}

// receivedSink is the sink of a snapshot that is on the disk already.
type receivedSink struct {
	*pacedSink
	received *Received
}

// ReadFrom implements io.ReaderFrom, by which raft fills the sink that it has created for an install. It reads nothing.
func (s *receivedSink) ReadFrom(io.Reader) (int64, error) { return s.received.size, nil }

// Close implements raft.SnapshotSink. Raft has the state machine restore the snapshot next.
func (s *receivedSink) Close() error {
	err := s.pacedSink.Close()
	if err == nil {
		s.snapshots.prepared.Store(s.received)
	}
	return err
}

// Write fails: only the state machine writes, which is never to fill this sink.
func (s *receivedSink) Write([]byte) (int, error) {
	return 0, errors.New("this snapshot was received from another node")
}

// PreparedState is the state of a snapshot that raft has just installed, in the place of its bytes: these were read
// when they came. Restore is done in no time, while raft's loop waits for the state machine.
type PreparedState struct{ Restore func() }

// Read implements io.Reader, and fails.
func (*PreparedState) Read([]byte) (int, error) {
	return 0, errors.New("this snapshot was read when it was received")
}

// Close implements io.Closer.
func (*PreparedState) Close() error { return nil }

// openPrepared opens the snapshot that raft has just installed, once; nil: it is another one.
func (s *Snapshots) openPrepared(id string) (*raft.SnapshotMeta, *PreparedState) {
	r := s.prepared.Load()
	if r == nil || r.sink.ID() != id || !s.prepared.CompareAndSwap(r, nil) {
		return nil, nil
	}
	return &raft.SnapshotMeta{Version: raft.SnapshotVersionMax, ID: id, Index: r.meta.Index, Term: r.meta.Term,
			Configuration: r.meta.Configuration, ConfigurationIndex: r.meta.ConfigurationIndex, Size: r.size},
		&PreparedState{r.restore}
}

// countingReader counts what is read off r.
type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	return n, err
}
