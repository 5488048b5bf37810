package e2e

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"raftkv/internal/testkit"
)

// TestDocs runs every command block of README.md and of docs/*.md from top to bottom, as
// a reader would, and compares what is printed with what the page shows. Each page is a
// story of its own, and starts with nothing running.
//
// A block marked "console" has commands ($ …) and exactly what they print. One marked
// "console n1" starts a program in terminal n1, and one marked "text n1" has more lines
// of that terminal: they must all appear there after those of the block before (other
// lines may stand between them). "text n2|n3" is one of both, whichever has them all. ^C
// is a Ctrl-C in that terminal, whose program must then end with exit code 0. A block
// marked "text" alone shows something that is not run.
// The configurations of proxies are run by TestProxies.
//
// Everything is compared literally, index numbers included, but for times, random IDs and
// hashes. Where a page has …, anything may be printed; a line that is only … stands for
// any number of lines. A page must not have … in the place of an index.
//
// The pages use the ports and volumes of startn1.sh to startn3.sh. Here the scripts are
// copied, and free ports and a temporary directory are put into them and into the
// commands, so that a cluster that runs on this machine is not disturbed; what is
// compared, and what a failure shows, has those of the page again.
func TestDocs(t *testing.T) {
	pages := []string{"../../README.md"}
	more, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(more) == 0 {
		t.Fatalf("docs/*.md: got %v, %v, want files", more, err)
	}
	binary := filepath.Join(t.TempDir(), "raftkv")
	if out, err := exec.Command("go", "build", "-o", binary, "../..").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	for _, page := range append(pages, more...) {
		t.Run(filepath.Base(page), func(t *testing.T) {
			text, err := os.ReadFile(page)
			if err != nil {
				t.Fatal(err)
			}
			newReader(t, binary).read(string(text))
		})
	}
}

// reader does what a page asks for.
type reader struct {
	t         *testing.T
	dir       string // the working directory: a copy of the scripts, and the binary
	temp      string // stands for /tmp
	mark      string // stands for pageMark: the last one that was printed
	port      int    // stands for 8000; port+1000 for 9000, and so on for the ports after them
	terminals map[string]*terminal
	env       []string // of every command
	guide     *guide   // shows each step to a person; nil in a test

	theirs *regexp.Regexp // the ports of this reader, in what is printed
}

// pagePorts is how many consecutive ports the pages use for HTTP, and how many for raft.
const pagePorts = 6

func newReader(t *testing.T, binary string) *reader { return newReaderAt(t, binary, freePorts(t)) }

// newReaderAt is newReader with the port that stands for 8000.
func newReaderAt(t *testing.T, binary string, port int) *reader {
	r := &reader{t: t, dir: t.TempDir(), temp: t.TempDir(), port: port, terminals: make(map[string]*terminal)}
	// An election that a busy machine causes would be one that the page does not have: it
	// takes an index, and puts another node in the leader's place.
	r.env = []string{"RAFT_ELECTION_TIMEOUT=2s"}
	var ports []string
	for i := -1; i < pagePorts; i++ {
		ports = append(ports, strconv.Itoa(r.port+i), strconv.Itoa(r.port+1000+i))
	}
	r.theirs = regexp.MustCompile(`\b(` + strings.Join(ports, "|") + `)\b`)
	scripts, err := filepath.Glob("../../*.sh")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(scripts, "../../README.md") {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(r.dir, filepath.Base(path)), []byte(r.toReal(string(text))), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(binary, filepath.Join(r.dir, "raftkv")); err != nil {
		t.Fatal(err)
	}
	return r
}

// freePorts returns a port to stand for 8000. It has four digits as that has, so that
// the lengths of messages are those of the page.
func freePorts(t *testing.T) int {
	for range 100 {
		first := 5000 + rand.IntN(2000) // above every index, year and other number of four digits in the pages
		takenPorts.Lock()
		ok := !takenPorts.firsts[first/10] && arePagePortsFree(first)
		if ok {
			takenPorts.firsts[first/10], takenPorts.firsts[first/10+1] = true, true
		}
		takenPorts.Unlock()
		if ok {
			return first
		}
	}
	t.Fatal("no free ports")
	return 0
}

// takenPorts are those of the readers that run side by side, by tens.
var takenPorts = struct {
	sync.Mutex
	firsts map[int]bool
}{firsts: make(map[int]bool)}

// arePagePortsFree reports whether the ports of a page are free if first stands for 8000.
func arePagePortsFree(first int) bool {
	for i := range pagePorts {
		for _, port := range []int{first + i, first + 1000 + i} {
			for _, host := range []string{"127.0.0.1", "127.0.0.11", "127.0.0.12", "127.0.0.13"} {
				l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
				if err != nil {
					return false
				}
				_ = l.Close()
			}
		}
	}
	return true
}

// Ports of the pages and scripts, with those that cluster.sh counts from.
var pagePort = regexp.MustCompile(`\b(7999|8999|[89]00[0-5])\b`)

// toReal puts this reader's ports and directory into a command or script.
func (r *reader) toReal(text string) string {
	text = pagePort.ReplaceAllStringFunc(text, func(port string) string {
		number, _ := strconv.Atoi(port)
		return strconv.Itoa(number - 8000 + r.port)
	})
	if r.mark != "" {
		text = strings.ReplaceAll(text, "-"+pageMark, "-"+r.mark)
	}
	return strings.ReplaceAll(text, "/tmp/", r.temp+"/")
}

// toPage is the inverse of toReal, for what was printed.
func (r *reader) toPage(text string) string {
	text = strings.ReplaceAll(text, r.temp+"/", "/tmp/")
	if mark := historyMark.FindStringSubmatch(text); mark != nil {
		r.mark = mark[2]
	}
	return r.theirs.ReplaceAllStringFunc(text, func(port string) string {
		number, _ := strconv.Atoi(port)
		return strconv.Itoa(number - r.port + 8000)
	})
}

// command is a command of the page, ready to run. The default ports of the program are not
// in the text of a page, so a node that is started without a script gets those that stand
// for them. The scripts have ports of their own, which the environment would override.
func (r *reader) command(text string) *exec.Cmd {
	// -sS: a person's terminal has curl's progress elsewhere.
	c := exec.Command("bash", "-c", strings.ReplaceAll(r.toReal(text), "curl ", "curl -sS "))
	c.Dir = r.dir
	c.Env = append(append(testkit.Environ(), "http_proxy="), r.env...)
	if strings.Contains(text, "./raftkv") {
		c.Env = append(c.Env, fmt.Sprintf("HTTP_SERVER_PORT=%d", r.port), fmt.Sprintf("RAFT_SERVER_PORT=%d", r.port+1000))
	}
	return c
}

var fenced = regexp.MustCompile("(?ms)^```(console|text)(?: ([\\w|]+))?\n(.*?)^```$")

// proxied begins a block that TestProxies runs.
var proxied = regexp.MustCompile("(?m)^```(nginx|haproxy|caddy)$")

// noIndex is an index, or an ETag, in whose place a page has ….
var noIndex = regexp.MustCompile(`(?mi)(index"?[=:] ?"?|etag: "|^id: )….*`)

// read does what the page asks for, from top to bottom.
func (r *reader) read(page string) {
	t := r.t
	blocks := fenced.FindAllStringSubmatch(page, -1)
	if fences := strings.Count("\n"+page, "\n```"); fences != 2*len(blocks)+2*len(proxied.FindAllString(page, -1)) {
		t.Errorf("%d fences, but %d blocks marked console or text: a block that is not run can rot", fences, len(blocks))
	}
	for _, index := range noIndex.FindAllString(page, -1) {
		t.Errorf("%s: an index is left out, want its number", index)
	}
	prose := fenced.Split(page, -1)
	for k, block := range blocks {
		kind, name, lines := block[1], block[2], strings.Split(strings.TrimSuffix(block[3], "\n"), "\n")
		r.guide.prose(r.toReal(prose[k]))
		command, isCommand := strings.CutPrefix(lines[0], "$ ")
		switch {
		case isCommand && strings.HasPrefix(command, "go "):
			// This is it, or takes long. .ci/run makes sure that "go test ./..." runs as written.
		case isCommand && command == "./cluster.sh":
			r.open("cluster", command)
			r.terminals["cluster"].follow(t, []string{"== Ctrl-C stops all three", "^C"})
		case isCommand && name != "":
			r.guide.command(t, "(terminal of "+name+") $ "+r.toReal(command))
			r.open(name, command)
			r.terminals[name].follow(t, lines[1:])
		case isCommand:
			r.run(lines)
		case name != "":
			if of := "(terminal of " + strings.ReplaceAll(name, "|", " or ") + ")"; slices.Contains(lines, "^C") {
				r.guide.command(t, of+" Ctrl-C")
			} else {
				r.guide.command(t, of+" look at it")
			}
			r.followOne(strings.Split(name, "|"), lines)
		case kind == "console":
			t.Errorf("a console block without a command: %s", lines[0])
		}
		if t.Failed() {
			return // what follows would only fail too
		}
	}
	r.guide.prose(r.toReal(prose[len(blocks)]))
}

// run runs the commands of a block, one after the other, in one shell each.
func (r *reader) run(lines []string) {
	for len(lines) > 0 {
		command := strings.TrimPrefix(lines[0], "$ ")
		end := 1 + slices.IndexFunc(lines[1:], func(line string) bool { return strings.HasPrefix(line, "$ ") })
		if end == 0 {
			end = len(lines)
		}
		want := lines[1:end]
		lines = lines[end:]
		r.guide.command(r.t, "$ "+r.toReal(command))
		first := ""
		// What a person types a second later may come too early from a program: a follower
		// that has not applied yet, an election. A command that was done is not repeated.
		for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(100 * time.Millisecond) {
			out, _ := r.command(command).CombinedOutput()
			got := r.printed(string(out))
			if pattern(want).MatchString(strings.Join(got, "")) {
				r.guide.outcome(true, split(string(out)))
				break
			}
			difference := fmt.Sprintf("$ %s\nprinted\n%sthe page has\n%s", command, strings.Join(got, ""),
				strings.Join(want, "\n"))
			if first == "" {
				first = difference
			}
			if time.Now().After(deadline) || strings.HasPrefix(string(out), "OK") {
				r.guide.outcome(false, split(string(out)))
				r.t.Errorf("%s\n\nat first: %s", difference, first)
				return
			}
		}
	}
}

// printed is out in lines as the page would have them, without the progress of a join,
// which only a slow machine shows.
func (r *reader) printed(out string) (lines []string) {
	for _, line := range split(out) {
		lines = append(lines, timeless(r.toPage(line)))
	}
	return lines
}

// split is out in lines that a page may have, as they are.
func split(out string) (lines []string) {
	for line := range strings.Lines(out) {
		if line = strings.TrimRight(line, "\r\n") + "\n"; !strings.HasSuffix(line, " entries\n") {
			lines = append(lines, line)
		}
	}
	return lines
}

// pattern matches what a page shows: lines, each with its end.
func pattern(lines []string) *regexp.Regexp {
	var b strings.Builder
	b.WriteString("^")
	for _, line := range lines {
		if line == "…" {
			b.WriteString(`(?:.*\n)*`)
			continue
		}
		b.WriteString(strings.ReplaceAll(regexp.QuoteMeta(timeless(line)), "…", ".*") + `\n`)
	}
	b.WriteString("$")
	return regexp.MustCompile(b.String())
}

// terminal is a program that runs in the background.
type terminal struct {
	reader  *reader
	text    string // the command
	command *exec.Cmd
	ended   chan struct{}
	err     error // of the command, once it has ended
	out     *os.File
	read    int // how many of its lines were compared
}

// open starts a command in the terminal of that name.
func (r *reader) open(name, command string) {
	t := r.t
	out, err := os.CreateTemp(t.TempDir(), "terminal")
	if err != nil {
		t.Fatal(err)
	}
	term := &terminal{reader: r, text: command, command: r.command(command), ended: make(chan struct{}), out: out}
	term.command.Stdout, term.command.Stderr = out, out
	term.command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // as a terminal has it
	if err := term.command.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		term.err = term.command.Wait()
		close(term.ended)
	}()
	t.Cleanup(func() {
		_ = syscall.Kill(-term.command.Process.Pid, syscall.SIGTERM)
		select {
		case <-term.ended:
		case <-time.After(20 * time.Second):
			_ = syscall.Kill(-term.command.Process.Pid, syscall.SIGKILL)
			<-term.ended
		}
		if t.Failed() {
			t.Logf("terminal of %s:\n%s", command, strings.Join(term.lines(t), ""))
		}
		_ = out.Close()
	})
	r.terminals[name] = term
}

// lines is what it has printed, as the page would have it.
func (term *terminal) lines(t *testing.T) []string { return term.reader.printed(term.all(t)) }

func (term *terminal) all(t *testing.T) string {
	out, err := os.ReadFile(term.out.Name())
	if err != nil {
		t.Error(err)
	}
	return string(out)
}

// followOne is follow for the first of the named terminals that has printed all of want.
func (r *reader) followOne(names []string, want []string) {
	for _, name := range names {
		if r.terminals[name] == nil {
			r.t.Fatalf("nothing was started in terminal %s", name)
		}
	}
	for deadline := time.Now().Add(time.Minute); len(names) > 1 && time.Now().Before(deadline); {
		for _, name := range names {
			if missing, _ := r.terminals[name].missing(r.t, want); len(missing) == 0 {
				names = []string{name}
				break
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	r.terminals[names[0]].follow(r.t, want)
}

// follow waits until the terminal has printed all of want since the last call. A ^C is
// the last line of want, or the first.
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
		var found []int
		if missing, found = term.missing(t, want); len(missing) == 0 {
			var shown []string
			for _, i := range found {
				term.read = max(term.read, i+1)
				shown = append(shown, split(term.all(t))[i])
			}
			term.reader.guide.outcome(true, shown)
			return
		}
	}
	term.reader.guide.outcome(false, nil)
	t.Fatalf("%s did not print, within a minute:\n%s", term.text, strings.Join(missing, "\n"))
}

// missing returns those lines of want that the terminal has not printed since the last follow, and which of its lines
// are the others.
func (term *terminal) missing(t *testing.T, want []string) (missing []string, found []int) {
	lines := term.lines(t)
	for _, line := range want {
		expected := pattern([]string{line})
		i := min(term.read, len(lines))
		for i < len(lines) && (slices.Contains(found, i) || !expected.MatchString(lines[i])) {
			i++
		}
		if i == len(lines) {
			missing = append(missing, line)
		} else {
			found = append(found, i)
		}
	}
	return missing, found
}

// interrupt is a Ctrl-C; the program must end with exit code 0. Of curl it is just the
// end.
func (term *terminal) interrupt(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(-term.command.Process.Pid, syscall.SIGINT); err != nil {
		t.Error(err)
	}
	select {
	case <-term.ended:
		if term.err != nil && !strings.Contains(term.text, "curl ") {
			t.Errorf("after Ctrl-C %s ended with %v", term.text, term.err)
		}
	case <-time.After(time.Minute):
		t.Errorf("a minute after Ctrl-C %s still runs", term.text)
	}
}

// varying is what differs from run to run.
var varying = []struct {
	pattern *regexp.Regexp
	as      string
}{
	{pattern: regexp.MustCompile(`\d{4}-\d\d-\d\dT[\d:.]+(Z|[+-]\d{4})`), as: "TIME"},
	{pattern: regexp.MustCompile(`\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT`), as: "TIME"},
	{pattern: regexp.MustCompile(`\b[0-9a-f]{32}\b`), as: "ID"},
	{pattern: regexp.MustCompile(`\b[0-9a-f]{64}\b`), as: "HASH"},
	{pattern: regexp.MustCompile(`in \d+\.\d s\b`), as: "in # s"},
	{pattern: historyMark, as: "${1}MARK"},
}

// historyMark is an ETag or an event ID: an index, then the beginning of the cluster ID.
var historyMark = regexp.MustCompile(`\b(\d+-)([0-9a-f]{8})\b`)

// pageMark is the mark of a history in the pages.
const pageMark = "93e28155"

// timeless is line without what differs from run to run.
func timeless(line string) string {
	for _, v := range varying {
		line = v.pattern.ReplaceAllString(line, v.as)
	}
	return line
}

// TestPattern: what a page shows is compared literally, but for what varies.
func TestPattern(t *testing.T) {
	const id, other = "93e281555a1b32223675b9cc885bba31", "0f6e281555a1b32223675b9cc885bb12"
	for _, tt := range []struct {
		name, page, printed string
		want                bool
	}{
		{"same", "OK index=12", "OK index=12\n", true},
		{"another index", "OK index=12", "OK index=13\n", false},
		{"longer index", "OK index=12", "OK index=120\n", false},
		{"another index of an event", `data: {"index":10,"term":2}`, `data: {"index":11,"term":2}` + "\n", false},
		{"another ETag", `Etag: "9-93e28155"`, `Etag: "8-93e28155"` + "\n", false},
		{"an ETag of another history", `Etag: "9-93e28155"`, `Etag: "9-0f6e2815"` + "\n", true},
		{"an ETag without a mark", `Etag: "9-93e28155"`, `Etag: "9"` + "\n", false},
		{"another count", "1000 set, 0 failed in 2.1 s", "999 set, 0 failed in 2.1 s\n", false},
		{"a line more", "OK index=12", "OK index=12\nOK index=13\n", false},
		{"a line less", "OK index=12\nOK index=13", "OK index=12\n", false},
		{"a dot is a dot", "127.0.0.1", "127x0x0x1\n", false},
		{"duration", "1000 set, 0 failed in 2.1 s", "1000 set, 0 failed in 13.0 s\n", true},
		{"time", "INFO[2026-11-23T14:17:45.106Z] x", "INFO[2027-01-02T03:04:05.678+0100] x\n", true},
		{"random ID", "cluster " + id, "cluster " + other + "\n", true},
		{"hash", `"hash": "` + id + id + `"`, `"hash": "` + other + other + `"` + "\n", true},
		{"no hash", `"hash": "` + id + id + `"`, `"hash": ""` + "\n", false},
		{"ellipsis", "index=1010 term=…", "index=1010 term=3\n", true},
		{"ellipsis, another index", "index=1010 term=…", "index=1011 term=3\n", false},
		{"ellipsis for lines", "{\n…\n}", "{\n1\n2\n}\n", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			printed := (&reader{theirs: regexp.MustCompile("^$")}).printed(tt.printed)
			if got := pattern(strings.Split(tt.page, "\n")).MatchString(strings.Join(printed, "")); got != tt.want {
				t.Errorf("page %q, printed %q: got %v, want %v", tt.page, printed, got, tt.want)
			}
		})
	}
	for page, want := range map[string]bool{
		"OK index=…": true, `"index": …,`: true, `"appliedIndex":…`: true, `Etag: "…"`: true, "id: …": true,
		"index=1010 term=…": false, "(version …)": false, "OK index=12 …": false,
	} {
		if got := noIndex.MatchString(page); got != want {
			t.Errorf("noIndex of %q: got %v, want %v", page, got, want)
		}
	}
}
