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

// Read reads the whole of a backup and verifies that it can be restored.
func Read(r io.Reader) (*kv.Store, error) {
	data := kv.New()
	if err := data.ReadSnapshot(r); err != nil {
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
