package peer

import (
	"testing"

	"github.com/hashicorp/raft"
)

// TestShorten: as many entries as fit, one at least, and always those that come first.
func TestShorten(t *testing.T) {
	for _, tt := range []struct {
		name  string
		sizes []int
		want  int
	}{
		{name: "none", want: 0},
		{name: "small", sizes: []int{10, 20, 30}, want: 3},
		{name: "exactly", sizes: []int{maxAppendBytes / 2, maxAppendBytes / 2}, want: 2},
		{name: "one byte more", sizes: []int{maxAppendBytes / 2, maxAppendBytes/2 + 1}, want: 1},
		{name: "the first is larger", sizes: []int{2 * maxAppendBytes, 1, 1}, want: 1},
		{name: "a larger one behind", sizes: []int{1, 2 * maxAppendBytes, 1}, want: 1},
	} {
		var args raft.AppendEntriesRequest
		for k, size := range tt.sizes {
			args.Entries = append(args.Entries, &raft.Log{Index: uint64(k + 1), Data: make([]byte, size)})
		}
		shorten(&args)
		if got := len(args.Entries); got != tt.want || (got > 0 && args.Entries[0].Index != 1) {
			t.Errorf("%s: got %d entries, want the first %d", tt.name, got, tt.want)
		}
	}
}
