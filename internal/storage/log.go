package storage

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// Log is raft's log and stable store: raft-boltdb with what it lacks.
//
// Checksums: bbolt checks its meta pages only. Each entry carries a CRC-32C in Log.Extensions and each stable value
// one behind it, verified on every read. An end marker, written in the same transaction as the entries, holds the
// last index, so that entries that vanish from the end of the log do not go unnoticed.
//
// Fail-stop: hashicorp/raft goes on after a failed write (raft.go: dispatchLogs, appendEntries), in ways that lose
// entries or wedge the node; docs/design.md has them under "What hashicorp/raft leaves to its users". So the first
// failed write, damaged read, or write that takes longer than Options.WriteTimeout calls Options.Fatal, and the
// calling goroutine of raft ends without ever seeing an error: raft never acts on what is not on disk.
//
// Its methods may be called concurrently, writers of the log one at a time, as raft does.
type Log struct {
	disk         LogAndStable
	onFatal      func(error)           // Options.Fatal
	writeTimeout time.Duration         // for one write, before the disk counts as hung
	retainAfter  func() (index uint64) // compaction keeps every entry above it
	last         atomic.Uint64         // index of the last entry, as the end marker has it
	sizes        *sizes                // of its entries
	onAppend     func()                // called when entries were stored; must not block
	entryFormat  func([]byte) int      // Options.EntryFormat
	format       uint64                // that the volume states; used by writers of the log alone
	journal      uint32                // epoch of the journal that the volume names; 0: none

	keepAfter atomic.Pointer[func() uint64]
	onRead    atomic.Pointer[func(index uint64) error]
	onWrite   func(time.Duration)                 // Options.OnWrite
	onVote    func(term uint64, candidate string) // Options.OnVote

	voteTerm uint64 // that was saved last; used by raft's main loop alone
}

// LogAndStable is what Log needs of raft-boltdb. Tests put failing disks here.
type LogAndStable interface {
	raft.LogStore
	raft.StableStore
}

var _ LogAndStable = (*raftboltdb.BoltStore)(nil)

// ErrCorrupt is wrapped by every error about damage: what is on disk is not what was written. A node must not start
// from it, because no repair here could tell what is missing.
var ErrCorrupt = errors.New("damaged")

// endMarker is the index of the end marker, an entry that raft never sees.
const endMarker uint64 = math.MaxUint64

// newLog returns the log on disk whose last index is last.
func newLog(disk LogAndStable, last uint64, retainAfter func() uint64, o Options) *Log {
	l := &Log{
		disk:         disk,
		onFatal:      o.Fatal,
		writeTimeout: o.WriteTimeout,
		retainAfter:  retainAfter,
		sizes:        cmp.Or(o.sizes, new(sizes)),
		onAppend:     o.OnAppend,
		entryFormat:  o.EntryFormat,
		onWrite:      o.OnWrite,
		onVote:       o.OnVote,
	}
	l.last.Store(last)
	return l
}

// FirstIndex implements raft.LogStore.
func (l *Log) FirstIndex() (uint64, error) {
	first, err := l.disk.FirstIndex()
	if err != nil {
		l.fatal("read the log", err)
	}
	if first == endMarker {
		return 0, nil
	}
	return first, nil
}

// Last returns the index of the last entry. Unlike raft's own LastIndex, it never blocks.
func (l *Log) Last() uint64 { return l.last.Load() }

// BytesAbove returns about how many bytes the entries above index take, rather more than less.
func (l *Log) BytesAbove(index uint64) uint64 { return l.sizes.above(index) }

// IndexBefore returns an index above which the entries take at most so many bytes, by the megabyte; 0: all do.
func (l *Log) IndexBefore(bytes uint64) uint64 { return l.sizes.from(bytes) }

// LastIndex implements raft.LogStore.
func (l *Log) LastIndex() (uint64, error) { return l.last.Load(), nil }

// OnRead has f called before each read of an entry, from when it returns; nil: no more. An error of f is as that of a
// disk: it ends the node.
func (l *Log) OnRead(f func(index uint64) error) {
	if f == nil {
		l.onRead.Store(nil)
		return
	}
	l.onRead.Store(&f)
}

// GetLog implements raft.LogStore. The only error that it returns is raft.ErrLogNotFound.
func (l *Log) GetLog(index uint64, log *raft.Log) error {
	if f := l.onRead.Load(); f != nil {
		if err := (*f)(index); err != nil {
			l.fatal("read the log", err)
		}
	}
	err := readLog(l.disk, index, log)
	if err != nil && !errors.Is(err, raft.ErrLogNotFound) {
		l.fatal("read the log", err)
	}
	return err
}

// StoreLog implements raft.LogStore.
func (l *Log) StoreLog(log *raft.Log) error { return l.StoreLogs([]*raft.Log{log}) }

// StoreLogs implements raft.LogStore: all entries are on disk when it returns, or it does not return.
func (l *Log) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	last := logs[len(logs)-1].Index
	l.raiseFormat(logs)
	l.write("append to the log", func() error { return appendLogs(l.disk, logs, last) })
	for _, log := range logs {
		l.sizes.add(log.Index, entrySize(log))
	}
	l.last.Store(last)
	l.onAppend()
	return nil
}

// raiseFormat has the volume state the format of logs, before they are on disk, if it is a higher one: a program that
// does not know it refuses the volume, and does not fail at an entry that it can't decode.
func (l *Log) raiseFormat(logs []*raft.Log) {
	format := l.format
	for _, log := range logs {
		if log.Type == raft.LogCommand {
			format = max(format, uint64(l.entryFormat(log.Data)))
		}
	}
	if format > l.format {
		_ = l.SetUint64(keyFormat, joinFormat(format, l.journal)) // returns only if it is on disk
		l.format = format
	}
}

// DeleteRange implements raft.LogStore. Raft cuts the end off when a new leader has other entries there, and the
// beginning off when a snapshot has it.
//
// The end marker moves before the entries at the end are deleted: after a crash between the two, Open finishes it. Of
// the beginning, what the older of two snapshots does not have is kept, more than raft asks for: with that, a damaged
// newest snapshot loses nothing. So is what KeepAfter asks for.
func (l *Log) DeleteRange(low, high uint64) error {
	first, err := l.FirstIndex()
	if err != nil {
		return err
	}
	last := l.last.Load()
	if high >= last {
		end := low - 1
		if low <= first {
			end = 0
		}
		l.write("truncate the log", func() error {
			if err := appendLogs(l.disk, nil, end); err != nil {
				return err
			}
			return l.disk.DeleteRange(low, last)
		})
		l.last.Store(end)
		l.sizes.deleted(low, last)
		return nil
	}
	high = min(high, l.retainAfter())
	if f := l.keepAfter.Load(); f != nil {
		high = min(high, (*f)())
	}
	if high < low {
		return nil
	}
	l.write("compact the log", func() error { return l.disk.DeleteRange(low, high) })
	l.sizes.deleted(low, high)
	return nil
}

// Discard drops the entries up to index if the one at index is not of term: a snapshot that ends with that entry has
// been installed, so that they are not, or not known to be, those that the cluster has committed. Raft keeps them
// (raft.go: installSnapshot), against the Raft paper (figure 13, steps 6 and 7): this node, as a leader, would send
// them to a member with the same ones, as committed. The entries beyond index raft compares with the leader's as
// always.
func (l *Log) Discard(index, term uint64) {
	var entry raft.Log
	err := readLog(l.disk, index, &entry)
	if err == nil && entry.Term == term {
		return
	}
	if err != nil && !errors.Is(err, raft.ErrLogNotFound) {
		l.fatal("read the log", err)
	}
	first, _ := l.FirstIndex()
	last := l.last.Load()
	switch {
	case first == 0 || first > index:
	case last <= index:
		_ = l.DeleteRange(first, last) // ends the node if it fails
	default:
		l.write("discard entries before a snapshot", func() error { return l.disk.DeleteRange(first, index) })
		l.sizes.deleted(first, index)
	}
}

// KeepAfter has DeleteRange keep the entries above the index that f returns, too.
func (l *Log) KeepAfter(f func() (index uint64)) { l.keepAfter.Store(&f) }

// Set implements raft.StableStore.
func (l *Log) Set(key, value []byte) error {
	l.write("save "+string(key), func() error { return setStable(l.disk, key, value) })
	switch { // raft saves the term of a vote first (raft.go: persistVote)
	case bytes.Equal(key, keyLastVoteTerm):
		l.voteTerm = binary.BigEndian.Uint64(value)
	case bytes.Equal(key, keyLastVoteCand) && l.onVote != nil:
		l.onVote(l.voteTerm, string(value))
	}
	return nil
}

// Get implements raft.StableStore. Open has made sure that every key that raft asks for is there.
func (l *Log) Get(key []byte) ([]byte, error) {
	value, err := getStable(l.disk, key)
	if err != nil {
		l.fatal("read "+string(key), err)
	}
	return value, nil
}

// SetUint64 implements raft.StableStore.
func (l *Log) SetUint64(key []byte, value uint64) error {
	return l.Set(key, binary.BigEndian.AppendUint64(nil, value))
}

// GetUint64 implements raft.StableStore.
func (l *Log) GetUint64(key []byte) (uint64, error) {
	value, err := l.Get(key)
	if err == nil && len(value) != 8 {
		l.fatal("read "+string(key), fmt.Errorf("%d bytes, want 8: %w", len(value), ErrCorrupt))
	}
	return binary.BigEndian.Uint64(value), err
}

// watchTicks is the number of parts in which the time for a write passes. A process that was paused (SIGSTOP, a
// virtual machine that moves) finds one of them over, however long that took: its disk has had no time to answer.
const watchTicks = 20

// write runs one write of the log under the watchdog, and returns only if it succeeded.
func (l *Log) write(what string, run func() error) {
	began := time.Now()
	l.watched(what, run)
	if l.onWrite != nil {
		l.onWrite(time.Since(began))
	}
}

// watched runs one write of the disk under the watchdog, and returns only if it succeeded. A leader whose disk hangs
// sends its heartbeats on, so that no other node stands for election (hashicorp/raft issue 503): it has to end.
func (l *Log) watched(what string, run func() error) {
	var answered atomic.Bool
	var tick func()
	left := watchTicks
	tick = func() {
		if left--; left > 0 && !answered.Load() {
			time.AfterFunc(l.writeTimeout/watchTicks, tick)
		} else if !answered.Load() {
			l.onFatal(fmt.Errorf("%s: the disk has not answered for %v", what, l.writeTimeout))
		}
	}
	watchdog := time.AfterFunc(l.writeTimeout/watchTicks, tick)
	defer func() { answered.Store(true); watchdog.Stop() }()
	if err := run(); err != nil {
		l.fatal(what, err)
	}
}

// fatal ends the node, and the calling goroutine with it.
func (l *Log) fatal(what string, err error) {
	l.onFatal(fmt.Errorf("%s: %w", what, err))
	runtime.Goexit()
}

// appendLogs writes logs, with their checksums, and an end marker that holds last, in one transaction.
func appendLogs(to raft.LogStore, logs []*raft.Log, last uint64) error {
	sealed := make([]raft.Log, len(logs)+1)
	pointers := make([]*raft.Log, len(sealed))
	for i, log := range logs {
		sealed[i] = *log // raft and its LogCache (log_cache.go) go on using the original
	}
	sealed[len(logs)] = raft.Log{Index: endMarker, Data: binary.BigEndian.AppendUint64(nil, last)}
	for i := range sealed {
		seal(&sealed[i])
		pointers[i] = &sealed[i]
	}
	return to.StoreLogs(pointers)
}

// readLog reads the entry at index into log, verifies its checksum and takes it off. It returns raft.ErrLogNotFound,
// or an error that describes the damage.
func readLog(from raft.LogStore, index uint64, log *raft.Log) error {
	if err := from.GetLog(index, log); err != nil {
		return err
	}
	n := len(log.Extensions) - crc32.Size
	if n < 0 {
		return fmt.Errorf("entry %d has no checksum: %w", index, ErrCorrupt)
	}
	checksum := binary.BigEndian.Uint32(log.Extensions[n:])
	if log.Extensions = log.Extensions[:n]; n == 0 {
		log.Extensions = nil
	}
	if log.Index != index || checksum != logChecksum(log) {
		return fmt.Errorf("entry %d fails its checksum: %w", index, ErrCorrupt)
	}
	return nil
}

// seal appends the checksum of a log to its extensions.
func seal(log *raft.Log) {
	n := len(log.Extensions)
	log.Extensions = binary.BigEndian.AppendUint32(log.Extensions[:n:n], logChecksum(log))
}

// readEnd returns what the end marker has: the last index, and up to where the journal is in raft.db.
func readEnd(from raft.LogStore) (end uint64, moved journalPosition, err error) {
	var marker raft.Log
	if err := readLog(from, endMarker, &marker); err != nil {
		return 0, moved, fmt.Errorf("end marker of the log: %w", err)
	}
	if moved, err = decodePosition(marker.Extensions); err != nil || len(marker.Data) != 8 {
		return 0, moved, fmt.Errorf("end marker of the log: %w", cmp.Or(err, ErrCorrupt))
	}
	return binary.BigEndian.Uint64(marker.Data), moved, nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// logChecksum covers all that raft's safety rests on, which AppendedAt, a statistic, is not part of.
func logChecksum(log *raft.Log) uint32 {
	var head [17]byte
	binary.BigEndian.PutUint64(head[0:], log.Index)
	binary.BigEndian.PutUint64(head[8:], log.Term)
	head[16] = byte(log.Type)
	sum := crc32.Update(0, castagnoli, head[:])
	sum = crc32.Update(sum, castagnoli, log.Extensions)
	return crc32.Update(sum, castagnoli, log.Data)
}

// setStable writes value with a checksum over key and value behind it.
func setStable(to raft.StableStore, key, value []byte) error {
	return to.Set(key, binary.BigEndian.AppendUint32(value[:len(value):len(value)], stableChecksum(key, value)))
}

// getStable reads what setStable wrote.
func getStable(from raft.StableStore, key []byte) ([]byte, error) {
	b, err := from.Get(key)
	if err != nil {
		return nil, fmt.Errorf("stable value %s: %w", key, err)
	}
	n := len(b) - crc32.Size
	if n < 0 || binary.BigEndian.Uint32(b[n:]) != stableChecksum(key, b[:n]) {
		return nil, fmt.Errorf("stable value %s fails its checksum: %w", key, ErrCorrupt)
	}
	return b[:n:n], nil
}

func stableChecksum(key, value []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value)
}
