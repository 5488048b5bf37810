// Package etcd is the JSON gateway of etcd's v3 API, as far as docs/etcd.md has it, over the commands and the store of
// this node: there is no second store, no gRPC and no history of values. It parses messages into commands and reads, and
// writes what etcd would; it knows neither raft nor the node.
//
// A revision is an index of the raft log. An etcd lease is a key with a TTL, of which the name is reserved; what is
// attached to it goes with it (kv.Lease), so that the end of a lease is that of one key.
package etcd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"raftkv/internal/api"
	"raftkv/internal/command"
	"raftkv/internal/kv"
)

const (
	// Format is the least cluster format in which the gateway works: there is what made a key, and ranges.
	Format = 4
	// version is that of the etcd whose API this is.
	version = "3.4.0"
	// maxOps bounds the conditions, and the requests of either branch, of a txn, as etcd's --max-txn-ops does.
	maxOps = 128
	// maxSorted bounds what a range may sort by anything but its keys, in bytes.
	maxSorted = 32 << 20
)

// Reserved keys are those of leases: the prefix, then the ID in 16 hexadecimal digits. No request of the gateway sees
// or changes them as keys.
const (
	leasePrefix = "_etcd/lease/"
	leaseEnd    = "_etcd/lease0" // the first key behind them
)

func isReserved(key string) bool { return strings.HasPrefix(key, leasePrefix) }

// Error is one of etcd's own.
type Error struct {
	Code    int // of gRPC
	Status  int // of HTTP
	Message string
}

func (e Error) Error() string { return e.Message }

func invalid(format string, args ...any) error { return Error{3, 400, fmt.Sprintf(format, args...)} }

var (
	errLeaseNotFound = Error{5, 404, "etcdserver: requested lease not found"}
	errLeaseExists   = Error{9, 412, "etcdserver: lease already exists"}
	errTooLargeTTL   = Error{11, 400, "etcdserver: too large lease TTL"}
	errCompacted     = Error{11, 400, "etcdserver: mvcc: required revision has been compacted"}
	errFuture        = Error{11, 400, "etcdserver: mvcc: required revision is a future revision"}
	errDuplicate     = Error{3, 400, "etcdserver: duplicate key given in txn request"}
	errTooManyOps    = Error{3, 400, "etcdserver: too many operations in txn request"}
	errNoAuth        = Error{9, 412, "etcdserver: authentication is not enabled"}
)

func unimplemented(what string) error { return Error{12, 501, what + ": not in this gateway"} }

// Member is a member of the cluster.
type Member struct {
	ID                 string
	PeerURL, ClientURL string // the latter is empty if it does not answer
	Nonvoter           bool
}

// Cluster is what the gateway reports of the cluster.
type Cluster struct {
	Members []Member
	Leader  string // its ID; empty: none is known
	Index   uint64 // of the last entry of this node's log
	Term    uint64
	Bytes   int // of the data
}

// Node is the node behind the gateway.
type Node interface {
	// ID is the name of this node, ClusterID the first bytes of the cluster's.
	ID() string
	ClusterID() [8]byte
	// Propose has c replicated, in a cluster of Format or later, if the client of ctx has the right to that.
	Propose(ctx context.Context, c command.Command) (command.Result, error)
	// MayRead returns an error unless the client of ctx may read all keys with the prefix.
	MayRead(ctx context.Context, prefix string) error
	// ReadIndex returns when the store has all that was acknowledged before; stale: at once, if the node may be read.
	ReadIndex(ctx context.Context, stale bool) error
	// TimeLeft is how long a key with a TTL stays, where that is known.
	TimeLeft(key string, index uint64) (time.Duration, bool)
	// Serving returns a context that ends when this node no longer learns of changes.
	Serving() context.Context
	Cluster(ctx context.Context) Cluster
}

// Gateway answers requests. Its methods may be called concurrently.
type Gateway struct {
	node  Node
	store *kv.Store
}

// New returns the gateway of a node and its store.
func New(n Node, store *kv.Store) *Gateway { return &Gateway{n, store} }

// Endpoint answers a request. If it returns an error, it has answered nothing.
type Endpoint = func(w http.ResponseWriter, r *http.Request) error

// Routes calls one of three functions for each path: leading for what only the leader can do, any for other requests,
// and watch for streams.
func (g *Gateway) Routes(leading, any, watch func(path string, answer Endpoint)) {
	add := func(to func(string, Endpoint), answer func(*http.Request, http.ResponseWriter, []byte) error, paths ...string) {
		for _, path := range paths {
			to(api.GatewayPrefix+path, func(w http.ResponseWriter, r *http.Request) error {
				body, err := api.ReadBody(r)
				if err == nil {
					err = answer(r, w, body)
				}
				return g.refuse(w, err)
			})
		}
	}
	add(any, g.rangeKeys, "kv/range")
	add(leading, g.put, "kv/put")
	add(leading, g.deleteRange, "kv/deleterange")
	add(leading, g.txn, "kv/txn")
	add(leading, g.grant, "lease/grant")
	add(leading, g.keepAlive, "lease/keepalive")
	add(leading, g.revoke, "lease/revoke", "kv/lease/revoke")
	add(leading, g.timeToLive, "lease/timetolive", "kv/lease/timetolive")
	add(any, g.leases, "lease/leases", "kv/lease/leases")
	add(any, g.status, "maintenance/status")
	add(any, g.members, "cluster/member/list")
	add(any, func(*http.Request, http.ResponseWriter, []byte) error { return errNoAuth }, "auth/authenticate")
	watch(api.GatewayPrefix+"watch", func(w http.ResponseWriter, r *http.Request) error { return g.refuse(w, g.watch(w, r)) })
}

// Version answers which etcd this is like. Clients choose by it what they send, and to which paths.
func Version(w http.ResponseWriter, _ *http.Request) error {
	return reply(w, struct {
		Server  string `json:"etcdserver"`
		Cluster string `json:"etcdcluster"`
	}{version, version})
}

// Paths returns a handler that has the paths of older clients, /v3beta/ and /v3alpha/, lead to those of next.
func Paths(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, prefix := range []string{"/v3beta/", "/v3alpha/"} {
			if rest, ok := strings.CutPrefix(r.URL.Path, prefix); ok {
				renamed, url := *r, *r.URL
				url.Path, url.RawPath = api.GatewayPrefix+rest, ""
				renamed.URL = &url
				r = &renamed
			}
		}
		next.ServeHTTP(w, r)
	})
}

// refuse answers an error that is etcd's own, and returns any other.
func (g *Gateway) refuse(w http.ResponseWriter, err error) error {
	e, ok := errors.AsType[Error](err)
	if !ok {
		return err
	}
	api.WriteGatewayError(w, e.Status, e.Code, e.Message)
	return nil
}

func reply(w http.ResponseWriter, message any) error {
	w.Header().Set("Content-Type", "application/json")
	b := marshal(message)
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	_, _ = w.Write(b) // an error: the client has gone
	return nil
}

// header is that of an answer with this revision; 0: that of a store.
func (g *Gateway) header(revision uint64, view *kv.Store) header {
	index, term := view.Applied()
	if revision != 0 {
		index = revision
	}
	id := g.node.ClusterID()
	return header{number64(id[:]), memberID(g.node.ID()), index, term}
}

// read returns a view of the store for a request.
func (g *Gateway) read(ctx context.Context, prefix string, stale bool) (*kv.Store, error) {
	if err := g.node.MayRead(ctx, prefix); err != nil {
		return nil, err
	}
	if err := g.node.ReadIndex(ctx, stale); err != nil {
		return nil, err
	}
	return g.store.Clone(), nil
}

func (g *Gateway) rangeKeys(r *http.Request, w http.ResponseWriter, body []byte) error {
	var q rangeRequest
	if err := unmarshal(body, &q); err != nil {
		return err
	}
	s, err := q.check()
	if err != nil {
		return err
	}
	view, err := g.read(r.Context(), s.prefix(), q.Serial)
	if err != nil {
		return err
	}
	if err := g.checkRevision(q.Revision, s, view); err != nil {
		return err
	}
	out := newWriter(w)
	err = out.ranged(g.header(0, view), &q, s, view)
	if err == nil {
		out.flush()
	}
	return err
}

// checkRevision returns an error unless a view is what there was at a revision, as far as s is concerned: there are no
// former values.
func (g *Gateway) checkRevision(revision number, s span, view *kv.Store) error {
	applied, _ := view.Applied()
	switch {
	case revision <= 0 || uint64(revision) == applied:
		return nil
	case uint64(revision) > applied:
		return errFuture
	case !g.store.UnchangedSince(uint64(revision), s.prefix(), s.has):
		return errCompacted
	}
	return nil
}

// writer writes an answer, of which the first bytes may still be taken back by an error.
type writer struct {
	*bufio.Writer
	w http.ResponseWriter
}

func newWriter(w http.ResponseWriter) *writer {
	w.Header().Set("Content-Type", "application/json")
	return &writer{bufio.NewWriterSize(api.DeadlineWriter(w), 32<<10), w}
}

func (o *writer) flush() { _ = o.Flush() } // an error: the client has gone

func (o *writer) message(m any) { _, _ = o.Write(marshal(m)) }

// items returns a function that writes keys as a list with this name, one by one, and one that ends the list.
func (o *writer) items(name string) (write func(found), end func()) {
	first := true
	write = func(item found) {
		if first {
			_, _ = fmt.Fprintf(o, `,"%s":[`, name)
		} else {
			_ = o.WriteByte(',')
		}
		first = false
		o.message(newKeyValue(item.key, item.Full))
	}
	return write, func() {
		if !first {
			_ = o.WriteByte(']')
		}
	}
}

// ranged writes the answer to q. With an error it has written nothing.
func (o *writer) ranged(h header, q *rangeRequest, s span, view *kv.Store) error {
	write, end := o.items("kvs")
	begun := false
	begin := func() {
		if !begun {
			_, _ = fmt.Fprintf(o, `{"header":%s`, marshal(h))
		}
		begun = true
	}
	more, count, err := q.ranged(s, view, func(item found) { begin(); write(item) })
	if err != nil {
		return err
	}
	begin()
	if end(); more {
		_, _ = o.WriteString(`,"more":true`)
	}
	if count > 0 {
		_, _ = fmt.Fprintf(o, `,"count":"%d"`, count)
	}
	return o.WriteByte('}')
}

// deleted writes the answer to a deletion, with the keys of s in view, if that is not nil.
func (o *writer) deleted(h header, removed int, s span, view *kv.Store) {
	_, _ = fmt.Fprintf(o, `{"header":%s`, marshal(h))
	if removed > 0 {
		_, _ = fmt.Fprintf(o, `,"deleted":"%d"`, removed)
	}
	if view != nil {
		write, end := o.items("prev_kvs")
		s.scan(view, write)
		end()
	}
	_ = o.WriteByte('}')
}

// propose replicates a transaction.
func (g *Gateway) propose(ctx context.Context, t *command.Transaction) (command.Result, error) {
	c := command.Command{Kind: command.Txn, Txn: t}
	result, err := g.node.Propose(ctx, c)
	if err == nil && result.LeaseGone(&c) {
		err = errLeaseNotFound
	}
	return result, err
}

// single answers a request that is a transaction of one request.
func (g *Gateway) single(r *http.Request, w http.ResponseWriter, request requestOp) error {
	p, ops, err := plan(nil, []requestOp{request})
	if err != nil {
		return err
	}
	result, err := g.propose(r.Context(), &command.Transaction{Then: ops})
	if err != nil {
		return err
	}
	out := newWriter(w)
	p[0].write(out, g.header(result.Index, g.store), result.Txn.Operations)
	out.flush()
	return nil
}

func (g *Gateway) put(r *http.Request, w http.ResponseWriter, body []byte) error {
	var q putRequest
	if err := unmarshal(body, &q); err != nil {
		return err
	}
	return g.single(r, w, requestOp{Put: &q})
}

func (g *Gateway) deleteRange(r *http.Request, w http.ResponseWriter, body []byte) error {
	var q deleteRequest
	if err := unmarshal(body, &q); err != nil {
		return err
	}
	return g.single(r, w, requestOp{Delete: &q})
}

func (g *Gateway) txn(r *http.Request, w http.ResponseWriter, body []byte) error {
	var q txnRequest
	if err := unmarshal(body, &q); err != nil {
		return err
	}
	if max(len(q.Compare), len(q.Success), len(q.Failure)) > maxOps {
		return errTooManyOps
	}
	t := new(command.Transaction)
	for _, c := range q.Compare {
		condition, err := c.condition()
		if err != nil {
			return err
		}
		t.If = append(t.If, condition)
	}
	success, then, err := plan(g, q.Success)
	if err != nil {
		return err
	}
	failure, otherwise, err := plan(g, q.Failure)
	if err != nil {
		return err
	}
	t.Then, t.Else = then, otherwise
	result, err := g.propose(r.Context(), t)
	if err != nil {
		return err
	}
	out, done := newWriter(w), failure
	_, _ = fmt.Fprintf(out, `{"header":%s`, marshal(g.header(result.Index, g.store)))
	if result.Txn.Held {
		done = success
		_, _ = out.WriteString(`,"succeeded":true`)
	}
	operations := result.Txn.Operations
	for i, p := range done {
		_, _ = out.WriteString(map[bool]string{true: `,"responses":[`, false: ","}[i == 0])
		_, _ = fmt.Fprintf(out, `{"%s":`, p.name)
		p.write(out, header{Revision: result.Index}, operations)
		operations = operations[p.operations:]
		_ = out.WriteByte('}')
	}
	if len(done) > 0 {
		_ = out.WriteByte(']')
	}
	_ = out.WriteByte('}')
	out.flush()
	return nil
}
