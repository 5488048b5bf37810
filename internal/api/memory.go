package api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"unicode/utf8"

	"raftkv/internal/flight"
)

// The memory that requests take is bounded for all of them together: their queries and bodies, what is parsed of them
// and proposed, and what of their answers waits to be written. What streams in pieces, and so takes no more than a few
// buffers, is not counted, nor is what is little: it is bounded by the number of slots.

const (
	// uncounted is how many bytes of a query, a body or a value cost nothing beyond the slot.
	uncounted = 4 << 10
	// copies is how many times a query or a body is in memory until its request is answered: as it came, as the command
	// that was parsed of it, and as an entry, with what the garbage collector has not freed yet.
	copies = 3
)

// NewMemory returns a bound for what requests have in memory, in bytes. What waits for it may be a quarter as much.
func NewMemory(bytes uint64) *flight.Bound {
	return flight.New(int64(bytes), 2*MaxConnections, int64(bytes)/4)
}

// hold has h, one of own's, hold what a query or body of n bytes takes, of which held are there already. Its Error, of
// status 503, is for a request of which nothing was done.
func (own *slot) hold(ctx context.Context, h *flight.Hold, n, held int64) error {
	if own.memory == nil || n <= uncounted {
		return nil
	}
	return memoryError(own.memory.Acquire(ctx, h, own.host, copies*n, held))
}

func memoryError(err error) error {
	full, ok := errors.AsType[flight.ErrFull](err)
	switch {
	case err == nil:
		return nil
	case ok && full.Host:
		return Errorf(http.StatusServiceUnavailable, "the requests under way from this host take a quarter of the memory "+
			"that there is for all (%v): nothing was done; it is safe to send it again", err)
	}
	return Errorf(http.StatusServiceUnavailable, "the requests under way take all the memory that there is for them "+
		"(INFLIGHT_MAX_BYTES; %v): nothing was done; it is safe to send it again", err)
}

// slotOf returns the slot of a request with that body; nil: it has none.
func slotOf(body io.Reader) *slot {
	if guarded, ok := body.(*guardedBody); ok {
		body = guarded.ReadCloser
	}
	if of, ok := body.(*slotBody); ok {
		return of.slot
	}
	return nil
}

// answerMemory is what the answer of a request holds while it waits to be written.
type answerMemory struct{ w *slotWriter } // nil: it is not counted

// memoryOf returns that of the answer that is written to w.
func memoryOf(w http.ResponseWriter) answerMemory {
	for {
		switch of := w.(type) {
		case *slotWriter:
			return answerMemory{of}
		case interface{ Unwrap() http.ResponseWriter }:
			w = of.Unwrap()
		default:
			return answerMemory{}
		}
	}
}

// hold waits until the answer may hold n bytes, until release. Its Error, of status 503, is for a request of which
// nothing was done. It is not called while something is held.
func (a answerMemory) hold(n int64) error {
	if a.w == nil || a.w.slot.memory == nil || n <= uncounted {
		return nil
	}
	own := a.w.slot
	if own.answer.Gone() { // released
		own.answer = flight.Hold{}
	}
	return memoryError(own.memory.Acquire(a.w.ctx, &own.answer, own.host, n, 0))
}

func (a answerMemory) release() {
	if a.w != nil {
		a.w.slot.answer.Release()
	}
}

// HoldAnswer has the answer that is written to w hold n bytes more until release. It waits for them, and returns an
// Error of status 503 if there are none in time. It is not called while the answer holds some.
func HoldAnswer(w http.ResponseWriter, n int) (release func(), err error) {
	memory := memoryOf(w)
	return memory.release, memory.hold(int64(n))
}

// lineSize is how many bytes an item with that value takes as a line of JSON while it is written, at most: the line,
// and the buffer that it grows in.
func lineSize(value string) int64 {
	if len(value) <= uncounted {
		return 0
	}
	size := int64(len(value))
	if !utf8.ValidString(value) {
		return 2 * (size/3*4 + 4) // base64
	}
	for i := range len(value) {
		switch c := value[i]; {
		case c < ' ':
			size += 5
		case c == '"' || c == '\\':
			size++
		case c == 0xe2: // it may begin U+2028
			size += 3
		}
	}
	return 2 * size
}
