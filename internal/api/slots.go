package api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"raftkv/internal/connlimit"
	"raftkv/internal/flight"
)

// Slots bounds the requests of one kind that are under way, in all and, for each remote host, to a quarter
// (flight.Bound). A request that finds all slots taken waits up to flight.MaxWait for a free one, with its body unread.
// Requests that are waiting for their clients give way to it: see flight.Bound.
//
// A slot is taken before the body is read. What its request then has in memory, of its query, its body and its answer,
// is counted too, if it is more than a slot may have without: see memory.go. Its methods may be called by
// several goroutines at once.
type Slots struct {
	slots  *flight.Bound
	memory *flight.Bound // bytes, of the requests of all kinds; nil: they are not counted
}

// queuedBytes is what the queries of requests that wait for a slot take at most: they are in memory already.
const queuedBytes = 64 << 20

// NewSlots returns n slots, whose requests hold bytes of memory; fewer slots, in proportion, where the server has fewer
// connections than MaxConnections (see Serve): otherwise the connections would all be taken before the slots are.
// Four times as many requests may wait for one.
func NewSlots(n int, memory *flight.Bound) *Slots {
	n = max(1, n*connections()/MaxConnections)
	return &Slots{slots: flight.New(int64(n), 4*n, queuedBytes), memory: memory}
}

// slot is that of one request, and what it has of the memory.
type slot struct {
	memory *flight.Bound // nil: it is not counted
	host   string
	place  flight.Hold
	query  flight.Hold // bytes, as the next two
	body   flight.Hold
	answer flight.Hold
}

// holds are all that a slot holds: any of them may be given to another request while this one waits for its client.
func (own *slot) holds() [4]*flight.Hold {
	return [...]*flight.Hold{&own.place, &own.query, &own.body, &own.answer}
}

// begin notes that the request waits for its client, and end that it does so no more.
func (own *slot) begin(w flight.Wait) (began [4]bool) {
	for i, h := range own.holds() {
		began[i] = h.BeginWait(w)
	}
	return began
}

// end returns whether another request has been given what this one held.
func (own *slot) end(began [4]bool) (gone bool) {
	for i, h := range own.holds() {
		if began[i] {
			gone = h.EndWait() || gone
		}
	}
	return gone
}

// isGone reports whether another request has what this one held.
func (own *slot) isGone() bool { return own.place.Gone() || own.query.Gone() || own.body.Gone() }

// release gives back all that is held.
func (own *slot) release() {
	for _, h := range own.holds() {
		h.Release()
	}
}

// Take takes a slot for r, which release gives back. Its Error, of status 503, is for a request of
// which nothing was done. The writer that it returns takes the place of w. If the slot is given to
// another request, the read of r's body that is under way, and all later ones, fail with errGaveWay,
// of which BodyError makes a 503; or else the write that is under way does, and the answer breaks off.
//
// w must have SetReadDeadline and SetWriteDeadline below it. What else sets them does so before it
// reads or writes.
func (s *Slots) Take(w http.ResponseWriter, r *http.Request) (_ http.ResponseWriter, release func(), err error) {
	own := &slot{memory: s.memory, host: connlimit.Host(r.RemoteAddr)}
	query := int64(len(r.URL.RawQuery))
	if err := s.slots.Acquire(r.Context(), &own.place, own.host, 1, query); err != nil {
		return w, nil, slotError(err)
	}
	if err := own.hold(r.Context(), &own.query, query, query); err != nil {
		own.release()
		return w, nil, err
	}
	c := http.NewResponseController(w)
	if r.ContentLength != 0 {
		r.Body = &slotBody{r.Body, own, c}
	}
	return &slotWriter{w, own, c, r.Context()}, own.release, nil
}

// slotError is the Error of a request that got no slot.
func slotError(err error) error {
	full, ok := errors.AsType[flight.ErrFull](err)
	switch {
	case !ok: // the client has gone
	case full.Host:
		return Errorf(http.StatusServiceUnavailable, "too many requests of this kind are under way from this host, which "+
			"has a quarter of all that there may be (%v): nothing was done; it is safe to send it again", err)
	}
	return Errorf(http.StatusServiceUnavailable,
		"too many requests of this kind are under way (%v): nothing was done; it is safe to send it again", err)
}

// Handler returns the handler of an endpoint whose requests take slots; further ones are not applied. An endpoint that
// returns an error has answered nothing: writeError does.
func (s *Slots) Handler(endpoint func(http.ResponseWriter, *http.Request) error,
	writeError func(http.ResponseWriter, *http.Request, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w, release, err := s.Take(w, r)
		if err == nil {
			defer release()
			err = endpoint(w, r)
		}
		if err != nil {
			writeError(w, r, err)
		}
	})
}

// errGaveWay is returned where a request waits for its client, and another one has taken its slot.
var errGaveWay = errors.New("the slot of this request was taken by another one")

// past is a deadline that ends a read or a write under way.
var past = time.Unix(1, 0)

// slotBody is the body of a request with a slot.
type slotBody struct {
	io.ReadCloser
	slot       *slot
	controller *http.ResponseController
}

// End implements flight.Wait.
func (b *slotBody) End() error { return b.controller.SetReadDeadline(past) }

// Read implements io.Reader.
func (b *slotBody) Read(p []byte) (int, error) {
	if b.slot.isGone() {
		return 0, errGaveWay
	}
	began := b.slot.begin(b)
	n, err := b.ReadCloser.Read(p)
	if b.slot.end(began) {
		return 0, errGaveWay
	}
	return n, err
}

// slotWriter writes the answer to a request with a slot.
type slotWriter struct {
	http.ResponseWriter
	slot       *slot
	controller *http.ResponseController
	ctx        context.Context // of the request
}

// End implements flight.Wait.
func (w *slotWriter) End() error { return w.controller.SetWriteDeadline(past) }

// Write implements io.Writer.
func (w *slotWriter) Write(p []byte) (int, error) {
	began := w.slot.begin(w)
	n, err := w.ResponseWriter.Write(p)
	if w.slot.end(began) {
		return 0, errGaveWay
	}
	return n, err
}

// Unwrap is for http.ResponseController.
func (w *slotWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
