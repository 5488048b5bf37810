package storage

import (
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

// store is raft's log and stable store: raft-boltdb with what it lacks.
//
// Checksums: bbolt checks its meta pages only. Each entry carries a CRC-32C in
// Log.Extensions and each stable value one behind it, verified on every read.
// An end marker, written in the same transaction as the entries, holds the last
// index: entries that vanish from the end of the log do not go unnoticed.
//
// Fail-stop: hashicorp/raft goes on after a failed write in ways that lose or
// wedge (DESIGN section 4). Here the first failed write, damaged read, or write
// that takes longer than limit calls fail, and the calling goroutine of raft
// ends without ever seeing an error: raft never acts on what is not on disk.
//
// Its methods may be called concurrently, writers of the log one at a time, as
// raft does.
type Log struct {
	bolt        LogAndStable
	fail        func(error)           // ends the node; called any number of times
	limit       time.Duration         // for one write, before the disk counts as hung (hashicorp/raft issue 503)
	retainAfter func() (index uint64) // compaction keeps every entry above it
	last        atomic.Uint64         // index of the last entry, as the end marker has it

	onAppend func() // called when entries were stored; must not block
}

// LogAndStable is what store needs of raft-boltdb; tests put failing disks here.
type LogAndStable interface {
	raft.LogStore
	raft.StableStore
}

const endMarker uint64 = math.MaxUint64

var (
	ErrCorrupt = errors.New("damaged")

	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// FirstIndex implements raft.LogStore.
func (s *Log) FirstIndex() (uint64, error) {
	first, err := s.bolt.FirstIndex()
	if err != nil {
		s.fatal("read the log", err)
	}
	if first == endMarker {
		return 0, nil
	}
	return first, nil
}

// Last returns the index of the last entry. Unlike raft's own, it never blocks.
func (s *Log) Last() uint64 { return s.last.Load() }

// LastIndex implements raft.LogStore.
func (s *Log) LastIndex() (uint64, error) { return s.last.Load(), nil }

// GetLog implements raft.LogStore. The only error it returns is
// raft.ErrLogNotFound.
func (s *Log) GetLog(index uint64, log *raft.Log) error {
	err := readLog(s.bolt, index, log)
	if err != nil && !errors.Is(err, raft.ErrLogNotFound) {
		s.fatal("read the log", err)
	}
	return err
}

// StoreLog implements raft.LogStore.
func (s *Log) StoreLog(log *raft.Log) error { return s.StoreLogs([]*raft.Log{log}) }

// StoreLogs implements raft.LogStore: all entries are on disk, or the node ends.
func (s *Log) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	last := logs[len(logs)-1].Index
	s.write("append to the log", func() error { return appendLogs(s.bolt, logs, last) })
	s.last.Store(last)
	s.onAppend()
	return nil
}

// DeleteRange implements raft.LogStore. A range at the end is cut by moving the
// end marker first: after a crash between the two, opening the volume finishes it.
func (s *Log) DeleteRange(low, high uint64) error {
	first, err := s.FirstIndex()
	if err != nil {
		return err
	}
	last := s.last.Load()
	if high >= last {
		end := low - 1
		if low <= first {
			end = 0
		}
		s.write("truncate the log", func() error {
			if err := appendLogs(s.bolt, nil, end); err != nil {
				return err
			}
			return s.bolt.DeleteRange(low, last)
		})
		s.last.Store(end)
		return nil
	}
	if high = min(high, s.retainAfter()); high < low {
		return nil
	}
	s.write("compact the log", func() error { return s.bolt.DeleteRange(low, high) })
	return nil
}

// Set implements raft.StableStore.
func (s *Log) Set(key, value []byte) error {
	s.write("save "+string(key), func() error { return setStable(s.bolt, key, value) })
	return nil
}

// Get implements raft.StableStore. Opening the volume has made sure that every
// key that raft asks for is there.
func (s *Log) Get(key []byte) ([]byte, error) {
	value, err := getStable(s.bolt, key)
	if err != nil {
		s.fatal("read "+string(key), err)
	}
	return value, nil
}

// SetUint64 implements raft.StableStore.
func (s *Log) SetUint64(key []byte, value uint64) error {
	return s.Set(key, binary.BigEndian.AppendUint64(nil, value))
}

// GetUint64 implements raft.StableStore.
func (s *Log) GetUint64(key []byte) (uint64, error) {
	value, err := s.Get(key)
	if err == nil && len(value) != 8 {
		s.fatal("read "+string(key), fmt.Errorf("%d bytes, want 8: %w", len(value), ErrCorrupt))
	}
	return binary.BigEndian.Uint64(value), err
}

// watchTicks is in how many parts the limit of a write passes. A process that was paused
// (SIGSTOP, a virtual machine that moves) finds one of them over, however long that took:
// its disk has had no time to answer.
const watchTicks = 20

// write runs one write of the disk under the watchdog.
func (s *Log) write(what string, run func() error) {
	var answered atomic.Bool
	var tick func()
	left := watchTicks
	tick = func() {
		if left--; left > 0 && !answered.Load() {
			time.AfterFunc(s.limit/watchTicks, tick)
		} else if !answered.Load() {
			s.fail(fmt.Errorf("%s: the disk has not answered for %v", what, s.limit))
		}
	}
	watchdog := time.AfterFunc(s.limit/watchTicks, tick)
	defer func() { answered.Store(true); watchdog.Stop() }()
	if err := run(); err != nil {
		s.fatal(what, err)
	}
}

// fatal ends the node, and the calling goroutine with it.
func (s *Log) fatal(what string, err error) {
	s.fail(fmt.Errorf("%s: %w", what, err))
	runtime.Goexit()
}

// appendLogs writes logs, with their checksums, and an end marker that says
// last, in one transaction.
func appendLogs(to raft.LogStore, logs []*raft.Log, last uint64) error {
	sealed := make([]raft.Log, len(logs)+1)
	pointers := make([]*raft.Log, len(sealed))
	for i, l := range logs {
		sealed[i] = *l // raft and its LogCache go on using the original
	}
	sealed[len(logs)] = raft.Log{Index: endMarker, Data: binary.BigEndian.AppendUint64(nil, last)}
	for i := range sealed {
		l := &sealed[i]
		n := len(l.Extensions)
		l.Extensions = binary.BigEndian.AppendUint32(l.Extensions[:n:n], logChecksum(l))
		pointers[i] = l
	}
	return to.StoreLogs(pointers)
}

// readLog reads the entry at index into log and verifies its checksum. It
// returns raft.ErrLogNotFound, or an error that says what is damaged.
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

// readEnd returns the last index as the end marker has it.
func readEnd(from raft.LogStore) (uint64, error) {
	var marker raft.Log
	if err := readLog(from, endMarker, &marker); err != nil {
		return 0, fmt.Errorf("end marker of the log: %w", err)
	}
	if len(marker.Data) != 8 {
		return 0, fmt.Errorf("end marker of the log: %w", ErrCorrupt)
	}
	return binary.BigEndian.Uint64(marker.Data), nil
}

// logChecksum covers all that raft's safety rests on: not AppendedAt, a statistic.
func logChecksum(l *raft.Log) uint32 {
	var head [17]byte
	binary.BigEndian.PutUint64(head[0:], l.Index)
	binary.BigEndian.PutUint64(head[8:], l.Term)
	head[16] = byte(l.Type)
	sum := crc32.Update(0, castagnoli, head[:])
	sum = crc32.Update(sum, castagnoli, l.Extensions)
	return crc32.Update(sum, castagnoli, l.Data)
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

var _ LogAndStable = (*raftboltdb.BoltStore)(nil)
