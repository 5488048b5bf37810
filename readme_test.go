package main

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestREADME runs every command block of README.md from top to bottom, as a reader
// would, and compares what is printed with what the page says.
//
// A block marked "console" has commands ($ …) and exactly what they print. One
// marked "console n1" starts a script in terminal n1, and one marked "text n1" has
// more lines of that terminal: they must all appear there after those of the block
// before (other lines may stand between them). ^C is a Ctrl-C in that terminal,
// which must then end well. Times, indices and the like are compared as such.
func TestREADME(t *testing.T) {
	page, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	terminals := make(map[string]*terminal)
	blocks := regexp.MustCompile("(?ms)^```(console|text)(?: (\\w+))?\n(.*?)^```$").FindAllStringSubmatch(string(page), -1)
	if fences := strings.Count(string(page), "\n```"); fences != 2*len(blocks) {
		t.Errorf("%d fences, but %d blocks marked console or text: a block that is not run can rot", fences, len(blocks))
	}
	for _, block := range blocks {
		name, lines := block[2], strings.Split(strings.TrimSuffix(block[3], "\n"), "\n")
		switch command, isCommand := strings.CutPrefix(lines[0], "$ "); {
		case isCommand && command == "go test ./...":
			// This is it. .ci/run makes sure that it runs as written.
		case isCommand && (name != "" || command == "./cluster.sh"):
			terminals[name] = openTerminal(t, command)
			lines = lines[1:]
			if command == "./cluster.sh" {
				lines = []string{"== Ctrl-C stops all three", "^C"}
			}
			terminals[name].follow(t, lines)
		case isCommand:
			runConsole(t, lines)
		default:
			terminals[name].follow(t, lines)
		}
	}
}

// runConsole runs the commands of a block, one after the other, in one shell each.
func runConsole(t *testing.T, lines []string) {
	t.Helper()
	for len(lines) > 0 {
		command := strings.TrimPrefix(lines[0], "$ ")
		lines = lines[1:]
		var want []string
		for len(lines) > 0 && !strings.HasPrefix(lines[0], "$ ") {
			want = append(want, timeless(lines[0]))
			lines = lines[1:]
		}
		check := func() string {
			// -sS as a reader sees it, whose terminal has curl's progress elsewhere.
			out, _ := exec.Command("bash", "-c", strings.ReplaceAll(command, "curl ", "curl -sS ")).CombinedOutput()
			var got []string
			for line := range strings.Lines(string(out)) {
				if !strings.HasSuffix(line, " entries\n") { // the progress of a join, on a slow machine
					got = append(got, timeless(strings.TrimRight(line, "\r\n")))
				}
			}
			if strings.Join(got, "\n") == strings.Join(want, "\n") {
				return ""
			}
			return fmt.Sprintf("$ %s\nprinted\n%s\nthe page says\n%s", command, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		// What a reader types a second later may come too early for a machine that
		// reads faster: a follower that has not applied, an election.
		first := check()
		difference := first
		for deadline := time.Now().Add(15 * time.Second); difference != "" && time.Now().Before(deadline); {
			time.Sleep(100 * time.Millisecond)
			difference = check()
		}
		if difference != "" {
			t.Errorf("%s\nat first: %s", difference, first)
		}
	}
}

// terminal is a script that runs in the background.
type terminal struct {
	command *exec.Cmd
	ended   chan error
	out     *os.File // what it has printed
	read    int      // how many of its lines were compared
}

func openTerminal(t *testing.T, command string) *terminal {
	t.Helper()
	out, err := os.CreateTemp(t.TempDir(), "terminal")
	if err != nil {
		t.Fatal(err)
	}
	term := &terminal{command: exec.Command("bash", "-c", strings.ReplaceAll(command, "curl ", "curl -sS ")), ended: make(chan error, 1), out: out}
	term.command.Stdout, term.command.Stderr = out, out
	term.command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // as a terminal has it
	if err := term.command.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { term.ended <- term.command.Wait() }()
	t.Cleanup(func() {
		_ = syscall.Kill(-term.command.Process.Pid, syscall.SIGTERM)
		if t.Failed() {
			t.Logf("terminal of %s:\n%s", command, strings.Join(term.lines(t), "\n"))
		}
		_ = out.Close()
	})
	return term
}

func (term *terminal) lines(t *testing.T) []string {
	out, err := os.ReadFile(term.out.Name())
	if err != nil {
		t.Error(err)
	}
	return strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
}

// follow waits until the terminal has printed all of want since the last call.
func (term *terminal) follow(t *testing.T, want []string) {
	t.Helper()
	if len(want) > 0 && want[len(want)-1] == "^C" {
		defer term.interrupt(t)
		want = want[:len(want)-1]
	} else if len(want) > 0 && want[0] == "^C" {
		term.interrupt(t)
		want = want[1:]
	}
	var missing []string
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		printed := make(map[string]int)
		lines := term.lines(t)
		for _, line := range lines[min(term.read, len(lines)):] {
			printed[timeless(line)]++
		}
		missing = nil
		for _, line := range want {
			if printed[timeless(line)]--; printed[timeless(line)] < 0 {
				missing = append(missing, line)
			}
		}
		if len(missing) == 0 {
			for i, line := range lines {
				for _, w := range want {
					if timeless(line) == timeless(w) {
						term.read = max(term.read, i+1)
					}
				}
			}
			return
		}
	}
	t.Fatalf("%s did not print, within a minute:\n%s", term.command, strings.Join(missing, "\n"))
}

// interrupt is a Ctrl-C; the script must end with exit code 0. Of curl it is just
// the end.
func (term *terminal) interrupt(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(-term.command.Process.Pid, syscall.SIGINT); err != nil {
		t.Error(err)
	}
	select {
	case err := <-term.ended:
		if err != nil && !strings.Contains(term.command.String(), "curl ") {
			t.Errorf("after Ctrl-C %s ended with %v", term.command, err)
		}
	case <-time.After(time.Minute):
		t.Errorf("a minute after Ctrl-C %s still runs", term.command)
	}
}

var varying = []struct {
	pattern *regexp.Regexp
	as      string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT[\d:.]+(Z|[+-]\d{4})`), "TIME"},
	{regexp.MustCompile(`\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT`), "TIME"},
	{regexp.MustCompile(`\b[0-9a-f]{32}\b`), "ID"},
	{regexp.MustCompile(`\b[0-9a-f]{64}\b`), "HASH"},
	{regexp.MustCompile(`\b(index|term|tally|next|previous-index|last-index)=\d+`), "$1=#"},
	{regexp.MustCompile(`((?i:etag:? )|^id: |^: watching after index |"index": ?|"term":)"?\d+"?`), "$1#"},
	{regexp.MustCompile(`\d+\.\d s$`), "# s"},
}

// timeless is line without what differs from run to run.
func timeless(line string) string {
	for _, v := range varying {
		line = v.pattern.ReplaceAllString(line, v.as)
	}
	return line
}
