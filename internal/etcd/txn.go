package etcd

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"raftkv/internal/command"
	"raftkv/internal/kv"
)

const (
	// maxOps bounds the conditions, and the requests of either branch, of a txn, as etcd's --max-txn-ops does.
	maxOps = 128
	// maxSorted bounds what a range may sort by anything but its keys, in bytes.
	maxSorted = 32 << 20
)

// span is a range of keys: from one on, before until; an empty until is behind all keys.
type span struct{ from, until string }

// span returns the range that etcd means by a key and a range_end: none is the key alone, "\0" is all from it on.
func (q *request) span() (span, error) {
	s := span{string(q.Key), string(q.RangeEnd)}
	switch {
	case s.from == "":
		return s, invalid("etcdserver: key is not provided")
	case len(s.from) > command.MaxKey || len(s.until) > command.MaxKey+1:
		return s, invalid("key: longer than %d bytes", command.MaxKey)
	case s.until == "":
		s.until = s.from + "\x00"
	case s.until == "\x00":
		s.until = ""
	}
	return s, nil
}

// key is span for a request that is about one key, which is none of the reserved.
func (q *request) key() (string, error) {
	s, err := (&request{Key: q.Key}).span()
	if err == nil && isReserved(s.from) {
		err = invalid("key: those that begin with %s are leases; choose another", leasePrefix)
	}
	return s.from, err
}

func (s span) single() bool { return s.until == s.from+"\x00" }

func (s span) has(key string) bool {
	return key >= s.from && (s.until == "" || key < s.until) && !isReserved(key)
}

// prefix is what all keys of s begin with.
func (s span) prefix() string { return command.RangePrefix(s.from, s.until) }

// parts returns s without the reserved keys.
func (s span) parts() (parts []span) {
	before, behind := s, span{max(s.from, leaseEnd), s.until}
	if before.until == "" || before.until > leasePrefix {
		before.until = leasePrefix
	}
	for _, part := range []span{before, behind} {
		if part.until == "" || part.from < part.until {
			parts = append(parts, part)
		}
	}
	return parts
}

// scan calls yield for each key of s in a view, in order.
func (s span) scan(view *kv.Store, yield func(key string, f kv.Full)) {
	for _, part := range s.parts() {
		view.AscendFull(part.from, func(key string, f kv.Full) bool {
			in := part.until == "" || key < part.until
			if in {
				yield(key, f)
			}
			return in
		})
	}
}

// Numbers of etcd's for what a range is sorted by, and how.
const (
	byKey   = 0
	descend = 2
)

// sorting checks by what a range is to be sorted, and returns the range.
func (q *request) sorting() (s span, err error) {
	if s, err = q.span(); err == nil {
		q.order, err = q.SortOrder.of("NONE", "ASCEND", "DESCEND")
	}
	if err == nil {
		q.sort, err = q.SortTarget.of("KEY", "VERSION", "CREATE", "MOD", "VALUE")
	}
	return s, err
}

// sorts reports whether all items must be there before the first can be answered.
func (q *request) sorts() bool { return q.sort != byKey || q.order == descend }

// pick reports whether a key is among those that q asks for.
func (q *request) pick(f kv.Full) bool {
	between := func(v uint64, least, most number) bool {
		return (least <= 0 || v >= uint64(least)) && (most <= 0 || v <= uint64(most))
	}
	return !q.CountOnly && between(f.Index, q.MinMod, q.MaxMod) && between(f.Created, q.MinCreate, q.MaxCreate)
}

// sorted is a key that waits for its place.
type sorted struct {
	key string
	kv.Full
}

// compares are the orders, by etcd's numbers.
var compares = []func(a, b sorted) int{
	func(a, b sorted) int { return strings.Compare(a.key, b.key) },
	func(a, b sorted) int { return cmp.Compare(a.Version, b.Version) },
	func(a, b sorted) int { return cmp.Compare(a.Created, b.Created) },
	func(a, b sorted) int { return cmp.Compare(a.Index, b.Index) },
	func(a, b sorted) int { return strings.Compare(a.Value, b.Value) },
}

// keys writes the keys of a range in a view, as q asks for them.
func (o *writer) keys(h header, q *request, s span, view *kv.Store) error {
	count, left, size, more := 0, q.Limit, 0, false
	var waiting []sorted
	_, _ = fmt.Fprintf(o, `{"header":%s`, marshal(h))
	o.list("kvs", func(write func(string, kv.Full)) {
		take := func(key string, f kv.Full) {
			if more = more || q.Limit > 0 && left == 0; more {
				return
			}
			if left--; q.KeysOnly {
				f.Value = ""
			}
			write(key, f)
		}
		s.scan(view, func(key string, f kv.Full) {
			switch count++; {
			case !q.pick(f):
			case !q.sorts():
				take(key, f)
			case size <= maxSorted:
				size += len(key) + len(f.Value) + kv.Overhead
				waiting = append(waiting, sorted{key, f})
			}
		})
		if size > maxSorted {
			return
		}
		slices.SortStableFunc(waiting, func(a, b sorted) int {
			if q.order == descend {
				a, b = b, a
			}
			return compares[q.sort](a, b)
		})
		for _, item := range waiting {
			take(item.key, item.Full)
		}
	})
	if size > maxSorted {
		return Error{8, 429, "range: more than 32 MiB to be sorted; ask for a smaller range, or for the order of keys"}
	}
	if more {
		_, _ = o.WriteString(`,"more":true`)
	}
	if count > 0 {
		_, _ = fmt.Fprintf(o, `,"count":"%d"`, count)
	}
	return o.WriteByte('}')
}

func (g *Gateway) ranged(ctx context.Context, q *request, out *writer) error {
	s, err := q.sorting()
	if err != nil {
		return err
	}
	if err := g.prepareRead(ctx, s.prefix(), q.Serializable); err != nil {
		return err
	}
	view := out.version(g.node)
	if err := g.checkRevision(q.Revision, s, view); err != nil {
		return err
	}
	return out.keys(g.header(0, view), q, s, view)
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

// planned is a request that is carried out as several operations of a transaction.
type planned struct {
	name string // of its response
	ops  []command.Operation
	// write writes its response, by the results of its operations.
	write func(out *writer, h header, results []command.OperationResult)
}

// viewOf is an operation that has the store as it is then, to read s from.
func viewOf(s span) command.Operation {
	return command.Operation{Op: command.OpView, Key: s.from, End: s.until}
}

func view(result command.OperationResult) *kv.Store { return result.View.(*kv.Store) }

// keep bounds for how long the views that operations have are kept for the answer: see writer.version.
func (g *Gateway) keep(out *writer, ops []command.Operation) {
	if slices.ContainsFunc(ops, func(o command.Operation) bool { return o.Op == command.OpView }) {
		out.version(g.node)
	}
}

// plan returns the requests of one branch, and their operations.
func (g *Gateway) plan(requests []request) (all []planned, ops []command.Operation, err error) {
	puts, deletes := make(map[string]bool), []span{}
	for i := range requests {
		var p planned
		switch q := requests[i]; {
		case q.Put != nil:
			if p, err = planPut(q.Put); puts[string(q.Put.Key)] {
				err = cmp.Or(err, error(errDuplicate))
			}
			puts[string(q.Put.Key)] = true
		case q.Delete != nil:
			var s span
			p, s, err = planDelete(q.Delete)
			deletes = append(deletes, s)
		case q.Range != nil:
			p, err = g.planRange(q.Range)
		case q.Txn != nil:
			err = unimplemented("request_txn: a txn within a txn")
		default:
			err = invalid("etcdserver: key not found")
		}
		if err != nil {
			return nil, nil, err
		}
		all, ops = append(all, p), append(ops, p.ops...)
	}
	for key := range puts {
		if slices.ContainsFunc(deletes, func(s span) bool { return s.has(key) }) {
			return nil, nil, errDuplicate
		}
	}
	return all, ops, nil
}

func planPut(q *request) (p planned, err error) {
	key, err := q.key()
	switch {
	case err != nil:
		return p, err
	case len(q.Value) > command.MaxValue:
		return p, invalid("etcdserver: request is too large: a value may have %d bytes", command.MaxValue)
	case q.IgnoreValue || q.IgnoreLease:
		return p, unimplemented("ignore_value and ignore_lease")
	case q.Lease < 0:
		return p, errLeaseNotFound
	}
	set := command.Operation{Op: command.OpSet, Key: key, Value: q.Value}
	if q.Lease != 0 {
		set.Lease.Key = leaseKey(q.Lease)
	}
	if q.PrevKV {
		p.ops = append(p.ops, viewOf(span{key, key + "\x00"}))
	}
	p.name, p.ops = "response_put", append(p.ops, set)
	p.write = func(out *writer, h header, results []command.OperationResult) {
		r := response{Header: h}
		if q.PrevKV {
			if was, ok := view(results[0]).GetFull(key); ok {
				r.Prev = newKeyValue(key, was)
			}
		}
		out.message(r)
	}
	return p, nil
}

func planDelete(q *request) (p planned, s span, err error) {
	if s, err = q.span(); err != nil {
		return p, s, err
	}
	if q.PrevKV {
		p.ops = append(p.ops, viewOf(s))
	}
	for _, part := range s.parts() {
		remove := command.Operation{Op: command.OpRemoveRange, Key: part.from, End: part.until}
		if part.single() { // which needs less of a batch, and has Found
			remove = command.Operation{Op: command.OpRemove, Key: part.from}
		}
		p.ops = append(p.ops, remove)
	}
	p.name = "response_delete_range"
	p.write = func(out *writer, h header, results []command.OperationResult) {
		removed := 0
		for i, o := range p.ops {
			if removed += results[i].Removed; o.Op == command.OpRemove && results[i].Found {
				removed++
			}
		}
		_, _ = fmt.Fprintf(out, `{"header":%s`, marshal(h))
		if removed > 0 {
			_, _ = fmt.Fprintf(out, `,"deleted":"%d"`, removed)
		}
		if q.PrevKV {
			out.list("prev_kvs", func(write func(string, kv.Full)) { s.scan(view(results[0]), write) })
		}
		_ = out.WriteByte('}')
	}
	return p, s, nil
}

// planRange plans a range within a txn, which must not fail any more when the rest is done.
func (g *Gateway) planRange(q *request) (p planned, err error) {
	s, err := q.sorting()
	if err == nil && q.sorts() {
		err = unimplemented("sort_order and sort_target within a txn")
	}
	if err == nil {
		err = g.checkRevision(q.Revision, s, g.store.Clone())
	}
	p.name, p.ops = "response_range", []command.Operation{viewOf(s)}
	p.write = func(out *writer, h header, results []command.OperationResult) {
		_ = out.keys(h, q, s, view(results[0])) // nothing is sorted: no error
	}
	return p, err
}

// single answers a request that is a transaction of its own.
func (g *Gateway) single(ctx context.Context, q request, out *writer) error {
	p, ops, err := g.plan([]request{q})
	if err != nil {
		return err
	}
	result, err := g.propose(ctx, &command.Transaction{Then: ops})
	if err == nil {
		g.keep(out, ops)
		p[0].write(out, g.header(result.Index, g.store), result.Txn.Operations)
	}
	return err
}

func (g *Gateway) txn(ctx context.Context, q *request, out *writer) error {
	if max(len(q.Compare), len(q.Success), len(q.Failure)) > maxOps {
		return errTooManyOps
	}
	t := new(command.Transaction)
	for i := range q.Compare {
		condition, err := q.Compare[i].condition()
		if err != nil {
			return err
		}
		t.If = append(t.If, condition)
	}
	success, then, err := g.plan(q.Success)
	if err != nil {
		return err
	}
	done, otherwise, err := g.plan(q.Failure)
	if err != nil {
		return err
	}
	t.Then, t.Else = then, otherwise
	result, err := g.propose(ctx, t)
	if err != nil {
		return err
	}
	g.keep(out, t.Branch(result))
	_, _ = fmt.Fprintf(out, `{"header":%s`, marshal(g.header(result.Index, g.store)))
	if result.Txn.Held {
		done = success
		_, _ = out.WriteString(`,"succeeded":true`)
	}
	operations, before := result.Txn.Operations, `,"responses":[`
	for _, p := range done {
		_, _ = fmt.Fprintf(out, `%s{"%s":`, before, p.name)
		p.write(out, header{Revision: result.Index}, operations)
		_ = out.WriteByte('}')
		operations, before = operations[len(p.ops):], ","
	}
	if before == "," {
		_ = out.WriteByte(']')
	}
	return out.WriteByte('}')
}

// Relations and properties, by etcd's numbers.
var (
	relations  = []command.Relation{command.Equal, command.Greater, command.Less, command.NotEqual}
	properties = []command.Property{command.OfVersion, command.OfCreated, command.OfIndex, command.OfValue,
		command.OfLease}
)

// condition returns a comparison. What is not given is zero, as it is for etcd.
func (q *request) condition() (c command.Compare, err error) {
	key, err := q.key()
	if err == nil && len(q.RangeEnd) > 0 {
		err = unimplemented("range_end of a compare")
	}
	if err != nil {
		return c, err
	}
	is, err := q.Result.of("EQUAL", "GREATER", "LESS", "NOT_EQUAL")
	if err != nil {
		return c, err
	}
	of, err := q.Target.of("VERSION", "CREATE", "MOD", "VALUE", "LEASE")
	if err != nil {
		return c, err
	}
	c = command.Compare{Key: key, What: command.Related, Is: relations[is], Of: properties[of], Value: q.Value}
	n := []number{q.Version, q.Create, q.Mod, 0, q.Lease}[of]
	if n < 0 {
		return c, invalid("compare: %d is negative, which no revision, version or lease is", n)
	}
	if c.Index = uint64(n); c.Of == command.OfLease {
		if c.Value = nil; n != 0 {
			c.Value = []byte(leaseKey(n))
		}
	}
	return c, nil
}
