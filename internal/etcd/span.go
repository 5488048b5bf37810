package etcd

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"

	"raftkv/internal/command"
	"raftkv/internal/kv"
)

// span is a range of keys: from one on, before until; an empty until is behind all keys.
type span struct{ from, until string }

// newSpan returns the range that etcd means by a key and a range_end: none is the key alone, "\0" is all from it on.
func newSpan(key, end []byte) (span, error) {
	switch {
	case len(key) == 0:
		return span{}, invalid("etcdserver: key is not provided")
	case len(key) > command.MaxKey:
		return span{}, invalid("key: longer than %d bytes", command.MaxKey)
	case len(end) > command.MaxKey+1:
		return span{}, invalid("range_end: longer than %d bytes", command.MaxKey+1)
	case len(end) == 0:
		return span{string(key), string(key) + "\x00"}, nil
	case len(end) == 1 && end[0] == 0:
		return span{from: string(key)}, nil
	}
	return span{string(key), string(end)}, nil
}

func (s span) empty() bool { return s.until != "" && s.from >= s.until }

func (s span) single() bool { return s.until == s.from+"\x00" }

func (s span) has(key string) bool {
	return key >= s.from && (s.until == "" || key < s.until) && !isReserved(key)
}

// prefix is what all keys of s begin with.
func (s span) prefix() string { return command.RangePrefix(s.from, s.until) }

// parts returns s without the reserved keys.
func (s span) parts() (parts []span) {
	before, behind := s, s
	if before.until == "" || before.until > leasePrefix {
		before.until = leasePrefix
	}
	behind.from = max(behind.from, leaseEnd)
	for _, part := range []span{before, behind} {
		if !part.empty() {
			parts = append(parts, part)
		}
	}
	return parts
}

// Targets and orders of sorting, by etcd's numbers.
const (
	byKey     = 0
	ascending = 1
	descends  = 2
)

// check parses the rest of a request, and returns its range.
func (q *rangeRequest) check() (span, error) {
	s, err := newSpan(q.Key, q.RangeEnd)
	if err != nil {
		return s, err
	}
	if q.order, err = parseEnum(q.SortOrder, "NONE", "ASCEND", "DESCEND"); err != nil {
		return s, err
	}
	q.sort, err = parseEnum(q.SortTarget, "KEY", "VERSION", "CREATE", "MOD", "VALUE")
	return s, err
}

// sorts reports whether all items must be there before the first can be answered.
func (q *rangeRequest) sorts() bool { return q.sort != byKey || q.order == descends }

// pick reports whether a key is among those that q asks for.
func (q *rangeRequest) pick(f kv.Full) bool {
	between := func(v uint64, least, most number) bool {
		return (least <= 0 || v >= uint64(least)) && (most <= 0 || v <= uint64(most))
	}
	return between(f.Index, q.MinMod, q.MaxMod) && between(f.Created, q.MinCreate, q.MaxCreate)
}

// found is a key of a range.
type found struct {
	key string
	kv.Full
}

// scan calls yield for each key of s in a view, in order.
func (s span) scan(view *kv.Store, yield func(found)) {
	for _, part := range s.parts() {
		view.AscendFull(part.from, func(key string, f kv.Full) bool {
			if part.until != "" && key >= part.until {
				return false
			}
			yield(found{key, f})
			return true
		})
	}
}

// ranged writes the items that q selects in a view, in its order, by write, and returns whether its limit has left any
// out, and how many keys there are in the range. What must be sorted may take maxSorted bytes.
func (q *rangeRequest) ranged(s span, view *kv.Store, write func(found)) (more bool, count int64, err error) {
	var items []found
	size, left := 0, int64(q.Limit)
	take := func(item found) {
		switch {
		case q.CountOnly:
		case q.Limit > 0 && left == 0:
			more = true
		default:
			if q.KeysOnly {
				item.Value = ""
			}
			write(item)
			left--
		}
	}
	s.scan(view, func(item found) {
		count++
		switch {
		case q.CountOnly || !q.pick(item.Full):
		case !q.sorts():
			take(item)
		case size <= maxSorted:
			size += len(item.key) + len(item.Value) + kv.Overhead
			items = append(items, item)
		}
	})
	if size > maxSorted {
		return false, 0, Error{8, 429, "range: more than 32 MiB to be sorted; ask for a smaller range, or for the order of keys"}
	}
	less := map[int]func(a, b found) int{
		byKey: func(a, b found) int { return strings.Compare(a.key, b.key) },
		1:     func(a, b found) int { return cmp.Compare(a.Version, b.Version) },
		2:     func(a, b found) int { return cmp.Compare(a.Created, b.Created) },
		3:     func(a, b found) int { return cmp.Compare(a.Index, b.Index) },
		4:     func(a, b found) int { return strings.Compare(a.Value, b.Value) },
	}[q.sort]
	slices.SortStableFunc(items, func(a, b found) int {
		if q.order == descends {
			return less(b, a)
		}
		return less(a, b)
	})
	for _, item := range items {
		take(item)
	}
	return more, count, nil
}

// marshal returns a message; it has nothing that could fail.
func marshal(message any) []byte {
	b, _ := json.Marshal(message)
	return b
}
