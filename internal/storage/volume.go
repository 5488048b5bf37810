package storage

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/gofrs/flock"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"
)

// Volume is the directory of one node, opened: raft.db (log and stable store), snapshots/ and, if it is to have one,
// the journal in front of raft.db. A volume appears whole or not at all, because raft.db is made under another name and
// then renamed: one that is empty or lacks a key is damaged, never new.
type Volume struct {
	Log       *Log
	Snapshots *Snapshots
	Cluster   ClusterID // the cluster whose entries the volume holds
	ID        string    // of this volume, random; empty: it was made before volumes had one

	dir     string
	bolt    *raftboltdb.BoltStore
	guarded *guarded      // bolt, for all that is under the log
	journal *journal      // between the log and guarded; nil: there is none
	opened  []fs.FileInfo // of paths, as they were when they were opened
}

// ClusterID is the identity of a cluster (see peer.ClusterID).
type ClusterID = [16]byte

// Options of Open. All fields but OnWrite, OnVote, OnSnapshot, Progress, Logf and Wrap are required.
type Options struct {
	NodeID string       // the node that the volume must belong to
	Logger hclog.Logger // for lines about snapshots

	// Fatal ends the node. It is called at the first failed write, damaged read, or write that takes longer than
	// WriteTimeout, any number of times and by several goroutines. The goroutine of a failed call ends after it.
	Fatal        func(error)
	WriteTimeout time.Duration

	OnAppend func()              // called when entries were stored; must not block
	OnWrite  func(time.Duration) // called after each write of the log with how long it took; must not block; nil: none
	// OnVote is called after each vote that is on disk, with the address of the candidate; must not block; nil: none.
	OnVote func(term uint64, candidate string)
	// OnSnapshot is called after each snapshot that is complete on disk, taken here or received, with its size and how
	// long it took from its first byte on; must not block; nil: none.
	OnSnapshot func(bytes int64, took time.Duration)

	// EntryFormat returns the least cluster format in which a program can read an entry's data, MaxFormat the newest
	// one that this program can read. A volume states the greatest one of all entries that it has ever held.
	EntryFormat func(data []byte) int
	MaxFormat   int

	// JournalBytes is the size of the journal's file, as JournalBytes has it; 0: none, so that raft.db itself takes each
	// append.
	JournalBytes int64

	// Progress is called often with the fraction of Open that is done, 0 to 1; an error ends Open with it. nil: none.
	Progress func(fraction float64) error

	// Logf prints a line about the volume; nil: none.
	Logf func(format string, args ...any)

	sizes *sizes  // of the entries that Open finds
	used  *uint64 // bytes of raft.db, as Open finds it

	// For tests; zero values mean none, compactAbove and the disk's.
	atCompaction func(step string) error
	atJournal    func(step string) error // between the steps of openFiles
	compactAbove uint64
	free         func(dir string) (uint64, error)

	Wrap func(LogAndStable) LogAndStable // for tests: puts a disk that fails below the log; nil: none
}

// lockTimeout is how long to wait for another process to release the volume.
const lockTimeout = time.Second

// Lock makes dir this process's until the returned lock is closed. Bbolt's own lock comes too late: before it, the
// volume is read and leftovers are removed, and a new raft.db replaces the file that it is on. So the directory itself
// is locked, as it always was: older versions of the program, started on the same volume, are kept out too. Windows
// can't lock a directory; there it is a file in it, called lock.
func Lock(dir string) (io.Closer, error) {
	lock := flock.New(dir, flock.SetFlag(os.O_RDONLY))
	if runtime.GOOS == "windows" {
		lock = flock.New(filepath.Join(dir, "lock"))
	}
	ctx, cancel := context.WithTimeout(context.Background(), lockTimeout)
	defer cancel()
	_, err := lock.TryLockContext(ctx, 20*time.Millisecond)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, errors.New("it is open in another process: stop that, or give this node another volume")
	}
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	return lock, nil
}

// IsNew reports whether dir holds no volume yet. Snapshots or a journal without a raft.db are an error: that is a
// volume which lost its log, and a new one in its place would forget the term and the vote of this node. So are another
// user's files, and those that others may have changed. What others may read of it, they may not from then on.
func IsNew(dir string) (bool, error) {
	if err := protect(dir); err != nil {
		return false, err
	}
	_, err := os.Stat(boltPath(dir))
	if err == nil {
		return false, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	snapshots := filepath.Join(dir, "snapshots")
	found, err := scanSnapshots(snapshots)
	if err != nil {
		return false, err
	}
	if left := slices.Concat(found.finished, found.unfinished, found.copies); len(left) > 0 {
		return false, fmt.Errorf("%s is gone, but %s is there: %w", boltPath(dir), filepath.Join(snapshots, left[0]),
			ErrCorrupt)
	}
	if _, err := os.Lstat(journalPath(dir)); err == nil {
		return false, fmt.Errorf("%s is gone, but %s is there: %w", boltPath(dir), journalPath(dir), ErrCorrupt)
	}
	return true, nil
}

// Create replaces whatever volume is in dir by a new one of the given cluster, in one step as far as a crash can see.
// With a configuration, the volume begins as raft bootstraps (api.go: BootstrapCluster), with term 1 and the
// configuration as entry 1; without one it is empty, and the cluster's leader sends the entries.
func Create(dir, nodeID string, cluster ClusterID, bootstrap *raft.Configuration) error {
	// The snapshots of a former volume go first, or a crash could leave them beside the new log. They may: the caller
	// has made sure that nothing in that volume is needed.
	// Only they: the directory may be the root of a disk, with lost+found in it.
	snapshots := filepath.Join(dir, "snapshots")
	found, err := scanSnapshots(snapshots)
	if err != nil {
		return err
	}
	for _, name := range slices.Concat(found.finished, found.unfinished) {
		if err := os.RemoveAll(filepath.Join(snapshots, name)); err != nil {
			return err
		}
	}
	path := boltPath(dir) + ".new"
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	bolt, err := raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: boltOptions(false)})
	if err != nil {
		return err
	}
	if err := errors.Join(fillVolume(bolt, nodeID, cluster, bootstrap), bolt.Close()); err != nil {
		return err
	}
	if err := os.Rename(path, boltPath(dir)); err != nil {
		return err
	}
	return syncDir(dir)
}

// fillVolume writes all that Open looks for in raft.db.
func fillVolume(bolt *raftboltdb.BoltStore, nodeID string, cluster ClusterID, bootstrap *raft.Configuration) error {
	var (
		term uint64
		logs []*raft.Log
	)
	if bootstrap != nil {
		term = 1
		data := raft.EncodeConfiguration(*bootstrap)
		logs = []*raft.Log{{Index: 1, Term: term, Type: raft.LogConfiguration, Data: data}}
	}
	for _, value := range []struct{ key, value []byte }{
		{keyClusterID, cluster[:]},
		{keyNodeID, []byte(nodeID)},
		{keyVolumeID, []byte(rand.Text())},
		{keyCurrentTerm, binary.BigEndian.AppendUint64(nil, term)},
		{keyLastVoteTerm, make([]byte, 8)},
		{keyLastVoteCand, nil},
	} {
		if err := setStable(bolt, value.key, value.value); err != nil {
			return err
		}
	}
	return appendLogs(bolt, logs, uint64(len(logs)))
}

// Open opens the volume in dir. It refuses, with an error that wraps ErrCorrupt, a volume that could make the node
// serve anything but what it had. Nothing in raft.db is written before all of it was read and verified, so that a
// refused volume is still what was found, for a person or a later version to look at; the only things removed are a
// snapshot and a copy of raft.db that were never finished. A raft.db that is mostly free is compacted.
func Open(dir string, o Options) (*Volume, error) {
	snaps, err := openSnapshots(dir, o.Logger)
	if err != nil {
		return nil, err
	}
	snaps.onDone = o.OnSnapshot
	v := &Volume{Snapshots: snaps, dir: dir}
	o.sizes, o.used = new(sizes), new(uint64)
	if err := removeCompacted(dir); err != nil {
		return nil, err
	}
	found, err := checkVolume(dir, o, snaps)
	if err != nil {
		return nil, err
	}
	v.Cluster = found.cluster
	if err := compact(dir, *o.used, o); err != nil {
		return nil, err
	}
	err = guard(func() (err error) {
		v.bolt, err = openBolt(dir, false)
		return err
	})
	if err != nil {
		return nil, err
	}
	v.guarded = &guarded{disk: v.bolt}
	if err := v.openFiles(found, o); err != nil {
		if v.journal != nil {
			err = errors.Join(err, v.journal.file.Close())
		}
		return nil, errors.Join(err, v.bolt.Close())
	}
	var disk LogAndStable = v.guarded
	if v.journal != nil {
		disk = v.journal
	}
	if o.Wrap != nil {
		disk = o.Wrap(disk)
	}
	v.Log = newLog(disk, found.end, snaps.oldest, o)
	v.Log.format = found.format
	if v.journal != nil {
		v.Log.journal = v.journal.epoch
		go v.journal.run(func(move func() error) { v.Log.watched("move the journal to raft.db", move) })
	}
	if index, term := snaps.NewestEntry(); index > 0 { // a crash may have come between the snapshot and this
		done := make(chan struct{})
		go func() { // which the log ends if it fails
			defer close(done)
			v.Log.Discard(index, term)
		}()
		<-done
	}
	return v, nil
}

// openFiles has raft.db, which is open, hold what a former process has left in the journal, and begins a new journal if
// the volume is to have one. Raft.db names a journal only while it may lack what that holds:
//
//  1. Raft.db takes what it lacks, and names no journal any more.
//  2. The file of the new one is on disk, or that of the former is removed.
//  3. Raft.db names the new one.
func (v *Volume) openFiles(found *found, o Options) (err error) {
	if err := errors.Join(newJournal(v.guarded, found.records).move(), o.journalStep("moved")); err != nil {
		return err
	}
	if found.epoch != 0 {
		if err := v.nameJournal(found.format, 0); err != nil {
			return err
		}
	}
	if err := o.journalStep("named none"); err != nil {
		return err
	}
	// Entries beyond the end marker are those of a truncation that a crash cut short (Log.DeleteRange).
	if err := v.bolt.DeleteRange(found.end+1, endMarker-1); err != nil {
		return err
	}
	id, err := getStable(v.bolt, keyVolumeID)
	if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	v.ID = string(id)
	if o.JournalBytes == 0 {
		err = removeJournal(v.dir)
	} else {
		epoch := newEpoch()
		var file *os.File
		if file, err = createJournal(v.dir, o.JournalBytes, epoch); err == nil {
			v.journal = newJournal(v.guarded, nil)
			v.journal.open(osFile{file}, o.JournalBytes, epoch)
			if err = o.journalStep("file"); err == nil {
				err = errors.Join(v.nameJournal(found.format, epoch), o.journalStep("named"))
			}
		}
	}
	if err != nil {
		return err
	}
	for _, path := range v.paths() {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		v.opened = append(v.opened, info)
	}
	return nil
}

func (o Options) journalStep(name string) error {
	if o.atJournal == nil {
		return nil
	}
	return o.atJournal(name)
}

// nameJournal has raft.db name the journal of this epoch; 0: none.
func (v *Volume) nameJournal(format uint64, epoch uint32) error {
	return setStable(v.guarded, keyFormat, binary.BigEndian.AppendUint64(nil, joinFormat(format, epoch)))
}

// newEpoch returns a random number that is not 0.
func newEpoch() uint32 {
	for {
		var b [4]byte
		_, _ = rand.Read(b[:]) // never fails
		if epoch := binary.BigEndian.Uint32(b[:]); epoch != 0 {
			return epoch
		}
	}
}

// ErrGone is returned when the files of an open volume are no longer at its path. What is written to them still
// succeeds, but nobody will ever read it: the node must end.
var ErrGone = errors.New("it was removed, unmounted or replaced while this node had it open, and what this node " +
	"writes is lost: put it back and start this node again, or replace the member: /leave, start with an " +
	"empty volume, /join")

// Check returns an error that wraps ErrGone if the directory or raft.db was removed, or if another is at its path. What
// can't be looked at for want of a permission counts as there. It may be called at any time, by several goroutines.
func (v *Volume) Check() error {
	for k, path := range v.paths() {
		info, err := os.Stat(path)
		switch {
		case errors.Is(err, fs.ErrPermission):
		case err != nil:
			return fmt.Errorf("%w (%w)", ErrGone, err)
		case !os.SameFile(info, v.opened[k]):
			return fmt.Errorf("%w (another %s is there)", ErrGone, path)
		}
	}
	return nil
}

// paths are those of the directory, of raft.db and of the journal, if there is one.
func (v *Volume) paths() []string {
	paths := []string{v.dir, boltPath(v.dir)}
	if v.journal != nil {
		paths = append(paths, journalPath(v.dir))
	}
	return paths
}

// Reusable returns how many bytes of raft.db are in free pages, as its last transaction has left them.
func (v *Volume) Reusable() uint64 { return uint64(max(v.bolt.Stats().FreeAlloc, 0)) }

// Pending returns how many bytes of the journal raft.db is still to take.
func (v *Volume) Pending() uint64 {
	if v.journal == nil {
		return 0
	}
	return v.journal.pendingBytes()
}

// Close closes raft.db, when that has all of the journal and names none, so that a program that knows no journal can
// open it. No method of Log may be called afterwards. After a fault raft.db stays open: bbolt's locks may be held, and
// the error is that of the fault.
func (v *Volume) Close() error {
	if err := v.guarded.faulted.Load(); err != nil {
		if v.journal != nil {
			return errors.Join(*err, v.journal.abandon())
		}
		return *err
	}
	var err error
	if v.journal != nil {
		if err = v.journal.close(); err == nil {
			err = v.nameJournal(v.Log.format, 0)
		}
	}
	return errors.Join(err, v.bolt.Close())
}

// part returns Progress for the part of Open from one fraction to another, nil without Progress.
func (o Options) part(from, to float64) func(fraction float64) error {
	if o.Progress == nil {
		return nil
	}
	return func(fraction float64) error { return o.Progress(from + (to-from)*fraction) }
}

// found is what checkVolume finds.
type found struct {
	cluster ClusterID
	end     uint64          // index of the last entry
	format  uint64          // of the entries
	epoch   uint32          // of the journal that raft.db names; 0: none
	records []journalRecord // of the journal, which raft.db lacks
}

// checkVolume reads and verifies all of raft.db, of the journal and the newest snapshots, and writes nothing.
func checkVolume(dir string, o Options, snaps *Snapshots) (*found, error) {
	f := new(found)
	err := guard(func() (err error) {
		used, err := checkBolt(boltPath(dir), o.part(0, 0.5))
		if err != nil {
			return err
		}
		if o.used != nil {
			*o.used = used
		}
		bolt, err := openBolt(dir, true)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, bolt.Close()) }()
		if f.cluster, err = checkStable(bolt, o.NodeID); err != nil {
			return err
		}
		if f.format, f.epoch, err = readFormat(bolt, o.MaxFormat); err != nil {
			return err
		}
		if f.epoch != 0 {
			_, moved, err := readEnd(bolt)
			if err != nil {
				return fmt.Errorf("%w: %w", ErrCorrupt, err)
			}
			if f.records, err = readJournal(dir, f.epoch, moved); err != nil {
				return err
			}
		}
		f.end, err = checkLog(newJournal(bolt, f.records), snaps, o.sizes, o.part(0.5, 1))
		return err
	})
	return f, err
}

// checkStable verifies the stable values and returns the cluster ID.
func checkStable(bolt raft.StableStore, nodeID string) (cluster ClusterID, err error) {
	for _, key := range [][]byte{keyClusterID, keyNodeID, keyCurrentTerm, keyLastVoteTerm, keyLastVoteCand} {
		value, err := getStable(bolt, key)
		if err != nil {
			return cluster, fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		switch {
		case &key[0] == &keyClusterID[0] && len(value) == len(cluster):
			cluster = ClusterID(value)
		case &key[0] == &keyNodeID[0] && string(value) != nodeID:
			// No damage: somebody gave this node the directory of another.
			return cluster, fmt.Errorf("it is the volume of node %s, not of %s: give this node its own", value, nodeID)
		}
	}
	return cluster, nil
}

// ErrNewer is returned when a newer version of the program has written what is on disk. It is not damaged.
var ErrNewer = errors.New("a newer version of raftkv has written it")

// The value of keyFormat is the format of the entries in its lower half, and in its upper half the epoch of the journal
// that raft.db may lack entries of, so that a program that knows no journal takes it for a format that it does not know
// either, and refuses the volume as it is.

func joinFormat(format uint64, journal uint32) uint64 { return uint64(journal)<<32 | format }

// readFormat returns the format that the volume states, 1 if it states none, as none was ever higher, and the epoch of
// the journal that it names, 0 if it names none.
func readFormat(bolt raft.StableStore, maxFormat int) (format uint64, journal uint32, err error) {
	value, err := getStable(bolt, keyFormat)
	switch {
	case errors.Is(err, raftboltdb.ErrKeyNotFound):
		return 1, 0, nil
	case err != nil || len(value) != 8:
		return 0, 0, fmt.Errorf("%w: stable value %s: %v", ErrCorrupt, keyFormat, err)
	}
	stated := binary.BigEndian.Uint64(value)
	if format, journal = stated&math.MaxUint32, uint32(stated>>32); format > uint64(maxFormat) {
		return 0, 0, fmt.Errorf("it has format %d, this version knows formats up to %d: %w", format, maxFormat, ErrNewer)
	}
	return format, journal, nil
}

// checkLog verifies every entry, and that the log together with the newest readable snapshot rebuilds all that the
// node ever had. It returns the last index, and adds the entries to sizes, unless that is nil.
func checkLog(bolt raft.LogStore, snaps *Snapshots, sizes *sizes, progress func(fraction float64) error) (
	end uint64, err error) {
	if end, _, err = readEnd(bolt); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	var base uint64
	snapshot, err := snaps.usable()
	if err != nil {
		return 0, err
	}
	if snapshot != nil {
		base = snapshot.Index
	}
	newest, err := snaps.newestNamed()
	if err != nil {
		return 0, err
	}
	// The node has acknowledged what is in a snapshot, as it has an entry: to fall back behind it is safe only if the
	// log has everything up to it.
	if base < newest && end < newest {
		return 0, fmt.Errorf("the snapshot at index %d, and the log does not reach it: %w", newest, ErrCorrupt)
	}
	if base < newest {
		snaps.log.Warn("the newest snapshot is damaged: falling back", "damaged", newest, "to", base, "log-until", end)
	}
	first, err := bolt.FirstIndex()
	if err != nil {
		return 0, err
	}
	if first > base+1 && first != endMarker {
		return 0, fmt.Errorf("the log begins at index %d, the newest readable snapshot ends at %d: %w",
			first, base, ErrCorrupt)
	}
	begin := min(first, base+1)
	for index := begin; index <= end; index++ {
		if progress != nil {
			if err := progress(float64(index-begin) / float64(end-begin+1)); err != nil {
				return 0, err
			}
		}
		var entry raft.Log
		err := readLog(bolt, index, &entry)
		if errors.Is(err, raft.ErrLogNotFound) && index <= base {
			continue // a gap before an installed snapshot
		}
		if err != nil {
			return 0, fmt.Errorf("%w: entry %d: %w", ErrCorrupt, index, err)
		}
		if sizes != nil {
			sizes.add(index, entrySize(&entry))
		}
	}
	return end, nil
}

// Keys of the stable store. The last three are hashicorp/raft's (raft.go).
var (
	keyClusterID     = []byte("ClusterID")
	keyNodeID        = []byte("NodeID")
	keyVolumeID      = []byte("VolumeID")      // missing in volumes of before there was one
	keyFormat        = []byte("Format")        // missing: 1
	keyRecoveredFrom = []byte("RecoveredFrom") // cluster ID before a recovery under way; else empty or missing
	keyFormerCluster = []byte("FormerCluster") // that the present one was recovered from; missing: none
	keyCurrentTerm   = []byte("CurrentTerm")
	keyLastVoteTerm  = []byte("LastVoteTerm")
	keyLastVoteCand  = []byte("LastVoteCand")
)

func boltPath(dir string) string { return filepath.Join(dir, "raft.db") }

func openBolt(dir string, readOnly bool) (*raftboltdb.BoltStore, error) {
	bolt, err := raftboltdb.New(raftboltdb.Options{Path: boltPath(dir), BoltOptions: boltOptions(readOnly)})
	if errors.Is(err, bbolterrors.ErrTimeout) {
		return nil, fmt.Errorf("%s is open in another process: stop it, or give this node another volume",
			boltPath(dir))
	}
	return bolt, err
}

// boltOptions leave the freelist off the disk (docs/design.md, "Dependencies"): to find it again when the file is
// opened costs less than to write it with each transaction.
func boltOptions(readOnly bool) *bbolt.Options {
	return &bbolt.Options{
		Timeout:        lockTimeout,
		ReadOnly:       readOnly,
		NoFreelistSync: true,
		FreelistType:   bbolt.FreelistMapType,
	}
}

// syncDir makes a rename in dir durable. Windows syncs no directories: NTFS keeps a journal of them.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
