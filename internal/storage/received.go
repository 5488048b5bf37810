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
	size      int64 // of the state
}

// Receive takes the state of a snapshot, size bytes, off r, and puts it on the disk as it comes. verify reads what is
// written, to its end, and returns an error if it is no state of a snapshot. After an error nothing is left of it. One
// snapshot is received at a time: raft is offered the one that was received last.
func (s *Snapshots) Receive(index, term uint64, configuration raft.Configuration, configurationIndex uint64,
	transport raft.Transport, size int64, r io.Reader, verify func(io.Reader) error) (*Received, error) {
	sink, err := s.create(raft.SnapshotVersionMax, index, term, configuration, configurationIndex, transport)
	if err != nil {
		s.failure.Store(&err)
		return nil, err
	}
	counted := &countingReader{r: io.LimitReader(r, size)}
	err = verify(io.TeeReader(counted, sink))
	if err == nil && counted.n != size {
		err = fmt.Errorf("%d bytes came, not %d", counted.n, size)
	}
	if err == nil {
		err = sink.file.Sync()
	}
	if err != nil {
		return nil, errors.Join(err, sink.Cancel())
	}
	received := &Received{snapshots: s, sink: sink, size: size,
		meta: snapshotHeader{index, term, configuration, configurationIndex}}
	s.received.Store(received)
	return received, nil
}

// Discard removes the snapshot, unless raft has taken it.
func (r *Received) Discard() error {
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
	return &receivedSink{pacedSink: r.sink, size: r.size}
}

// receivedSink is the sink of a snapshot that is on the disk already.
type receivedSink struct {
	*pacedSink
	size int64
}

// ReadFrom implements io.ReaderFrom, by which raft fills the sink that it has created for an install. It reads nothing.
func (s *receivedSink) ReadFrom(io.Reader) (int64, error) { return s.size, nil }

// Write fails: only the state machine writes, which is never to fill this sink.
func (s *receivedSink) Write([]byte) (int, error) {
	return 0, errors.New("this snapshot was received from another node")
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
