// Command raftkv is one node of a replicated HTTP key/value store. README.md is
// the way in.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/sirupsen/logrus"

	"raftkv/internal/node"
)

func main() {
	// A console that is gone, as after | head, must not end the node.
	signal.Ignore(syscall.SIGPIPE)
	signals, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithCancel(context.Background())
	// From the first signal on, and before run knows of it, a second one ends the
	// process at once.
	context.AfterFunc(signals, func() { stop(); cancel() })
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case err == nil:
		os.Exit(0)
	case errors.Is(err, errUsage):
		fmt.Fprintf(os.Stderr, "raftkv: %v (raftkv -h lists all variables)\n", err)
		os.Exit(2)
	default:
		fmt.Fprintf(os.Stderr, "raftkv: %v\n", oneLine(err))
		os.Exit(1)
	}
}

// run is the node, from its configuration until ctx ends or it fails. An error
// that wraps errUsage is the user's to mend.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	switch {
	case len(args) == 0:
	case args[0] == "-h" || args[0] == "-help" || args[0] == "--help":
		_, err := io.WriteString(stdout, usage())
		return err
	default:
		return fmt.Errorf("%w: unknown argument %q", errUsage, args[0])
	}
	c, err := parseConfig(os.Getenv)
	if err != nil {
		return err
	}
	if os.Getenv("GOGC") == "" && os.Getenv("GOMEMLIMIT") == "" {
		// Memory that is never touched, and so takes none, has the garbage collector
		// run when a small node has made 64 MiB of garbage, not 4: an eighth of its
		// processor time, as measured with 64 clients.
		defer runtime.KeepAlive(make([]byte, 64<<20))
	}
	s, err := start(c, stderr)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		s.log.Info("Stopping: a second signal ends at once")
		return s.stop()
	case err = <-s.node.Failed():
	case err = <-s.served:
	}
	s.abort()
	return err
}

// service is a running node with its HTTP server.
type service struct {
	node     *node.Node
	machine  *fsm
	console  *console
	log      *logrus.Logger
	listener net.Listener
	server   *http.Server
	served   chan error // receives why the HTTP server ended
}

// start opens both ports and the volume, and serves. Its lines go to out.
func start(c config, out io.Writer) (*service, error) {
	lines := newConsole(out)
	s := &service{console: lines, log: newLogger(lines, c.logLevel), served: make(chan error, 1)}
	s.machine = newFSM(s.log)
	var err error
	if s.listener, err = net.Listen("tcp", c.httpAddress); err != nil {
		s.console.close()
		return nil, fmt.Errorf("HTTP port: %w", portHint(err, "HTTP_SERVER_PORT"))
	}
	s.node, err = node.Open(node.Config{
		ID:                c.nodeID,
		Dir:               c.volume,
		RaftAddress:       c.raftAddress,
		HTTPAddress:       s.listener.Addr().String(),
		SnapshotThreshold: c.snapshotThreshold,
		ElectionTimeout:   c.electionTimeout,
		RaftLog:           hclog.New(&hclog.LoggerOptions{Name: "raft", Level: hclog.LevelFromString(c.logLevel), Output: lines}),
		Logf:              s.log.Infof,
		Warnf:             s.log.Warnf,
		Dial:              c.dial,
	}, s.machine)
	if err != nil {
		s.console.close()
		return nil, errors.Join(portHint(err, "RAFT_SERVER_PORT"), s.listener.Close())
	}
	s.server = newServer(newHandler(s.node, s.machine.store, s.log, c.httpNames), s.log)
	s.log.Infof("Node %s: HTTP on %s, raft on %s, volume %s", c.nodeID, s.listener.Addr(), s.node.RaftAddress(), c.volume)
	go func() { s.served <- serveBounded(s.server, s.listener) }()
	return s, nil
}

// Shutdown takes less than 5 s.
const (
	stepDownLimit = 1500 * time.Millisecond
	drainLimit    = 1500 * time.Millisecond
	closeLimit    = 1500 * time.Millisecond
)

// stop hands leadership over, answers the requests that are under way, and closes
// raft, its port and the volume, in this order.
func (s *service) stop() error {
	defer s.console.close()
	ctx, cancel := context.WithTimeout(context.Background(), stepDownLimit)
	defer cancel()
	if err := s.node.StepDown(ctx); err != nil {
		s.log.Warnf("Leadership was not handed over: %v", err)
	}
	ctx, cancel = context.WithTimeout(context.Background(), drainLimit)
	defer cancel()
	if err := s.server.Shutdown(ctx); err != nil {
		_ = s.server.Close() // what is still under way gets no answer
	}
	ctx, cancel = context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	return s.node.Close(ctx)
}

// abort closes everything without a word and gives leadership up, as far as that can be
// done: for a node that has failed.
func (s *service) abort() {
	defer s.console.close()
	_ = s.server.Close()
	ctx, cancel := context.WithTimeout(context.Background(), stepDownLimit)
	defer cancel()
	_ = s.node.GiveUp(ctx)
	ctx, cancel = context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	_ = s.node.Close(ctx)
}

// portHint adds what to do to the error of a port that can't be had.
func portHint(err error, variable string) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%w: stop what listens there, or choose another %s", err, variable)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%w: no interface of this machine has that address; correct %s", err, strings.Replace(variable, "PORT", "HOST", 1))
	}
	return err
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// console is where all lines of the node go: logrus's, raft's and the state
// machine's, each write whole, in order. A goroutine writes them, so that a terminal
// that is stopped (Ctrl-S) or a full pipe does not stop the node: when the lines
// that wait have filled the queue, further ones are dropped, and their number told.
type console struct {
	out  io.Writer
	done chan struct{} // closed when the goroutine has ended

	mu      sync.Mutex // guards what follows
	changed *sync.Cond
	waiting []byte // lines to be written
	dropped int    // writes that found the queue full
	closed  bool
}

// consoleQueue is how many bytes may wait: some seconds of a busy node.
const consoleQueue = 4 << 20

// consolePause is between two writes to the console: what a busy node prints meanwhile
// is one write (a sixth of its processor time, as measured with 64 clients).
const consolePause = 10 * time.Millisecond

func newConsole(out io.Writer) *console {
	c := &console{out: out, done: make(chan struct{})}
	c.changed = sync.NewCond(&c.mu)
	go c.run()
	return c
}

// Write queues p, which holds whole lines. It never fails and never waits.
func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.waiting)+len(p) > consoleQueue {
		c.dropped++
		return len(p), nil
	}
	if c.dropped > 0 {
		c.waiting = appendPrefix(c.waiting, time.Now(), logrus.WarnLevel)
		c.waiting = fmt.Appendf(c.waiting, "The console was blocked: %d writes to it were dropped\n", c.dropped)
		c.dropped = 0
	}
	c.waiting = append(c.waiting, p...)
	c.changed.Signal()
	return len(p), nil
}

func (c *console) run() {
	defer close(c.done)
	var writing []byte
	for {
		c.mu.Lock()
		for len(c.waiting) == 0 && !c.closed {
			c.changed.Wait()
		}
		writing, c.waiting = c.waiting, writing[:0]
		c.mu.Unlock()
		if len(writing) == 0 {
			return
		}
		_, _ = c.out.Write(writing)
		time.Sleep(consolePause)
	}
}

// close writes what waits, for half a second at most: the console may be blocked.
func (c *console) close() {
	c.mu.Lock()
	c.closed = true
	c.changed.Signal()
	c.mu.Unlock()
	select {
	case <-c.done:
	case <-time.After(500 * time.Millisecond):
	}
}

func newLogger(out io.Writer, level string) *logrus.Logger {
	log := logrus.New()
	log.SetOutput(out)
	log.SetFormatter(lineFormatter{})
	if l, err := logrus.ParseLevel(level); err == nil { // parseConfig has checked it
		log.SetLevel(l)
	}
	return log
}

// lineFormatter prints what logrus prints on a terminal, INFO[time] message, also
// where there is none, without quoting what the message quotes itself.
type lineFormatter struct{}

// Format implements logrus.Formatter.
func (lineFormatter) Format(e *logrus.Entry) ([]byte, error) {
	line := appendPrefix(nil, e.Time, e.Level)
	line = append(line, e.Message...)
	return append(line, '\n'), nil
}

// appendPrefix appends the beginning of a console line.
func appendPrefix(line []byte, now time.Time, level logrus.Level) []byte {
	name := strings.ToUpper(level.String())
	line = append(line, name[:4]...)
	line = append(line, '[')
	line = now.AppendFormat(line, "2006-01-02T15:04:05.000Z0700")
	return append(line, "] "...)
}
