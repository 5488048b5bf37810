package storage

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/shirou/gopsutil/v4/disk"
	"go.etcd.io/bbolt"
)

// Bbolt uses the pages of deleted entries again, but never gives them back to the disk: after a burst of large values
// raft.db stays as large as it once was, however little is in it. So it is copied at a start if it is larger than
// compactAbove and more than half of it is free.
const (
	compactAbove = 64 << 20
	// compactSpare is what must be left of the disk beside the copy: snapshots and log go on in it.
	compactSpare = 64 << 20
	// compactStep is how many bytes one transaction copies: bbolt holds them in memory.
	compactStep = 4 << 20
)

func compactPath(dir string) string { return boltPath(dir) + ".compact" }

// removeCompacted removes the copy that a start has not finished.
func removeCompacted(dir string) error {
	if err := os.Remove(compactPath(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// compact replaces raft.db by a copy of what is in it, if that is worth it; used are the bytes that its tree reaches.
// Raft.db was verified and is not open. It is replaced in one step, by a copy that is on disk and was found equal: a
// crash leaves the one or the other, and maybe an unfinished copy, which the next Open removes.
//
// What fails is logged, and raft.db stays as it is. The only error returned is that of o.Progress.
func compact(dir string, used uint64, o Options) error {
	info, err := os.Stat(boltPath(dir))
	if err != nil {
		return err
	}
	size := uint64(info.Size())
	if size <= cmp.Or(o.compactAbove, compactAbove) || used > size/2 {
		return nil
	}
	free := o.free
	if free == nil {
		free = func(dir string) (uint64, error) {
			usage, err := disk.Usage(dir)
			if err != nil {
				return 0, err
			}
			return usage.Free, nil
		}
	}
	what := fmt.Sprintf("%s takes %d MiB, of which %d are free", boltPath(dir), size>>20, (size-used)>>20)
	switch left, err := free(dir); {
	case err != nil:
		o.logf("%s: it is not compacted: %v", what, err)
		return nil
	case left < used+compactSpare:
		o.logf("%s: it is not compacted, as the disk has %d MiB left and %d are needed: make room and start again",
			what, left>>20, (used+compactSpare)>>20)
		return nil
	}
	o.logf("%s: compacting it", what)
	err = guard(func() error { return replaceByCopy(dir, o) })
	if err == nil {
		o.logf("%s was compacted", boltPath(dir))
		return nil
	}
	if stopped, ok := errors.AsType[*stoppedError](err); ok {
		return errors.Join(stopped.error, removeCompacted(dir))
	}
	o.logf("%s could not be compacted and stays as it is: %v", boltPath(dir), errors.Join(err, removeCompacted(dir)))
	return nil
}

// stoppedError is an error of Options.Progress.
type stoppedError struct{ error }

// replaceByCopy makes the copy, verifies it and renames it. Its steps are those of README.md.
func replaceByCopy(dir string, o Options) error {
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"copy", func() error { return copyBolt(dir, o) }},
		{"sync", func() error { return syncFile(compactPath(dir)) }},
		{"check", func() error {
			_, err := checkBolt(compactPath(dir), func(float64) error { return o.compactionStep("a part of the check") })
			return err
		}},
		{"compare", func() error { return compareBolt(dir, o) }},
		{"rename", func() error { return os.Rename(compactPath(dir), boltPath(dir)) }},
		{"sync the directory", func() error { return syncDir(dir) }},
	} {
		if err := o.compactionStep(step.name); err != nil {
			return err
		}
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// copyBolt copies the buckets of raft.db, none of which has buckets in it, to a new database.
func copyBolt(dir string, o Options) (err error) {
	options := boltOptions(false)
	options.NoSync = true // once, at the end
	to, err := bbolt.Open(compactPath(dir), 0o600, options)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	return viewBolt(boltPath(dir), func(from *bbolt.Tx) error {
		return from.ForEach(func(name []byte, b *bbolt.Bucket) error {
			cursor := b.Cursor()
			for k, v := cursor.First(); ; {
				err := to.Update(func(tx *bbolt.Tx) error {
					copied, err := tx.CreateBucketIfNotExists(name)
					if err != nil {
						return err
					}
					copied.FillPercent = 1 // entries come in ascending order
					for n := 0; k != nil && n < compactStep; k, v = cursor.Next() {
						if n += len(k) + len(v); v == nil {
							return fmt.Errorf("bucket %q is in %q", k, name)
						}
						if err := copied.Put(k, v); err != nil {
							return err
						}
					}
					return nil
				})
				if err == nil {
					err = o.compactionStep("a part of the copy")
				}
				if err != nil || k == nil {
					return err
				}
			}
		})
	})
}

// compareBolt returns an error unless the copy holds what raft.db holds, which was verified.
func compareBolt(dir string, o Options) error {
	return viewBolt(boltPath(dir), func(from *bbolt.Tx) error {
		return viewBolt(compactPath(dir), func(to *bbolt.Tx) error {
			return from.ForEach(func(name []byte, b *bbolt.Bucket) error {
				copied, missing := to.Bucket(name), 0
				if copied == nil {
					return fmt.Errorf("the copy lacks bucket %q: %w", name, ErrCorrupt)
				}
				err := b.ForEach(func(k, v []byte) error {
					missing++
					if !bytes.Equal(copied.Get(k), v) {
						return fmt.Errorf("the copy differs at key %x of bucket %q: %w", k, name, ErrCorrupt)
					}
					return o.compactionStep("a part of the comparison")
				})
				if err != nil {
					return err
				}
				err = copied.ForEach(func(k, v []byte) error { missing--; return nil })
				if err == nil && missing != 0 {
					err = fmt.Errorf("the copy has %d keys too many in bucket %q: %w", -missing, name, ErrCorrupt)
				}
				return err
			})
		})
	})
}

// viewBolt calls f with what is in a database.
func viewBolt(path string, f func(*bbolt.Tx) error) (err error) {
	db, err := bbolt.Open(path, 0o600, boltOptions(true))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return db.View(f)
}

// syncFile makes a file durable.
func syncFile(path string) error {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}

func (o Options) logf(format string, args ...any) {
	if o.Logf != nil {
		o.Logf(format, args...)
	}
}

// compactionStep is called between the steps of a compaction: it lets a start be aborted, and tests end it.
func (o Options) compactionStep(name string) error {
	if o.Progress != nil {
		if err := o.Progress(1); err != nil {
			return &stoppedError{err}
		}
	}
	if o.atCompaction != nil {
		return o.atCompaction(name)
	}
	return nil
}
