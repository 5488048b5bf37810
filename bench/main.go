// Command bench measures raftkv beside etcd and hraftd on one machine. README.md tells
// how to run and to read it.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// command is how this is run, from the root of the repository.
const command = "go run -C bench ."

func main() {
	if len(os.Args) == 2 && os.Args[1] == serveEmptyArgument {
		fmt.Fprintln(os.Stderr, serveEmpty())
		os.Exit(1)
	}
	signal.Ignore(syscall.SIGPIPE) // what is started must be ended, whoever reads on
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop) // a second signal ends at once
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
		os.Exit(0)
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "bench: stopped; all that it started has ended")
		os.Exit(130)
	case errors.Is(err, errUsage):
		fmt.Fprintf(os.Stderr, "bench: %v (%s -h lists all flags)\n", err, command)
		os.Exit(2)
	default:
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

// errUsage is wrapped by an error that the arguments cause: exit code 2.
var errUsage = errors.New("usage")

// pace is how long is measured.
type pace struct {
	rounds int
	length time.Duration // of one measurement
	warm   time.Duration // before it
}

// settings are the flags, checked. parseFlags makes them.
type settings struct {
	args     []string
	quick    bool
	pace          // of all loads
	console  pace // of the console lines; a round is a pair
	clients  []int
	keys     int
	value    int
	only     *regexp.Regexp
	baseline string // path, absolute; empty: none
	certs    string // the same, of a directory for RAFT_CERT_DIR
	dir      string // where the temporary directory is made
	out      string // directory of RESULTS.md; empty: not written
	million  bool
	bytes    bool
	watchers bool
	soak     time.Duration // 0: none
}

func parseFlags(args []string, out io.Writer) (s settings, err error) {
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	s.args = args
	f.BoolVar(&s.quick, "quick", false, "a smoke test: one round of 1 s on 2,000 keys, written only with -o; its "+
		"figures mean little")
	f.IntVar(&s.rounds, "rounds", 3, "rounds; the table has the medians")
	f.DurationVar(&s.length, "duration", 3*time.Second, "measured time of each load in each round")
	f.DurationVar(&s.warm, "warm", time.Second, "the same load before it, unmeasured")
	clients := f.String("clients", "1,4,64,256,1024", "numbers of clients")
	f.IntVar(&s.value, "value", valueBytes, "bytes of each value")
	f.IntVar(&s.keys, "keys", 100_000, "how many keys there are; with -million the greater number")
	only := f.String("only", "", "measure only the loads whose name matches this regular expression")
	f.StringVar(&s.baseline, "baseline", "", "another raftkv binary, measured in the same rounds")
	f.StringVar(&s.certs, "certs", "", "directory for RAFT_CERT_DIR: the same binary with it, measured in the same rounds")
	f.StringVar(&s.dir, "dir", os.TempDir(), "where the volumes are made, and removed: choose the disk by it")
	f.StringVar(&s.out, "o", "", "directory of RESULTS.md and results.svg (default bench)")
	f.BoolVar(&s.million, "million", false, "instead: what 1,000,000 keys cost")
	f.BoolVar(&s.bytes, "bytes", false, "instead: what values of 100 B to 1 MiB cost, with 64 MiB and 1 GiB of data; "+
		"-only selects rows, as in -only '64 MiB'")
	f.BoolVar(&s.watchers, "watchers", false, "instead: writes while up to 1,000 clients watch every one of them")
	f.DurationVar(&s.soak, "soak", 0, "instead: write for so long, and show memory and size of raft.db")
	switch err := f.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintf(out, "%s [flags], from the root of the repository:\n\n", command)
		f.SetOutput(out)
		f.PrintDefaults()
		return s, err
	case err != nil:
		return s, fmt.Errorf("%w: %w", errUsage, err)
	case f.NArg() > 0:
		return s, fmt.Errorf("%w: unknown argument %q", errUsage, f.Arg(0))
	}
	given := make(map[string]bool)
	f.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if s.million && !given["keys"] {
		s.keys = 1_000_000
	}
	if s.quick {
		s.rounds, s.length, s.warm = 1, time.Second, 300*time.Millisecond
		if !given["keys"] {
			s.keys /= 50
		}
	}
	// Many short pairs: what drifts from one second to the next drifts within few of them.
	s.console = pace{rounds: 8, length: s.length / 3, warm: s.warm / 2}
	if s.quick {
		s.console.rounds = 2
	}
	for _, text := range strings.Split(*clients, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > 2000 {
			return s, fmt.Errorf("%w: -clients %s: want numbers from 1 to 2000, with commas between", errUsage, *clients)
		}
		s.clients = append(s.clients, n)
	}
	if s.only, err = regexp.Compile(*only); err != nil {
		return s, fmt.Errorf("%w: -only: %w", errUsage, err)
	}
	switch {
	case s.rounds < 1 || s.length < 100*time.Millisecond || s.warm < 0 || s.soak < 0:
		return s, fmt.Errorf("%w: want at least one round of at least 100ms", errUsage)
	case s.value < 1 || s.value > 1<<20:
		return s, fmt.Errorf("%w: -value %d: want 1 to %d", errUsage, s.value, 1<<20)
	case s.keys < 1000 || s.keys > 8_000_000:
		return s, fmt.Errorf("%w: -keys %d: want 1000 to 8000000", errUsage, s.keys)
	case len(slices.DeleteFunc([]bool{s.million, s.bytes, s.watchers, s.soak > 0}, func(b bool) bool { return !b })) > 1:
		return s, fmt.Errorf("%w: -million, -bytes, -watchers and -soak are different runs", errUsage)
	}
	if s.baseline != "" {
		if s.baseline, err = filepath.Abs(s.baseline); err == nil {
			_, err = os.Stat(s.baseline)
		}
		if err != nil {
			return s, fmt.Errorf("%w: -baseline: %w", errUsage, err)
		}
	}
	if s.certs != "" {
		if s.certs, err = filepath.Abs(s.certs); err == nil {
			_, err = os.Stat(filepath.Join(s.certs, "node.crt"))
		}
		if err != nil {
			return s, fmt.Errorf("%w: -certs: %w", errUsage, err)
		}
	}
	return s, nil
}

// bench is one run.
type bench struct {
	settings
	stdout   io.Writer
	progress *progress
	root     string            // of the repository
	tmp      string            // removed at the end
	binary   string            // raftkv, built
	others   []float64         // of all samples so far
	found    map[string]string // paths of the references that there are, by name
}

// references are what raftkv is measured beside: etcd is built, hraftd must be on the PATH. get is how to
// have what there is not.
var references = []struct{ name, get string }{
	{etcdLabel, "it is built from bench/peers/etcd: the network, or a cache of Go modules that has it"},
	{hraftdLabel, "go install github.com/otoolep/hraftd@latest, with $(go env GOPATH)/bin on the PATH"},
}

// missing is how to get each reference that there is not, by name.
func (b *bench) missing() map[string]string {
	missing := make(map[string]string)
	for _, r := range references {
		if b.found[r.name] == "" {
			missing[r.name] = r.get
		}
	}
	return missing
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	s, err := parseFlags(args, stdout)
	if err != nil {
		return err
	}
	setValueBytes(s.value)
	b := &bench{settings: s, stdout: stdout, progress: newProgress(stderr)}
	defer b.progress.clear()
	if b.root, err = root(); err != nil {
		return err
	}
	if b.out == "" && !b.quick {
		b.out = filepath.Join(b.root, "bench")
	}
	if b.out != "" { // now: after minutes of measuring would be a pity
		if err := os.MkdirAll(b.out, 0o755); err != nil {
			return err
		}
	}
	if b.tmp, err = os.MkdirTemp(b.dir, "raftkv-bench"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.tmp)) }()

	b.progress.show("building raftkv")
	b.binary = filepath.Join(b.tmp, "raftkv")
	if err := goBuild(ctx, b.root, b.binary); err != nil {
		return err
	}
	switch {
	case b.million:
		return b.runMillion(ctx)
	case b.bytes:
		return b.runBytes(ctx)
	case b.watchers:
		return b.runWatchers(ctx)
	case b.soak > 0:
		return b.runSoak(ctx)
	}
	b.progress.show("building etcd: minutes the first time")
	b.found = make(map[string]string)
	newest := filepath.Join(b.tmp, etcdLabel)
	if err := goBuild(ctx, filepath.Join(b.root, "bench", "peers", "etcd"), newest); err == nil {
		b.found[etcdLabel] = newest
	} else if ctx.Err() == nil {
		b.progress.say(err.Error())
	}
	b.found[hraftdLabel], _ = exec.LookPath(hraftdLabel)
	for name, get := range b.missing() {
		b.progress.say("no " + name + ": its rows and ratios will be missing; " + get)
	}
	return b.runMain(ctx)
}

// goBuild builds the program in dir.
func goBuild(ctx context.Context, dir, binary string) error {
	build := exec.CommandContext(ctx, "go", "build", "-buildvcs=auto", "-o", binary, ".")
	build.Dir = dir
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w: %s", filepath.Base(binary), err, bytes.TrimSpace(out))
	}
	return nil
}

// root finds the repository, of which this is the directory bench.
func root() (string, error) {
	for _, dir := range []string{"..", "."} {
		dir, err := filepath.Abs(dir)
		if err != nil {
			return "", err
		}
		text, _ := os.ReadFile(filepath.Join(dir, "bench", "go.mod"))
		if strings.HasPrefix(string(text), "module raftkv/bench\n") {
			return dir, nil
		}
	}
	return "", fmt.Errorf("this is not the repository of raftkv: run %q in its root", command)
}

// runMain measures all loads on all systems.
func (b *bench) runMain(ctx context.Context) error {
	systems, stop, err := b.startAll(ctx)
	if err != nil {
		return err
	}
	defer stop()
	var plan []load
	for _, l := range loads {
		if l.bare || b.only.MatchString(l.name) {
			plan = append(plan, l)
		}
	}
	var consoleClients []int
	for _, n := range b.clients {
		if (n == 64 || n == 256) && b.only.MatchString(writes.name) {
			consoleClients = append(consoleClients, n)
		}
	}
	steps := 0
	for _, l := range plan {
		for _, s := range systems {
			for _, n := range b.clients {
				if applies(l, s.name(), n) {
					steps++
				}
			}
		}
	}
	b.progress.begin(b.rounds*steps + b.console.rounds*2*len(consoleClients))

	main := &results{missing: b.missing()}
	for _, s := range systems {
		main.systems = append(main.systems, s.name())
	}
	for _, l := range plan { // the order of the table
		for _, n := range b.clients {
			main.cell(l.name, n)
		}
	}
	faults := &faults{}
	var commits, syncs []float64
	for round := range b.rounds {
		commit, sync, err := floor(b.tmp)
		if err != nil {
			return fmt.Errorf("measure the disk: %w", err)
		}
		commits, syncs = append(commits, commit.Seconds()*1000), append(syncs, sync.Seconds()*1000)
		for _, n := range b.clients {
			for _, l := range plan {
				for _, s := range rotated(systems, round) {
					if !applies(l, s.name(), n) {
						continue
					}
					if err := b.step(ctx, main, faults, b.pace, round, s, l, n); err != nil {
						return err
					}
				}
			}
		}
	}
	stop()

	console := &results{}
	if len(consoleClients) > 0 {
		if console, err = b.runConsole(ctx, faults, consoleClients); err != nil {
			return err
		}
	}

	var text strings.Builder
	text.WriteString("# raftkv beside etcd and hraftd, on one machine\n\n![operations a second](results.svg)\n\n")
	text.WriteString(b.about())
	fmt.Fprintf(&text, "- CPU that others took meanwhile, the idle nodes among them: a median of %s of the machine%s\n",
		percent(median(b.others)), quiet(median(b.others)))
	text.WriteString("\nHow to read it: [README.md](README.md). The ratios are raftkv's figure to that of the " +
		"row's system, round by round: the median, and the least and the greatest.\n\n" +
		"etcd is driven by two clients in turn: one as cheap as raftkv's, and its own Go client, which takes several times " +
		"the CPU\non the same cores. What was wanted, below, is compared to the better of the two.\n\n")
	text.WriteString(main.mainTable())
	if len(faults.lines) > 0 {
		text.WriteString("\nOperations that failed, not in the figures:\n\n" + strings.Join(faults.lines, ""))
	}
	commit, sync := median(commits), median(syncs)
	text.WriteString("\n## What was wanted\n\n" + main.wanted(commit))
	fmt.Fprintf(&text, "\n## The floor\n\nIn the directory of the volumes, each the median of %d: one bbolt commit "+
		"%s ms, one fdatasync of 4 KiB %s ms. "+
		"A write by a single client waits for two bbolt commits, one after the other: the leader's, then a follower's.\n",
		b.rounds*floorTimes, short(commit), short(sync))
	if len(console.cells) > 0 {
		fmt.Fprintf(&text, "\n## A console line for each command\n\nWrites, consoles going to files: %d pairs of "+
			"measurements of %v, one with the lines and one without, "+
			"now this first and now that. The cost is the median of the pairs', with the quartiles.\n\n%s", b.console.rounds,
			b.console.length.Round(time.Millisecond), console.consoleTable())
	}
	text.WriteString("\n## The client\n\nIt shares the machine with the nodes. An empty net/http handler, in a " +
		"process of its own, shows the most it can drive.\n\n" + main.clientTable())
	return b.publish("main", text.String(), main)
}

// quiet is what is to be said of that part of the CPU.
func quiet(others float64) string {
	if others < 0.1 {
		return ""
	}
	return "; **it was not quiet: run this again**"
}

// startAll starts every system and fills it. What it returns ends them all, and may be
// called again.
func (b *bench) startAll(ctx context.Context) (systems []system, stop func(), err error) {
	stop = func() {
		var stopping sync.WaitGroup
		for _, s := range systems {
			stopping.Go(s.stop)
		}
		stopping.Wait()
	}
	defer func() {
		if err != nil {
			stop()
		}
	}()
	start := func(s system, err error) error {
		if err != nil {
			return err
		}
		systems = append(systems, s)
		b.progress.show("setting " + group3(float64(b.keys)) + " keys, " + s.name())
		if err := s.fill(ctx, 0, b.keys); err != nil {
			return fmt.Errorf("%s: set the keys: %w", s.name(), err)
		}
		return nil
	}
	b.progress.show("starting the nodes")
	node, err := startRaftkv(ctx, "raftkv", b.binary, filepath.Join(b.tmp, "main"))
	if err = start(node, err); err != nil {
		return systems, stop, err
	}
	if b.baseline != "" {
		node, err := startRaftkv(ctx, "baseline", b.baseline, filepath.Join(b.tmp, "baseline"))
		if err = start(node, err); err != nil {
			return systems, stop, err
		}
	}
	if b.certs != "" {
		node, err := startRaftkv(ctx, certsLabel, b.binary, filepath.Join(b.tmp, "certs"), "RAFT_CERT_DIR="+b.certs)
		if err = start(node, err); err != nil {
			return systems, stop, err
		}
	}
	if path := b.found[etcdLabel]; path != "" {
		member, err := startEtcd(ctx, path, filepath.Join(b.tmp, "members"))
		if err = start(member, err); err != nil {
			return systems, stop, err
		}
		systems = append(systems, etcdByGo{member})
	}
	if path := b.found[hraftdLabel]; path != "" {
		node, err := startHraftd(ctx, path, filepath.Join(b.tmp, hraftdLabel))
		if err = start(node, err); err != nil {
			return systems, stop, err
		}
	}
	handler, err := startEmpty(ctx, b.tmp)
	err = start(handler, err)
	return systems, stop, err
}

// applies reports whether the load, with n clients, is one for the system.
func applies(l load, system string, n int) bool {
	switch system {
	case emptyLabel:
		return l.bare
	case hraftdLabel: // it has no linearizable reads; more would make a run longer
		return l == writes && n <= 256
	}
	return !l.bare
}

// rotated is systems with another one first in each round.
func rotated(systems []system, round int) []system {
	n := round % len(systems)
	return slices.Concat(systems[n:], systems[:n])
}

// faults collects lines about operations that failed.
type faults struct{ lines []string }

func (f *faults) add(system string, l load, n, round int, s sample) {
	if s.errors > 0 {
		f.lines = append(f.lines, fmt.Sprintf("- %s, %s, %d clients, round %d: %d of %d; the first: %v\n",
			system, l.name, n, round+1, s.errors, s.errors+len(s.took), s.failure))
	}
}

// step does one measurement and adds it to r.
func (b *bench) step(ctx context.Context, r *results, f *faults, p pace, round int, s system, l load, n int) error {
	b.progress.step(fmt.Sprintf("round %d of %d, %s, %d clients, %s", round+1, p.rounds, l.name, n, s.name()))
	got, err := measure(ctx, s, l, n, b.keys, p.warm, p.length)
	if err != nil {
		return err
	}
	b.others = append(b.others, got.others)
	f.add(s.name(), l, n, round, got)
	r.add(l.name, n, s.name(), reduce(got))
	return nil
}

// runConsole compares writes with a console line for each command to writes without.
func (b *bench) runConsole(ctx context.Context, f *faults, clients []int) (*results, error) {
	r := &results{systems: []string{"info", "warn"}}
	var systems []system
	for _, level := range r.systems {
		s, err := startRaftkv(ctx, level, b.binary, filepath.Join(b.tmp, level), "LOG_LEVEL="+level)
		if err != nil {
			return nil, err
		}
		defer s.stop()
		if err := s.fill(ctx, 0, b.keys); err != nil {
			return nil, err
		}
		systems = append(systems, s)
	}
	for _, n := range clients {
		for pair := range b.console.rounds {
			for _, s := range rotated(systems, pair) {
				if err := b.step(ctx, r, f, b.console, pair, s, writes, n); err != nil {
					return nil, err
				}
			}
		}
	}
	return r, nil
}

// about is what a figure means nothing without.
func (b *bench) about() string {
	line := command
	for _, arg := range b.args {
		if strings.ContainsAny(arg, " |()^$*?[]'\"\\;&<>") {
			arg = "'" + arg + "'"
		}
		line += " " + arg
	}
	return machine(b.tmp) + versions(b.binary, b.baseline, b.found) +
		fmt.Sprintf("- three nodes of each system on 127.0.0.1, values of %d bytes, %s keys at random, fsync on\n",
			valueBytes, group3(float64(b.keys))) +
		fmt.Sprintf("- command: `%s`\n", line)
}

// publish writes a part of RESULTS.md, with the picture of r if it has one, and prints
// it.
func (b *bench) publish(part, text string, r *results) error {
	b.progress.clear()
	if b.out != "" {
		path := filepath.Join(b.out, "RESULTS.md")
		old, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := os.WriteFile(path, []byte(replacePart(string(old), part, text)), 0o644); err != nil {
			return err
		}
		if r != nil {
			caption := fmt.Sprintf("medians of %d rounds, %s; RESULTS.md has the machine and the rest", b.rounds,
				time.Now().Format("2006-01-02"))
			if err := os.WriteFile(filepath.Join(b.out, "results.svg"), []byte(r.svg(caption)), 0o644); err != nil {
				return err
			}
		}
		b.progress.say("written to " + path)
	}
	_, err := io.WriteString(b.stdout, text)
	return err
}

// progress is one line on stderr, rewritten on a terminal; elsewhere a line at most
// every ten seconds.
type progress struct {
	out      io.Writer
	terminal bool
	began    time.Time
	shown    time.Time
	done, of int
}

func newProgress(out io.Writer) *progress {
	p := &progress{out: out}
	if f, ok := out.(*os.File); ok {
		info, err := f.Stat()
		p.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return p
}

// begin says how many steps there will be.
func (p *progress) begin(steps int) { p.began, p.done, p.of = time.Now(), 0, steps }

// step shows the next step, and how long the rest will take by what went before.
func (p *progress) step(text string) {
	left := ""
	if p.done > 0 {
		rest := time.Since(p.began) / time.Duration(p.done) * time.Duration(p.of-p.done)
		left = fmt.Sprintf(", %v left", rest.Round(time.Second))
	}
	p.done++
	p.show(fmt.Sprintf("%d of %d%s: %s", p.done, p.of, left, text))
}

func (p *progress) show(text string) {
	switch {
	case p.terminal:
		fmt.Fprintf(p.out, "\r\033[K%s", text)
	case time.Since(p.shown) >= 10*time.Second:
		fmt.Fprintln(p.out, text)
		p.shown = time.Now()
	}
}

// say prints a line that stays.
func (p *progress) say(text string) {
	p.clear()
	fmt.Fprintln(p.out, text)
}

func (p *progress) clear() {
	if p.terminal {
		fmt.Fprint(p.out, "\r\033[K")
	}
}
