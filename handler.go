package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/mux"
	"github.com/sirupsen/logrus"

	"raftkv/internal/api"
	"raftkv/internal/backup"
	"raftkv/internal/command"
	"raftkv/internal/etcd"
	"raftkv/internal/flight"
	"raftkv/internal/forward"
	"raftkv/internal/kv"
	"raftkv/internal/metrics"
	"raftkv/internal/node"
	"raftkv/internal/page"
)

// Requests in flight, of each kind (docs/design.md, "Bounds"): no kind can keep another out.
const (
	maxRequests    = 2048 // for keys
	maxWatches     = 4096
	maxStreams     = 1024 // lists, backups and restores, which last as long as their clients read or send
	maxMemberships = 64
	maxStatuses    = 128
	maxProbes      = 256
)

const keepAlive = 15 * time.Second // of a watch

// handler answers the HTTP API. It knows nothing of raft's types: writes and changes of the
// cluster go to the node, reads to the store.
type handler struct {
	http.Handler             // the router
	leaders      *mux.Router // of what only the leader can do, for requests that other nodes send on
	forwards     bool        // a follower sends such requests on, rather than their clients
	access       *api.Access // nil: clients need no tokens
	labOn        bool        // of RAFT_LAB
	page         *page.Page
	kill         func() // ends the process as kill -9 does
	node         *node.Node
	store        *kv.Store
	log          *logrus.Logger
	restoring    sync.Mutex        // held by the restore that is under way
	paths        []string          // all paths, in the order of the routes
	methods      map[string]string // path: the methods that it takes, as the Allow header has them
}

// endpoint answers the requests of one route. If it returns an error, it has answered
// nothing: writeError does.
type endpoint func(w http.ResponseWriter, r *http.Request) error

// newHandler returns the handler of a node and its store. Names are further ones of this node, memory is what requests
// may have in memory, and clients of etcd are served if etcdAPI is true.
func newHandler(n *node.Node, store *kv.Store, log *logrus.Logger, names []string, memory *flight.Bound,
	etcdAPI bool) *handler {
	h := &handler{node: n, store: store, log: log, methods: make(map[string]string), kill: killProcess, page: page.New(n)}
	const get, head, post, put = http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut
	limit := func(n int) func(endpoint) http.Handler { // handlers that together have n requests in flight
		slots := api.NewSlots(n, memory)
		return func(answer endpoint) http.Handler { return slots.Handler(answer, h.writeError) }
	}
	request, stream, watch := limit(maxRequests), limit(maxStreams), limit(maxWatches)
	membership, status, probe := limit(maxMemberships), limit(maxStatuses), limit(maxProbes)

	router := mux.NewRouter().SkipClean(true) // else //set is redirected, and clients drop the body
	h.leaders = mux.NewRouter()
	h.leaders.SkipClean(true)
	leading := func(path string, answer endpoint, slots func(endpoint) http.Handler, kind forward.Kind,
		methods ...string) {
		answers := slots(h.leading(answer, kind))
		router.Handle(path, answers).Methods(methods...)
		h.leaders.Handle(path, answers).Methods(methods...)
	}
	leading("/set", h.set, request, forward.Command, get, post, put)
	router.Handle("/get", request(h.get)).Methods(get, head, post)
	leading("/remove", h.remove, request, forward.Command, get, post)
	leading("/txn", h.txn, request, forward.Transaction, post)
	router.Handle("/list", stream(h.list)).Methods(get, post)
	router.Handle("/watch", watch(h.watch)).Methods(get, post)
	leading("/join", h.join, membership, forward.Long, get, post)
	leading("/leave", h.leave, membership, forward.Change, get, post)
	leading("/transfer", h.transfer, membership, forward.Change, get, post)
	router.Handle("/status", status(h.status)).Methods(get, head, post)
	router.Handle("/snapshot", stream(h.snapshot)).Methods(get, post)
	leading("/restore", h.restore, stream, forward.Long, put)
	router.Handle("/healthz", probe(h.healthz)).Methods(get, head, post)
	router.Handle("/readyz", probe(h.readyz)).Methods(get, head, post)

	h.page.Route(router, func(answer func(http.ResponseWriter, *http.Request) error) http.Handler {
		return watch(answer)
	})
	router.Handle("/lab", request(h.lab)).Methods(get, post)

	m := metrics.New(n, store)
	m.Route(router)

	checkOrigin := api.OriginChecker(names, h.page.Lets, h.writeError)
	// mux runs the middleware of Use for a request that matches a route. For one that
	// matches none it does not, so these two handlers are wrapped here: otherwise a web
	// page could find out by them that a node is there.
	router.Use(m.Count, checkOrigin, h.checkAccess)
	h.leaders.Use(h.checkAccess)
	router.NotFoundHandler = m.Count(checkOrigin(request(h.notFound)))
	router.MethodNotAllowedHandler = m.Count(checkOrigin(request(h.methodNotAllowed)))

	// A member whose clients use etcd's gateway sends their requests on to this node, whether or not its own may.
	gateway := etcd.New(gatewayNode{h}, store)
	on := func(router *mux.Router, kind func(endpoint) http.Handler, leader bool) func(string, etcd.Endpoint) {
		return func(path string, answer etcd.Endpoint) {
			if leader {
				answer = h.leading(answer, forward.Change)
			}
			router.Handle(path, kind(answer)).Methods(post)
		}
	}
	gateway.Routes(on(h.leaders, request, true), func(string, etcd.Endpoint) {}, func(string, etcd.Endpoint) {})
	h.Handler = router
	if etcdAPI {
		router.Handle("/version", request(etcd.Version)).Methods(get)
		gateway.Routes(on(router, request, true), on(router, request, false), on(router, watch, false))
		h.Handler = etcd.Paths(router)
	}

	_ = router.Walk(func(route *mux.Route, _ *mux.Router, _ []*mux.Route) error {
		path, _ := route.GetPathTemplate() // every route has a path and methods
		methods, _ := route.GetMethods()
		h.paths, h.methods[path] = append(h.paths, path), strings.Join(methods, ", ")
		return nil
	})
	return h
}

// checkAccess is the middleware around every endpoint that asks for tokens, also for requests that another node, which
// has asked for them, has sent on.
func (h *handler) checkAccess(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.access.Check(w, r, next) })
}

// leading returns an endpoint whose request's body is read only if this node leads: a client
// that is redirected still has it, and a request that is sent on is read on its way.
func (h *handler) leading(answer endpoint, kind forward.Kind) endpoint {
	return func(w http.ResponseWriter, r *http.Request) error {
		forwards := h.forwards || api.IsGateway(r) // clients of etcd follow no redirect
		if forwards && !api.IsForwarded(r) && !h.node.Leads() {
			return h.sendOn(w, r, kind, nil)
		}
		api.GuardBody(r, func() error {
			if !h.node.Leads() {
				return node.ErrNotLeader
			}
			return nil
		})
		err := answer(w, r)
		if code, _ := node.CodeOf(err); code != node.ErrNotLeader {
			return err
		}
		if api.IsForwarded(r) { // one hop, never two
			return fmt.Errorf("%w: %w", node.ErrNotApplied, err)
		}
		leader, lookup := h.node.Leader(r.Context())
		if lookup != nil || api.BodyBegun(r) || (!forwards && api.MayRedirect(r, api.Leader(leader))) {
			return err
		}
		return h.sendOn(w, r, kind, err)
	}
}

// sendOn has the leader answer r. If the leader's program is too old for that, it returns
// instead, or ErrNotLeader if that is nil.
func (h *handler) sendOn(w http.ResponseWriter, r *http.Request, kind forward.Kind, instead error) error {
	sent, err := forward.Request(w, r, h.node, kind, h.log.Infof)
	switch {
	case errors.Is(err, node.ErrOlderLeader):
		return cmp.Or(instead, error(node.ErrNotLeader))
	case sent && err != nil:
		status, message := statusOf(err)
		api.WriteLine(w, "ERROR %d %s", status, message)
		return nil
	}
	return err
}

func (h *handler) notFound(http.ResponseWriter, *http.Request) error {
	return api.Errorf(http.StatusNotFound, "no such path; there are %s", strings.Join(h.paths, " "))
}

func (h *handler) methodNotAllowed(w http.ResponseWriter, r *http.Request) error {
	methods := h.methods[r.URL.Path]
	w.Header().Set("Allow", methods)
	return api.Errorf(http.StatusMethodNotAllowed, "method %s: %s takes %s", r.Method, r.URL.Path, methods)
}

// set sets one key, or several at once: all or none of them, in one entry of the log.
func (h *handler) set(w http.ResponseWriter, r *http.Request) error {
	h.log.Info("Set handler called")
	c, err := api.Set(r, h.history())
	if err != nil {
		return err
	}
	result, err := h.propose(r.Context(), c)
	if err != nil {
		return err
	}
	w.Header().Set("ETag", h.history().ETag(result.Index))
	api.WriteLine(w, "OK index=%d", result.Index)
	return nil
}

// remove removes one key, several at once, or all with a prefix: all or none of them, in
// one entry of the log.
func (h *handler) remove(w http.ResponseWriter, r *http.Request) error {
	h.log.Info("Remove handler called")
	c, err := api.Remove(r, h.history())
	if err != nil {
		return err
	}
	result, err := h.propose(r.Context(), c)
	if err != nil {
		return err
	}
	api.WriteLine(w, "OK index=%d removed=%d", result.Index, result.Removed)
	return nil
}

// txn carries out a transaction: conditions on keys, then one of two lists of operations.
func (h *handler) txn(w http.ResponseWriter, r *http.Request) error {
	h.log.Info("Txn handler called")
	c, err := api.Txn(r, h.history())
	if err != nil {
		return err
	}
	result, err := h.propose(r.Context(), c)
	if err != nil {
		return err
	}
	return streamed(api.WriteTxn(w, c, result, h.history()))
}

// history is what the indexes of this node's answers belong to.
func (h *handler) history() api.History {
	mark, mixed := h.node.History()
	return api.History{Mark: mark, Plain: mixed}
}

// propose replicates c and returns what the state machine made of it. If that is nothing,
// because the client has no right to do that or a condition of c does not hold, it returns an api.Error.
func (h *handler) propose(ctx context.Context, c command.Command) (command.Result, error) {
	c, err := h.access.Command(ctx, c)
	if err != nil {
		return command.Result{}, err
	}
	result, err := h.node.Propose(ctx, c)
	if err != nil {
		return command.Result{}, err
	}
	return result, api.ResultError(c, result, h.history())
}

// prepareRead returns when the store may be read: at once for a stale read, which gets
// headers that tell how old it may be, and else as soon as the store has all that was
// acknowledged by any node before the request came.
func (h *handler) prepareRead(w http.ResponseWriter, r *http.Request, stale bool) error {
	if !stale {
		return h.node.ReadIndex(r.Context())
	}
	f, err := h.node.Freshness()
	if err != nil {
		return err
	}
	api.SetAppliedIndexHeader(w, f.AppliedIndex)
	w.Header().Set("Raftkv-Leader", f.Leader)
	w.Header().Set("Raftkv-Last-Contact", f.LastContact)
	return nil
}

// get answers the raw bytes of a value, or the values of several keys in one consistent view.
func (h *handler) get(w http.ResponseWriter, r *http.Request) error {
	keys, stale, err := api.Get(r)
	if err != nil {
		return err
	}
	if err := h.access.Read(r.Context(), keys...); err != nil {
		return err
	}
	if err := h.prepareRead(w, r, stale); err != nil {
		return err
	}
	index, _ := h.store.Applied() // before the key is read: a watch from there misses no change of it
	api.SetAppliedIndexHeader(w, index)
	if len(keys) > 1 {
		view, w, release := h.version(w)
		defer release()
		return streamed(api.WriteItems(w, view, keys))
	}
	key := keys[0]
	item, lease, ok := h.store.GetLeased(key)
	if !ok {
		return api.Errorf(http.StatusNotFound, "key %s: not found", command.AppendQuoted(nil, key))
	}
	if err := api.CheckIfMatch(r, h.history(), key, item.Index); err != nil {
		return err
	}
	etag := h.history().ETag(item.Index)
	w.Header().Set("ETag", etag)
	api.SetLeaseHeaders(w, lease)
	if api.NotModified(r, etag) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	return api.WriteValue(w, item.Value)
}

// version returns the store as it is now, for an answer that is written to the writer: see api.Version.
func (h *handler) version(w http.ResponseWriter) (*kv.Store, http.ResponseWriter, func()) {
	return api.Version(w, h.store, api.RetainedLimit(h.node.MaxBytes()))
}

// streamed returns the error of an answer of which nothing was sent. If it was sent in part, as its error is no
// api.Error, only a connection that breaks off shows the client that it is not all.
func streamed(err error) error {
	if _, ok := errors.AsType[api.Error](err); err != nil && !ok {
		panic(http.ErrAbortHandler)
	}
	return err
}

// list answers keys in order, a JSON object a line, from one view of the store.
func (h *handler) list(w http.ResponseWriter, r *http.Request) error {
	q, err := api.List(r)
	if err != nil {
		return err
	}
	if err := h.access.Read(r.Context(), q.Prefix); err != nil {
		return err
	}
	if err := h.prepareRead(w, r, q.Stale); err != nil {
		return err
	}
	view, w, release := h.version(w)
	defer release()
	return streamed(api.WriteList(w, view, q, h.history()))
}

// watch answers server-sent events, one for each entry that changes a key with the prefix.
func (h *handler) watch(w http.ResponseWriter, r *http.Request) error {
	q, err := api.Watch(r, h.history())
	if err != nil {
		return err
	}
	if err := h.access.Read(r.Context(), q.Prefix); err != nil {
		return err
	}
	if err := h.prepareRead(w, r, q.Stale); err != nil {
		return err
	}
	return q.Serve(r.Context(), h.node.Serving(q.Stale), w, h.store, keepAlive)
}

// join makes a node a member of the cluster that this node leads. While that node catches
// up, the client gets a line about once a second. After such a line the status is sent, so
// that an error is the last line: ERROR, the status that it would have had, the message.
func (h *handler) join(w http.ResponseWriter, r *http.Request) error {
	h.log.Info("Join handler called")
	j, err := api.Join(r)
	if err != nil {
		return err
	}
	h.log.Infof("node is %s", j.NodeID)
	if !h.node.Leads() {
		return node.ErrNotLeader
	}
	h.log.Infof("Joining node %s on host %s", j.NodeID, j.Address)
	if err := api.ClearDeadlines(w); err != nil {
		return err
	}
	sent := false
	progress := func(has, of uint64) {
		sent = true
		_, _ = fmt.Fprintf(w, "%s: %d of %d entries\n", j.NodeID, has, of)
		_ = http.NewResponseController(w).Flush()
	}
	joined, err := h.node.Join(r.Context(), node.JoinRequest{
		ID: j.NodeID, Address: j.Address, Nonvoter: j.Nonvoter, Progress: progress,
	})
	switch {
	case err != nil && !sent:
		return err
	case err != nil:
		status, message := statusOf(err)
		api.WriteLine(w, "ERROR %d %s", status, message)
	case joined.Index == 0:
		api.WriteLine(w, "OK %s is a member already, members=%d", j.NodeID, joined.Members)
	default:
		api.WriteLine(w, "OK %s joined, index=%d members=%d", j.NodeID, joined.Index, joined.Members)
	}
	return nil
}

// leave removes a node from the cluster that this node leads.
func (h *handler) leave(w http.ResponseWriter, r *http.Request) error {
	h.log.Info("Leave handler called")
	id, err := api.Leave(r)
	if err != nil {
		return err
	}
	h.log.Infof("node is %s", id)
	members, err := h.node.Leave(r.Context(), id)
	if err != nil {
		return err
	}
	api.WriteLine(w, "OK %s left, members=%d", id, members)
	return nil
}

// transfer hands leadership over, to the voter that has caught up best unless one is named.
func (h *handler) transfer(w http.ResponseWriter, r *http.Request) error {
	h.log.Info("Transfer handler called")
	id, err := api.Transfer(r)
	if err != nil {
		return err
	}
	leader, err := h.node.Transfer(r.Context(), id)
	if err != nil {
		return err
	}
	api.WriteLine(w, "OK the leader is %s", leader)
	return nil
}

// status answers the state of this node and of every member that it reaches.
func (h *handler) status(w http.ResponseWriter, r *http.Request) error {
	if _, err := api.Parse(r); err != nil {
		return err
	}
	api.WriteJSON(w, h.node.Status(r.Context()))
	return nil
}

// snapshot answers a backup: all keys and all idempotency records, as they are now.
func (h *handler) snapshot(w http.ResponseWriter, r *http.Request) error {
	h.log.Info("Snapshot handler called")
	stale, err := api.Snapshot(r)
	if err != nil {
		return err
	}
	if err := h.prepareRead(w, r, stale); err != nil {
		return err
	}
	view, w, release := h.version(w)
	defer release()
	return streamed(api.WriteSnapshot(w, r, view))
}

// restore replaces all data by those of a backup, on every node. The whole backup is read
// and verified before anything is proposed. Then it goes through the log into a staging
// area, and takes effect with one last entry: a leader that fails before has changed nothing.
func (h *handler) restore(w http.ResponseWriter, r *http.Request) error {
	h.log.Info("Restore handler called")
	if err := api.Restore(r); err != nil {
		return err
	}
	if !h.node.Leads() {
		return node.ErrNotLeader
	}
	if !h.restoring.TryLock() {
		return fmt.Errorf("%w: another restore is under way", node.ErrNotApplied)
	}
	defer h.restoring.Unlock()
	if err := api.ClearDeadlines(w); err != nil {
		return err
	}
	data, err := backup.Receive(h.node.Dir(), api.DeadlineReader(w, r), r.ContentLength,
		backup.Limits{Data: h.node.MaxBytes(), Disk: h.node.SpareDisk()})
	if errors.Is(err, backup.ErrTooLarge) {
		return fmt.Errorf("%w: %w", node.ErrFull, err)
	}
	if err != nil {
		return api.BodyError("body", err)
	}
	defer data.Close()
	index, unchanged, err := backup.Restore(r.Context(), data, h.propose)
	if unchanged {
		return fmt.Errorf("%w: %v", node.ErrNotApplied, err) // not err's own code, which is about one entry
	}
	if err != nil {
		return err
	}
	api.WriteLine(w, "OK index=%d keys=%d", index, data.Len())
	return nil
}

// lab cuts and heals links of this node to other members, and ends it as kill -9 does: for
// learning and for tests, where the lab is on.
func (h *handler) lab(w http.ResponseWriter, r *http.Request) error {
	if !h.labOn {
		return api.Errorf(http.StatusForbidden, "the lab is off: start every node with RAFT_LAB=1, on loopback alone")
	}
	l, err := api.Lab(r)
	if err != nil {
		return err
	}
	var members []string
	switch l.Do {
	case "cut":
		if members, err = h.node.Cut(l.From, l.Out, l.In); err != nil {
			return err
		}
	case "heal":
		members = h.node.Heal(l.From)
	case "kill":
		h.log.Info("Killed by the lab")
		line := "OK " + h.node.ID() + " ends as by kill -9"
		w.Header().Set("Content-Length", strconv.Itoa(len(line)+1)) // so that the answer is whole without an end
		api.WriteLine(w, "%s", line)
		_ = http.NewResponseController(w).Flush()
		h.kill()
		return nil
	}
	h.log.Infof("Lab: %s from [%s], out=%t in=%t", l.Do, strings.Join(members, " "), l.Out, l.In)
	api.WriteLine(w, "OK %s: %s [%s]", h.node.ID(), l.Do, strings.Join(members, " "))
	return nil
}

// killProcess ends this process by a signal that it can't catch, or as the system has it.
func killProcess() {
	if self, err := os.FindProcess(os.Getpid()); err == nil {
		_ = self.Kill()
	}
}

// healthz answers OK: the process is alive.
func (h *handler) healthz(w http.ResponseWriter, r *http.Request) error {
	if _, err := api.Parse(r); err != nil {
		return err
	}
	api.WriteLine(w, "OK")
	return nil
}

// readyz answers OK if clients should use this node: its reads are linearizable, no member
// has a different state, and it leads, should that be asked. Warnings are in the same line.
func (h *handler) readyz(w http.ResponseWriter, r *http.Request) error {
	leader, err := api.Readyz(r)
	if err != nil {
		return err
	}
	health := h.node.Health()
	if health.Replicas != "" {
		return api.Errorf(http.StatusServiceUnavailable, "%s", health.Replicas)
	}
	if leader && !h.node.Leads() {
		return api.Errorf(http.StatusServiceUnavailable, "not the leader")
	}
	if err := h.node.ReadIndex(r.Context()); err != nil {
		return err
	}
	if warnings := health.Warnings(); warnings != "" {
		api.WriteLine(w, "OK, but %s", warnings)
		return nil
	}
	api.WriteLine(w, "OK")
	return nil
}

// errorTable is the one place that maps the codes of the node's errors to statuses and to
// what the client should do. 503 is definitely not applied, 504 may be: the two must never
// blur. ErrNotLeader is not here, as writeError redirects to the leader.
var errorTable = map[node.Code]struct {
	status int
	advice string
}{
	node.ErrNotApplied: {http.StatusServiceUnavailable, "it is safe to send it again"},
	node.ErrNotLinearizable: {http.StatusServiceUnavailable,
		"send it again, or add consistency=stale to read what this node has"},
	node.ErrNoLeader: {http.StatusServiceUnavailable,
		"nothing was done; send it again when a majority of the nodes is up"},
	node.ErrFull:       {http.StatusInsufficientStorage, ""},
	node.ErrConflict:   {http.StatusConflict, ""},
	node.ErrNoSuchNode: {http.StatusNotFound, ""},
	node.ErrUnknown:    {http.StatusGatewayTimeout, "it may yet be applied: read before you send it again"},
}

// writeError answers err: with a redirect to the leader if this node would have to be the
// leader, and by the error table otherwise.
func (h *handler) writeError(w http.ResponseWriter, r *http.Request, err error) {
	if code, _ := node.CodeOf(err); code == node.ErrNotLeader {
		h.log.Info("Not a leader, do nothing")
		var leader node.Leader
		if leader, err = h.node.Leader(r.Context()); err == nil {
			err = api.Redirect(w, r, api.Leader(leader))
		}
		if err == nil {
			return
		}
	}
	h.access.Refuse(w, r, err)
	status, message := statusOf(err)
	switch {
	case status == http.StatusServiceUnavailable && api.WriteUnavailable(w, r, message):
		return
	case status == http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", "1")
	case status == http.StatusInternalServerError && r.Context().Err() == nil: // else the client has gone
		h.log.Errorf("%s %s: %v", r.Method, r.URL.Path, err)
	}
	api.WriteError(w, r, status, message)
}

// statusOf returns the status and the line for the client of an error: those of an
// api.Error, or else by the error table.
func statusOf(err error) (status int, message string) {
	if e, ok := errors.AsType[api.Error](err); ok {
		return e.Status, e.Message
	}
	code, _ := node.CodeOf(err)
	row, ok := errorTable[code]
	switch {
	case ok && row.advice == "":
		return row.status, err.Error()
	case ok:
		return row.status, err.Error() + ": " + row.advice
	}
	return http.StatusInternalServerError, err.Error()
}

// gatewayNode is the node as etcd's gateway sees it.
type gatewayNode struct{ *handler }

func (g gatewayNode) ID() string { return g.node.ID() }

func (g gatewayNode) ClusterID() uint64 { return g.node.ClusterID() }

func (g gatewayNode) Propose(ctx context.Context, c command.Command) (command.Result, error) {
	c, err := g.access.Command(ctx, c)
	if err == nil {
		err = g.node.RequireFormat(ctx, etcd.Format)
	}
	if err != nil {
		return command.Result{}, err
	}
	return g.node.Propose(ctx, c)
}

func (g gatewayNode) MayRead(ctx context.Context, prefix string) error {
	return g.access.Read(ctx, prefix)
}

func (g gatewayNode) Version(w http.ResponseWriter) (*kv.Store, http.ResponseWriter, func()) {
	return g.version(w)
}

func (g gatewayNode) ReadIndex(ctx context.Context, stale bool) error {
	if !stale {
		return g.node.ReadIndex(ctx)
	}
	_, err := g.node.Freshness()
	return err
}

func (g gatewayNode) TimeLeft(key string, index uint64) (time.Duration, bool) {
	return g.node.TimeLeft(key, index)
}

func (g gatewayNode) Serving() context.Context { return g.node.Serving(false) }

func (g gatewayNode) Cluster(ctx context.Context) etcd.Cluster {
	status := g.node.Status(ctx)
	c := etcd.Cluster{Index: status.LastIndex, Term: status.Term, Bytes: uint64(status.DataBytes), Leader: status.Leader}
	for _, m := range status.Members {
		member := etcd.Member{ID: etcd.MemberID(m.NodeID), Name: m.NodeID, PeerURLs: []string{"http://" + m.RaftAddress},
			Learner: m.Suffrage != "Voter"}
		if m.Info != nil {
			member.ClientURLs = []string{m.HTTPURL}
		}
		c.Members = append(c.Members, member)
	}
	return c
}
