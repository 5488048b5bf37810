package console

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"github.com/sirupsen/logrus"
)

const (
	// repeatAfter is how long a line that comes again and again is not printed.
	repeatAfter = 30 * time.Second
	// backAfter is how long raft prints nothing about a member that is away before it counts as back. While it is
	// away, raft tries at least twice in each election timeout.
	backAfter = 5 * time.Second
	// maxRepeats bounds the lines, and the members, that are remembered.
	maxRepeats = 256
)

// NewRaftLogger returns the logger of hashicorp/raft, which prints lines of at least level to out: as raft has them,
// or as the JSON of go-hclog if that of format is JSON. It differs from raft in four ways:
//
//   - A line that comes again is printed once, and then every 30 s with how often; one for debugging only once. All
//     lines about one member that can't be reached count as one.
//   - What is normal is no error: a member that is away is a warning, a connection that was closed is for debugging.
//   - A pre-vote that a member did not answer is not "denied" (raft.go: runCandidate counts it as that).
//   - Of "pre-vote received" and the line after it, which has the outcome, only the latter is printed.
func NewRaftLogger(out io.Writer, level string, format logrus.Formatter) *RaftLogger {
	_, isJSON := format.(*logrus.JSONFormatter)
	return &RaftLogger{
		Logger: hclog.New(&hclog.LoggerOptions{Name: "raft", Level: hclog.LevelFromString(level), Output: out,
			JSONFormat: isJSON}),
		lines: &raftLines{now: time.Now, repeats: make(map[string]*repeat), ids: make(map[string]string),
			silent: make(map[string]bool)},
	}
}

// RaftLogger is the logger of NewRaftLogger. Of the methods of hclog.Logger, raft 1.7.3 uses those that are here.
type RaftLogger struct {
	hclog.Logger
	lines *raftLines // shared with the loggers of Named and With
}

func (l *RaftLogger) Named(name string) hclog.Logger {
	return &RaftLogger{l.Logger.Named(name), l.lines}
}
func (l *RaftLogger) With(args ...any) hclog.Logger {
	return &RaftLogger{l.Logger.With(args...), l.lines}
}

// Silence has nothing printed from when it returns: the connections of a raft that was stopped end a little later.
func (l *RaftLogger) Silence() {
	l.lines.mu.Lock()
	defer l.lines.mu.Unlock()
	l.lines.silenced = true
}

func (l *RaftLogger) Trace(message string, args ...any) { l.print(hclog.Trace, message, args) }
func (l *RaftLogger) Debug(message string, args ...any) { l.print(hclog.Debug, message, args) }
func (l *RaftLogger) Info(message string, args ...any)  { l.print(hclog.Info, message, args) }
func (l *RaftLogger) Warn(message string, args ...any)  { l.print(hclog.Warn, message, args) }
func (l *RaftLogger) Error(message string, args ...any) { l.print(hclog.Error, message, args) }

func (l *RaftLogger) print(level hclog.Level, message string, args []any) {
	l.lines.mu.Lock()
	defer l.lines.mu.Unlock()
	message, args = l.lines.votes(message, args)
	level = levelOf(level, message, args)
	if message == "" || level < l.GetLevel() || l.lines.silenced {
		return
	}
	if more, ok := l.lines.pass(level, message, args, l.ImpliedArgs()); ok {
		l.Log(level, message, append(args, more...)...)
	}
}

// raftLines is what is known of the lines that raft has printed.
type raftLines struct {
	now func() time.Time // tests have a clock of their own

	mu         sync.Mutex // guards what follows
	repeats    map[string]*repeat
	ids        map[string]string // of members, by address
	silent     map[string]bool   // IDs of members that could not be asked in this campaign
	silenced   bool
	unanswered int // pre-votes of this campaign
}

// repeat is a line that comes again and again.
type repeat struct {
	printed, last time.Time
	times         int // since it was printed
}

// pass reports whether a line is to be printed, and with what behind it.
func (r *raftLines) pass(level hclog.Level, message string, args, implied []any) (more []any, ok bool) {
	now := r.now()
	if strings.HasPrefix(message, "entering ") && message != "entering candidate state" {
		clear(r.repeats) // another story begins
	}
	key, away := "", isAway(message, args)
	switch {
	case away:
		key = "away " + r.member(args)
	case level == hclog.Info && arg(args, "term") == nil:
		return nil, true // an event of its own
	default:
		var b strings.Builder
		fmt.Fprint(&b, message, implied)
		for i := 0; i+1 < len(args); i += 2 {
			switch args[i] {
			case "time", "tally", "remote-address":
			case "error":
				if !isClosed(args[i+1]) { // else it has the ports of the connection
					fmt.Fprint(&b, " ", args[i+1])
				}
			default:
				fmt.Fprint(&b, " ", args[i], "=", args[i+1])
			}
		}
		key = b.String()
	}
	known := r.repeats[key]
	if known == nil || now.Sub(known.printed) >= repeatAfter && known.times == 0 ||
		away && now.Sub(known.last) >= backAfter {
		if len(r.repeats) >= maxRepeats {
			clear(r.repeats)
		}
		r.repeats[key] = &repeat{printed: now, last: now}
		return nil, true
	}
	known.times++
	known.last = now
	since := now.Sub(known.printed)
	if since < repeatAfter {
		return nil, false
	}
	if level <= hclog.Debug && !away { // a detail of another line that comes again
		known.printed = now
		return nil, false
	}
	more = []any{"repeated", known.times, "in", since.Round(time.Second)}
	known.printed, known.times = now, 0
	return more, true
}

// votes returns a line of an election as it is true: "" for none. It learns who the members are.
func (r *raftLines) votes(message string, args []any) (string, []any) {
	for i, a := range args { // raft prints the pointers of a transfer
		switch v := a.(type) {
		case *raft.ServerID:
			args[i] = *v
		case *raft.ServerAddress:
			args[i] = *v
		}
	}
	r.learn(arg(args, "from"), arg(args, "address"))
	r.learn(arg(args, "server-id"), arg(args, "server-addr"))
	switch message {
	case "entering candidate state":
		clear(r.silent)
		r.unanswered = 0
	case "failed to make requestVote RPC":
		r.silent[r.member(args)] = true
	case "pre-vote received":
		return "", nil
	case "pre-vote denied":
		if from := fmt.Sprint(arg(args, "from")); r.silent[from] {
			delete(r.silent, from)
			r.unanswered++
			return "no answer to the pre-vote", args
		}
	case "pre-vote successful, starting election", "pre-vote campaign failed, waiting for election timeout":
		if refused, ok := arg(args, "refused").(int); ok && r.unanswered > 0 {
			args = append([]any(nil), args...)
			for i := 0; i+1 < len(args); i += 2 {
				if args[i] == "refused" {
					args[i+1] = refused - r.unanswered
				}
			}
			args = append(args, "unanswered", r.unanswered)
		}
	}
	return message, args
}

// learn keeps that a member is at an address; nothing if either is nil.
func (r *raftLines) learn(id, address any) {
	if id == nil || address == nil {
		return
	}
	if len(r.ids) >= maxRepeats {
		clear(r.ids)
	}
	r.ids[fmt.Sprint(address)] = fmt.Sprint(id)
}

// member returns the ID of the member that a line is about, or its address if no line had both. Raft has one or the
// other, or a raft.Server.
func (r *raftLines) member(args []any) string {
	for _, name := range memberArgs {
		switch v := arg(args, name).(type) {
		case nil:
		case raft.Server:
			return string(v.ID)
		default:
			text := fmt.Sprint(v)
			if id, ok := r.ids[text]; ok {
				return id
			}
			return text
		}
	}
	return ""
}

// memberArgs are the names that raft has for the member that a line is about.
var memberArgs = []string{"peer", "target", "server-id"}

// isAway reports whether a line is about a member that can't be reached.
func isAway(message string, args []any) bool {
	if !strings.HasPrefix(message, "failed to ") {
		return false
	}
	for _, name := range memberArgs {
		if arg(args, name) != nil {
			return true
		}
	}
	return false
}

// levelOf is the level of a line of raft: what a cluster must expect is no error.
func levelOf(level hclog.Level, message string, args []any) hclog.Level {
	switch {
	case level == hclog.Error && (isAway(message, args) || message == "peer has newer term, stopping replication"):
		return hclog.Warn
	case level == hclog.Error && isClosed(arg(args, "error")):
		return hclog.Debug
	}
	return level
}

// isClosed reports whether v is the error of a connection that was closed, here or at the other end.
func isClosed(v any) bool {
	err, ok := v.(error)
	for _, closed := range []error{io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, syscall.ECONNRESET, syscall.EPIPE,
		raft.ErrTransportShutdown, raft.ErrRaftShutdown} {
		if ok && // the decoder of raft's messages keeps the text of an error only
			(errors.Is(err, closed) || strings.HasSuffix(err.Error(), closed.Error())) {
			return true
		}
	}
	return false
}

// arg returns the value that args has for name, or nil.
func arg(args []any, name string) any {
	for i := 0; i+1 < len(args); i += 2 {
		if args[i] == name {
			return args[i+1]
		}
	}
	return nil
}
