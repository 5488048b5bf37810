package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"raftkv/internal/command"
	"raftkv/internal/kv"
)

// ErrTooLarge is wrapped by the error for a backup whose data are more than there is room for, in memory or on the
// disk.
var ErrTooLarge = kv.ErrSnapshotTooLarge

// A Backup is one that was received and verified. It is in a file, so that however large it is, it takes little memory.
type Backup struct {
	file           *os.File
	items, records int
	err            error // of Commands
}

// Limits are what a Backup may take, in bytes; 0: any.
type Limits struct {
	Data uint64 // its data, as kv.Store.Footprint counts them
	Disk uint64 // its file
}

// Receive reads the whole of a backup into a file in dir, and verifies that it can be restored; length is that of r, -1
// if it is unknown. Of one that is too large no more is read than shows that: by its length nothing, by the number of
// its keys the header. Nothing is left of the file when the Backup is closed, nor, on Unix, when the process ends.
func Receive(dir string, r io.Reader, length int64, limits Limits) (_ *Backup, err error) {
	if limits.Data > 0 && length > kv.MaxSnapshotWithin(int(limits.Data)) {
		return nil, fmt.Errorf("%w: it has %d bytes, and its data may take %d: nothing was changed; raise STORE_MAX_BYTES "+
			"on every node", ErrTooLarge, length, limits.Data)
	}
	if limits.Disk > 0 && length > int64(limits.Disk) {
		return nil, errDisk(length, limits.Disk)
	}
	b := new(Backup)
	if b.file, err = os.CreateTemp(dir, "restore-*.tmp"); err != nil {
		return nil, fmt.Errorf("a file for the backup: %w", err)
	}
	_ = os.Remove(b.file.Name()) // where an open file can't be removed, Close does
	defer func() {
		if err != nil {
			b.Close()
		}
	}()
	to := &limited{w: b.file, left: limits.Disk, bounded: limits.Disk > 0}
	b.items, b.records, err = kv.ScanSnapshot(io.TeeReader(r, to), int(limits.Data), checker)
	refused, unfit := errors.AsType[refusal](err)
	switch {
	case to.err != nil && (errors.Is(to.err, errNoRoom) || errors.Is(to.err, syscall.ENOSPC)):
		return nil, errDisk(to.written, limits.Disk)
	case to.err != nil:
		return nil, fmt.Errorf("a file for the backup: %w", to.err)
	case errors.Is(err, ErrTooLarge):
		return nil, fmt.Errorf("%w: nothing was changed; raise STORE_MAX_BYTES on every node", err)
	case unfit:
		return nil, fmt.Errorf("%w: nothing was changed", refused)
	case err != nil:
		return nil, fmt.Errorf("%w: nothing was changed; send what /snapshot gave, whole (curl -T FILE)", err)
	}
	return b, nil
}

func errDisk(needs int64, has uint64) error {
	return fmt.Errorf("%w: it needs a file of %d bytes or more, and the disk of this node has %d beside what snapshots "+
		"and the log need: nothing was changed; make the disk larger", ErrTooLarge, needs, has)
}

var errNoRoom = errors.New("no room for the file")

// limited writes a file of bounded size, and keeps its first error.
type limited struct {
	w       io.Writer
	left    uint64
	bounded bool
	written int64
	err     error
}

func (l *limited) Write(p []byte) (n int, err error) {
	if l.err == nil && l.bounded && uint64(len(p)) > l.left {
		l.err = errNoRoom
	}
	l.written += int64(len(p))
	if l.err == nil {
		n, l.err = l.w.Write(p)
		l.left -= uint64(n)
	}
	return n, l.err
}

// Len is the number of keys.
func (b *Backup) Len() int { return b.items }

// Close removes what the Backup takes on the disk.
func (b *Backup) Close() {
	_ = b.file.Close()
	_ = os.Remove(b.file.Name())
}

// Restore has propose replicate, one after the other, the commands that make the content of
// b the state machine's, and returns the index of the last one. Only that one changes
// what clients see: if unchanged is true, nothing has changed and nothing will, whatever
// err is.
func Restore(
	ctx context.Context, b *Backup, propose func(context.Context, command.Command) (command.Result, error),
) (index uint64, unchanged bool, err error) {
	var last command.Command
	var result command.Result
	for last = range b.Commands() {
		if result, err = propose(ctx, last); err != nil {
			break
		}
	}
	if err == nil {
		err = b.err // of the file
	}
	switch {
	case err == nil && result.Counted:
		return result.Index, false, nil
	case err == nil:
		err = errors.New("the leader has changed in the middle of it")
	case last.Kind == command.Restore:
		return 0, false, err
	}
	// What is staged takes memory until the next leader's term; it does no other harm, so
	// that it need not be freed at any price.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_, _ = propose(ctx, command.Command{Kind: command.Unstage})
	return 0, true, err
}
