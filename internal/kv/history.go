package kv

import (
	"sort"
	"strings"
	"sync"
	"unsafe"
)

// Change is what happened to one key: it was set to Value, or Removed.
type Change struct {
	Key, Value string
	Removed    bool
	*Detail    // nil unless the store keeps them: see Store.KeepDetails
}

// size is the memory of a Change, in bytes. It counts more than the key and the
// value, as an entry can have very many small ones.
func (c *Change) size() int {
	size := int(unsafe.Sizeof(*c)) + len(c.Key) + len(c.Value)
	if c.Detail != nil {
		size += int(unsafe.Sizeof(*c.Detail)) + len(c.Was.Value)
	}
	return size
}

// Event is what one raft entry changed, in order; for a Watcher of a prefix only
// what has the prefix. It has one Change at least. It is immutable, and shared by
// all holders: watchers get the same Event if all its Changes have the prefix.
type Event struct {
	Index, Term uint64
	Changes     []Change

	size    int // of the Changes, in bytes
	once    sync.Once
	encoded []byte
}

// Encoded returns the result of encode for this Event, which the first call computes
// and keeps, so that an event is encoded once for all watchers. Encode must return the
// same for the same Event and must not keep it. The bytes are shared, not to be written
// to, and held as long as the Event is.
func (e *Event) Encoded(encode func(*Event) []byte) []byte {
	e.once.Do(func() { e.encoded = encode(e) })
	return e.encoded
}

// Of returns an event of the changes of one key alone, nil if there is none.
func (e *Event) Of(key string) *Event {
	of := &Event{Index: e.Index, Term: e.Term}
	for _, c := range e.Changes {
		if c.Key == key {
			of.Changes = append(of.Changes, c)
		}
	}
	if of.Changes == nil {
		return nil
	}
	return of
}

// matching returns e if all its changes have the prefix, nil if none has it, or
// an event of those that do.
func (e *Event) matching(prefix string) *Event {
	n, size := 0, 0
	for i := range e.Changes {
		if c := &e.Changes[i]; strings.HasPrefix(c.Key, prefix) {
			n++
			size += c.size()
		}
	}
	switch n {
	case 0:
		return nil
	case len(e.Changes):
		return e
	}
	changes := make([]Change, 0, n)
	for _, c := range e.Changes {
		if strings.HasPrefix(c.Key, prefix) {
			changes = append(changes, c)
		}
	}
	return &Event{Index: e.Index, Term: e.Term, Changes: changes, size: size}
}

// What a store keeps of its history at most. The newest event is always kept.
const (
	historyEvents = 65536
	historyBytes  = 32 << 20 // of changes, as Change.size counts them
)

// history is the last events, in a ring that grows up to maxEvents. It is good
// from newHistory.
type history struct {
	ring      []*Event
	first     int // where in the ring the oldest is
	n         int // how many there are
	bytes     int
	floor     uint64 // events at or before it are not here
	maxEvents int
	maxBytes  int
}

func newHistory() history {
	return history{maxEvents: historyEvents, maxBytes: historyBytes}
}

// clear removes all events, for a history that begins after the index floor.
func (h *history) clear(floor uint64) {
	h.ring, h.first, h.n, h.bytes, h.floor = nil, 0, 0, 0, floor
}

func (h *history) at(i int) *Event { return h.ring[(h.first+i)%len(h.ring)] }

func (h *history) add(e *Event) {
	for h.n > 0 && (h.n >= h.maxEvents || h.bytes+e.size > h.maxBytes) {
		oldest := h.at(0)
		h.ring[h.first] = nil
		h.first = (h.first + 1) % len(h.ring)
		h.n--
		h.bytes -= oldest.size
		h.floor = oldest.Index
	}
	if h.n == len(h.ring) {
		grown := make([]*Event, max(64, 2*h.n))
		for i := range h.n {
			grown[i] = h.at(i)
		}
		h.ring, h.first = grown, 0
	}
	h.ring[(h.first+h.n)%len(h.ring)] = e
	h.n++
	h.bytes += e.size
}

// after returns the oldest events after index, limit of them at most, and whether
// these are all there are.
func (h *history) after(index uint64, limit int) (events []*Event, all bool) {
	from := sort.Search(h.n, func(i int) bool { return h.at(i).Index > index })
	n := min(h.n-from, limit)
	events = make([]*Event, n)
	for i := range events {
		events[i] = h.at(from + i)
	}
	return events, from+n == h.n
}
