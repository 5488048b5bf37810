package e2e

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"raftkv/internal/testkit"
)

func TestConsoleTellsEachCommandOnce(t *testing.T) {
	t.Parallel()
	nodes := startThree(t)

	type command struct{ target, line string }
	var commands []command
	for _, tt := range []struct{ key, value, line string }{
		{key: "plain", value: "1", line: `set key="plain" value="1"`},
		{key: "a\nINFO[2026-01-01T00:00:00.000Z] set key=\"forged\"", value: "1",
			line: `set key="a\nINFO[2026-01-01T00:00:00.000Z] set key=\"forged\"" value="1"`},
		{key: "b", value: "\r\nINFO[2026-01-01T00:00:00.000Z] set key=\"forged\"\r\n",
			line: `set key="b" value="\r\nINFO[2026-01-01T00:00:00.000Z] set key=\"forged\"\r\n"`},
		{key: "\x1b[2J\x1b[31mred", value: "\x1b]0;title\a", line: `set key="\x1b[2J\x1b[31mred" value="\x1b]0;title\a"`},
		{key: `" value="2" index=1 term=1`, value: `\"`, line: `set key="\" value=\"2\" index=1 term=1" value="\\\""`},
		{key: "\xff\xfe\xc3", value: "\x00\x7f\u0085", line: `set key="\xff\xfe\xc3" value="\x00\x7f\u0085"`},
		{key: "\u202etxt.exe", value: "\u2028", line: `set key="\u202etxt.exe" value="\u2028"`},
		{key: "schön", value: "日本", line: `set key="schön" value="日本"`},
		{key: strings.Repeat("é", 40), value: strings.Repeat("v", 1000),
			line: `set key="` + strings.Repeat("é", 32) + `"...(80 bytes) value="` + strings.Repeat("v", 64) +
				`"...(1000 bytes)`},
	} {
		commands = append(commands, command{"/set?" + testkit.Pair(tt.key, tt.value), tt.line})
		remove, _, _ := strings.Cut("remove"+strings.TrimPrefix(tt.line, "set"), " value=")
		if tt.key == `" value="2" index=1 term=1` {
			remove = `remove key="\" value=\"2\" index=1 term=1"`
		}
		commands = append(commands, command{"/remove?" + url.Values{"key": {tt.key}}.Encode(), remove})
	}
	acked := make(map[uint64]string) // line by index
	for i, c := range commands {
		acked[nodes[i%3].Write(t, c.target)] = c.line
	}

	for _, s := range nodes {
		id := s.ID
		testkit.Eventually(t, "the lines of "+id, func() error {
			want := nodes[0].AppliedLines()
			told, err := byIndex(s.AppliedLines())
			if err != nil {
				t.Fatalf("%s says %v", id, err)
			}
			for index, line := range acked {
				if told[index] != line {
					return fmt.Errorf("it says of entry %d %q, want %q", index, told[index], line)
				}
			}
			// A command whose outcome was unknown was sent again.
			for index, line := range told {
				if !slices.ContainsFunc(commands, func(c command) bool { return c.line == line }) {
					return fmt.Errorf("it says of entry %d %q, want nothing but what was sent", index, line)
				}
			}
			if got := s.AppliedLines(); !slices.Equal(got, want) {
				return fmt.Errorf("it says %q, want what n1 says, %q", got, want)
			}
			return nil
		})
		checkPrintable(t, s)
	}
	testkit.CheckReplicas(t, nodes...)
}

var (
	ownLine = regexp.MustCompile(`^[A-Z]{4}\[[^]]*\] .*$`)
	lineEnd = regexp.MustCompile(` index=([0-9]+) term=[0-9]+$`)
)

// byIndex takes the lines about applied commands apart. Their indexes must ascend.
func byIndex(lines []string) (map[uint64]string, error) {
	var last uint64
	told := make(map[uint64]string, len(lines))
	for _, line := range lines {
		at := lineEnd.FindStringSubmatchIndex(line)
		if at == nil {
			return nil, fmt.Errorf("%q, want an index at the end", line)
		}
		index, err := strconv.ParseUint(line[at[2]:at[3]], 10, 64)
		if err != nil || index <= last {
			return nil, fmt.Errorf("%q after entry %d, want the order of the log", line, last)
		}
		last = index
		told[index] = line[:at[0]]
	}
	return told, nil
}

// checkPrintable checks that nothing but text has reached the console of s, and no
// line but its own and raft's.
func checkPrintable(t testing.TB, s *testkit.Node) {
	t.Helper()
	text := s.Stderr.String()
	if !utf8.ValidString(text) {
		t.Errorf("the console of %s is not UTF-8", s.ID)
	}
	if i := strings.IndexFunc(text, func(r rune) bool { return r != '\n' && !strconv.IsPrint(r) }); i >= 0 {
		t.Errorf("the console of %s has a control character: %q", s.ID, text[i:min(i+80, len(text))])
	}
	raftLine := regexp.MustCompile(`^[0-9-]{10}T[0-9:.]+[Z0-9:+-]* \[[A-Z]+\] +raft[a-z.]*: `)
	for line := range strings.Lines(text) {
		if line = strings.TrimSuffix(line, "\n"); !ownLine.MatchString(line) && !raftLine.MatchString(line) {
			t.Errorf("the console of %s has the line %q, want its own or raft's", s.ID, line)
		}
		if strings.HasPrefix(line, "INFO[2026-01-01T00:00:00.000Z] ") {
			t.Errorf("the console of %s has a forged line, %q", s.ID, line)
		}
	}
}

// TestConsoleOfAnElection: the leader is killed, and the consoles of the others have what happened, on half a screen.
func TestConsoleOfAnElection(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			nodes := testkit.StartCluster(t, binary(t), 3, "LOG_FORMAT="+format)
			printed := func(n *testkit.Node) []string { return strings.Split(strings.TrimSpace(n.Stderr.String()), "\n") }
			dead, others := testkit.Leader(t, nodes...)
			before := make(map[string]int)
			for _, n := range others {
				before[n.ID] = len(printed(n))
			}
			term := state(t, dead).Term
			dead.Kill(t)
			led := regexp.MustCompile(`Term (\d+): (n\d) leads`)
			winner := ""
			for _, n := range others {
				testkit.Eventually(t, "a new leader on the console of "+n.ID, func() error {
					all := led.FindAllStringSubmatch(n.Stderr.String(), -1)
					if last := all[len(all)-1]; last[2] != dead.ID {
						winner = last[2]
						return nil
					}
					return errors.New("there is none")
				})
			}
			for _, n := range others {
				lines := printed(n)[before[n.ID]:]
				end := slices.IndexFunc(lines, led.MatchString)
				t.Logf("%s: %d lines of the election", n.ID, end+1)
				const half = 30 // of a screen; 20 to 25 unless the two stand against each other
				if end >= half {
					t.Errorf("%s: %d lines, want less than %d:\n%s", n.ID, end, half, strings.Join(lines[:end], "\n"))
				}
				all := strings.Join(lines, "\n")
				for _, want := range []string{fmt.Sprintf("Term %d: no leader", term), ": voted for " + winner} {
					if !strings.Contains(all, want) {
						t.Errorf("%s: no line %q in\n%s", n.ID, want, all)
					}
				}
			}
			others[0].WaitReady(t)
			notNormal := regexp.MustCompile(`(?i)\[error\]|"@?level":"error"|denied.*` + dead.ID)
			for _, n := range others {
				n.Stop(t, syscall.SIGTERM)
				lines := printed(n)
				for _, line := range lines {
					if notNormal.MatchString(line) {
						t.Errorf("%s: %s", n.ID, line)
					}
				}
				if last := lines[len(lines)-1]; !regexp.MustCompile(`\bStopped\b`).MatchString(last) {
					t.Errorf("%s: got the last line %s, want Stopped", n.ID, last)
				}
			}
		})
	}
}

// TestConsoleOfARemovedNode: it is not that something has failed.
func TestConsoleOfARemovedNode(t *testing.T) {
	t.Parallel()
	nodes := testkit.StartCluster(t, binary(t), 2)
	n := nodes[1]
	if a := nodes[0].Definite(t, "POST", "/leave?nodeId=n2", ""); a.Status != 200 {
		t.Fatalf("/leave: got %d %s", a.Status, a.Body)
	}
	n.WaitMessage(t, "it is inactive until it is joined again")
	n.Stop(t, syscall.SIGTERM)
	if messages := n.Messages(); messages[len(messages)-1] != "Stopped" {
		t.Errorf("got %q, want Stopped at the end", messages)
	}
	if text := n.Stderr.String(); strings.Contains(text, "ERROR") || strings.Contains(text, "WARN[") {
		t.Errorf("got\n%s\nwant neither an error nor a warning of its own", text)
	}
}

func TestRestartFromTheLog(t *testing.T) {
	t.Parallel()
	s := startOne(t)
	s.Set(t, "a", "1")
	s.Set(t, "a", "2")
	s.Write(t, "/set?key=b&value=3&key=c&value=")
	s.Write(t, "/remove?key=b")
	s.Set(t, "\xff\x00", "\xfe\n")
	want := testkit.CheckReplicas(t, s)
	var lines []string
	testkit.Eventually(t, "lines about what was applied", func() error {
		if lines = s.AppliedLines(); len(lines) != 6 {
			return fmt.Errorf("got %q, want 6 lines", lines)
		}
		return nil
	})
	for range 2 { // what is read from a log stays there
		s.Stop(t, syscall.SIGTERM)
		s.Start(t)
		testkit.Eventually(t, "the log applied", func() error {
			if got := s.AppliedLines(); !slices.Equal(got, lines) {
				return fmt.Errorf("the node says %q, want %q", got, lines)
			}
			return nil
		})
		s.WantValues(t, want)
	}
	s.Set(t, "after", "4")
	testkit.CheckReplicas(t, s)
}

// TestSnapshots takes about 20 s, most of which it waits for raft's own snapshots: raft looks
// every 5 to 10 s whether one is due.
func TestSnapshots(t *testing.T) {
	slow(t)
	t.Parallel()
	s := testkit.StartCluster(t, binary(t), 1, "RAFT_ELECTION_TIMEOUT=100ms", "RAFT_SNAPSHOT_THRESHOLD=1")[0]
	for i := range 20 {
		s.Set(t, strconv.Itoa(i), "first")
	}
	// The log is kept back to the older of two snapshots.
	snapshotted(t, s, 1)
	s.Write(t, "/set?key=0&value=second&key=%FF%00&value=%FE%0A")
	s.Write(t, "/remove?key=1")
	snapshotted(t, s, 2)
	want := testkit.CheckReplicas(t, s)
	if len(want) != 20 {
		t.Errorf("the node holds %d keys, want 20", len(want))
	}

	const restoredLine = "Restored a snapshot: 20 keys, index="
	restored := func(tail ...string) {
		t.Helper()
		s.Stop(t, syscall.SIGTERM)
		s.Env = nil // takes no more snapshots
		s.Start(t)
		s.WantValues(t, want)
		testkit.Eventually(t, "the lines of the log behind the snapshot", func() error {
			if got := s.AppliedLines(); len(got) != len(tail) || !strings.HasPrefix(strings.Join(got, "\n"),
				strings.Join(tail, "\n")) {
				return fmt.Errorf("after a restart, the node says %q, want %q", got, tail)
			}
			return nil
		})
		s.WaitMessage(t, restoredLine)
	}
	restored()
	line := fmt.Sprintf(`set key="2" value="third" index=%d term=`, s.Set(t, "2", "third"))
	want = testkit.CheckReplicas(t, s)
	restored(line)

	// One that joins gets the snapshot, and the log after it.
	joiner := testkit.NewNode(t, binary(t), "n2")
	joiner.Start(t)
	testkit.Join(t, s.Client, joiner.Client, joiner.RaftPort)
	joiner.WaitMessage(t, restoredLine)
	joiner.Set(t, "3", "fourth")
	testkit.CheckReplicas(t, s, joiner)
	testkit.Eventually(t, "the lines of the log behind the snapshot", func() error {
		if got, want := joiner.AppliedLines(), s.AppliedLines(); !slices.Equal(got, want) {
			return fmt.Errorf("%q, want %q", got, want)
		}
		return nil
	})
}

// snapshotted waits until the volume of a node has so many snapshots, the newest of all that it has applied.
func snapshotted(t testing.TB, n *testkit.Node, count int) {
	t.Helper()
	testkit.Eventually(t, "a snapshot", func() error {
		paths := snapshots(t, n)
		if len(paths) < count {
			return fmt.Errorf("got %d, want %d", len(paths), count)
		}
		if newest, applied := indexOf(t, paths[len(paths)-1]), state(t, n).AppliedIndex; newest < applied {
			return fmt.Errorf("the newest is at %d of %d", newest, applied)
		}
		return nil
	})
}
