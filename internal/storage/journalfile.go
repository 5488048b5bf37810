package storage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/hashicorp/raft"
)

// The file of the journal, raft.db.journal: a page with a header, and a ring of sectors (README.md, "Journal").
//
// A record is one call of StoreLogs. It begins at a page, and its pages are written once: no sector that holds an
// acknowledged record is written again before raft.db has that record, so that a power cut can't tear it.
//
// A sector has a checksum of its own and states whose it is. A write that a power cut has torn leaves some sectors of
// the newest record as they were before, and those are whole too; a sector that is neither the record's nor whole was
// damaged. That is how a torn record, which nobody was told of, is told from a damaged one.
const (
	journalMagic   = "raftkvj"
	journalVersion = 1
	// magic 7, version 1, epoch 4, size of the file 8, CRC-32C 4
	journalHeader = len(journalMagic) + 1 + 4 + 8 + crc32.Size

	sectorSize = 512
	// CRC-32C of the rest of the sector 4, epoch 4, record 8, number of the sector in the record 4, sectors of the
	// record 4
	sectorHeader = 24
	sectorRoom   = sectorSize - sectorHeader
	pageSectors  = 8
	journalPage  = pageSectors * sectorSize // what the kernel writes at once, and many disks

	// index 8, term 8, type 1, time of AppendedAt 8, length of the extensions 4, length of the data 4
	journalEntry = 33
)

func journalPath(dir string) string { return boltPath(dir) + ".journal" }

// journalPosition is how far raft.db has what was in the journal. The end marker states it, in the transaction that
// moves the records. The zero value is that of a journal of which raft.db has nothing.
type journalPosition struct {
	epoch  uint32 // of the journal; 0: none
	record uint64 // the last one that raft.db has
	sector uint32 // of the ring, behind that record
}

// positionSize is that of an encoded journalPosition.
const positionSize = 16

func (p journalPosition) encode() []byte {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, positionSize), p.epoch)
	b = binary.BigEndian.AppendUint64(b, p.record)
	return binary.BigEndian.AppendUint32(b, p.sector)
}

func decodePosition(b []byte) (p journalPosition, err error) {
	switch len(b) {
	case 0:
		return p, nil
	case positionSize:
		return journalPosition{binary.BigEndian.Uint32(b), binary.BigEndian.Uint64(b[4:]),
			binary.BigEndian.Uint32(b[12:])}, nil
	}
	return p, fmt.Errorf("position of the journal: %d bytes: %w", len(b), ErrCorrupt)
}

// encodeHeader returns the header of a journal whose file has size bytes, padded to a page.
func encodeHeader(epoch uint32, size int64) []byte {
	b := append(make([]byte, 0, journalPage), journalMagic...)
	b = append(b, journalVersion)
	b = binary.BigEndian.AppendUint32(b, epoch)
	b = binary.BigEndian.AppendUint64(b, uint64(size))
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	return b[:journalPage]
}

// checkHeader returns an error unless b begins with the header of the journal of this epoch, of size bytes.
func checkHeader(b []byte, epoch uint32, size int64) error {
	if len(b) < journalHeader || string(b[:len(journalMagic)]) != journalMagic {
		return fmt.Errorf("it has no header: %w", ErrCorrupt)
	}
	sum := journalHeader - crc32.Size
	if binary.BigEndian.Uint32(b[sum:]) != crc32.Checksum(b[:sum], castagnoli) {
		return fmt.Errorf("its header fails its checksum: %w", ErrCorrupt)
	}
	b = b[len(journalMagic):]
	if b[0] != journalVersion {
		return fmt.Errorf("it is of version %d, this program knows version %d: %w", b[0], journalVersion, ErrNewer)
	}
	if got := binary.BigEndian.Uint32(b[1:]); got != epoch {
		return fmt.Errorf("it is another one than raft.db names: %w", ErrCorrupt)
	}
	if want := int64(binary.BigEndian.Uint64(b[5:])); want != size {
		return fmt.Errorf("it has %d bytes of %d: %w", size, want, ErrCorrupt)
	}
	return nil
}

// recordSectors returns how many sectors a record of logs takes, with those that fill its last page.
func recordSectors(logs []*raft.Log) (sectors, padded uint64) {
	size := 4
	for _, log := range logs {
		size += journalEntry + len(log.Extensions) + len(log.Data)
	}
	sectors = uint64(size+sectorRoom-1) / sectorRoom
	return sectors, (sectors + pageSectors - 1) / pageSectors * pageSectors
}

// appendRecord appends the sectors of a record to b, whole pages of them.
func appendRecord(b []byte, epoch uint32, record uint64, logs []*raft.Log) []byte {
	count, padded := recordSectors(logs)
	w := sectorWriter{b: b, epoch: epoch, record: record, count: uint32(count)}
	begin := len(b)
	w.next()
	w.write(binary.BigEndian.AppendUint32(nil, uint32(len(logs))))
	var head [journalEntry]byte
	for _, log := range logs {
		at := int64(0)
		if !log.AppendedAt.IsZero() {
			at = log.AppendedAt.UnixNano()
		}
		binary.BigEndian.PutUint64(head[0:], log.Index)
		binary.BigEndian.PutUint64(head[8:], log.Term)
		head[16] = byte(log.Type)
		binary.BigEndian.PutUint64(head[17:], uint64(at))
		binary.BigEndian.PutUint32(head[25:], uint32(len(log.Extensions)))
		binary.BigEndian.PutUint32(head[29:], uint32(len(log.Data)))
		w.write(head[:])
		w.write(log.Extensions)
		w.write(log.Data)
	}
	w.seal()
	n := int(padded)*sectorSize - (len(w.b) - begin)
	return append(w.b, make([]byte, n)...)
}

// sectorWriter spreads bytes over sectors.
type sectorWriter struct {
	b             []byte
	epoch         uint32
	record        uint64
	number, count uint32
	left          int // of the sector that b ends with
}

// next begins a sector.
func (w *sectorWriter) next() {
	w.b = binary.BigEndian.AppendUint32(append(w.b, 0, 0, 0, 0), w.epoch)
	w.b = binary.BigEndian.AppendUint64(w.b, w.record)
	w.b = binary.BigEndian.AppendUint32(w.b, w.number)
	w.b = binary.BigEndian.AppendUint32(w.b, w.count)
	w.number, w.left = w.number+1, sectorRoom
}

func (w *sectorWriter) write(p []byte) {
	for len(p) > 0 {
		if w.left == 0 {
			w.seal()
			w.next()
		}
		n := min(len(p), w.left)
		w.b, p, w.left = append(w.b, p[:n]...), p[n:], w.left-n
	}
}

// seal fills the sector that b ends with, and gives it its checksum.
func (w *sectorWriter) seal() {
	w.b = append(w.b, make([]byte, w.left)...)
	s := w.b[len(w.b)-sectorSize:]
	binary.BigEndian.PutUint32(s, crc32.Checksum(s[4:], castagnoli))
}

// errRecord is wrapped by the errors of decodeRecord.
var errRecord = errors.New("it has a record that can't be decoded")

// decodeRecord returns the entries whose encoding b begins with; the rest of b is zeros. The entries refer to b.
func decodeRecord(b []byte) ([]*raft.Log, error) {
	take := func(n uint64) (p []byte) {
		if n > uint64(len(b)) {
			return nil
		}
		p, b = b[:n:n], b[n:]
		return p
	}
	head := take(4)
	if head == nil {
		return nil, errRecord
	}
	count := uint64(binary.BigEndian.Uint32(head))
	if count == 0 || count > uint64(len(b))/journalEntry {
		return nil, fmt.Errorf("%w: %d entries", errRecord, count)
	}
	logs := make([]*raft.Log, count)
	for i := range logs {
		if head = take(journalEntry); head == nil {
			return nil, fmt.Errorf("%w: entry %d is cut short", errRecord, i)
		}
		log := &raft.Log{Index: binary.BigEndian.Uint64(head), Term: binary.BigEndian.Uint64(head[8:]),
			Type: raft.LogType(head[16])}
		if at := int64(binary.BigEndian.Uint64(head[17:])); at != 0 {
			log.AppendedAt = time.Unix(0, at)
		}
		extensions, data := uint64(binary.BigEndian.Uint32(head[25:])), uint64(binary.BigEndian.Uint32(head[29:]))
		if extensions+data > uint64(len(b)) {
			return nil, fmt.Errorf("%w: entry %d is cut short", errRecord, i)
		}
		if extensions > 0 {
			log.Extensions = take(extensions)
		}
		if data > 0 {
			log.Data = take(data)
		}
		logs[i] = log
	}
	if !isZero(b) {
		return nil, fmt.Errorf("%w: %d bytes too many", errRecord, len(b))
	}
	if last := logs[count-1]; last.Index != endMarker || len(last.Data) != 8 {
		return nil, fmt.Errorf("%w: no end marker", errRecord)
	}
	return logs, nil
}

func isZero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeroPage))
		if !bytes.Equal(b[:n], zeroPage[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}

var zeroPage [journalPage]byte

// sector is a sector as it is found.
type sector struct {
	bytes         []byte
	whole         bool // its checksum fits
	epoch         uint32
	record        uint64
	number, count uint32
}

func parseSector(b []byte) sector {
	return sector{b, binary.BigEndian.Uint32(b) == crc32.Checksum(b[4:sectorSize], castagnoli),
		binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint32(b[16:]),
		binary.BigEndian.Uint32(b[20:])}
}

// journalRing is what follows the header in the file of a journal, as it is found.
type journalRing struct {
	bytes []byte
	epoch uint32
}

func (r journalRing) sectors() uint64 { return uint64(len(r.bytes) / sectorSize) }

// at returns sector i, counted round the ring.
func (r journalRing) at(i uint64) sector {
	i %= r.sectors()
	return parseSector(r.bytes[i*sectorSize : (i+1)*sectorSize])
}

// has reports whether a sector is one of this record.
func (r journalRing) has(s sector, record uint64) bool {
	return s.whole && s.epoch == r.epoch && s.record == record
}

// older reports whether a sector is as it was before this record was written: the file was made with zeros, and what
// was written since is whole.
func (r journalRing) older(s sector, record uint64) bool {
	return isZero(s.bytes) || s.whole && (s.epoch != r.epoch || s.record < record)
}

// record returns the entries of a record that begins at a sector. Nil without an error: it was never written, or not
// all of it, and so nobody was told of it.
func (r journalRing) record(record, begin uint64) (logs []*raft.Log, padded uint64, err error) {
	count := uint64(1)
	found := false
	for i := uint64(0); i < r.sectors() && !found; i++ {
		if s := r.at(begin + i); r.has(s, record) {
			if uint64(s.number) != i || s.number >= s.count || uint64(s.count) > r.sectors() {
				return nil, 0, fmt.Errorf("a sector of record %d is out of its place: %w", record, ErrCorrupt)
			}
			count, found = uint64(s.count), true
		}
	}
	payload := make([]byte, 0, count*sectorRoom)
	torn := !found
	for i := range count {
		s := r.at(begin + i)
		switch {
		case r.has(s, record) && uint64(s.number) == i && uint64(s.count) == count:
			payload = append(payload, s.bytes[sectorHeader:]...)
		case r.older(s, record):
			torn = true
		default:
			return nil, 0, fmt.Errorf("sector %d of record %d fails its checksum: %w", i, record, ErrCorrupt)
		}
	}
	if torn {
		return nil, 0, nil
	}
	if logs, err = decodeRecord(payload); err != nil {
		return nil, 0, fmt.Errorf("record %d: %w: %w", record, err, ErrCorrupt)
	}
	return logs, (count + pageSectors - 1) / pageSectors * pageSectors, nil
}

// readRing returns the records behind a position, in their order. A torn one ends them.
func readRing(r journalRing, behind journalPosition) (records []journalRecord, err error) {
	if behind.epoch != r.epoch {
		behind = journalPosition{epoch: r.epoch}
	}
	record, begin, total := behind.record+1, uint64(behind.sector), uint64(0)
	for {
		logs, padded, err := r.record(record, begin)
		if err != nil {
			return nil, err
		}
		if logs == nil {
			break
		}
		if total += padded; total > r.sectors() {
			return nil, fmt.Errorf("records that overlap: %w", ErrCorrupt)
		}
		begin = (begin + padded) % r.sectors()
		records = append(records, journalRecord{journalPosition{r.epoch, record, uint32(begin)}, padded, logs})
		record++
	}
	// A record is written when the one before it is on disk: one that lacks sectors is the newest.
	for i := range r.sectors() {
		if s := r.at(i); s.whole && s.epoch == r.epoch && s.record > record {
			return nil, fmt.Errorf("record %d is gone, and record %d is there: %w", record, s.record, ErrCorrupt)
		}
	}
	return records, nil
}

// readJournal returns the records of the journal in dir that raft.db lacks, which names the journal and its position.
func readJournal(dir string, epoch uint32, behind journalPosition) (records []journalRecord, err error) {
	path := journalPath(dir)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is gone, and raft.db lacks what it held: %w", path, ErrCorrupt)
	}
	if err == nil && info.Size() > maxJournal {
		return nil, fmt.Errorf("%s: %d bytes: %w", path, info.Size(), ErrCorrupt)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if err := checkHeader(b, epoch, int64(len(b))); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	ring := journalRing{b[min(journalPage, len(b)):], epoch}
	if size := len(ring.bytes); size == 0 || size%journalPage != 0 || uint64(behind.sector) >= ring.sectors() {
		return nil, fmt.Errorf("%s: %d bytes of records: %w", path, size, ErrCorrupt)
	}
	if records, err = readRing(ring, behind); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return records, nil
}

// createJournal returns the file of a new journal of size bytes, and its epoch. It is on disk, and holds no record. All
// of its bytes are written, not only reserved, so that no later write has anything to do but to replace them. One that
// is there, and that raft.db does not name, is used again if it has that size: its records are of other epochs.
func createJournal(dir string, size int64, epoch uint32) (file *os.File, err error) {
	path := journalPath(dir)
	if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() && info.Size() == size {
		file, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		if _, err = file.WriteAt(encodeHeader(epoch, size), 0); err == nil {
			err = file.Sync()
		}
		if err != nil {
			return nil, errors.Join(err, file.Close())
		}
		return file, nil
	}
	// The former one goes first: a disk may have no room for both.
	if err := removeJournal(dir); err != nil {
		return nil, err
	}
	unfinished := path + ".new"
	if file, err = os.OpenFile(unfinished, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600); err != nil {
		return nil, err
	}
	_, err = file.Write(encodeHeader(epoch, size))
	for at := int64(journalPage); at < size && err == nil; at += journalPage {
		_, err = file.Write(zeroPage[:])
	}
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return nil, errors.Join(fmt.Errorf("%s of %d MiB can't be made: make room, or start with RAFT_JOURNAL=off: %w", path,
			size>>20, err), os.Remove(unfinished))
	}
	if err := errors.Join(os.Rename(unfinished, path), syncDir(dir)); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_RDWR, 0)
}

// removeJournal removes the files of a journal that raft.db does not name.
func removeJournal(dir string) error {
	removed := false
	for _, path := range []string{journalPath(dir), journalPath(dir) + ".new"} {
		err := os.Remove(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		removed = removed || err == nil
	}
	if !removed {
		return nil
	}
	return syncDir(dir)
}

// ringFile is the file of an open journal: what follows the header, as a ring.
type ringFile interface {
	io.WriterAt
	Sync() error // the bytes that were written, not the times of the file
	Close() error
}

// osFile is a ringFile of the system.
type osFile struct{ *os.File }

// WriteAt implements io.WriterAt, behind the header.
func (f osFile) WriteAt(b []byte, at int64) (int, error) { return f.File.WriteAt(b, journalPage+at) }

// Sync implements ringFile.
func (f osFile) Sync() error { return datasync(f.File) }
