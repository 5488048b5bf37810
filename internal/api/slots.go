package api

import (
	"container/list"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"raftkv/internal/connlimit"
)

// Slots bounds the requests of one kind that are under way, in all and, for each remote host, to a
// quarter (connlimit.Host, connlimit.PerHost). When all slots are taken and one more request comes,
// it takes the slot of the request that has waited longest for its client: for the next part of
// its body, or that the client reads on. To announce a body and not send it, or not to read an answer,
// costs a client next to nothing, and so keeps nobody out. When none waits for its client, the
// new request is refused. So it is with the slots of one host and its next request.
//
// A slot is taken before the body is read, and not when it is there, so that bodies in memory have
// that bound too. Its methods may be called by several goroutines at once.
type Slots struct {
	max int

	mu      sync.Mutex // guards what follows, and the fields of every slot
	held    int
	hosts   map[string]int // slots of each host that connlimit.Host names, while it has any
	waiting list.List      // of *slot: those that wait for their clients, the one that began longest ago first
}

// slot is that of one request.
type slot struct {
	slots   *Slots
	host    string
	waiting *list.Element // in Slots.waiting; nil: it does not wait for its client
	end     func() error  // ends that wait
	gone    bool          // it was given to another request, or back
}

// NewSlots returns n slots; fewer, in proportion, where the server has fewer connections than
// MaxConnections (see Serve): otherwise the connections would all be taken before the slots are.
func NewSlots(n int) *Slots {
	return &Slots{max: max(1, n*connections()/MaxConnections), hosts: make(map[string]int)}
}

// Take takes a slot for r, which release gives back. Its Error, of status 503, is for a request of
// which nothing was done. The writer that it returns takes the place of w. If the slot is given to
// another request, the read of r's body that is under way, and all later ones, fail with errGaveWay,
// of which BodyError makes a 503; or else the write that is under way does, and the answer breaks off.
//
// w must have SetReadDeadline and SetWriteDeadline below it. What else sets them does so before it
// reads or writes.
func (s *Slots) Take(w http.ResponseWriter, r *http.Request) (_ http.ResponseWriter, release func(), err error) {
	own := &slot{slots: s, host: connlimit.Host(r.RemoteAddr)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hosts[own.host] >= connlimit.PerHost(s.max) && !s.takeFrom(own.host) {
		return w, nil, Errorf(http.StatusServiceUnavailable, "%d requests of this kind are under way already from this "+
			"host, a quarter of all that there may be: nothing was done; it is safe to send it again", s.hosts[own.host])
	}
	if s.held >= s.max && !s.takeFrom("") {
		return w, nil, Errorf(http.StatusServiceUnavailable,
			"%d requests of this kind are under way already: nothing was done; it is safe to send it again", s.max)
	}
	s.held++
	if own.host != "" {
		s.hosts[own.host]++
	}
	c := http.NewResponseController(w)
	if r.ContentLength != 0 {
		r.Body = &slotBody{r.Body, own, c}
	}
	return &slotWriter{w, own, c}, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.giveBack(own)
	}, nil
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

// takeFrom takes a slot from the request of a host, of any if that is empty, that has waited longest
// for its client. It returns false if there is none. s.mu is held.
func (s *Slots) takeFrom(host string) bool {
	for e := s.waiting.Front(); e != nil; e = e.Next() {
		if oldest := e.Value.(*slot); host == "" || oldest.host == host {
			// While it is in the list, it is within a read or a write, so that the deadline is that of its own request.
			_ = oldest.end()
			s.giveBack(oldest)
			return true
		}
	}
	return false
}

// giveBack gives a slot back, once. s.mu is held.
func (s *Slots) giveBack(own *slot) {
	if own.gone {
		return
	}
	own.gone = true
	own.endWait()
	s.held--
	if own.host == "" {
		return
	}
	if s.hosts[own.host]--; s.hosts[own.host] == 0 {
		delete(s.hosts, own.host)
	}
}

// endWait takes the slot off those that wait. Slots.mu is held.
func (own *slot) endWait() {
	if own.waiting != nil {
		own.slots.waiting.Remove(own.waiting)
		own.waiting = nil
	}
}

// errGaveWay is returned where a request waits for its client, and another one has taken its slot.
var errGaveWay = errors.New("the slot of this request was taken by another one")

// wait has the request wait for its client in f, which end ends; then it returns errGaveWay.
func (own *slot) wait(end func() error, f func() (int, error)) (int, error) {
	s := own.slots
	s.mu.Lock()
	if own.gone || own.waiting != nil {
		s.mu.Unlock()
		return f()
	}
	own.waiting, own.end = s.waiting.PushBack(own), end
	s.mu.Unlock()
	n, err := f()
	s.mu.Lock()
	defer s.mu.Unlock()
	own.endWait()
	if own.gone {
		return 0, errGaveWay
	}
	return n, err
}

func (own *slot) isGone() bool {
	own.slots.mu.Lock()
	defer own.slots.mu.Unlock()
	return own.gone
}

// past is a deadline that ends a read or a write under way.
var past = time.Unix(1, 0)

// slotBody is the body of a request with a slot.
type slotBody struct {
	io.ReadCloser
	slot       *slot
	controller *http.ResponseController
}

// Read implements io.Reader.
func (b *slotBody) Read(p []byte) (int, error) {
	if b.slot.isGone() {
		return 0, errGaveWay
	}
	return b.slot.wait(func() error { return b.controller.SetReadDeadline(past) },
		func() (int, error) { return b.ReadCloser.Read(p) })
}

// slotWriter writes the answer to a request with a slot.
type slotWriter struct {
	http.ResponseWriter
	slot       *slot
	controller *http.ResponseController
}

// Write implements io.Writer.
func (w *slotWriter) Write(p []byte) (int, error) {
	return w.slot.wait(func() error { return w.controller.SetWriteDeadline(past) },
		func() (int, error) { return w.ResponseWriter.Write(p) })
}

// Unwrap is for http.ResponseController.
func (w *slotWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
