package etcd

import (
	"raftkv/internal/command"
	"raftkv/internal/kv"
)

// planned is a request that is carried out as several operations of a transaction.
type planned struct {
	name       string // of its response
	operations int
	// write writes its response, by the results of the operations from its own on.
	write func(out *writer, h header, results []command.OperationResult)
}

// plan returns the requests of one branch, and their operations. A request within a txn has a gateway: a range may then
// not ask for what can fail when it is carried out.
func plan(g *Gateway, requests []requestOp) (all []planned, ops []command.Operation, err error) {
	var puts []string
	var deletes []span
	for i := range requests {
		var p planned
		var own []command.Operation
		switch q := requests[i]; {
		case q.Put != nil:
			p, own, err = planPut(q.Put)
			puts = append(puts, string(q.Put.Key))
		case q.Delete != nil:
			var s span
			p, own, s, err = planDelete(q.Delete)
			deletes = append(deletes, s)
		case q.Range != nil:
			p, own, err = planRange(g, q.Range)
		case q.Txn != nil:
			err = unimplemented("request_txn: a txn within a txn")
		default:
			err = invalid("etcdserver: key not found")
		}
		if err != nil {
			return nil, nil, err
		}
		p.operations = len(own)
		all, ops = append(all, p), append(ops, own...)
	}
	seen := make(map[string]bool, len(puts))
	for _, key := range puts {
		for _, s := range deletes {
			seen[key] = seen[key] || s.has(key)
		}
		if seen[key] {
			return nil, nil, errDuplicate
		}
		seen[key] = true
	}
	return all, ops, nil
}

// viewOf is an operation that has the store as it is then, to read s from.
func viewOf(s span) command.Operation {
	return command.Operation{Op: command.OpView, Key: s.from, End: s.until}
}

func view(result command.OperationResult) *kv.Store { return result.View.(*kv.Store) }

func planPut(q *putRequest) (p planned, ops []command.Operation, err error) {
	s, err := newSpan(q.Key, nil)
	switch {
	case err != nil:
		return p, nil, err
	case isReserved(s.from):
		return p, nil, invalid("key: those that begin with %s are leases; choose another", leasePrefix)
	case len(q.Value) > command.MaxValue:
		return p, nil, invalid("etcdserver: request is too large: a value may have %d bytes", command.MaxValue)
	case q.IgnoreValue || q.IgnoreLease:
		return p, nil, unimplemented("ignore_value and ignore_lease")
	case q.Lease < 0:
		return p, nil, errLeaseNotFound
	}
	if q.PrevKV {
		ops = append(ops, viewOf(s))
	}
	set := command.Operation{Op: command.OpSet, Key: s.from, Value: q.Value}
	if q.Lease != 0 {
		set.Lease.Key = leaseKey(int64(q.Lease))
	}
	write := func(out *writer, h header, results []command.OperationResult) {
		response := putResponse{Header: h}
		if q.PrevKV {
			if was, ok := view(results[0]).GetFull(s.from); ok {
				response.Prev = newKeyValue(s.from, was)
			}
		}
		out.message(response)
	}
	return planned{name: "response_put", write: write}, append(ops, set), nil
}

func planDelete(q *deleteRequest) (p planned, ops []command.Operation, s span, err error) {
	if s, err = newSpan(q.Key, q.RangeEnd); err != nil {
		return p, nil, s, err
	}
	before := 0 // operations
	if q.PrevKV {
		ops = append(ops, viewOf(s))
		before = 1
	}
	parts := s.parts()
	for _, part := range parts {
		if part.single() {
			ops = append(ops, command.Operation{Op: command.OpRemove, Key: part.from})
		} else {
			ops = append(ops, command.Operation{Op: command.OpRemoveRange, Key: part.from, End: part.until})
		}
	}
	write := func(out *writer, h header, results []command.OperationResult) {
		removed := 0
		for i, part := range parts {
			switch result := results[before+i]; {
			case !part.single():
				removed += result.Removed
			case result.Found:
				removed++
			}
		}
		var prev *kv.Store
		if q.PrevKV {
			prev = view(results[0])
		}
		out.deleted(h, removed, s, prev)
	}
	return planned{name: "response_delete_range", write: write}, ops, s, nil
}

func planRange(g *Gateway, q *rangeRequest) (p planned, ops []command.Operation, err error) {
	s, err := q.check()
	switch {
	case err != nil:
		return p, nil, err
	case q.sorts():
		return p, nil, unimplemented("sort_order and sort_target within a txn")
	}
	if err := g.checkRevision(q.Revision, s, g.store.Clone()); err != nil {
		return p, nil, err
	}
	write := func(out *writer, h header, results []command.OperationResult) {
		_ = out.ranged(h, q, s, view(results[0])) // nothing is sorted: no error
	}
	return planned{name: "response_range", write: write}, []command.Operation{viewOf(s)}, nil
}

// condition returns a comparison. What is not given is zero, as it is for etcd.
func (c *compare) condition() (condition command.Compare, err error) {
	s, err := newSpan(c.Key, nil)
	if err != nil {
		return condition, err
	}
	if len(c.RangeEnd) > 0 {
		return condition, unimplemented("range_end of a compare")
	}
	is, err := parseEnum(c.Result, "EQUAL", "GREATER", "LESS", "NOT_EQUAL")
	if err != nil {
		return condition, err
	}
	of, err := parseEnum(c.Target, "VERSION", "CREATE", "MOD", "VALUE", "LEASE")
	if err != nil {
		return condition, err
	}
	condition = command.Compare{Key: s.from, What: command.Related,
		Is: []command.Relation{command.Equal, command.Greater, command.Less, command.NotEqual}[is],
		Of: []command.Property{command.OfVersion, command.OfCreated, command.OfIndex, command.OfValue, command.OfLease}[of],
	}
	v := []number{c.Version, c.Create, c.Mod, 0, c.Lease}[of]
	switch {
	case isReserved(s.from):
		err = invalid("key: those that begin with %s are leases; choose another", leasePrefix)
	case v < 0:
		err = invalid("compare: %d is negative, which no revision, version or lease is", v)
	case condition.Of == command.OfValue:
		condition.Value = c.Value
	case condition.Of == command.OfLease && v != 0:
		condition.Value = []byte(leaseKey(int64(v)))
	case condition.Of != command.OfLease:
		condition.Index = uint64(v)
	}
	return condition, err
}
