package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"mime"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/mux"
	"github.com/sirupsen/logrus"

	"raftkv/internal/command"
	"raftkv/internal/kv"
	"raftkv/internal/node"
)

// Bounds of the door (DESIGN section 8).
const (
	maxConnections = 8192
	maxInFlight    = 2048
	maxRequest     = 2 << 20 // query or body, in bytes
)

// handler answers the HTTP API. HTTP knows nothing of raft's types: it asks the
// node, and reads the store.
type handler struct {
	node     *node.Node
	store    *kv.Store
	log      *logrus.Logger
	names    []string      // host names that requests may use
	inFlight chan struct{} // a place for each request under way
}

// endpoint answers one path. An error goes through the error table.
type endpoint struct {
	path    string
	methods []string
	answer  func(w http.ResponseWriter, r *http.Request) error
}

func newHandler(n *node.Node, store *kv.Store, log *logrus.Logger, names []string) http.Handler {
	h := &handler{node: n, store: store, log: log, names: names, inFlight: make(chan struct{}, maxInFlight)}
	router := mux.NewRouter()
	for _, e := range []endpoint{
		{"/set", []string{http.MethodGet, http.MethodPost, http.MethodPut}, h.set},
		{"/get", []string{http.MethodGet, http.MethodHead, http.MethodPost}, h.get},
		{"/remove", []string{http.MethodGet, http.MethodPost}, h.remove},
		{"/join", []string{http.MethodGet, http.MethodPost}, h.join},
		{"/leave", []string{http.MethodGet, http.MethodPost}, h.leave},
		{"/transfer", []string{http.MethodGet, http.MethodPost}, h.transfer},
		{"/status", []string{http.MethodGet, http.MethodHead, http.MethodPost}, h.status},
		{"/healthz", []string{http.MethodGet, http.MethodHead, http.MethodPost}, h.healthz},
		{"/readyz", []string{http.MethodGet, http.MethodHead, http.MethodPost}, h.readyz},
	} {
		router.Handle(e.path, h.serve(e.methods, e.answer))
	}
	router.NotFoundHandler = h.serve(nil, func(http.ResponseWriter, *http.Request) error {
		return refuse(http.StatusNotFound, "no such path; there are /set /get /remove /join /leave /transfer /status /healthz /readyz")
	})
	return router
}

// newServer bounds what one connection can take of the node.
func newServer(h http.Handler, log *logrus.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      60 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    2 * maxRequest, // a value may come in the query; larger ones get our own 413
		ErrorLog:          stdlog.New(warnings{log}, "", 0),
	}
}

// warnings is where net/http's own lines go.
type warnings struct{ log *logrus.Logger }

func (w warnings) Write(line []byte) (int, error) {
	w.log.Warnf("%s", bytes.TrimSpace(line))
	return len(line), nil
}

// serve is what is done around every endpoint: the guard of DESIGN section 8, the
// bound on requests in flight, the method, the error table.
func (h *handler) serve(methods []string, answer func(http.ResponseWriter, *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if err := h.guard(r); err != nil {
			h.fail(w, r, err)
			return
		}
		select {
		case h.inFlight <- struct{}{}:
			defer func() { <-h.inFlight }()
		default:
			h.fail(w, r, fmt.Errorf("%w: %d requests are in flight already", node.ErrNotApplied, maxInFlight))
			return
		}
		if methods != nil && !slices.Contains(methods, r.Method) {
			w.Header().Set("Allow", strings.Join(methods, ", "))
			h.fail(w, r, refuse(http.StatusMethodNotAllowed, "method %s: %s takes %s", r.Method, r.URL.Path, strings.Join(methods, ", ")))
			return
		}
		if err := answer(w, r); err != nil {
			h.fail(w, r, err)
		}
	})
}

// set stores one value, or several at once: all or nothing, in one entry.
func (h *handler) set(w http.ResponseWriter, r *http.Request) error {
	h.log.Info("Set handler called")
	if err := unconditional(r); err != nil {
		return err
	}
	c, err := parseSet(r)
	if err != nil {
		return err
	}
	index, _, err := h.propose(r, c)
	if err != nil {
		return err
	}
	w.Header().Set("ETag", etag(index))
	return answerLine(w, "OK index=%d", index)
}

// remove removes one key, or several at once: all or nothing, in one entry.
func (h *handler) remove(w http.ResponseWriter, r *http.Request) error {
	h.log.Info("Remove handler called")
	if err := unconditional(r); err != nil {
		return err
	}
	values, err := parameters(r, "key")
	if err != nil {
		return err
	}
	if err := checkKeys(values["key"]); err != nil {
		return err
	}
	c := command.Command{Kind: command.Remove}
	for _, key := range values["key"] {
		c.Pairs = append(c.Pairs, command.Pair{Key: key})
	}
	index, done, err := h.propose(r, c)
	if err != nil {
		return err
	}
	return answerLine(w, "OK index=%d removed=%d", index, done.removed)
}

func (h *handler) propose(r *http.Request, c command.Command) (index uint64, done result, err error) {
	index, response, err := h.node.Propose(r.Context(), command.Append(nil, c))
	if err != nil {
		return 0, result{}, err
	}
	return index, response.([]result)[0], nil
}

// get answers the raw bytes of a value: by default as new as any that was
// acknowledged before, on every node; with consistency=stale what this node has.
func (h *handler) get(w http.ResponseWriter, r *http.Request) error {
	values, err := parameters(r, "key", "consistency")
	if err != nil {
		return err
	}
	key, err := one(values, "key")
	if err != nil {
		return err
	}
	if err := checkKeys([]string{key}); err != nil {
		return err
	}
	if err := h.consistent(w, r, values); err != nil {
		return err
	}
	item, ok := h.store.Get(key)
	if !ok {
		return refuse(http.StatusNotFound, "key %s: not found", appendShort(nil, key))
	}
	w.Header().Set("ETag", etag(item.Index))
	if unchanged(r, etag(item.Index)) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(len(item.Value)))
	_, err = io.WriteString(w, item.Value)
	return dropped(err)
}

// unchanged reports whether the client has what tag stands for already.
func unchanged(r *http.Request, tag string) bool {
	for _, known := range strings.Split(r.Header.Get("If-None-Match"), ",") {
		if known = strings.TrimSpace(known); known == "*" || strings.TrimPrefix(known, "W/") == tag {
			return true
		}
	}
	return false
}

// consistent makes sure that the store is as new as the request wants it. A stale
// read says how old it may be.
func (h *handler) consistent(w http.ResponseWriter, r *http.Request, values url.Values) error {
	consistency, err := optional(values, "consistency", "linearizable")
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
		return refuse(http.StatusBadRequest, "consistency: want linearizable (the default) or stale")
	}
}

// join makes a node a member of the cluster that this node leads. While the node
// catches up, the caller is told, about once a second.
func (h *handler) join(w http.ResponseWriter, r *http.Request) error {
	h.log.Info("Join handler called")
	values, err := parameters(r, "nodeId", "raftPort", "raftHost", "suffrage")
	if err != nil {
		return err
	}
	id, err := nodeID(values)
	if err != nil {
		return err
	}
	port, err := one(values, "raftPort")
	if err != nil {
		return err
	}
	if number, err := strconv.ParseUint(port, 10, 16); err != nil || number == 0 {
		return refuse(http.StatusBadRequest, "raftPort: want a port, 1 to 65535, such as 9001")
	}
	host, err := optional(values, "raftHost", "127.0.0.1")
	if err != nil {
		return err
	}
	if net.ParseIP(host) == nil && !hostName.MatchString(host) {
		return refuse(http.StatusBadRequest, "raftHost: want an IP address or a host name, without a port")
	}
	suffrage, err := optional(values, "suffrage", "voter")
	if err != nil {
		return err
	}
	if suffrage != "voter" && suffrage != "nonvoter" {
		return refuse(http.StatusBadRequest, "suffrage: want voter or nonvoter")
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
	values, err := parameters(r, "nodeId")
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
	values, err := parameters(r, "nodeId")
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
	if _, err := parameters(r); err != nil {
		return err
	}
	status, err := h.node.Status(r.Context())
	if err != nil {
		return fmt.Errorf("%w: %w", node.ErrNotApplied, err)
	}
	return answerJSON(w, status)
}

// healthz says that the process is alive.
func (h *handler) healthz(w http.ResponseWriter, r *http.Request) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	return answerLine(w, "OK")
}

// readyz says whether clients should use this node: it answers with the newest state.
func (h *handler) readyz(w http.ResponseWriter, r *http.Request) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	if err := h.node.ReadIndex(r.Context()); err != nil {
		return err
	}
	return answerLine(w, "OK")
}

// unconditional refuses headers whose meaning would be lost: a safe write must not
// become an unsafe one.
func unconditional(r *http.Request) error {
	for _, name := range []string{"If-Match", "If-None-Match", "If-Unmodified-Since", "Idempotency-Key", "Content-Range"} {
		if r.Header.Get(name) != "" {
			return refuse(http.StatusBadRequest, "%s: not supported; nothing was done; leave it out", name)
		}
	}
	return nil
}

// parseSet takes the keys and values of a set out of the query and, with POST, a
// form; with PUT the body is the value.
func parseSet(r *http.Request) (command.Command, error) {
	c := command.Command{Kind: command.Set}
	values, err := parameters(r, "key", "value")
	if err != nil {
		return c, err
	}
	keys, given := values["key"], values["value"]
	if err := checkKeys(keys); err != nil {
		return c, err
	}
	if r.Method == http.MethodPut {
		if len(given) > 0 {
			return c, refuse(http.StatusBadRequest, "value: with PUT the body is the value; leave the parameter out, or use GET or POST")
		}
		if len(keys) > 1 {
			return c, refuse(http.StatusBadRequest, "key: %d given; PUT takes one key, whose value is the body", len(keys))
		}
		body, err := readBody(r, "value", command.MaxValue)
		if err != nil {
			return c, err
		}
		given = []string{string(body)}
	}
	if len(given) != len(keys) {
		return c, refuse(http.StatusBadRequest, "value: %d given for %d of key; each key needs one value (value= for an empty one)", len(given), len(keys))
	}
	for i, key := range keys {
		if len(given[i]) > command.MaxValue {
			return c, tooLarge("value", command.MaxValue)
		}
		c.Pairs = append(c.Pairs, command.Pair{Key: key, Value: []byte(given[i])})
	}
	return c, nil
}

func checkKeys(keys []string) error {
	if len(keys) == 0 {
		return refuse(http.StatusBadRequest, "key: missing; add key=NAME")
	}
	seen := make(map[string]bool, len(keys))
	for _, key := range keys {
		switch {
		case key == "":
			return refuse(http.StatusBadRequest, "key: empty; a key has 1 to %d bytes", command.MaxKey)
		case len(key) > command.MaxKey:
			return refuse(http.StatusBadRequest, "key: %d bytes; a key has 1 to %d bytes", len(key), command.MaxKey)
		case seen[key]:
			return refuse(http.StatusBadRequest, "key: %s is given twice in one request; give it once", appendShort(nil, key))
		}
		seen[key] = true
	}
	return nil
}

// one returns the value of a parameter that must be given once.
func one(values url.Values, name string) (string, error) {
	switch given := values[name]; len(given) {
	case 0:
		return "", refuse(http.StatusBadRequest, "%s: missing; add %s=…", name, name)
	case 1:
		return given[0], nil
	default:
		return "", refuse(http.StatusBadRequest, "%s: given %d times; give it once", name, len(given))
	}
}

// optional is one, with what stands for none.
func optional(values url.Values, name, fallback string) (string, error) {
	if !values.Has(name) {
		return fallback, nil
	}
	return one(values, name)
}

func nodeID(values url.Values) (string, error) {
	id, err := one(values, "nodeId")
	if err != nil {
		return "", err
	}
	if err := checkNodeID(id); err != nil {
		return "", refuse(http.StatusBadRequest, "nodeId: %v", err)
	}
	return id, nil
}

// parameters reads the query and, with POST, the form. A name that is not allowed
// is refused: a misspelt one must not be taken for none.
func parameters(r *http.Request, allowed ...string) (url.Values, error) {
	if len(r.URL.RawQuery) > maxRequest {
		return nil, tooLarge("query", maxRequest)
	}
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "query: %v; percent-encode it (curl -G --data-urlencode)", err)
	}
	if r.Method == http.MethodPost {
		body, err := readBody(r, "form", maxRequest)
		if err != nil {
			return nil, err
		}
		kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
		if len(body) > 0 && kind != "application/x-www-form-urlencoded" {
			return nil, refuse(http.StatusBadRequest, "Content-Type: %q; POST takes application/x-www-form-urlencoded, PUT a raw value", kind)
		}
		form, err := url.ParseQuery(string(body))
		if err != nil {
			return nil, refuse(http.StatusBadRequest, "form: %v; percent-encode it (curl --data-urlencode)", err)
		}
		for name, given := range form {
			values[name] = append(values[name], given...)
		}
	}
	for name := range values {
		if !slices.Contains(allowed, name) {
			takes := "none"
			if len(allowed) > 0 {
				takes = strings.Join(allowed, ", ")
			}
			return nil, refuse(http.StatusBadRequest, "%s: unknown parameter; %s takes %s", appendShort(nil, name), r.URL.Path, takes)
		}
	}
	return values, nil
}

// readBody reads a body of at most limit bytes.
func readBody(r *http.Request, what string, limit int64) ([]byte, error) {
	if r.ContentLength > limit {
		return nil, tooLarge(what, limit)
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "%s: the body ends early: %v", what, err)
	}
	if int64(len(body)) > limit {
		return nil, tooLarge(what, limit)
	}
	return body, nil
}

// guard lets in what a person or a program sends, and keeps out what a web page
// makes a browser send: sets arrive as GET, so a link or an image could carry one.
func (h *handler) guard(r *http.Request) error {
	if site := r.Header.Get("Sec-Fetch-Site"); site != "" && site != "none" && site != "same-origin" {
		return refuse(http.StatusForbidden, "Sec-Fetch-Site: %q; requests from web pages of other sites are refused", site)
	}
	if origin := r.Header.Get("Origin"); origin != "" && origin != "http://"+r.Host {
		return refuse(http.StatusForbidden, "Origin: %q; requests from web pages of other sites are refused", origin)
	}
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	known := func(name string) bool { return strings.EqualFold(name, host) }
	if net.ParseIP(host) == nil && host != "localhost" && !slices.ContainsFunc(h.names, known) {
		return refuse(http.StatusForbidden, "Host: %q is not a name of this node; use its IP address or localhost, or name it in HTTP_SERVER_NAMES at its start", host)
	}
	return nil
}

// refusal is an error that the client's request causes.
type refusal struct {
	status int
	text   string
}

func (r refusal) Error() string { return r.text }

func refuse(status int, format string, args ...any) error {
	return refusal{status, fmt.Sprintf(format, args...)}
}

func tooLarge(what string, limit int64) error {
	return refuse(http.StatusRequestEntityTooLarge, "%s: larger than %d bytes; a value may have %d, best sent with PUT (curl -T)", what, limit, command.MaxValue)
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
	var refused refusal
	if errors.As(err, &refused) {
		return refused.status, refused.text
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

// etag is the ETag of what the entry at index has set.
func etag(index uint64) string { return `"` + strconv.FormatUint(index, 10) + `"` }
