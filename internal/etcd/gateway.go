// Package etcd is the JSON gateway of etcd's v3 API, as far as docs/etcd.md has it, over the commands and the store of
// this node: there is no second store, no gRPC and no history of values. It parses messages into commands and reads,
// and writes what etcd would; it knows neither raft nor the node.
//
// A revision is an index of the raft log. An etcd lease is a key with a TTL, of which the name is reserved; what is
// attached to it goes with it (kv.Lease), so that the end of a lease is that of one key.
package etcd

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
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
	Code, Status int // of gRPC, and of HTTP
	Message      string
}

func (e Error) Error() string { return e.Message }

func invalid(format string, args ...any) error { return Error{3, 400, fmt.Sprintf(format, args...)} }

func unimplemented(what string) error { return Error{12, 501, what + ": not in this gateway"} }

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

// Member is a member of the cluster.
type Member struct {
	ID         uint64   `json:"ID,string"` // that stands for Name: see MemberID
	Name       string   `json:"name"`
	PeerURLs   []string `json:"peerURLs,omitempty"`
	ClientURLs []string `json:"clientURLs,omitempty"`
	Learner    bool     `json:"isLearner,omitempty"`
}

// MemberID returns the number that stands for the name of a node.
func MemberID(name string) uint64 {
	hash := sha256.Sum256([]byte(name))
	return binary.BigEndian.Uint64(hash[:])
}

// Cluster is what the gateway reports of the cluster.
type Cluster struct {
	Members     []Member
	Leader      string // its name; empty: none is known
	Index, Term uint64 // of this node's log
	Bytes       uint64 // of the data
}

// Node is the node behind the gateway.
type Node interface {
	// ID is the name of this node, ClusterID a number that stands for the cluster.
	ID() string
	ClusterID() uint64
	// Propose has c replicated, in a cluster of Format or later, if the client of ctx has the right to that.
	Propose(ctx context.Context, c command.Command) (command.Result, error)
	// MayRead returns an error unless the client of ctx may read all keys with the prefix.
	MayRead(ctx context.Context, prefix string) error
	// Version returns the store as it is now, for an answer that is written to the writer: see api.Version.
	Version(w http.ResponseWriter) (view *kv.Store, to http.ResponseWriter, release func())
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

// Routes calls one of three functions for each path: leading for what only the leader can do, local for other requests,
// and watch for streams.
func (g *Gateway) Routes(leading, local, watch func(path string, answer Endpoint)) {
	type answer = func(ctx context.Context, q *request, out *writer) error
	add := func(to func(string, Endpoint), answer answer, paths ...string) {
		for _, path := range paths {
			to(api.GatewayPrefix+path, func(w http.ResponseWriter, r *http.Request) error {
				body, err := api.ReadBody(r)
				if err != nil {
					return err
				}
				q, err := parse(body)
				out := newWriter(w)
				defer func() { out.release() }()
				if err == nil {
					err = answer(r.Context(), q, out)
				}
				return out.end(err)
			})
		}
	}
	add(local, g.ranged, "kv/range")
	add(leading, func(ctx context.Context, q *request, out *writer) error { return g.single(ctx, request{Put: q}, out) },
		"kv/put")
	add(leading, func(ctx context.Context, q *request, out *writer) error {
		return g.single(ctx, request{Delete: q}, out)
	},
		"kv/deleterange")
	add(leading, g.txn, "kv/txn")
	add(leading, g.grant, "lease/grant")
	add(leading, g.keepAlive, "lease/keepalive")
	add(leading, g.revoke, "lease/revoke", "kv/lease/revoke")
	add(leading, g.timeToLive, "lease/timetolive", "kv/lease/timetolive")
	add(local, g.leases, "lease/leases", "kv/lease/leases")
	add(local, g.status, "maintenance/status")
	add(local, g.members, "cluster/member/list")
	add(local, func(context.Context, *request, *writer) error { return errNoAuth }, "auth/authenticate")
	watch(api.GatewayPrefix+"watch", g.watch)
}

// Version answers which etcd this is like. Clients choose by it what they send, and to which paths.
func Version(w http.ResponseWriter, _ *http.Request) error {
	out := newWriter(w)
	_, _ = fmt.Fprintf(out, `{"etcdserver":"%s","etcdcluster":"%[1]s"}`, version)
	return out.end(nil)
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

// writer writes an answer. Its first bytes are kept back, so that an error can take their place.
type writer struct {
	*bufio.Writer
	w       http.ResponseWriter
	release func() // of Node.Version
}

func newWriter(w http.ResponseWriter) *writer {
	return &writer{bufio.NewWriterSize(api.DeadlineWriter(w), 32<<10), w, func() {}}
}

// version returns the store as it is now, of which the answer may be written for as long as the client takes, within
// the bound of api.Version. Nothing was written before.
func (o *writer) version(n Node) *kv.Store {
	view, to, release := n.Version(o.w)
	o.Reset(api.DeadlineWriter(to))
	o.release = release
	return view
}

// end ends the answer; an error that is etcd's own takes its place, and any other is returned. Of an answer that can't
// be written to its end the connection breaks off, so that it is not taken for whole.
func (o *writer) end(err error) error {
	if e, ok := errors.AsType[Error](err); ok {
		o.Reset(io.Discard)
		api.WriteGatewayError(o.w, e.Status, e.Code, e.Message)
		return nil
	}
	_, broken := o.Write(nil) // a bufio.Writer keeps its first error
	if err == nil && broken == nil {
		o.w.Header().Set("Content-Type", "application/json")
		broken = o.Flush()
	}
	if broken != nil {
		panic(http.ErrAbortHandler)
	}
	return err
}

func (o *writer) message(m any) { _, _ = o.Write(marshal(m)) }

// copies is how many times a value is in memory while it is written: as bytes, in base64, and in the buffer of that.
const copies = 5

// list writes keys under a name, one by one: together they may be large. It leaves an empty list out. When there is no
// memory for a value in time, the connection breaks off.
func (o *writer) list(name string, each func(write func(key string, f kv.Full))) {
	before := fmt.Sprintf(`,"%s":[`, name)
	each(func(key string, f kv.Full) {
		release, err := api.HoldAnswer(o.w, copies*len(f.Value))
		if err != nil { // a transaction was carried out: this must not become an error of which nothing was done
			panic(http.ErrAbortHandler)
		}
		defer release()
		_, _ = o.WriteString(before)
		o.message(newKeyValue(key, f))
		before = ","
	})
	if before == "," {
		_ = o.WriteByte(']')
	}
}

// header is that of an answer with this revision; 0: that of a store.
func (g *Gateway) header(revision uint64, view *kv.Store) header {
	index, term := view.Applied()
	if revision != 0 {
		index = revision
	}
	return header{g.node.ClusterID(), MemberID(g.node.ID()), index, term}
}

// prepareRead returns when the client may read the keys with a prefix from the store.
func (g *Gateway) prepareRead(ctx context.Context, prefix string, stale bool) error {
	if err := g.node.MayRead(ctx, prefix); err != nil {
		return err
	}
	return g.node.ReadIndex(ctx, stale)
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

func leaseKey(id number) string { return fmt.Sprintf("%s%016x", leasePrefix, int64(id)) }

// leaseOf returns the ID of a lease by its key; 0: it is none of etcd's.
func leaseOf(key string) int64 {
	digits, ok := strings.CutPrefix(key, leasePrefix)
	id, err := strconv.ParseInt(digits, 16, 64)
	if !ok || len(digits) != 16 || err != nil {
		return 0
	}
	return id
}

// changeLease carries out operations on a lease, if it is there, or not there. Otherwise it returns the other error.
func (g *Gateway) changeLease(ctx context.Context, id number, what command.What, otherwise error,
	ops ...command.Operation) (r response, result command.Result, err error) {
	result, err = g.propose(ctx, &command.Transaction{If: []command.Compare{{Key: leaseKey(id), What: what}}, Then: ops})
	if err == nil && !result.Txn.Held {
		err = otherwise
	}
	return response{Header: g.header(result.Index, g.store)}, result, err
}

// grant makes a lease: a reserved key with a TTL.
func (g *Gateway) grant(ctx context.Context, q *request, out *writer) error {
	switch {
	case q.TTL > number(command.MaxTTL/time.Second):
		return errTooLargeTTL
	case q.ID < 0:
		return invalid("ID: want 1 to %d, or 0 for any", int64(math.MaxInt64))
	case q.ID == 0:
		var random [8]byte
		_, _ = rand.Read(random[:]) // never fails
		q.ID = number(max(binary.BigEndian.Uint64(random[:])>>1, 1))
	}
	q.TTL = max(q.TTL, 2) // etcd's least, as it is by default
	set := command.Operation{Op: command.OpSet, Key: leaseKey(q.ID)}
	set.Lease.TTL = time.Duration(q.TTL) * time.Second
	r, _, err := g.changeLease(ctx, q.ID, command.Absent, errLeaseExists, set)
	r.ID, r.TTL = int64(q.ID), int64(q.TTL)
	out.message(r)
	return err
}

// keepAlive has the time of a lease begin anew. Etcd has a stream of these; here, a request is for one.
func (g *Gateway) keepAlive(ctx context.Context, q *request, out *writer) error {
	key := leaseKey(q.ID)
	r, result, err := g.changeLease(ctx, q.ID, command.Exists, nil, command.Operation{Op: command.OpTouch, Key: key},
		command.Operation{Op: command.OpView, Key: key, End: key + "\x00"})
	if r.ID = int64(q.ID); err == nil && result.Txn.Held {
		f, _ := view(result.Txn.Operations[1]).GetFull(key)
		r.TTL = int64(f.Lease.TTL / time.Second)
	}
	_, _ = fmt.Fprintf(out, `{"result":%s}`+"\n", marshal(r))
	return err
}

func (g *Gateway) revoke(ctx context.Context, q *request, out *writer) error {
	remove := command.Operation{Op: command.OpRemove, Key: leaseKey(q.ID)}
	r, _, err := g.changeLease(ctx, q.ID, command.Exists, errLeaseNotFound, remove)
	out.message(r)
	return err
}

// timeToLive is for the leader, which alone knows how much of a lease's time is over.
func (g *Gateway) timeToLive(ctx context.Context, q *request, out *writer) error {
	key := leaseKey(q.ID)
	if err := g.prepareRead(ctx, key, false); err != nil {
		return err
	}
	view := g.store.Clone()
	r := response{Header: g.header(0, view), ID: int64(q.ID), TTL: -1}
	f, found := view.GetFull(key)
	if found {
		left, known := g.node.TimeLeft(key, f.Index)
		if !known { // it was granted or renewed just now
			left = f.Lease.TTL
		}
		r.TTL, r.Granted = int64(left/time.Second), int64(f.Lease.TTL/time.Second)
	}
	for _, attached := range view.OwnedBy(key) {
		if !q.Keys {
			break
		}
		if err := g.node.MayRead(ctx, attached); err != nil {
			return err
		}
		r.Keys = append(r.Keys, []byte(attached))
	}
	out.message(r)
	return nil
}

func (g *Gateway) leases(ctx context.Context, _ *request, out *writer) error {
	if err := g.prepareRead(ctx, leasePrefix, false); err != nil {
		return err
	}
	view := g.store.Clone()
	r := response{Header: g.header(0, view)}
	view.AscendFull(leasePrefix, func(key string, _ kv.Full) bool {
		if id := leaseOf(key); id != 0 {
			r.Leases = append(r.Leases, leaseID{id})
		}
		return isReserved(key)
	})
	out.message(r)
	return nil
}

func (g *Gateway) status(ctx context.Context, _ *request, out *writer) error {
	c, h := g.node.Cluster(ctx), g.header(0, g.store)
	r := response{Header: h, Version: version, Size: c.Bytes, InUse: c.Bytes, Index: c.Index, Term: c.Term,
		Applied: h.Revision}
	if c.Leader != "" {
		r.Leader = MemberID(c.Leader)
	}
	out.message(r)
	return nil
}

func (g *Gateway) members(ctx context.Context, _ *request, out *writer) error {
	h := g.header(0, g.store)
	h.Revision = 0 // as in etcd
	out.message(response{Header: h, Members: g.node.Cluster(ctx).Members})
	return nil
}
