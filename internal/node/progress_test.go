package node

import (
	"context"
	"errors"
	"testing"
)

// TestStartAborted: a start can be ended at any of its steps, also while raft reads its snapshot and its log, and
// leaves the volume as it was.
func TestStartAborted(t *testing.T) {
	dir, _, _ := snapshotVolume(t)
	count := func(limit int) (calls int, last float64, err error) {
		n, err := tryOpen(t, "n1", dir, func(c *Config) {
			c.Progress = func(fraction float64) error {
				if last = fraction; calls == limit {
					return context.Canceled
				}
				calls++
				return nil
			}
		})
		if err == nil {
			n.waitLeader(t)
			n.stop()
		}
		return calls, last, err
	}
	calls, last, err := count(-1)
	if err != nil || last <= verifiedAt || last > 1 {
		t.Fatalf("not aborted: got %v at %v, want nil, and the reads of raft after those of storage", err, last)
	}
	seen := make(map[bool]int)
	for limit := 0; limit < calls; limit += 7 {
		_, last, err := count(limit)
		if !errors.Is(err, ErrStartAborted) || !errors.Is(err, context.Canceled) {
			t.Fatalf("aborted at call %d of %d, %v: got %v, want ErrStartAborted", limit, calls, last, err)
		}
		seen[last >= verifiedAt]++
	}
	if seen[false] == 0 || seen[true] == 0 {
		t.Errorf("aborted in storage and in raft: got %v, want both", seen)
	}
	if _, _, err := count(-1); err != nil {
		t.Errorf("after all that: got %v, want nil", err)
	}
}
