package e2e

import (
	"cmp"
	"encoding/json"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"raftkv/internal/testkit"
)

// jsonLine is a line of a console with LOG_FORMAT=json: of the node itself, or of hashicorp/raft.
type jsonLine struct {
	Time, Level, Msg, Key, Value string
	Index                        uint64

	RaftTime    string `json:"@timestamp"`
	RaftLevel   string `json:"@level"`
	RaftMessage string `json:"@message"`
	RaftModule  string `json:"@module"`
}

// parseJSON parses a console, each line of which must be a JSON object with time, level and message.
func parseJSON(t *testing.T, console string) (lines []jsonLine) {
	t.Helper()
	for text := range strings.Lines(console) {
		var line jsonLine
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Errorf("got the line %q, want a JSON object: %v", text, err)
			continue
		}
		if _, err := time.Parse(time.RFC3339Nano, cmp.Or(line.Time, line.RaftTime)); err != nil {
			t.Errorf("got the line %q, want a time: %v", text, err)
		}
		if cmp.Or(line.Level, line.RaftLevel) == "" || cmp.Or(line.Msg, line.RaftMessage) == "" {
			t.Errorf("got the line %q, want a level and a message", text)
		}
		lines = append(lines, line)
	}
	return lines
}

// TestConsoleJSON: with LOG_FORMAT=json, all lines are JSON: those of the node, of hashicorp/raft, of the state
// machine, and the last one of a node that can't go on.
func TestConsoleJSON(t *testing.T) {
	t.Parallel()
	nodes := testkit.StartCluster(t, binary(t), 2, "LOG_FORMAT=json")
	const key, value = "a\n\"\x1b[2J", "<&>\u202e"
	index := nodes[0].Write(t, "/set?"+testkit.Pair(key, value))
	nodes[0].Write(t, "/remove?key=%FF&key=a")

	for _, n := range nodes {
		testkit.Eventually(t, "the line of the set on "+n.ID, func() error {
			if strings.Count(n.Stderr.String(), `"msg":"remove"`) < 2 {
				return errors.New("not yet")
			}
			return nil
		})
	}
	testkit.CheckReplicas(t, nodes...)

	second := testkit.NewNode(t, binary(t), "n1", "LOG_FORMAT=json")
	second.HTTPPort = nodes[0].HTTPPort // taken
	second.Run(t)
	second.WantExit(t, testkit.StopBound, 1)
	lines := parseJSON(t, second.Stderr.String())
	if len(lines) == 0 || lines[len(lines)-1].Level != "fatal" ||
		!strings.Contains(lines[len(lines)-1].Msg, "HTTP_SERVER_PORT") {
		t.Errorf("a port that is taken: got %+v, want a last line of level fatal that names HTTP_SERVER_PORT", lines)
	}
	usage := exec.Command(binary(t))
	usage.Env = append(testkit.Environ(), "LOG_FORMAT=json", "LOG_LEVEL=loud")
	wrong := testkit.Start(t, usage)
	wrong.WantExit(t, testkit.StopBound, 2)
	if lines := parseJSON(t, wrong.Stderr.String()); len(lines) != 1 || !strings.Contains(lines[0].Msg, "LOG_LEVEL") {
		t.Errorf("a wrong variable: got %+v, want one line that names it", lines)
	}

	for _, n := range nodes {
		var set, raft, own bool
		for _, line := range parseJSON(t, n.Stderr.String()) {
			set = set || line.Msg == "set" && line.Key == key && line.Value == value && line.Index == index
			raft = raft || strings.HasPrefix(line.RaftModule, "raft")
			own = own || strings.HasPrefix(line.Msg, "Node "+n.ID+" (version ")
		}
		if !set || !raft || !own {
			t.Errorf("%s: got lines of the set: %t, of raft: %t, of the start: %t, want all", n.ID, set, raft, own)
		}
	}
}
