package node

import (
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"raftkv/internal/command"
	"raftkv/internal/storage"
)

// TestCellsOfAClosedVolume: whoever looks at a node that ends gets nothing of its log, rather than a read of a volume
// that is closed, which would count as damage.
func TestCellsOfAClosedVolume(t *testing.T) {
	n := openNode(t, "n1", t.TempDir())
	n.waitLeader(t)
	if got := n.Cells(0, false); len(got) == 0 || got[0].Kind != "members" || got[0].Text != "n1" {
		t.Errorf("got %+v, want the log from its first entry on", got)
	}
	i := n.current.Load()
	if err := n.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	i.cache = storage.NewCache(i.volume.Log, 1) // not what a cache still has
	if got := n.Cells(0, false); got != nil {
		t.Errorf("after the end: got %+v, want nothing", got)
	}
	select {
	case err := <-n.Failed():
		t.Errorf("after the end: got the failure %v, want none", err)
	default:
	}
}

// TestDescribe: the line of an entry: escaped, cut, and without its value where values are hidden.
func TestDescribe(t *testing.T) {
	set := func(key, value string) *raft.Log {
		return &raft.Log{Type: raft.LogCommand, Data: command.Append(nil, command.Command{Kind: command.Set,
			Pairs: []command.Pair{{Key: key, Value: []byte(value)}}})}
	}
	for _, test := range []struct {
		name       string
		entry      *raft.Log
		hidden     bool
		kind, text string
	}{
		{name: "set", entry: set("fruit", "apple"), kind: "set", text: "fruit=apple"},
		{name: "hidden", entry: set("fruit", "apple"), hidden: true, kind: "set", text: "fruit=…"},
		{name: "escaped", entry: set("a\nb", "\u202e\x1b[2J\""), kind: "set", text: `a\nb=\u202e\x1b[2J"`},
		{name: "cut", entry: set("k", strings.Repeat("v", 49)), kind: "set", text: "k=" + strings.Repeat("v", 48) + "…"},
		{name: "large", entry: set("k", strings.Repeat("v", 5000)), kind: "other", text: "5007 bytes"},
		{name: "no-op", entry: &raft.Log{Type: raft.LogNoop}, kind: "no-op"},
		{name: "barrier", entry: &raft.Log{Type: raft.LogBarrier}, kind: "other"},
		{name: "unknown", entry: &raft.Log{Type: raft.LogCommand, Data: []byte{255, 1}}, kind: "other"},
		{name: "members", entry: &raft.Log{Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(raft.Configuration{
			Servers: []raft.Server{{ID: "n1"}, {ID: "n2", Suffrage: raft.Nonvoter}}})}, kind: "members",
			text: "n1, n2 (no vote)"},
	} {
		kind, text := describe(test.entry, test.hidden)
		if test.name == "large" && strings.HasSuffix(text, " bytes") { // whatever the encoding takes
			text = test.text
		}
		if kind != test.kind || text != test.text {
			t.Errorf("%s: got %s %q, want %s %q", test.name, kind, text, test.kind, test.text)
		}
	}
}
