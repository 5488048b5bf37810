package etcd

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"raftkv/internal/command"
	"raftkv/internal/kv"
)

func number64(b []byte) uint64 { return binary.BigEndian.Uint64(b) }

// memberID returns the number that stands for the name of a node.
func memberID(name string) uint64 {
	hash := sha256.Sum256([]byte(name))
	return number64(hash[:])
}

func leaseKey(id int64) string { return fmt.Sprintf("%s%016x", leasePrefix, id) }

// leaseOf returns the ID of a lease by its key; 0: it is none of etcd's.
func leaseOf(key string) int64 {
	digits, ok := strings.CutPrefix(key, leasePrefix)
	if !ok || len(digits) != 16 {
		return 0
	}
	id, err := strconv.ParseInt(digits, 16, 64)
	if err != nil {
		return 0
	}
	return id
}

func seconds(d time.Duration) int64 { return int64(d / time.Second) }

// parseLease parses a request for a lease that is there, or may be.
func parseLease(body []byte) (q leaseRequest, key string, err error) {
	if err = unmarshal(body, &q); err != nil {
		return q, "", err
	}
	return q, leaseKey(int64(q.ID)), nil
}

// grant makes a lease: a reserved key with a TTL.
func (g *Gateway) grant(r *http.Request, w http.ResponseWriter, body []byte) error {
	q, key, err := parseLease(body)
	switch {
	case err != nil:
		return err
	case q.TTL > number(command.MaxTTL/time.Second):
		return errTooLargeTTL
	case q.ID < 0:
		return invalid("ID: want 1 to %d, or 0 for any", math.MaxInt64)
	case q.ID == 0:
		var random [8]byte
		_, _ = rand.Read(random[:]) // never fails
		q.ID = number(max(number64(random[:])>>1, 1))
		key = leaseKey(int64(q.ID))
	}
	q.TTL = max(q.TTL, 2) // etcd's least, as it is by default
	result, err := g.propose(r.Context(), &command.Transaction{
		If: []command.Compare{{Key: key, What: command.Absent}},
		Then: []command.Operation{
			{Op: command.OpSet, Key: key, Lease: command.Lease{TTL: time.Duration(q.TTL) * time.Second}},
		},
	})
	switch {
	case err != nil:
		return err
	case !result.Txn.Held:
		return errLeaseExists
	}
	return reply(w, leaseResponse{Header: g.header(result.Index, g.store), ID: int64(q.ID), TTL: int64(q.TTL)})
}

// keepAlive has the time of a lease begin anew. Etcd has a stream of these; here, a request is for one.
func (g *Gateway) keepAlive(r *http.Request, w http.ResponseWriter, body []byte) error {
	q, key, err := parseLease(body)
	if err != nil {
		return err
	}
	result, err := g.propose(r.Context(), &command.Transaction{
		If:   []command.Compare{{Key: key, What: command.Exists}},
		Then: []command.Operation{{Op: command.OpTouch, Key: key}, {Op: command.OpView, Key: key, End: key + "\x00"}},
	})
	if err != nil {
		return err
	}
	response := leaseResponse{Header: g.header(result.Index, g.store), ID: int64(q.ID)}
	if result.Txn.Held {
		lease, _ := view(result.Txn.Operations[1]).GetFull(key)
		response.TTL = seconds(lease.Lease.TTL)
	}
	return replyStream(w, response)
}

// replyStream answers a stream of one message.
func replyStream(w http.ResponseWriter, message any) error {
	w.Header().Set("Content-Type", "application/json")
	_, _ = fmt.Fprintf(w, `{"result":%s}`+"\n", marshal(message))
	return nil
}

func (g *Gateway) revoke(r *http.Request, w http.ResponseWriter, body []byte) error {
	_, key, err := parseLease(body)
	if err != nil {
		return err
	}
	result, err := g.propose(r.Context(), &command.Transaction{
		If:   []command.Compare{{Key: key, What: command.Exists}},
		Then: []command.Operation{{Op: command.OpRemove, Key: key}},
	})
	switch {
	case err != nil:
		return err
	case !result.Txn.Held:
		return errLeaseNotFound
	}
	return reply(w, putResponse{Header: g.header(result.Index, g.store)})
}

// timeToLive is for the leader, which alone knows how much of a lease's time is over.
func (g *Gateway) timeToLive(r *http.Request, w http.ResponseWriter, body []byte) error {
	q, key, err := parseLease(body)
	if err != nil {
		return err
	}
	view, err := g.read(r.Context(), key, false)
	if err != nil {
		return err
	}
	response := leaseResponse{Header: g.header(0, view), ID: int64(q.ID), TTL: -1}
	if lease, ok := view.GetFull(key); ok {
		left, known := g.node.TimeLeft(key, lease.Index)
		if !known { // it was granted or renewed just now
			left = lease.Lease.TTL
		}
		response.TTL, response.Granted = seconds(left), seconds(lease.Lease.TTL)
		if q.Keys {
			if response.Keys, err = g.attached(r.Context(), view, key); err != nil {
				return err
			}
		}
	}
	return reply(w, response)
}

// attached returns the keys of a lease, if the client may read all of them.
func (g *Gateway) attached(ctx context.Context, view *kv.Store, lease string) (keys [][]byte, err error) {
	for _, key := range view.OwnedBy(lease) {
		if err := g.node.MayRead(ctx, key); err != nil {
			return nil, err
		}
		keys = append(keys, []byte(key))
	}
	return keys, nil
}

func (g *Gateway) leases(r *http.Request, w http.ResponseWriter, _ []byte) error {
	view, err := g.read(r.Context(), leasePrefix, false)
	if err != nil {
		return err
	}
	response := leasesResponse{Header: g.header(0, view)}
	view.AscendFull(leasePrefix, func(key string, _ kv.Full) bool {
		if id := leaseOf(key); id != 0 {
			response.Leases = append(response.Leases, leaseID{id})
		}
		return isReserved(key)
	})
	return reply(w, response)
}

func (g *Gateway) status(r *http.Request, w http.ResponseWriter, _ []byte) error {
	c := g.node.Cluster(r.Context())
	h := g.header(0, g.store)
	response := statusResponse{Header: h, Version: version, Size: uint64(c.Bytes), Index: c.Index, Term: c.Term,
		Applied: h.Revision, InUse: uint64(c.Bytes)}
	if c.Leader != "" {
		response.Leader = memberID(c.Leader)
	}
	return reply(w, response)
}

func (g *Gateway) members(r *http.Request, w http.ResponseWriter, _ []byte) error {
	h := g.header(0, g.store)
	h.Revision = 0 // as in etcd
	response := membersResponse{Header: h}
	for _, m := range g.node.Cluster(r.Context()).Members {
		one := member{ID: memberID(m.ID), Name: m.ID, Peers: []string{m.PeerURL}, Learner: m.Nonvoter}
		if m.ClientURL != "" {
			one.Clients = []string{m.ClientURL}
		}
		response.Members = append(response.Members, one)
	}
	return reply(w, response)
}
