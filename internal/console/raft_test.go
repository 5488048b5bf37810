package console

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// raftConsole is a logger of raft whose clock the test moves.
type raftConsole struct {
	*RaftLogger
	out bytes.Buffer
	now time.Time
}

func newRaftConsole(level, format string) *raftConsole {
	c := &raftConsole{now: time.Unix(0, 0)}
	c.RaftLogger = NewRaftLogger(&c.out, level, Format(format))
	c.lines.now = func() time.Time { return c.now }
	return c
}

// printed returns the lines since the last call, without their times.
func (c *raftConsole) printed() (lines []string) {
	for line := range strings.Lines(c.out.String()) {
		_, line, _ = strings.Cut(strings.TrimSpace(line), " ")
		lines = append(lines, line)
	}
	c.out.Reset()
	return lines
}

func (c *raftConsole) want(t *testing.T, what string, want ...string) {
	t.Helper()
	if got := c.printed(); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%s: got\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

var errDial = &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}

// away prints what raft has about n2 at address a when that is away.
func (c *raftConsole) away() {
	c.Error("failed to heartbeat to", "peer", raft.ServerAddress("a"), "backoff time", "10ms", "error", errDial)
	c.Warn("failed to contact", "server-id", raft.ServerID("n2"), "time", time.Second)
	c.Error("failed to appendEntries to", "peer", raft.Server{ID: "n2", Address: "a"}, "error", errDial)
}

// TestAMemberThatIsAway: one warning, then one each 30 s with how often, and at once when it goes again.
func TestAMemberThatIsAway(t *testing.T) {
	const line = `[WARN]  raft: failed to heartbeat to: peer=a backoff time=10ms error="dial tcp: connection refused"`
	c := newRaftConsole("debug", "text")
	c.Debug("asking for vote", "term", uint64(3), "from", raft.ServerID("n2"), "address", raft.ServerAddress("a"))
	c.printed()
	c.away()
	c.want(t, "at first", line)
	for range 29 {
		c.now = c.now.Add(time.Second)
		c.away()
	}
	c.want(t, "for 29 s")
	c.Error("failed to heartbeat to", "peer", raft.ServerAddress("b"), "error", errDial)
	c.want(t, "another member", `[WARN]  raft: failed to heartbeat to: peer=b error="dial tcp: connection refused"`)
	c.now = c.now.Add(time.Second)
	c.away()
	c.want(t, "after 30 s", line+" repeated=90 in=30s")
	c.now = c.now.Add(backAfter)
	c.away()
	c.want(t, "away again", line)
	c.Info("entering leader state", "leader", "me")
	c.printed()
	c.away()
	c.want(t, "a new leader", line)
	for range 60 {
		c.now = c.now.Add(time.Second)
		c.away()
	}
	if got := c.printed(); len(got) != 2 {
		t.Errorf("a minute: got %q, want 2 lines more", got)
	}
}

// TestRepeatedElections: a node without a majority prints a round once, and then every 30 s.
func TestRepeatedElections(t *testing.T) {
	c := newRaftConsole("debug", "text")
	round := func(term uint64) {
		c.Warn("Election timeout reached, restarting election")
		c.Info("entering candidate state", "node", "Node at a [Candidate]", "term", term)
		c.Debug("pre-vote granted", "from", raft.ServerID("n1"), "term", term, "tally", 1)
	}
	first := []string{"[WARN]  raft: Election timeout reached, restarting election",
		`[INFO]  raft: entering candidate state: node="Node at a [Candidate]" term=3`,
		"[DEBUG] raft: pre-vote granted: from=n1 term=3 tally=1"}
	round(3)
	c.want(t, "first round", first...)
	for range 29 {
		c.now = c.now.Add(time.Second)
		round(3)
	}
	c.want(t, "29 more")
	c.now = c.now.Add(time.Second)
	round(3)
	const again = " repeated=30 in=30s"
	c.want(t, "after 30 s", first[0]+":"+again, first[1]+again)
	round(4)
	c.want(t, "another term", strings.ReplaceAll(first[1], "=3", "=4"),
		"[DEBUG] raft: pre-vote granted: from=n1 term=4 tally=1")
	for range 2 {
		c.Info("added peer, starting replication", "peer", raft.ServerID("n2"))
	}
	if got := c.printed(); len(got) != 2 {
		t.Errorf("got %q, want both: each is an event of its own", got)
	}
	for i := range 3 * maxRepeats {
		c.Warn("warning", "number", i)
	}
	if got := len(c.lines.repeats); got > maxRepeats {
		t.Errorf("got %d lines remembered, want at most %d", got, maxRepeats)
	}
}

// TestVotesAreTrue: a member that gave no answer has denied nothing.
func TestVotesAreTrue(t *testing.T) {
	c := newRaftConsole("debug", "text")
	const candidate = `[INFO]  raft: entering candidate state: term=3`
	campaign := func(n2 bool) {
		c.Info("entering candidate state", "term", uint64(3))
		if !n2 {
			c.Error("failed to make requestVote RPC", "target", raft.Server{ID: "n2", Address: "a"}, "error", errDial, "term", 3)
		}
		for _, id := range []raft.ServerID{"n2", "n3"} {
			c.Debug("pre-vote received", "from", id, "term", uint64(3), "tally", 1)
			c.Debug("pre-vote denied", "from", id, "term", uint64(3), "tally", 1)
		}
		c.Info("pre-vote campaign failed, waiting for election timeout", "term", uint64(3), "tally", 1, "refused", 2,
			"votesNeeded", 2)
	}
	campaign(false)
	c.want(t, "n2 is away", candidate,
		`[WARN]  raft: failed to make requestVote RPC: target="{Voter n2 a}" error="dial tcp: connection refused" term=3`,
		"[DEBUG] raft: no answer to the pre-vote: from=n2 term=3 tally=1",
		"[DEBUG] raft: pre-vote denied: from=n3 term=3 tally=1",
		"[INFO]  raft: pre-vote campaign failed, waiting for election timeout: "+
			"term=3 tally=1 refused=1 votesNeeded=2 unanswered=1")
	c.now = c.now.Add(repeatAfter)
	campaign(true)
	c.want(t, "n2 denies", candidate,
		"[DEBUG] raft: pre-vote denied: from=n2 term=3 tally=1",
		"[DEBUG] raft: pre-vote denied: from=n3 term=3 tally=1",
		"[INFO]  raft: pre-vote campaign failed, waiting for election timeout: term=3 tally=1 refused=2 votesNeeded=2")
	id, address := raft.ServerID("n2"), raft.ServerAddress("a")
	c.Debug("starting leadership transfer", "id", &id, "address", &address)
	c.want(t, "pointers", "[DEBUG] raft: starting leadership transfer: id=n2 address=a")
}

// TestLevels: what a cluster must expect is no error; what it must not is one.
func TestLevels(t *testing.T) {
	for _, test := range []struct {
		name, message string
		args          []any
		want          string
	}{
		{"a member that is away", "failed to heartbeat to", []any{"peer", "a", "error", errDial}, "[WARN]"},
		{"an old leader", "peer has newer term, stopping replication", []any{"peer", "a"}, "[WARN]"},
		{"this port closes", "failed to decode incoming command",
			[]any{"error", &net.OpError{Op: "read", Err: net.ErrClosed}}, "[DEBUG]"},
		{"the other side closes", "failed to flush response", []any{"error", io.EOF}, "[DEBUG]"},
		{"this raft ends", "failed to decode incoming command", []any{"error", raft.ErrTransportShutdown}, "[DEBUG]"},
		{"the text of an error", "failed to decode incoming command",
			[]any{"error", errors.New("msgpack: read tcp: connection reset by peer")}, "[DEBUG]"},
		{"a stranger", "failed to decode incoming command", []any{"error", errors.New("unknown rpc type 71")}, "[ERROR]"},
		{"the disk", "failed to persist vote", []any{"error", errors.New("no space left on device")}, "[ERROR]"},
		{"a snapshot", "failed to install snapshot", []any{"error", errors.New("checksum")}, "[ERROR]"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newRaftConsole("debug", "text")
			c.Error(test.message, test.args...)
			if got := c.printed(); len(got) != 1 || !strings.HasPrefix(got[0], test.want+" ") {
				t.Errorf("got %q, want one line at %s", got, test.want)
			}
			c = newRaftConsole("error", "text")
			if c.Error(test.message, test.args...); c.out.Len() > 0 != (test.want == "[ERROR]") {
				t.Errorf("LOG_LEVEL=error: got %q", c.printed())
			}
		})
	}
}

// TestSilence: what raft prints while its connections end does not follow the last line of a node.
func TestSilence(t *testing.T) {
	c := newRaftConsole("debug", "text")
	named := c.Named("snapshot")
	c.Silence()
	c.Error("failed to decode incoming command", "error", net.ErrClosed)
	named.Info("network transfer progress")
	c.want(t, "after Silence")
}

// TestRaftConsoleJSON: the same lines as JSON objects, of named loggers too.
func TestRaftConsoleJSON(t *testing.T) {
	c := newRaftConsole("debug", "json")
	for range 3 {
		c.away()
		c.now = c.now.Add(repeatAfter)
	}
	c.Named("snapshot").With("id", 1).Info("network transfer progress", "percent", 50)
	var got []string
	for line := range strings.Lines(c.out.String()) {
		var o map[string]any
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		got = append(got, fmt.Sprint(o["@level"], " ", o["@module"], " ", o["@message"], " ", o["repeated"], " ", o["id"]))
	}
	for i := range got {
		if i < 3 && !strings.HasPrefix(got[i], "warn raft failed to ") {
			t.Errorf("got %q, want warnings about n2", got)
		}
	}
	if last := got[len(got)-1]; last != "info raft.snapshot network transfer progress <nil> 1" {
		t.Errorf("got the last line %q, want that of raft.snapshot with its id", last)
	}
}

var _ hclog.Logger = (*RaftLogger)(nil)
