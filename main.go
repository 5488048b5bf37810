// Command raftkv is one node of a replicated HTTP key/value store.
//
// The four files of this package are the way in, best read in this order. main.go starts
// and stops a node. config.go has the variables that configure it. handler.go has the
// routes of the HTTP API: a write goes on to node.Propose and through raft's log, a read
// waits for node.ReadIndex. fsm.go is the state machine that raft drives with the entries
// of that log, on every node. docs/design.md has the whole picture.
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

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"

	"raftkv/internal/api"
	"raftkv/internal/auth"
	"raftkv/internal/certs"
	"raftkv/internal/console"
	"raftkv/internal/forward"
	"raftkv/internal/memory"
	"raftkv/internal/node"
	"raftkv/internal/storage"
	"raftkv/internal/version"
)

func main() {
	storage.PrivateFiles()
	// A console that is gone, as after | head, must not end the node.
	signal.Ignore(syscall.SIGPIPE)
	end := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as it is under nohup, which is to go on when its terminal closes
		end = append(end, syscall.SIGHUP)
	}
	signals, stop := signal.NotifyContext(context.Background(), end...)
	ctx, cancel := context.WithCancel(context.Background())
	// A second signal ends the process at once. The handler is removed before run gets to
	// know of the first one, so that it holds as soon as run announces it.
	context.AfterFunc(signals, func() { stop(); cancel() })
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case err == nil:
		os.Exit(0)
	case errors.Is(err, errUsage):
		console.Fatal(os.Stderr, os.Getenv("LOG_FORMAT"), err, " (raftkv -h lists all variables)")
		os.Exit(2)
	default:
		console.Fatal(os.Stderr, os.Getenv("LOG_FORMAT"), err, "")
		os.Exit(1)
	}
}

// run runs a node until ctx ends or the node fails. An error that wraps errUsage is for the
// user to correct.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	switch {
	case len(args) == 0:
	case args[0] == "-version" || args[0] == "--version":
		_, err := fmt.Fprintln(stdout, "raftkv", version.String())
		return err
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
	if c.gcBallast {
		// GC ballast: raises the minimum heap to 64 MiB. The garbage collector runs when
		// the heap has doubled, which a small node, with a live heap of a few MiB, does
		// many times a second: an eighth of its processor time, as measured with 64
		// clients. A higher GOGC would do the same, but as a percentage it also applies to
		// a large heap, and would let one of 1 GiB grow to many. The ballast is never
		// touched, so it takes no memory.
		defer runtime.KeepAlive(make([]byte, 64<<20))
	}
	s, err := start(ctx, c, stderr)
	if errors.Is(err, node.ErrStartAborted) {
		return nil
	}
	if err != nil {
		return err
	}
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady) // does nothing unless systemd waits for it
	select {
	case <-ctx.Done():
		_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
		s.log.Info("Shutting down; interrupt again to exit immediately")
		defer s.console.Close()
		if err = s.stop(); err == nil {
			s.raftLog.Silence()
			s.log.Info("Stopped")
		}
		return err
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
	tokens   *auth.Tokens // nil: clients need none
	raftLog  *console.RaftLogger
	listener net.Listener
	server   *http.Server
	served   chan error // of capacity 1: the error with which the HTTP server has ended
}

// start opens both ports and the volume, and serves HTTP. The console is out. If ctx ends
// before the volume is open, the error wraps node.ErrStartAborted.
func start(ctx context.Context, c config, out io.Writer) (*service, error) {
	format := console.Format(c.logFormat)
	lines := console.New(out, format)
	s := &service{console: lines, log: console.NewLogger(lines, c.logLevel, format), served: make(chan error, 1)}
	s.machine, s.raftLog = newFSM(s.log), console.NewRaftLogger(lines, c.logLevel, format)
	s.machine.hideValues = c.hideValues
	raftCerts, err := certs.OpenNode(c.raftCerts, s.log.Infof, s.log.Warnf)
	if err != nil {
		s.console.Close()
		return nil, fmt.Errorf("%w: RAFT_CERT_DIR: %w", errUsage, err)
	}
	httpCerts, err := certs.OpenHTTP(c.httpCerts, s.log.Infof, s.log.Warnf)
	if err != nil {
		s.console.Close()
		return nil, fmt.Errorf("%w: HTTP_CERT_DIR: %w", errUsage, err)
	}
	var access *api.Access
	if c.tokens != "" {
		if s.tokens, err = auth.Open(c.tokens, s.log.Warnf); err != nil {
			s.console.Close()
			return nil, fmt.Errorf("%w: HTTP_TOKENS=%q: %w", errUsage, c.tokens, err)
		}
		access = api.NewAccess(s.tokens, s.log.Warnf)
	}
	if c.etcd {
		s.machine.KeepDetails()
	}
	maxBytes, line := memory.DataLimit(c.storeMaxBytes)
	if s.listener, err = net.Listen("tcp", c.httpAddress); err != nil {
		s.tokens.Close()
		s.console.Close()
		return nil, fmt.Errorf("HTTP port: %w", portHint(err, "HTTP_SERVER_PORT"))
	}
	names := api.OwnNames(c.httpNames, c.httpURL, c.httpAddress, c.raftAddress, c.raftAdvertise)
	starting := api.NewStarting(names)
	s.server = api.NewServer(starting, s.log.Warnf)
	go func() { s.served <- api.Serve(s.server, s.listener, httpCerts.Config()) }()
	s.node, err = node.Open(node.Config{
		ID:                c.nodeID,
		Version:           version.String(),
		Dir:               c.volume,
		RaftAddress:       c.raftAddress,
		Advertise:         c.raftAdvertise,
		Join:              c.join,
		Nonvoter:          c.nonvoter,
		HTTPAddress:       s.listener.Addr().String(),
		HTTPS:             httpCerts != nil,
		HTTPURL:           c.httpURL,
		SnapshotThreshold: c.snapshotThreshold,
		SnapshotBytes:     c.snapshotBytes,
		Journal:           c.journal,
		MaxBytes:          maxBytes,
		ElectionTimeout:   c.electionTimeout,
		RaftLog:           s.raftLog,
		Logf:              s.log.Infof,
		Warnf:             s.log.Warnf,
		Dial:              c.dial,
		Certs:             raftCerts,
		Security:          func() string { return certs.Warnings(c.warning, raftCerts.Warning(), httpCerts.Warning()) },
		Names:             &s.machine.names,
		Lab:               c.lab,
		MinFormat:         c.minFormat(),
		Progress:          func(fraction float64) error { starting.SetProgress(fraction); return ctx.Err() },
	}, s.machine)
	if err != nil {
		s.tokens.Close()
		s.console.Close()
		_ = s.listener.Close() // which the server does only once it serves
		_ = s.server.Close()
		return nil, portHint(err, "RAFT_SERVER_PORT")
	}
	h := newHandler(s.node, s.machine.Store, s.log, names, api.NewMemory(memory.InFlightLimit(c.inFlightBytes)), c.etcd)
	h.forwards, h.access, h.labOn, h.page.HideValues = c.forward, access, c.lab, c.hideValues
	s.node.SetForwarded(forward.Handler(h.leaders, s.node.Leads))
	s.log.Info(line)
	s.log.Infof("Node %s (version %s): %s on %s, raft on %s, volume %s",
		c.nodeID, version.String(), httpCerts.Protocol(), s.listener.Addr(), s.node.RaftAddress(), c.volume)
	starting.Ready(h)
	return s, nil
}

// Each step of stop has a limit of its own. With the last lines of the console, which may
// take half a second, a shutdown is over within 5 s.
const (
	stepDownLimit = 1500 * time.Millisecond
	drainLimit    = 1500 * time.Millisecond
	closeLimit    = 1500 * time.Millisecond
)

// stop shuts a running node down: it hands leadership over, drains the requests that are
// under way, and closes raft, its port and the volume, in this order.
func (s *service) stop() error {
	defer s.tokens.Close()
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

// abort is stop for a node that has failed: it closes without draining, and makes another
// voter stand for election, as far as that can be done.
func (s *service) abort() {
	defer s.console.Close()
	defer s.tokens.Close()
	_ = s.server.Close()
	ctx, cancel := context.WithTimeout(context.Background(), stepDownLimit)
	defer cancel()
	_ = s.node.GiveUp(ctx)
	ctx, cancel = context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	_ = s.node.Close(ctx)
}

// portHint adds to the error of a port that can't be opened what the user should do.
func portHint(err error, variable string) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%w: stop what listens there, or choose another %s", err, variable)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%w: no interface of this machine has that address; correct %s",
			err, strings.Replace(variable, "PORT", "HOST", 1))
	}
	return err
}
