package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"raftkv/internal/command"
	"raftkv/internal/kv"
)

// ErrTooLarge is wrapped by the error for a backup whose data are more than there is room for.
var ErrTooLarge = kv.ErrSnapshotTooLarge

// Read reads the whole of a backup and verifies that it can be restored. Its data may take max bytes, as
// kv.Store.Footprint counts them, 0 for any; length is that of r, -1 if it is unknown. Of a larger one no more is
// read than shows that: by its length nothing, by the number of its keys the header.
func Read(r io.Reader, length int64, max uint64) (*kv.Store, error) {
	if max > 0 && length > kv.MaxSnapshotWithin(int(max)) {
		return nil, fmt.Errorf("%w: it has %d bytes, and its data may take %d: nothing was changed; raise STORE_MAX_BYTES "+
			"on every node", ErrTooLarge, length, max)
	}
	data := kv.New()
	err := data.ReadSnapshotWithin(r, int(max))
	switch {
	case errors.Is(err, ErrTooLarge):
		return nil, fmt.Errorf("%w: nothing was changed; raise STORE_MAX_BYTES on every node", err)
	case err != nil:
		return nil, fmt.Errorf("%w: nothing was changed; send what /snapshot gave, whole (curl -T FILE)", err)
	}
	if err := Check(data); err != nil {
		return nil, fmt.Errorf("%w: nothing was changed", err)
	}
	return data, nil
}

// Restore has propose replicate, one after the other, the commands that make the content of
// data the state machine's, and returns the index of the last one. Only that one changes
// what clients see: if unchanged is true, nothing has changed and nothing will, whatever
// err is.
func Restore(
	ctx context.Context, data *kv.Store, propose func(context.Context, command.Command) (command.Result, error),
) (index uint64, unchanged bool, err error) {
	var last command.Command
	var result command.Result
	for last = range Commands(data) {
		if result, err = propose(ctx, last); err != nil {
			break
		}
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
