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
	g    *Gateway
	q    *request
	span span
	skip map[string]bool // types of events; that of a put is empty

	mu  sync.Mutex // guards what follows
	out *writer
}

// send writes a message with this revision, 0 for the newest, and reports whether the client is there.
func (s *stream) send(revision uint64, r response) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Header = s.g.header(revision, s.g.store); r.WatchID == 0 {
		r.WatchID = int64(s.q.WatchID)
	}
	_, _ = fmt.Fprintf(s.out, `{"result":%s}`+"\n", marshal(r))
	return s.out.Flush() == nil && http.NewResponseController(s.out.w).Flush() == nil
}

// watch answers a stream of events. The first message of the body creates a watch, one for each stream; later ones may
// cancel it or ask for the revision. The end of the body ends nothing: curl sends one message.
func (g *Gateway) watch(w http.ResponseWriter, r *http.Request) error {
	c := http.NewResponseController(w)
	_ = c.EnableFullDuplex() // an error: HTTP/2 always is
	body := &io.LimitedReader{R: r.Body, N: maxMessage}
	messages := json.NewDecoder(body)
	s := &stream{g: g, out: newWriter(w)}
	watcher, opened, err := s.begin(r.Context(), messages)
	if err == nil {
		err = api.ClearDeadlines(w)
	}
	if e, ok := errors.AsType[Error](err); ok { // the body may not be read to its end: not for out.end
		err = api.Errorf(e.Status, "%s", e.Message)
	}
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	if s.send(0, response{Created: true}); opened != nil {
		s.compacted()
		return nil
	}
	defer watcher.Close()
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	read := make(chan struct{})
	go func() { // reads what the client sends, until it sends no more
		defer close(read)
		for {
			body.N = maxMessage
			q, err := next(messages)
			switch {
			case errors.Is(err, io.EOF):
				return
			case err != nil || q.Watch != nil: // the client has gone, or wants a second watch
				cancel(err)
				return
			case q.Cancel != nil && q.Cancel.WatchID == s.q.WatchID:
				cancel(errCanceled)
				return
			case q.Progress != nil:
				s.send(0, response{WatchID: -1})
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

// begin reads what to watch, and begins to. The error opened is for a watch from a revision that is no longer there.
func (s *stream) begin(ctx context.Context, messages *json.Decoder) (watcher *kv.Watcher, opened, err error) {
	q, err := next(messages)
	if errors.Is(err, io.EOF) || err == nil && q.Watch == nil {
		err = invalid("watch: want a create_request first")
	}
	if err != nil {
		return nil, nil, err
	}
	if s.q = q.Watch; len(s.q.Key) == 0 {
		s.q.Key = []byte{0} // as in etcd
	}
	if s.span, err = s.q.span(); err != nil {
		return nil, nil, err
	}
	s.skip = make(map[string]bool)
	for _, filter := range s.q.Filters {
		n, err := filter.of("NOPUT", "NODELETE")
		if err != nil {
			return nil, nil, err
		}
		s.skip[[]string{"", "DELETE"}[n]] = true
	}
	if err = s.g.prepareRead(ctx, s.span.prefix(), false); err != nil {
		return nil, nil, err
	}
	if s.q.Start > 0 {
		watcher, opened = s.g.store.Watch(s.span.prefix(), uint64(s.q.Start)-1)
	} else {
		watcher, _ = s.g.store.WatchNow(s.span.prefix())
	}
	return watcher, opened, nil
}

// next reads a message of the client.
func next(messages *json.Decoder) (*request, error) {
	var raw json.RawMessage
	err := messages.Decode(&raw)
	if err != nil && !errors.Is(err, io.EOF) {
		err = invalid("watch: %v", err)
	}
	if err != nil {
		return nil, err
	}
	return parse(raw)
}

// compacted ends a watch whose events are no longer there, as etcd does.
func (s *stream) compacted() {
	index, _ := s.g.store.Applied()
	s.send(index, response{Canceled: true, Compact: index, Reason: errCompacted.Message})
}

// follow sends the events of watcher until the client or this node ends the watch.
func (s *stream) follow(ctx context.Context, watcher *kv.Watcher) {
	serving := s.g.node.Serving()
	for pause := time.Duration(0); ; {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		case <-serving.Done():
		}
		wait, stop := context.WithTimeout(ctx, progress)
		end := context.AfterFunc(serving, stop)
		events, through, err := watcher.Next(wait)
		end()
		stop()
		if pause = 0; len(events) > 0 {
			pause = api.WatchPause(s.g.store.OpenWatchers())
		}
		switch {
		case !s.events(events), ctx.Err() != nil && !errors.Is(context.Cause(ctx), errCanceled):
			return
		case ctx.Err() != nil:
			s.send(0, response{Canceled: true})
			return
		case serving.Err() != nil:
			s.mu.Lock()
			defer s.mu.Unlock()
			_, _ = fmt.Fprintf(s.out, `{"error":{"grpc_code":14,"http_code":503,"message":%s,`+
				`"http_status":"Service Unavailable"}}`, marshal(context.Cause(serving).Error()))
			_ = s.out.Flush()
			return
		case errors.Is(err, context.DeadlineExceeded):
			if s.q.Notify && !s.send(through, response{}) {
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
	var r response
	size := 0
	for i, e := range events {
		for _, c := range e.Changes {
			if sent := s.event(e.Index, &c); sent != nil {
				r.Events = append(r.Events, *sent)
				size += len(c.Key) + len(c.Value) + kv.Overhead
			}
		}
		if r.Events == nil || size < eventBytes && i < len(events)-1 {
			continue
		}
		if !s.send(e.Index, r) {
			return false
		}
		r, size = response{}, 0
	}
	return true
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
	if s.q.PrevKV && c.Was.Index != 0 {
		e.Prev = newKeyValue(c.Key, c.Was)
	}
	return e
}
