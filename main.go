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
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/sirupsen/logrus"

	"raftkv/internal/api"
	"raftkv/internal/console"
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
	console  *console.Writer
	log      *logrus.Logger
	listener net.Listener
	server   *http.Server
	served   chan error // receives why the HTTP server ended
}

// start opens both ports and the volume, and serves. Its lines go to out.
func start(c config, out io.Writer) (*service, error) {
	lines := console.New(out)
	s := &service{console: lines, log: newLogger(lines, c.logLevel), served: make(chan error, 1)}
	s.machine = newFSM(s.log)
	var err error
	if s.listener, err = net.Listen("tcp", c.httpAddress); err != nil {
		s.console.Close()
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
		s.console.Close()
		return nil, errors.Join(portHint(err, "RAFT_SERVER_PORT"), s.listener.Close())
	}
	s.server = newServer(newHandler(s.node, s.machine.store, s.log, c.httpNames), s.log)
	s.log.Infof("Node %s: HTTP on %s, raft on %s, volume %s", c.nodeID, s.listener.Addr(), s.node.RaftAddress(), c.volume)
	go func() { s.served <- api.Serve(s.server, s.listener) }()
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
	defer s.console.Close()
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
	defer s.console.Close()
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

func newLogger(out io.Writer, level string) *logrus.Logger {
	log := logrus.New()
	log.SetOutput(out)
	log.SetFormatter(console.Formatter{})
	if l, err := logrus.ParseLevel(level); err == nil { // parseConfig has checked it
		log.SetLevel(l)
	}
	return log
}
