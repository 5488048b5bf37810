package storage

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// Snapshots is raft's FileSnapshotStore with its metadata protected. Raft checks the state of a snapshot by a CRC-64,
// but its meta.json (index, term, configuration) by nothing (file_snapshot.go), so that a damaged one would be
// believed. Therefore each state begins with a header that repeats the metadata: a uvarint length and JSON. The
// header never leaves this type: Open takes it off, and what crosses the wire or reaches the state machine is the
// state alone.
type Snapshots struct {
	*raft.FileSnapshotStore
	dir string
	log hclog.Logger

	written atomic.Uint64 // bytes of state, over all snapshots
	pacer   Pacer         // of all of them
	failure atomic.Pointer[error]
	aborted atomic.Bool
	newest  atomic.Int64 // of Newest

	newestEntry atomic.Pointer[entryID] // of NewestEntry; nil: there is none
	onInstalled atomic.Pointer[func(index, term uint64)]
	onDone      func(bytes int64, took time.Duration) // Options.OnSnapshot; nil: none
	onRead      atomic.Pointer[func() error]
	received    atomic.Pointer[Received] // of Receive, until raft takes it
	prepared    atomic.Pointer[Received] // that raft has taken, until it opens it or Discard

	mu      sync.Mutex          // guards damaged
	damaged map[string]struct{} // IDs of those that usable could not open
}

// snapshotsKept is how many snapshots stay on disk. The log is kept back to the older one (see Log.DeleteRange), so
// that a damaged newest one loses nothing.
const snapshotsKept = 2

// openSnapshots opens the snapshots of a volume and removes what a crash left half written, which raft itself never
// does: the disk would fill.
func openSnapshots(volume string, log hclog.Logger) (*Snapshots, error) {
	dir := filepath.Join(volume, "snapshots")
	found, err := scanSnapshots(dir)
	if err != nil {
		return nil, err
	}
	if len(found.copies) > 0 {
		return nil, fmt.Errorf("%s is a copy of a snapshot, which raft would take for a snapshot of its own and remove: "+
			"move it out of %s, and start again", filepath.Join(dir, found.copies[0]), dir)
	}
	for _, name := range found.unfinished {
		path := filepath.Join(dir, name)
		log.Info("removing an unfinished snapshot", "path", path)
		if err := os.RemoveAll(path); err != nil {
			return nil, err
		}
	}
	files, err := raft.NewFileSnapshotStoreWithLogger(volume, snapshotsKept, log)
	if err != nil {
		return nil, err
	}
	return &Snapshots{FileSnapshotStore: files, dir: dir, log: log, damaged: make(map[string]struct{})}, nil
}

// errAborted is returned by what reads or writes a snapshot after Abort.
var errAborted = errors.New("the node is shutting down")

// Abort ends the reading and writing of snapshots within one step, for good. Raft waits for a snapshot that it takes,
// receives or sends when it shuts down, and a large one takes longer than a process may that has got SIGTERM. What was
// written so far is removed, or at the next start.
func (s *Snapshots) Abort() { s.aborted.Store(true) }

// OnRead has f called before each read of a snapshot's state, from when it returns; nil: no more. An error of f is
// that of the read.
func (s *Snapshots) OnRead(f func() error) {
	if f == nil {
		s.onRead.Store(nil)
		return
	}
	s.onRead.Store(&f)
}

// Failure returns why the last snapshot could not be written, nil if it was or none was tried. What the sender of an
// install or the state machine breaks off is no failure: they cancel it.
func (s *Snapshots) Failure() error {
	if err := s.failure.Load(); err != nil {
		return *err
	}
	return nil
}

// Create implements raft.SnapshotStore.
func (s *Snapshots) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, transport raft.Transport) (raft.SnapshotSink, error) {
	if sink := s.takeReceived(snapshotHeader{index, term, configuration, configurationIndex}); sink != nil {
		return sink, nil
	}
	sink, err := s.create(version, index, term, configuration, configurationIndex, transport)
	if err != nil {
		s.failure.Store(&err)
		return nil, err
	}
	return sink, nil
}

func (s *Snapshots) create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, transport raft.Transport) (*pacedSink, error) {
	header, err := encodeSnapshotHeader(snapshotHeader{index, term, configuration, configurationIndex})
	if err != nil {
		return nil, err
	}
	sink, err := s.FileSnapshotStore.Create(version, index, term, configuration, configurationIndex, transport)
	if err != nil {
		return nil, err
	}
	if _, err := sink.Write(header); err != nil {
		return nil, errors.Join(err, sink.Cancel())
	}
	file, err := os.Open(filepath.Join(s.dir, sink.ID()+".tmp", "state.bin"))
	if err != nil {
		return nil, errors.Join(err, sink.Cancel())
	}
	size := int64(len(header))
	return &pacedSink{SnapshotSink: sink, snapshots: s, file: file, created: time.Now(), size: size,
		last: entryID{index, term}}, nil
}

// List implements raft.SnapshotStore. It leaves out a snapshot whose metadata contradict its own name, and those that
// could not be opened at the start: raft fails to start when it is offered snapshots and can restore none of them
// (api.go: restoreSnapshot), although the log alone may have everything.
func (s *Snapshots) List() ([]*raft.SnapshotMeta, error) {
	all, err := s.FileSnapshotStore.List()
	if err != nil {
		return nil, err
	}
	var metas []*raft.SnapshotMeta
	for _, meta := range all {
		if index, err := snapshotIndex(meta.ID); err != nil || index != meta.Index {
			s.log.Warn("leaving out a snapshot whose metadata are damaged", "id", meta.ID, "index", meta.Index)
			continue
		}
		s.mu.Lock()
		_, damaged := s.damaged[meta.ID]
		s.mu.Unlock()
		if !damaged {
			metas = append(metas, meta)
		}
	}
	return metas, nil
}

// Open implements raft.SnapshotStore. The state is verified before a byte of it is returned. Of a snapshot that was
// received, and that raft has just installed, it is a *PreparedState, once.
func (s *Snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	if meta, state := s.openPrepared(id); meta != nil {
		return meta, state, nil
	}
	meta, state, err := s.FileSnapshotStore.Open(id) // which reads all of it for the CRC-64
	if err != nil {
		return nil, nil, fmt.Errorf("snapshot %s: %w", id, err)
	}
	r := bufio.NewReader(state)
	headerSize, err := readSnapshotHeader(r, meta)
	if err != nil {
		_ = state.Close()
		return nil, nil, fmt.Errorf("snapshot %s: %w", id, err)
	}
	bare := *meta
	bare.Size -= headerSize
	return &bare, &snapshotState{Reader: r, Closer: state, snapshots: s}, nil
}

type snapshotState struct {
	io.Reader
	io.Closer
	snapshots *Snapshots
}

func (s *snapshotState) Read(b []byte) (int, error) {
	if s.snapshots.aborted.Load() {
		return 0, errAborted
	}
	if f := s.snapshots.onRead.Load(); f != nil {
		if err := (*f)(); err != nil {
			return 0, err
		}
	}
	return s.Reader.Read(b)
}

// Written returns how many bytes of state were written since the volume was opened, over all snapshots: while an
// install is going on, it grows.
func (s *Snapshots) Written() uint64 { return s.written.Load() }

// entryID is an entry of the log.
type entryID struct{ index, term uint64 }

// NewestEntry returns the index and term of the last entry in the newest snapshot; 0, 0: there is none.
func (s *Snapshots) NewestEntry() (index, term uint64) {
	if e := s.newestEntry.Load(); e != nil {
		return e.index, e.term
	}
	return 0, 0
}

// OnInstalled has f called with the last entry of each snapshot that is complete on disk, before raft restores it: see
// Log.Discard.
func (s *Snapshots) OnInstalled(f func(index, term uint64)) { s.onInstalled.Store(&f) }

// Newest returns how many bytes the newest snapshot takes; 0: there is none.
func (s *Snapshots) Newest() int64 { return s.newest.Load() }

// Bytes returns how many bytes all snapshots on disk take, without what they have beside the state.
func (s *Snapshots) Bytes() (bytes uint64) {
	metas, _ := s.List() // an error: what can't be read takes no room that a snapshot would free
	for _, meta := range metas {
		bytes += uint64(meta.Size)
	}
	return bytes
}

// oldest returns the index of the oldest snapshot kept; 0 while there are fewer than snapshotsKept, because then the
// log alone must be able to rebuild everything.
func (s *Snapshots) oldest() uint64 {
	metas, err := s.List()
	if err != nil || len(metas) < snapshotsKept {
		return 0
	}
	return metas[len(metas)-1].Index
}

// usable returns the newest snapshot that can be opened, as raft will choose it at its start; nil when there is none.
func (s *Snapshots) usable() (*raft.SnapshotMeta, error) {
	metas, err := s.List()
	if err != nil {
		return nil, err
	}
	for _, meta := range metas {
		_, state, err := s.Open(meta.ID)
		if err == nil {
			_ = state.Close()
			s.newest.Store(meta.Size)
			s.newestEntry.Store(&entryID{meta.Index, meta.Term})
			return meta, nil
		}
		s.mu.Lock()
		s.damaged[meta.ID] = struct{}{}
		s.mu.Unlock()
	}
	return nil, nil
}

// newestNamed returns the highest index among the names of the snapshots on disk, readable or not; 0 when there are
// none.
func (s *Snapshots) newestNamed() (uint64, error) {
	found, err := scanSnapshots(s.dir)
	if err != nil {
		return 0, err
	}
	var newest uint64
	for _, name := range found.finished {
		index, _ := snapshotIndex(name) // finished has only names with an index
		newest = max(newest, index)
	}
	return newest, nil
}

// snapshotNames are the names of what is in the directory of the snapshots, apart from what has nothing to do with
// them, such as lost+found, a filer's .snapshot or an editor's file: that is left alone.
type snapshotNames struct {
	finished   []string // term-index-milliseconds, as raft names them (file_snapshot.go: snapshotName)
	unfinished []string // the same, and .tmp
	copies     []string // directories of other names that raft would list, because a meta.json is in them
}

// scanSnapshots reads dir, which may be missing. Names are compared, never matched as patterns: a volume's path may
// have brackets in it.
func scanSnapshots(dir string) (found snapshotNames, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return found, nil
	}
	if err != nil {
		return found, err
	}
	for _, entry := range entries {
		name := entry.Name()
		if !entry.IsDir() {
			continue
		}
		bare, unfinished := strings.CutSuffix(name, ".tmp")
		if _, err := snapshotIndex(bare); err == nil {
			if unfinished {
				found.unfinished = append(found.unfinished, name)
			} else {
				found.finished = append(found.finished, name)
			}
			continue
		}
		if _, err := os.Lstat(filepath.Join(dir, name, "meta.json")); err == nil && !unfinished {
			found.copies = append(found.copies, name)
		}
	}
	return found, nil
}

// snapshotIndex takes the index out of a snapshot's name, term-index-milliseconds (file_snapshot.go: snapshotName).
func snapshotIndex(name string) (index uint64, err error) {
	parts := strings.Split(name, "-")
	if len(parts) != 3 {
		return 0, fmt.Errorf("%s is not the name of a snapshot: %w", name, ErrCorrupt)
	}
	for i, part := range parts {
		number, err := strconv.ParseUint(part, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s is not the name of a snapshot: %w", name, ErrCorrupt)
		}
		if i == 1 {
			index = number
		}
	}
	return index, nil
}

// snapshotHeader repeats the metadata in front of the state.
type snapshotHeader struct {
	Index, Term        uint64
	Configuration      raft.Configuration
	ConfigurationIndex uint64
}

// maxSnapshotHeader bounds what a damaged length can make Open allocate.
const maxSnapshotHeader = 1 << 20

func encodeSnapshotHeader(header snapshotHeader) ([]byte, error) {
	b, err := json.Marshal(header)
	return append(binary.AppendUvarint(nil, uint64(len(b))), b...), err
}

// readSnapshotHeader takes the header off r, compares it with meta, and returns its length in bytes.
func readSnapshotHeader(r *bufio.Reader, meta *raft.SnapshotMeta) (int64, error) {
	n, err := binary.ReadUvarint(r)
	if err != nil || n > maxSnapshotHeader {
		return 0, fmt.Errorf("header: %w", ErrCorrupt)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return 0, fmt.Errorf("header: %w", ErrCorrupt)
	}
	var header snapshotHeader
	if err := json.Unmarshal(b, &header); err != nil {
		return 0, fmt.Errorf("header: %w", ErrCorrupt)
	}
	want := snapshotHeader{meta.Index, meta.Term, meta.Configuration, meta.ConfigurationIndex}
	if meta.Version != 1 || !reflect.DeepEqual(header, want) {
		return 0, fmt.Errorf("meta.json is not what the snapshot was written with: %w", ErrCorrupt)
	}
	return int64(len(binary.AppendUvarint(nil, n))) + int64(n), nil
}

// Pacer shares the bandwidth of a disk between all that write much to it beside the log: the snapshots that are taken
// and those that are received. One of them writes at a time, a step, and then all pause as long as that took, within
// pacerPause: together they get half of the disk, and no write of the log waits for more than one step. The zero value
// is ready. It may be used by several goroutines at once.
type Pacer struct{ mu sync.Mutex }

// pacerPause bounds the pause after a step: a disk that hangs for a moment is not left alone for as long.
const pacerPause = 20 * time.Millisecond

// Step calls write, which is to write and sync a few MiB at most, when it is the caller's turn.
func (p *Pacer) Step(write func() error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	began := time.Now()
	err := write()
	time.Sleep(min(time.Since(began), pacerPause))
	return err
}

// pacedSink writes a snapshot in steps of snapshotStep, each of which is synced, as Pacer has it: the disk and the
// processor are the log's too, and one sync of it all at the end would hold up every write meanwhile.
type pacedSink struct {
	raft.SnapshotSink
	snapshots *Snapshots
	file      *os.File // what the sink writes
	step      int      // bytes since the last sync
	created   time.Time
	size      int64 // bytes so far
	last      entryID
	ended     bool // by Close or Cancel, which both may be called again
}

// snapshotStep is how many bytes of a snapshot are synced at once.
const snapshotStep = 4 << 20

func (p *pacedSink) Write(b []byte) (int, error) {
	if p.snapshots.aborted.Load() {
		return 0, errAborted
	}
	p.snapshots.written.Add(uint64(len(b)))
	n, err := p.SnapshotSink.Write(b)
	p.size += int64(n)
	if p.step += n; err == nil && p.step >= snapshotStep {
		err = p.snapshots.pacer.Step(p.file.Sync)
		p.step = 0
	}
	if err != nil {
		p.snapshots.failure.Store(&err)
	}
	return n, err
}

// Close implements raft.SnapshotSink. Raft calls it after the state machine has.
func (p *pacedSink) Close() error {
	_ = p.file.Close() // nothing was written through it
	err := p.SnapshotSink.Close()
	switch {
	case err != nil:
		p.snapshots.failure.Store(&err)
	case !p.ended:
		p.snapshots.failure.Store(nil)
		p.snapshots.newest.Store(p.size)
		p.snapshots.newestEntry.Store(&p.last)
		if f := p.snapshots.onInstalled.Load(); f != nil {
			(*f)(p.last.index, p.last.term)
		}
		if p.snapshots.onDone != nil {
			p.snapshots.onDone(p.size, time.Since(p.created))
		}
	}
	p.ended = true
	return err
}

// Cancel implements raft.SnapshotSink.
func (p *pacedSink) Cancel() error {
	p.ended = true
	_ = p.file.Close()
	return p.SnapshotSink.Cancel()
}
