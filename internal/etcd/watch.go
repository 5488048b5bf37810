package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"raftkv/internal/api"
	"raftkv/internal/kv"
)

const (
	// progress is how often a watch that asks for it hears of the revision, while there are no events.
	progress = 15 * time.Second
	// maxMessage bounds a message of the client of a watch, in bytes.
	maxMessage = 64 << 10
	// eventBytes is about how much one message to it has, if that is more than one revision.
	eventBytes = 256 << 10
)

var errCanceled = errors.New("the client has canceled the watch")

// stream is a watch under way.
type stream struct {
	g       *Gateway
	request watchRequest
	span    span
	skip    map[string]bool // types of events; PUT is empty

	mu  sync.Mutex // guards what follows
	out *writer
}

// send writes a message, and reports whether the client is there.
func (s *stream) send(response watchResponse) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if response.ID == 0 {
		response.ID = int64(s.request.Create.ID)
	}
	_, _ = fmt.Fprintf(s.out, `{"result":%s}`+"\n", marshal(response))
	return s.out.Flush() == nil && http.NewResponseController(s.out.w).Flush() == nil
}

// watch answers a stream of events. The first message of the body creates a watch, one for each stream; later ones may
// cancel it or ask for the revision. The end of the body ends nothing: curl sends one message.
func (g *Gateway) watch(w http.ResponseWriter, r *http.Request) error {
	c := http.NewResponseController(w)
	_ = c.EnableFullDuplex() // an error: HTTP/2 always is
	body := &io.LimitedReader{R: r.Body, N: maxMessage}
	messages := json.NewDecoder(body)
	s := &stream{g: g, out: newWriter(w), skip: make(map[string]bool)}
	err := next(messages, &s.request)
	q := s.request.Create
	switch {
	case errors.Is(err, io.EOF) || err == nil && q == nil:
		return invalid("watch: want a create_request first")
	case err != nil:
		return err
	case len(q.Key) == 0:
		q.Key = []byte{0} // as in etcd
	}
	if s.span, err = newSpan(q.Key, q.RangeEnd); err != nil {
		return err
	}
	for _, filter := range q.Filters {
		n, err := parseEnum(filter, "NOPUT", "NODELETE")
		if err != nil {
			return err
		}
		s.skip[[]string{"", "DELETE"}[n]] = true
	}
	if _, err := g.read(r.Context(), s.span.prefix(), false); err != nil {
		return err
	}
	if err := api.ClearDeadlines(w); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	var watcher *kv.Watcher
	if q.Start > 0 {
		watcher, err = g.store.Watch(s.span.prefix(), uint64(q.Start)-1)
	} else {
		watcher, _ = g.store.WatchNow(s.span.prefix())
	}
	if s.send(watchResponse{Header: g.header(0, g.store), Created: true}); err != nil {
		s.compacted()
		return nil
	}
	defer watcher.Close()
	read := make(chan struct{})
	go func() { // reads what the client sends, until it sends no more
		defer close(read)
		for {
			body.N = maxMessage
			var message watchRequest
			switch err := next(messages, &message); {
			case errors.Is(err, io.EOF):
				return
			case err != nil || message.Create != nil: // a second watch, or the client has gone
				cancel(err)
				return
			case message.Cancel != nil && message.Cancel.ID == q.ID:
				cancel(errCanceled)
				return
			case message.Progress != nil:
				s.send(watchResponse{Header: g.header(0, g.store), ID: -1})
			}
		}
	}()
	s.follow(ctx, watcher)
	select {
	case <-read:
	default: // the server would wait for it
		_ = c.SetReadDeadline(time.Unix(1, 0))
		<-read
	}
	return nil
}

// next reads a message of the client.
func next(messages *json.Decoder, into *watchRequest) error {
	var raw json.RawMessage
	err := messages.Decode(&raw)
	switch {
	case errors.Is(err, io.EOF):
		return err
	case err != nil:
		return invalid("watch: %v", err)
	}
	return unmarshal(raw, into)
}

// compacted ends a watch whose events are no longer there, as etcd does.
func (s *stream) compacted() {
	h := s.g.header(0, s.g.store)
	s.send(watchResponse{Header: h, Canceled: true, Compact: h.Revision, Reason: errCompacted.Message})
}

// follow sends the events of watcher until the client or this node ends the watch.
func (s *stream) follow(ctx context.Context, watcher *kv.Watcher) {
	serving := s.g.node.Serving()
	for {
		wait, stop := context.WithTimeout(ctx, progress)
		end := context.AfterFunc(serving, stop)
		events, through, err := watcher.Next(wait)
		end()
		stop()
		switch {
		case !s.events(events), ctx.Err() != nil && !errors.Is(context.Cause(ctx), errCanceled):
			return
		case ctx.Err() != nil:
			s.send(watchResponse{Header: s.g.header(0, s.g.store), Canceled: true})
			return
		case serving.Err() != nil:
			s.mu.Lock()
			defer s.mu.Unlock()
			_, _ = fmt.Fprintf(s.out, `{"error":{"grpc_code":14,"http_code":503,"message":%s,"http_status":"Service Unavailable"}}`,
				marshal(context.Cause(serving).Error()))
			s.out.flush()
			return
		case errors.Is(err, context.DeadlineExceeded):
			if s.request.Create.Progress && !s.send(watchResponse{Header: s.g.header(through, s.g.store)}) {
				return
			}
		case err != nil: // the data were restored, or the client does not keep up
			s.compacted()
			return
		}
	}
}

// events sends events, those of one revision in one message, and reports whether the client is there.
func (s *stream) events(events []*kv.Event) bool {
	var response watchResponse
	size := 0
	for i, e := range events {
		for _, c := range e.Changes {
			if sent := s.event(e.Index, &c); sent != nil {
				response.Events = append(response.Events, *sent)
				size += len(c.Key) + len(c.Value) + kv.Overhead
			}
		}
		if response.Events == nil || size < eventBytes && i < len(events)-1 {
			continue
		}
		response.Header = s.g.header(e.Index, s.g.store)
		if !s.send(response) {
			return false
		}
		response, size = watchResponse{}, 0
	}
	if response.Events == nil {
		return true
	}
	response.Header = s.g.header(events[len(events)-1].Index, s.g.store)
	return s.send(response)
}

// event returns what the client gets of a change by the entry at index; nil: nothing.
func (s *stream) event(index uint64, c *kv.Change) *event {
	e := &event{KV: &keyValue{Key: []byte(c.Key), Mod: index}}
	if c.Removed {
		e.Type = "DELETE"
	}
	switch {
	case !s.span.has(c.Key) || s.skip[e.Type]:
		return nil
	case c.Detail == nil: // the store keeps them wherever there is a gateway
		return e
	case !c.Removed:
		e.KV = newKeyValue(c.Key, c.Now)
	}
	if s.request.Create.PrevKV && c.Was.Index != 0 {
		e.Prev = newKeyValue(c.Key, c.Was)
	}
	return e
}
