// Package api is the HTTP API without raft: it parses a request into a command or a
// read, checks where it comes from, and writes lines, JSON and streams. It knows
// commands and the store, and neither raft nor the node.
//
// Whatever is wrong with a request is an Error: one line for the client that names the
// parameter, the limit and the way out.
package api

import (
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"

	"raftkv/internal/command"
	"raftkv/internal/kv"
)

// Error is a request that can't be carried out as it was sent. All errors of this
// package but those of writing are Errors.
type Error struct {
	Status  int
	Message string // one line for the client
}

func (e Error) Error() string { return e.Message }

// Errorf returns an Error.
func Errorf(status int, format string, args ...any) error {
	return Error{Status: status, Message: fmt.Sprintf(format, args...)}
}

// badRequest returns an Error with the status that most of them have.
func badRequest(format string, args ...any) error {
	return Errorf(http.StatusBadRequest, format, args...)
}

func tooLarge(what string, limit int64) error {
	return Errorf(http.StatusRequestEntityTooLarge,
		"%s: larger than %d bytes; a value may have %d, best sent with PUT (curl -T)", what, limit, command.MaxValue)
}

// Set returns the command that sets the keys and values in the query and, with POST,
// in a form; with PUT the body is the value. The keys may have a lease. ETags are of the history h.
func Set(r *http.Request, h History) (command.Command, error) {
	c := command.Command{Kind: command.Set}
	values, err := Parse(r, "key", "value", "ttl", "lease")
	if err != nil {
		return c, err
	}
	keys, given := values.Values["key"], values.Values["value"]
	if err := checkKeys(keys); err != nil {
		return c, err
	}
	if c.Options, err = options(r, h); err != nil {
		return c, err
	}
	lease, err := values.lease(keys)
	if err != nil {
		return c, err
	}
	if lease != (command.Lease{}) {
		if c.Options == nil {
			c.Options = new(command.Options)
		}
		c.Options.Lease = lease
	}
	if r.Method == http.MethodPut {
		if len(given) > 0 {
			return c, badRequest("value: with PUT the body is the value; leave the parameter out, or use GET or POST")
		}
		if len(keys) > 1 {
			return c, badRequest("key: %d given; PUT takes one key, whose value is the body", len(keys))
		}
		body, err := readBody(r, "value", command.MaxValue)
		if err != nil {
			return c, err
		}
		c.Pairs = []command.Pair{{Key: keys[0], Value: body}}
		return c, nil
	}
	if len(given) != len(keys) {
		return c, badRequest("value: %d given for %d of key; each key needs one value "+
			"(value= for an empty one; in a shell, quote the address: an & without quotes ends it)",
			len(given), len(keys))
	}
	c.Pairs = make([]command.Pair, len(keys))
	for i, key := range keys {
		if len(given[i]) > command.MaxValue {
			return c, tooLarge("value", command.MaxValue)
		}
		c.Pairs[i] = command.Pair{Key: key, Value: []byte(given[i])}
	}
	return c, checkKeysOf(&c)
}

// Remove returns the command that removes keys, or all keys with a prefix. ETags are of the
// history h.
func Remove(r *http.Request, h History) (command.Command, error) {
	c := command.Command{Kind: command.Remove}
	values, err := Parse(r, "key", "prefix")
	if err != nil {
		return c, err
	}
	if c.Options, err = options(r, h); err != nil {
		return c, err
	}
	keys := values.Values["key"]
	if !values.Has("prefix") {
		c.Pairs = make([]command.Pair, len(keys))
		for i, key := range keys {
			c.Pairs[i].Key = key
		}
		if err := checkKeys(keys); err != nil {
			return c, err
		}
		return c, checkKeysOf(&c)
	}
	prefix, err := values.prefix()
	switch {
	case err != nil:
		return c, err
	case len(keys) > 0:
		return c, badRequest("prefix: given together with key; remove them in two requests")
	case prefix == "":
		return c, badRequest("prefix: empty, which would remove every key; name at least the first byte of the keys")
	case c.Options != nil && !(c.Match.IsNone() && c.NoneMatch.IsNone()):
		return c, badRequest("prefix: with If-Match or If-None-Match; " +
			"conditions are for keys: remove by key, or leave them out")
	}
	c.Kind, c.Pairs = command.RemovePrefix, []command.Pair{{Key: prefix}}
	return c, nil
}

// maxGet is how many keys one get reads at most.
const maxGet = 1024

// Get returns the keys to read, and whether stale values will do. A condition is for one key.
func Get(r *http.Request) (keys []string, stale bool, err error) {
	values, err := Parse(r, "key", "consistency")
	if err != nil {
		return nil, false, err
	}
	keys = values.Values["key"]
	if err := checkKeys(keys); err != nil {
		return nil, false, err
	}
	if len(keys) > 1 {
		if len(keys) > maxGet {
			return nil, false, badRequest("key: %d given; %d at most, or use /list", len(keys), maxGet)
		}
		if err := rejectHeaders(r, "If-Match", "If-None-Match"); err != nil {
			return nil, false, err
		}
	}
	stale, err = values.stale()
	return keys, stale, err
}

// Readyz returns whether the node must lead to be ready.
func Readyz(r *http.Request) (leader bool, err error) {
	values, err := Parse(r, "leader")
	return values.Has("leader"), err
}

// Snapshot returns whether a stale snapshot will do.
func Snapshot(r *http.Request) (stale bool, err error) {
	values, err := Parse(r, "consistency")
	if err != nil {
		return false, err
	}
	return values.stale()
}

// Restore checks the request to restore the backup that is its body.
func Restore(r *http.Request) error {
	if _, err := Parse(r); err != nil {
		return err
	}
	return RejectPreconditions(r)
}

// WatchRequest asks for the entries that change keys with a prefix. See WatchRequest.Serve.
type WatchRequest struct {
	Prefix string
	Key    string // only this key, which Prefix is then; empty: all with the prefix
	Stale  bool

	history     History
	foreign     string // not empty: why the index is none of this history
	eventSource bool   // see isEventSource

	after uint64 // the watch begins with the first entry behind this index
	given string // what gave that index, Last-Event-ID or from; empty: the watch begins now
}

// Watch parses a WatchRequest. A client that reconnects repeats its from and sends
// Last-Event-ID, which is newer and so takes precedence.
//
// An event ID has the mark of its history, an index that a person gives with from need not.
func Watch(r *http.Request, h History) (q WatchRequest, err error) {
	q.history = h
	values, err := Parse(r, "prefix", "key", "from", "consistency")
	if err != nil {
		return q, err
	}
	if q.Prefix, err = values.prefix(); err != nil {
		return q, err
	}
	if values.Has("key") {
		if values.Has("prefix") {
			return q, badRequest("key: given together with prefix; watch them in two requests")
		}
		if q.Key, err = values.key(); err != nil {
			return q, err
		}
		q.Prefix = q.Key
	}
	q.eventSource = isEventSource(r)
	index := r.Header.Get("Last-Event-ID")
	switch {
	case index != "":
		q.given = "Last-Event-ID"
	case values.Has("from"):
		q.given = "from"
		if index, err = values.Required("from"); err != nil {
			return q, err
		}
	}
	if q.given != "" {
		digits, mark, marked := strings.Cut(index, "-")
		if q.after, err = strconv.ParseUint(digits, 10, 64); err != nil {
			return q, badRequest("%s: want an index, such as a list or an event gave it", q.given)
		}
		switch {
		case marked && mark != h.Mark:
			q.foreign = "is an index of another history"
		case !marked && !h.Plain && q.given != "from":
			q.foreign = "has no mark of its history, as event IDs of older versions of raftkv"
		}
	}
	q.Stale, err = values.stale()
	return q, err
}

// Open begins the watch, which the caller must close. It begins behind the index after.
// An index that store no longer has the history of, or has not reached, is an Error with
// status 410: the client has to list again.
func (q WatchRequest) Open(store *kv.Store) (watcher *kv.Watcher, after uint64, err error) {
	if q.given == "" {
		watcher, after = store.WatchNow(q.Prefix)
		return watcher, after, nil
	}
	const advice = "list, then watch from the Raftkv-Watch-From of that"
	if q.foreign != "" {
		return nil, 0, Errorf(http.StatusGone, "%s: %s; %s", q.given, q.foreign, advice)
	}
	if applied, _ := store.Applied(); q.after > applied && !q.Stale {
		return nil, 0, Errorf(http.StatusGone, "%s: %d is not reached yet, so it is another cluster's; %s",
			q.given, q.after, advice)
	}
	if watcher, err = store.Watch(q.Prefix, q.after); err != nil {
		return nil, 0, Errorf(http.StatusGone, "%s: %v; %s", q.given, err, advice)
	}
	return watcher, q.after, nil
}

// JoinRequest asks to make a node a member.
type JoinRequest struct {
	NodeID   string
	Address  string // host:port of its raft port
	Nonvoter bool   // a read replica, which has no vote
}

// Join parses a JoinRequest.
func Join(r *http.Request) (j JoinRequest, err error) {
	values, err := Parse(r, "nodeId", "raftPort", "raftHost", "suffrage")
	if err != nil {
		return j, err
	}
	if j.NodeID, err = values.nodeID(); err != nil {
		return j, err
	}
	port, err := values.Required("raftPort")
	if err != nil {
		return j, err
	}
	if number, err := strconv.ParseUint(port, 10, 16); err != nil || number == 0 {
		return j, badRequest("raftPort: want a port, 1 to 65535, such as 9001")
	}
	host, err := values.StringOr("raftHost", "127.0.0.1")
	if err != nil {
		return j, err
	}
	if err := CheckHost(host); err != nil {
		return j, badRequest("raftHost: %v", err)
	}
	j.Address = net.JoinHostPort(host, port)
	suffrage, err := values.StringOr("suffrage", "voter")
	if err == nil && suffrage != "voter" && suffrage != "nonvoter" {
		err = badRequest("suffrage: want voter or nonvoter")
	}
	j.Nonvoter = suffrage == "nonvoter"
	return j, err
}

// Leave returns the ID of the node to remove from the cluster.
func Leave(r *http.Request) (nodeID string, err error) {
	values, err := Parse(r, "nodeId")
	if err != nil {
		return "", err
	}
	return values.nodeID()
}

// Transfer returns the ID of the node that is to lead; empty: any.
func Transfer(r *http.Request) (nodeID string, err error) {
	values, err := Parse(r, "nodeId")
	if err != nil || !values.Has("nodeId") {
		return "", err
	}
	return values.nodeID()
}

// LabRequest is what is done to the links of a node, or to the node.
type LabRequest struct {
	Do      string // cut, heal or kill
	From    string // ID of the member at the other end of the link; empty: all links
	Out, In bool   // of a cut: what this node opens to the member, and what the member opens to it
}

// Lab parses a LabRequest. It refuses what does not come from this machine.
func Lab(r *http.Request) (l LabRequest, err error) {
	values, err := Parse(r, "do", "from", "way")
	if err != nil {
		return l, err
	}
	if !fromThisMachine(r) {
		return l, Errorf(http.StatusForbidden, "the lab is for clients on the node's own machine, without a proxy: ask there")
	}
	if l.Do, err = values.Required("do"); err != nil {
		return l, err
	}
	if l.Do != "cut" && l.Do != "heal" && l.Do != "kill" {
		return l, badRequest("do: want cut, heal or kill")
	}
	way, err := values.StringOr("way", "both")
	switch {
	case err != nil:
		return l, err
	case way != "both" && way != "out" && way != "in":
		return l, badRequest("way: want both, out (what this node opens to the other) or in (what the other opens to it)")
	case values.Has("way") && l.Do != "cut":
		return l, badRequest("way: only do=cut takes it; leave it out")
	case values.Has("from") && l.Do == "kill":
		return l, badRequest("from: do=kill takes none, it ends this node; leave it out")
	}
	l.Out, l.In = way != "in", way != "out"
	if !values.Has("from") {
		return l, nil
	}
	if l.From, err = values.Required("from"); err != nil {
		return l, err
	}
	if err := CheckNodeID(l.From); err != nil {
		return l, badRequest("from: %v", err)
	}
	return l, nil
}
