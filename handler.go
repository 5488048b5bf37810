package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/mux"
	"github.com/sirupsen/logrus"

	"raftkv/internal/api"
	"raftkv/internal/backup"
	"raftkv/internal/command"
	"raftkv/internal/connlimit"
	"raftkv/internal/kv"
	"raftkv/internal/node"
)

// Bounds of the door (DESIGN section 8). A stream lasts as long as its client reads.
const (
	maxConnections = 8192
	maxHeld        = 256 << 20 // bytes of headers that are not yet whole, of all connections
	maxInFlight    = 2048      // requests other than streams
	maxStreams     = 4096
	keepAlive      = 15 * time.Second // of a watch
)

// handler answers the HTTP API. HTTP knows nothing of raft's types: it asks the
// node, and reads the store.
type handler struct {
	http.Handler // the routes
	node         *node.Node
	store        *kv.Store
	log          *logrus.Logger
	names        []string      // host names that requests may use
	inFlight     chan struct{} // a place for each request under way
	streams      chan struct{}
	restoring    sync.Mutex // held by the restore under way
	ending       context.Context
	end          context.CancelFunc // ends the watches
}

// endpoint answers one path. An error goes through the error table.
type endpoint struct {
	path    string
	methods []string
	places  chan struct{}
	answer  func(w http.ResponseWriter, r *http.Request) error
}

func newHandler(n *node.Node, store *kv.Store, log *logrus.Logger, names []string) *handler {
	h := &handler{node: n, store: store, log: log, names: names,
		inFlight: make(chan struct{}, maxInFlight), streams: make(chan struct{}, maxStreams)}
	h.ending, h.end = context.WithCancel(context.Background())
	const get, head, post, put = http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut
	router := mux.NewRouter()
	paths := ""
	for _, e := range []endpoint{
		{"/set", []string{get, post, put}, h.inFlight, h.set},
		{"/get", []string{get, head, post}, h.inFlight, h.get},
		{"/remove", []string{get, post}, h.inFlight, h.remove},
		{"/list", []string{get, post}, h.streams, h.list},
		{"/watch", []string{get, post}, h.streams, h.watch},
		{"/join", []string{get, post}, h.inFlight, h.join},
		{"/leave", []string{get, post}, h.inFlight, h.leave},
		{"/transfer", []string{get, post}, h.inFlight, h.transfer},
		{"/status", []string{get, head, post}, h.inFlight, h.status},
		{"/snapshot", []string{get, post}, h.streams, h.snapshot},
		{"/restore", []string{put}, h.streams, h.restore},
		{"/healthz", []string{get, head, post}, h.inFlight, h.healthz},
		{"/readyz", []string{get, head, post}, h.inFlight, h.readyz},
	} {
		router.Handle(e.path, h.serve(e))
		paths += " " + e.path
	}
	router.NotFoundHandler = h.serve(endpoint{places: h.inFlight, answer: func(http.ResponseWriter, *http.Request) error {
		return api.Refuse(http.StatusNotFound, "no such path; there are%s", paths)
	}})
	h.Handler = router
	return h
}

// newServer bounds what one connection can take of the node.
func newServer(h *handler, log *logrus.Logger) *http.Server {
	server := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      60 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    2 * api.Max, // a value may come in the query; larger ones get our own 413
		ConnState:         connlimit.StateChanged,
		ErrorLog:          stdlog.New(warnings{log}, "", 0),
	}
	server.RegisterOnShutdown(h.end)
	return server
}

// serveBounded serves l with at most maxConnections at once, until the server is closed.
func serveBounded(server *http.Server, l net.Listener) error {
	return server.Serve(connlimit.Listen(l, maxConnections, maxHeld))
}

// warnings is where net/http's own lines go.
type warnings struct{ log *logrus.Logger }

func (w warnings) Write(line []byte) (int, error) {
	w.log.Warnf("%s", bytes.TrimSpace(line))
	return len(line), nil
}

// serve is what is done around every endpoint: the guard of DESIGN section 8, the
// bound on requests, the method, the error table.
func (h *handler) serve(e endpoint) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if err := api.Guard(r, h.names); err != nil {
			h.fail(w, r, err)
			return
		}
		select {
		case e.places <- struct{}{}:
			defer func() { <-e.places }()
		default:
			h.fail(w, r, fmt.Errorf("%w: %d requests of this kind are under way already", node.ErrNotApplied, cap(e.places)))
			return
		}
		if e.methods != nil && !slices.Contains(e.methods, r.Method) {
			takes := strings.Join(e.methods, ", ")
			w.Header().Set("Allow", takes)
			h.fail(w, r, api.Refuse(http.StatusMethodNotAllowed, "method %s: %s takes %s", r.Method, r.URL.Path, takes))
			return
		}
		if err := e.answer(w, r); err != nil {
			h.fail(w, r, err)
		}
	})
}

// set stores one value, or several at once: all or nothing, in one entry.
func (h *handler) set(w http.ResponseWriter, r *http.Request) error {
	h.log.Info("Set handler called")
	c, err := api.Set(r)
	if err != nil {
		return err
	}
	done, err := h.propose(r, c)
	if err != nil {
		return err
	}
	w.Header().Set("ETag", api.ETag(done.Index))
	return answerLine(w, "OK index=%d", done.Index)
}

// remove removes one key, several at once, or all with a prefix: all or nothing, in
// one entry.
func (h *handler) remove(w http.ResponseWriter, r *http.Request) error {
	h.log.Info("Remove handler called")
	c, err := api.Remove(r)
	if err != nil {
		return err
	}
	done, err := h.propose(r, c)
	if err != nil {
		return err
	}
	return answerLine(w, "OK index=%d removed=%d", done.Index, done.Removed)
}

// propose has the cluster do c, and returns what the state machine made of it.
func (h *handler) propose(r *http.Request, c command.Command) (command.Result, error) {
	_, response, err := h.node.Propose(r.Context(), c)
	if err != nil {
		return command.Result{}, err
	}
	done := response.(command.Result)
	switch {
	case done.Reused:
		return done, api.Refuse(http.StatusUnprocessableEntity, "Idempotency-Key: it came with another request before: nothing was done; take a new key for each request")
	case done.Failed != 0:
		return done, failedCondition(c, done)
	}
	return done, nil
}

func failedCondition(c command.Command, done command.Result) error {
	header, has, advice := "If-None-Match", "has ETag "+api.ETag(done.Current), "get it to see what it is"
	if !c.Match.IsNone() && !c.Match.Holds(done.Current) {
		header, advice = "If-Match", "get it again, and send the ETag that it has then"
		if done.Current == 0 {
			has, advice = "is not there", "set it with If-None-Match: *, if it should be"
		}
	}
	return api.Refuse(http.StatusPreconditionFailed, "%s: key %s %s: nothing was done; %s",
		header, command.AppendQuoted(nil, c.Pairs[done.Failed-1].Key), has, advice)
}

// get answers the raw bytes of a value: by default as new as any that was
// acknowledged before, on every node; with consistency=stale what this node has.
func (h *handler) get(w http.ResponseWriter, r *http.Request) error {
	values, err := api.Parse(r, "key", "consistency")
	if err != nil {
		return err
	}
	key, err := values.Key()
	if err != nil {
		return err
	}
	if err := h.consistent(w, r, values); err != nil {
		return err
	}
	item, ok := h.store.Get(key)
	if !ok {
		return api.Refuse(http.StatusNotFound, "key %s: not found", command.AppendQuoted(nil, key))
	}
	tag := api.ETag(item.Index)
	w.Header().Set("ETag", tag)
	if api.Unchanged(r, tag) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(len(item.Value)))
	_, err = io.WriteString(w, item.Value)
	return dropped(err)
}

// list answers keys in order, from one view of the store, a JSON object a line.
func (h *handler) list(w http.ResponseWriter, r *http.Request) error {
	values, err := api.Parse(r, "prefix", "after", "limit", "consistency")
	if err != nil {
		return err
	}
	prefix, err := values.Prefix()
	if err != nil {
		return err
	}
	after, err := values.Optional("after", "")
	if err != nil {
		return err
	}
	limit := 0
	if values.Has("limit") {
		text, err := values.One("limit")
		if err != nil {
			return err
		}
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 {
			return api.Refuse(http.StatusBadRequest, "limit: want a number of keys, 1 or more; leave it out for all")
		}
	}
	if err := h.consistent(w, r, values); err != nil {
		return err
	}
	view := h.store.Clone()
	h.tellApplied(w, view)
	w.Header().Set("Content-Type", "application/jsonl")
	return dropped(api.List(w, view, prefix, after, limit))
}

// watch answers server-sent events, one for each entry that changes a key with the
// prefix, after the index of Last-Event-ID or from, or else from now on.
func (h *handler) watch(w http.ResponseWriter, r *http.Request) error {
	values, err := api.Parse(r, "prefix", "from", "consistency")
	if err != nil {
		return err
	}
	prefix, err := values.Prefix()
	if err != nil {
		return err
	}
	name, from := "Last-Event-ID", r.Header.Get("Last-Event-ID") // of one that comes back: newer than from
	if from == "" {
		name = "from"
		if from, err = values.Optional("from", ""); err != nil {
			return err
		}
	}
	var after uint64
	if from != "" || values.Has("from") {
		if after, err = strconv.ParseUint(from, 10, 64); err != nil {
			return api.Refuse(http.StatusBadRequest, "%s: want an index, such as a list or an event gave it", name)
		}
	}
	if err := h.consistent(w, r, values); err != nil {
		return err
	}
	var watcher *kv.Watcher
	if from == "" {
		watcher, after = h.store.WatchNow(prefix)
	} else {
		applied, _ := h.store.Applied()
		if after > applied && values.Get("consistency") != "stale" {
			return api.Refuse(http.StatusGone, "%s: %d is not reached yet, so it is another cluster's; list, then watch from the Raftkv-Applied-Index of that", name, after)
		}
		if watcher, err = h.store.Watch(prefix, after); err != nil {
			return api.Refuse(http.StatusGone, "%s: %v; list, then watch from the Raftkv-Applied-Index of that", name, err)
		}
	}
	defer watcher.Close()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(h.ending, cancel)()
	return dropped(api.Watch(ctx, w, watcher, after, keepAlive))
}

// tellApplied says of which index a view is.
func (h *handler) tellApplied(w http.ResponseWriter, view *kv.Store) {
	index, _ := view.Applied()
	w.Header().Set("Raftkv-Applied-Index", strconv.FormatUint(index, 10))
}

// consistent makes sure that the store is as new as the request wants it. A stale
// read says how old it may be.
func (h *handler) consistent(w http.ResponseWriter, r *http.Request, values api.Values) error {
	consistency, err := values.Optional("consistency", "linearizable")
	if err != nil {
		return err
	}
	switch consistency {
	case "linearizable":
		return h.node.ReadIndex(r.Context())
	case "stale":
		f, err := h.node.Freshness()
		if err != nil {
			return err
		}
		w.Header().Set("Raftkv-Applied-Index", strconv.FormatUint(f.AppliedIndex, 10))
		w.Header().Set("Raftkv-Leader", f.Leader)
		w.Header().Set("Raftkv-Last-Contact", f.LastContact)
		return nil
	default:
		return api.Refuse(http.StatusBadRequest, "consistency: want linearizable (the default) or stale")
	}
}

// join makes a node a member of the cluster that this node leads. While the node
// catches up, the caller is told, about once a second.
func (h *handler) join(w http.ResponseWriter, r *http.Request) error {
	h.log.Info("Join handler called")
	values, err := api.Parse(r, "nodeId", "raftPort", "raftHost", "suffrage")
	if err != nil {
		return err
	}
	id, err := nodeID(values)
	if err != nil {
		return err
	}
	port, err := values.One("raftPort")
	if err != nil {
		return err
	}
	if number, err := strconv.ParseUint(port, 10, 16); err != nil || number == 0 {
		return api.Refuse(http.StatusBadRequest, "raftPort: want a port, 1 to 65535, such as 9001")
	}
	host, err := values.Optional("raftHost", "127.0.0.1")
	if err != nil {
		return err
	}
	if net.ParseIP(host) == nil && !hostName.MatchString(host) {
		return api.Refuse(http.StatusBadRequest, "raftHost: want an IP address or a host name, without a port")
	}
	suffrage, err := values.Optional("suffrage", "voter")
	if err != nil {
		return err
	}
	if suffrage != "voter" && suffrage != "nonvoter" {
		return api.Refuse(http.StatusBadRequest, "suffrage: want voter or nonvoter")
	}
	h.log.Infof("node is %s", id)
	if !h.node.Leads() {
		return node.ErrNotLeader
	}
	address := net.JoinHostPort(host, port)
	h.log.Infof("Joining node %s on host %s", id, address)
	if err := unhurried(w); err != nil {
		return err
	}
	told := false
	joined, err := h.node.Join(r.Context(), node.JoinRequest{ID: id, Address: address, Nonvoter: suffrage == "nonvoter",
		Progress: func(has, of uint64) {
			told = true
			_, _ = fmt.Fprintf(w, "%s: %d of %d entries\n", id, has, of)
			_ = http.NewResponseController(w).Flush()
		}})
	switch {
	case err != nil && told: // the status is out already
		status, text := statusOf(err)
		return answerLine(w, "failed, as a status of %d would say: %s", status, text)
	case err != nil:
		return err
	case joined.Index == 0:
		return answerLine(w, "OK %s is a member already, members=%d", id, joined.Members)
	}
	return answerLine(w, "OK %s joined, index=%d members=%d", id, joined.Index, joined.Members)
}

// leave takes a node out of the cluster that this node leads.
func (h *handler) leave(w http.ResponseWriter, r *http.Request) error {
	h.log.Info("Leave handler called")
	values, err := api.Parse(r, "nodeId")
	if err != nil {
		return err
	}
	id, err := nodeID(values)
	if err != nil {
		return err
	}
	h.log.Infof("node is %s", id)
	members, err := h.node.Leave(r.Context(), id)
	if err != nil {
		return err
	}
	return answerLine(w, "OK %s left, members=%d", id, members)
}

// transfer hands leadership over, to the best voter unless one is named.
func (h *handler) transfer(w http.ResponseWriter, r *http.Request) error {
	h.log.Info("Transfer handler called")
	values, err := api.Parse(r, "nodeId")
	if err != nil {
		return err
	}
	id := ""
	if values.Has("nodeId") {
		if id, err = nodeID(values); err != nil {
			return err
		}
	}
	leader, err := h.node.Transfer(r.Context(), id)
	if err != nil {
		return err
	}
	return answerLine(w, "OK the leader is %s", leader)
}

// status tells of this node and of every member that answers.
func (h *handler) status(w http.ResponseWriter, r *http.Request) error {
	if _, err := api.Parse(r); err != nil {
		return err
	}
	status, err := h.node.Status(r.Context())
	if err != nil {
		return fmt.Errorf("%w: %w", node.ErrNotApplied, err)
	}
	return answerJSON(w, status)
}

// snapshot answers a backup of all keys, and of the answers to idempotency keys, as
// they are now.
func (h *handler) snapshot(w http.ResponseWriter, r *http.Request) error {
	h.log.Info("Snapshot handler called")
	values, err := api.Parse(r, "consistency")
	if err != nil {
		return err
	}
	if err := h.consistent(w, r, values); err != nil {
		return err
	}
	view := h.store.Clone()
	h.tellApplied(w, view)
	w.Header().Set("Content-Type", "application/octet-stream")
	if err := view.WriteSnapshot(api.Writer(w)); err != nil {
		panic(http.ErrAbortHandler) // so that the client knows: the status is out already
	}
	return nil
}

// restore replaces all data by that of a backup, on every node. The whole of it is
// read and verified before anything is proposed; then it goes through the log into
// a staging area, and takes effect with one last entry: a leader that dies in the
// middle has changed nothing.
func (h *handler) restore(w http.ResponseWriter, r *http.Request) error {
	h.log.Info("Restore handler called")
	if _, err := api.Parse(r); err != nil {
		return err
	}
	if err := api.Unconditional(r); err != nil {
		return err
	}
	if !h.node.Leads() {
		return node.ErrNotLeader
	}
	if !h.restoring.TryLock() {
		return fmt.Errorf("%w: another restore is under way", node.ErrNotApplied)
	}
	defer h.restoring.Unlock()
	if err := unhurried(w); err != nil {
		return err
	}
	data := kv.New()
	if err := data.ReadSnapshot(api.Reader(w, r)); err != nil {
		return api.Refuse(http.StatusBadRequest, "body: %v: nothing was changed; send what /snapshot gave, whole (curl -T FILE)", err)
	}
	if err := backup.Check(data); err != nil {
		return api.Refuse(http.StatusBadRequest, "body: %v: nothing was changed", err)
	}
	var done command.Result
	var err error
	for c := range backup.Commands(data) {
		if done, err = h.propose(r, c); err == nil {
			continue
		}
		if c.Kind == command.Restore {
			return err
		}
		break
	}
	if err == nil && done.Counted {
		return answerLine(w, "OK index=%d keys=%d", done.Index, data.Len())
	}
	if err == nil {
		err = errors.New("the leader has changed in the middle of it")
	}
	// What is staged is in nobody's way; without this it stays until the next term.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), time.Second)
	defer cancel()
	_, _, _ = h.node.Propose(ctx, command.Command{Kind: command.Unstage})
	return fmt.Errorf("%w: %v", node.ErrNotApplied, err) // not what err is: without the last entry nothing has changed
}

// healthz says that the process is alive.
func (h *handler) healthz(w http.ResponseWriter, r *http.Request) error {
	if _, err := api.Parse(r); err != nil {
		return err
	}
	return answerLine(w, "OK")
}

// readyz says whether clients should use this node: it answers with the newest state,
// and no other node has another one. It tells of a disk that is nearly full, too.
func (h *handler) readyz(w http.ResponseWriter, r *http.Request) error {
	if _, err := api.Parse(r); err != nil {
		return err
	}
	health := h.node.Health()
	if health.Replicas != "" {
		return api.Refuse(http.StatusServiceUnavailable, "%s", health.Replicas)
	}
	if err := h.node.ReadIndex(r.Context()); err != nil {
		return err
	}
	if health.Space != "" {
		return answerLine(w, "OK, but %s", health.Space)
	}
	return answerLine(w, "OK")
}

func nodeID(values api.Values) (string, error) {
	id, err := values.One("nodeId")
	if err != nil {
		return "", err
	}
	if err := checkNodeID(id); err != nil {
		return "", api.Refuse(http.StatusBadRequest, "nodeId: %v", err)
	}
	return id, nil
}

// errorTable is the one place that says which error of the node is which status,
// and what the client should do. 503 is definitely not applied, 504 may be.
var errorTable = []struct {
	err    error
	status int
	advice string
}{
	{node.ErrNotApplied, http.StatusServiceUnavailable, "it is safe to send it again"},
	{node.ErrNoRead, http.StatusServiceUnavailable, "send it again, or add consistency=stale to read what this node has"},
	{node.ErrNoLeader, http.StatusServiceUnavailable, "nothing was done; send it again when a majority of the nodes is up"},
	{node.ErrConflict, http.StatusConflict, ""},
	{node.ErrNoSuchNode, http.StatusNotFound, ""},
	{node.ErrUnknown, http.StatusGatewayTimeout, "it may yet be applied: read before you send it again"},
}

// fail answers err by the error table.
func (h *handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, node.ErrNotLeader) {
		h.log.Info("Not a leader, do nothing")
		id, leader, lookup := h.node.LeaderURL(r.Context())
		if lookup == nil {
			w.Header().Set("Location", leader+r.URL.RequestURI())
			plain(w, http.StatusTemporaryRedirect, fmt.Sprintf("not the leader: nothing was done; send it to the leader, %s, at %s (curl -L does)", id, leader))
			return
		}
		err = lookup
	}
	status, text := statusOf(err)
	switch status {
	case http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", "1")
	case http.StatusInternalServerError:
		if r.Context().Err() != nil {
			break // the client has gone: no error of the node's
		}
		h.log.Errorf("%s %s: %v", r.Method, r.URL.Path, err)
	}
	plain(w, status, text)
}

// statusOf is err by the error table: its status, and its line.
func statusOf(err error) (status int, text string) {
	var refused api.Refusal
	if errors.As(err, &refused) {
		return refused.Status, refused.Text
	}
	for _, row := range errorTable {
		if !errors.Is(err, row.err) {
			continue
		}
		if row.advice == "" {
			return row.status, err.Error()
		}
		return row.status, err.Error() + ": " + row.advice
	}
	return http.StatusInternalServerError, err.Error()
}

// unhurried lifts the time limits of a request that may take long.
func unhurried(w http.ResponseWriter) error {
	c := http.NewResponseController(w)
	return errors.Join(c.SetReadDeadline(time.Time{}), c.SetWriteDeadline(time.Time{}))
}

// plain answers one line.
func plain(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, strings.ReplaceAll(text, "\n", "; ")+"\n")
}

// answerLine answers one line with status 200.
func answerLine(w http.ResponseWriter, format string, args ...any) error {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, err := fmt.Fprintf(w, format+"\n", args...)
	return dropped(err)
}

// answerJSON answers value, indented: people read it too.
func answerJSON(w http.ResponseWriter, value any) error {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return dropped(e.Encode(value))
}

// dropped is for the error of writing an answer: the client has gone, and there is
// nobody to tell.
func dropped(error) error { return nil }
