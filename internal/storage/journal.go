package storage

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// minJournal and usualJournal are the bounds of JournalBytes, maxJournal that of a file which is read.
	minJournal   = 1 << 20
	usualJournal = 16 << 20
	maxJournal   = 64 << 20
	// moveAfter is how long an entry may be in the journal alone.
	moveAfter = time.Second
	// moveBytes is from how many bytes of records on raft.db takes them in another transaction, which bbolt holds in
	// memory.
	moveBytes = 8 << 20
)

// JournalBytes returns the size of the journal's file for a log of so many bytes before a snapshot: a quarter of it,
// but at least 1 MiB and at most 16. A small disk has a small one, as RAFT_SNAPSHOT_BYTES is set for it; 16 MiB are
// 4,096 lone appends, or seconds of many, between two moves.
func JournalBytes(snapshotBytes uint64) int64 {
	return int64(min(max(snapshotBytes/4/journalPage*journalPage, minJournal), usualJournal))
}

// journal is a log whose newest entries are on disk in a file that is overwritten in place, with one fdatasync for each
// call of StoreLogs, until raft.db takes them, in the background and many in one transaction. Raft.db stays the log of
// record: it states in the same transaction up to which record of the journal it has all. A bbolt transaction is two
// fdatasyncs, with pages of the tree all over the file.
//
// Whatever is not an append waits until raft.db has all of the journal, and is done there: the deletion of a range, so
// that no start brings its entries back, and an append that is too large for the file. The stable values, term and vote
// among them, never were in the journal: raft.db has them, synced, when Set returns. So each answer rests on one of
// the two files, and the order of a term and the entries of that term is the order in which they were synced.
//
// It holds the entries of its records in memory; both are bounded by the size of the file. Its methods may be called
// concurrently, StoreLogs by one at a time, as raft does. After the first failed write of either file, every write
// fails.
type journal struct {
	LogAndStable // raft.db

	file    ringFile
	epoch   uint32
	sectors uint64 // of the ring

	writing sync.Mutex // held by StoreLogs; guards buffer and next
	buffer  []byte
	next    journalPosition // what the next record comes behind

	moving sync.Mutex // held while raft.db takes records

	mu      sync.Mutex // guards what follows
	room    sync.Cond  // records are gone from the ring, or a write has failed
	records []journalRecord
	used    uint64               // sectors of records
	entries map[uint64]*raft.Log // of records; the newest one of an index
	failed  error

	wake          chan struct{} // of capacity 1: there is something to move
	stop, stopped chan struct{} // of run
}

// journalRecord is what one call of StoreLogs has written.
type journalRecord struct {
	at      journalPosition // of raft.db, once it has the record
	sectors uint64
	logs    []*raft.Log // sealed; the end marker is the last of them
}

var _ LogAndStable = (*journal)(nil)

// newJournal returns a journal without a file, which holds records that raft.db lacks.
func newJournal(below LogAndStable, records []journalRecord) *journal {
	j := &journal{LogAndStable: below, records: records, entries: make(map[uint64]*raft.Log),
		wake: make(chan struct{}, 1), stop: make(chan struct{}), stopped: make(chan struct{})}
	j.room.L = &j.mu
	for _, r := range records {
		j.used += r.sectors
		for _, log := range r.logs {
			j.entries[log.Index] = log
		}
	}
	return j
}

// open gives a journal that holds no record a file of size bytes, with no record of this epoch in it.
func (j *journal) open(file ringFile, size int64, epoch uint32) {
	j.file, j.epoch, j.sectors = file, epoch, uint64(size-journalPage)/sectorSize
	j.next = journalPosition{epoch: epoch}
}

// run moves records to raft.db until close. Watched runs one move; it need not return if that fails.
func (j *journal) run(watched func(move func() error)) {
	defer close(j.stopped)
	for {
		select {
		case <-j.stop:
			return
		case <-j.wake:
			watched(j.move)
		}
	}
}

// StoreLogs implements raft.LogStore. The last log must be the end marker.
func (j *journal) StoreLogs(logs []*raft.Log) error {
	j.writing.Lock()
	defer j.writing.Unlock()
	if n := len(logs); n == 0 || logs[n-1].Index != endMarker || len(logs[n-1].Data) != 8 {
		return errors.New("an append without an end marker")
	}
	_, padded := recordSectors(logs)
	if padded > j.sectors/2 {
		if err := j.move(); err != nil {
			return err
		}
		if err := j.storeBelow(logs, j.next); err != nil {
			return j.fail(err)
		}
		return nil
	}
	if err := j.waitRoom(padded); err != nil {
		return err
	}
	record := journalRecord{at: j.behind(padded), sectors: padded, logs: logs}
	if err := j.append(record); err != nil {
		return j.fail(fmt.Errorf("journal: %w", err))
	}
	j.next = record.at
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.records) == 0 {
		time.AfterFunc(moveAfter, j.wakeUp)
	}
	j.records = append(j.records, record)
	j.used += padded
	for _, log := range logs {
		j.entries[log.Index] = log
	}
	if j.used >= j.sectors/2 {
		j.wakeUp()
	}
	return nil
}

// behind is where the record after the next one begins, if the next one takes so many sectors.
func (j *journal) behind(padded uint64) journalPosition {
	return journalPosition{j.epoch, j.next.record + 1, uint32((uint64(j.next.sector) + padded) % j.sectors)}
}

// waitRoom waits until the ring has room for so many sectors.
func (j *journal) waitRoom(padded uint64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.failed == nil && j.used+padded > j.sectors {
		j.wakeUp()
		j.room.Wait()
	}
	return j.failed
}

// append writes a record behind the last one. It is on disk when append returns.
func (j *journal) append(r journalRecord) error {
	j.buffer = appendRecord(j.buffer[:0], j.epoch, r.at.record, r.logs)
	begin := int64(j.next.sector) * sectorSize
	fits := min(int64(len(j.buffer)), int64(j.sectors)*sectorSize-begin) // up to the end of the ring
	if _, err := j.file.WriteAt(j.buffer[:fits], begin); err != nil {
		return err
	}
	if rest := j.buffer[fits:]; len(rest) > 0 {
		if _, err := j.file.WriteAt(rest, 0); err != nil {
			return err
		}
	}
	if cap(j.buffer) > moveBytes/8 { // a large one is rare
		j.buffer = nil
	}
	return j.file.Sync()
}

// move has raft.db take all records that were there when it was called. It returns when they are on disk there.
func (j *journal) move() error {
	j.moving.Lock()
	defer j.moving.Unlock()
	j.mu.Lock()
	left := len(j.records)
	j.mu.Unlock()
	for left > 0 {
		n, err := j.moveSome(left)
		if err != nil {
			return err
		}
		left -= n
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.records) > 0 { // they came while others were there, whose time was set
		time.AfterFunc(moveAfter, j.wakeUp)
	}
	return nil
}

// moveSome has raft.db take at least one and at most limit records, in one transaction, and returns how many. Their
// place in the ring is free when they are on disk.
func (j *journal) moveSome(limit int) (n int, err error) {
	j.mu.Lock()
	failed := j.failed
	var logs []*raft.Log
	size := uint64(0)
	for n < limit && (n == 0 || size < moveBytes) {
		r := j.records[n]
		logs = append(logs, r.logs[:len(r.logs)-1]...)
		size += r.sectors * sectorSize
		n++
	}
	taken := j.records[:n]
	j.mu.Unlock()
	if failed != nil {
		return 0, failed
	}
	last := taken[n-1]
	if err := j.storeBelow(append(logs, last.logs[len(last.logs)-1]), last.at); err != nil {
		return 0, j.fail(err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, r := range taken {
		j.used -= r.sectors
		for _, log := range r.logs {
			if j.entries[log.Index] == log {
				delete(j.entries, log.Index)
			}
		}
	}
	j.records = slices.Clone(j.records[n:]) // so that what was moved is free
	j.room.Broadcast()
	return n, nil
}

// storeBelow has raft.db take entries, whose end marker then states a position.
func (j *journal) storeBelow(logs []*raft.Log, at journalPosition) error {
	last := len(logs) - 1
	marker := &raft.Log{Index: endMarker, Data: logs[last].Data, Extensions: at.encode()}
	seal(marker)
	return j.LogAndStable.StoreLogs(append(logs[:last:last], marker))
}

// fail has every later write fail with the first error, and returns that.
func (j *journal) fail(err error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.failed == nil {
		j.failed = err
	}
	j.room.Broadcast()
	return j.failed
}

// wakeUp has run move what is there.
func (j *journal) wakeUp() {
	select {
	case j.wake <- struct{}{}:
	default: // it will, anyhow
	}
}

// StoreLog implements raft.LogStore. It fails: an append has an end marker.
func (j *journal) StoreLog(log *raft.Log) error { return j.StoreLogs([]*raft.Log{log}) }

// GetLog implements raft.LogStore. An entry is gone from the records only when raft.db has it.
func (j *journal) GetLog(index uint64, log *raft.Log) error {
	j.mu.Lock()
	entry := j.entries[index]
	j.mu.Unlock()
	if entry == nil {
		return j.LogAndStable.GetLog(index, log)
	}
	*log = *entry
	return nil
}

// FirstIndex implements raft.LogStore.
func (j *journal) FirstIndex() (uint64, error) {
	j.mu.Lock()
	own := endMarker
	for _, r := range j.records {
		for _, log := range r.logs {
			own = min(own, log.Index)
		}
	}
	j.mu.Unlock() // before raft.db is asked: what is moved meanwhile is in both
	first, err := j.LogAndStable.FirstIndex()
	if err == nil && first == 0 {
		return own, nil
	}
	return min(first, own), err
}

// DeleteRange implements raft.LogStore.
func (j *journal) DeleteRange(low, high uint64) error {
	if err := j.move(); err != nil {
		return err
	}
	return j.LogAndStable.DeleteRange(low, high)
}

// pendingBytes returns how many bytes raft.db is still to take.
func (j *journal) pendingBytes() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.used * sectorSize
}

// close ends run, has raft.db take the rest, and closes the file. No method may be called afterwards, and StoreLogs
// must not be under way. With an error, the journal holds what it held.
func (j *journal) close() error {
	close(j.stop)
	<-j.stopped
	return errors.Join(j.move(), j.file.Close())
}

// abandon ends run, and closes the file as it is.
func (j *journal) abandon() error {
	close(j.stop)
	return j.file.Close()
}
