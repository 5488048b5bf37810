package api

// Streams last as long as their client reads: lists and watches. Nothing here holds a
// lock while it waits for the client.

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"raftkv/internal/kv"
)

// item is a key in JSON: the member key, or key64 with its base64 when it is not
// UTF-8, and the same for value.
type item struct {
	Op      string  `json:"op,omitempty"` // of a change: set or remove
	Key     *string `json:"key,omitempty"`
	Key64   []byte  `json:"key64,omitempty"`
	Value   *string `json:"value,omitempty"`
	Value64 []byte  `json:"value64,omitempty"`
	Index   uint64  `json:"index,omitempty"`
	TTL     string  `json:"ttl,omitempty"` // of a list, as the next two
	Lease   *string `json:"lease,omitempty"`
	Lease64 []byte  `json:"lease64,omitempty"`
}

func (i *item) setKey(key string) {
	if utf8.ValidString(key) {
		i.Key = &key
	} else {
		i.Key64 = []byte(key)
	}
}

func (i *item) setValue(value string) {
	if utf8.ValidString(value) {
		i.Value = &value
	} else {
		i.Value64 = []byte(value)
	}
}

func (i *item) setLease(l kv.Lease) {
	if l.TTL != 0 {
		i.TTL = l.TTL.String()
	}
	switch {
	case l.Key == "":
	case utf8.ValidString(l.Key):
		i.Lease = &l.Key
	default:
		i.Lease64 = []byte(l.Key)
	}
}

// needsLength reports whether an answer to r has no end of its own: HTTP/1.0, which nginx
// speaks to the nodes unless told otherwise, has no chunks, and so an answer that breaks off
// would look whole. It needs a Content-Length.
func needsLength(r *http.Request) bool { return !r.ProtoAtLeast(1, 1) }

// setContentLength sets the header to the number of bytes that write writes, which writes
// the same ones again later. That takes time, but no memory.
func setContentLength(w http.ResponseWriter, write func(io.Writer) error) {
	var size counter
	_ = write(&size) // a counter has no errors
	w.Header().Set("Content-Length", strconv.FormatUint(uint64(size), 10))
}

// counter counts the bytes that are written to it.
type counter uint64

func (c *counter) Write(b []byte) (int, error) {
	*c += counter(len(b))
	return len(b), nil
}

// disableProxyBuffering asks a proxy to pass a stream on as it comes. nginx does, and by
// default holds back what does not fill a buffer: the events of a watch, for instance.
func disableProxyBuffering(w http.ResponseWriter) { w.Header().Set("X-Accel-Buffering", "no") }

// WriteSnapshot answers r with a snapshot of view, which nothing else may change meanwhile.
func WriteSnapshot(w http.ResponseWriter, r *http.Request, view *kv.Store) error {
	index, _ := view.Applied()
	SetAppliedIndexHeader(w, index)
	w.Header().Set("Content-Type", "application/octet-stream")
	disableProxyBuffering(w)
	if needsLength(r) {
		setContentLength(w, view.WriteSnapshot)
	}
	return view.WriteSnapshot(DeadlineWriter(w))
}

// Serve answers q from store, and returns when the client goes, when serving ends, which
// is how long this node learns of changes, or when there is an end to the watch itself. The
// error is one of Open: then nothing was answered.
func (q WatchRequest) Serve(
	ctx, serving context.Context, w http.ResponseWriter, store *kv.Store, keepAlive time.Duration,
) error {
	watcher, after, err := q.Open(store)
	reset, gone := errors.AsType[Error](err)
	if gone = gone && reset.Status == http.StatusGone && q.eventSource; gone {
		watcher, after = store.WatchNow(q.Prefix)
	} else if err != nil {
		return err
	}
	defer watcher.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out := beginEvents(w)
	_, _ = fmt.Fprintf(out, ": watching after index %d\nid: %s\n\n", after, q.history.ID(after))
	if gone {
		writeNotice(out, "reset", reset.Message, q.history.ID(after), after)
	}
	_ = q.write(ctx, serving, w, out, watcher, store, keepAlive)
	return nil
}

// watchPause is how long a watch waits for more events once it has sent some, when there are
// so many watches: up to 1,000 of them together send 5,000 times a second at most, and what
// they cost the writes stays bounded. An event that comes alone is sent at once.
func watchPause(watchers int) time.Duration {
	return min(time.Duration(watchers)*200*time.Microsecond, 200*time.Millisecond)
}

// beginEvents begins an answer of server-sent events.
func beginEvents(w http.ResponseWriter) *bufio.Writer {
	w.Header().Set("Content-Type", "text/event-stream")
	disableProxyBuffering(w)
	return bufio.NewWriterSize(DeadlineWriter(w), 32<<10)
}

// write writes the events of watcher as server-sent events until ctx ends, the client
// goes, serving ends or the watcher is dropped, and a comment whenever there was none for
// keepAlive. Each has an id from which the client can resume. The last two ends are an event
// of their own, end, with the reason. Events that come soon after others are sent together,
// after a watchPause of the number of watchers.
func (q WatchRequest) write(ctx, serving context.Context, w http.ResponseWriter, out *bufio.Writer, watcher *kv.Watcher,
	store *kv.Store, keepAlive time.Duration) error {
	controller := http.NewResponseController(w)
	var pause time.Duration
	for {
		// A bufio.Writer keeps its first error.
		if err := errors.Join(out.Flush(), controller.Flush()); err != nil {
			return err
		}
		if pause > 0 {
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			case <-serving.Done():
			}
			pause = 0
		}
		wait, cancel := context.WithTimeout(ctx, keepAlive)
		stop := context.AfterFunc(serving, cancel)
		events, through, err := watcher.Next(wait)
		stop()
		cancel()
		for _, e := range events {
			if q.Key == "" {
				_, _ = out.Write(e.Encoded(q.history.encode))
			} else if e := e.Of(q.Key); e != nil {
				_, _ = out.Write(q.history.encode(e))
			}
		}
		if len(events) > 0 {
			pause = watchPause(store.OpenWatchers())
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case serving.Err() != nil:
			writeNotice(out, "end", context.Cause(serving).Error()+"; watch elsewhere with the last id", q.history.ID(through),
				through)
			return out.Flush()
		case errors.Is(err, context.DeadlineExceeded):
			_, _ = fmt.Fprintf(out, ": keep-alive\nid: %s\n\n", q.history.ID(through))
		case err != nil:
			writeNotice(out, "end", err.Error()+"; watch again with the last id", q.history.ID(through), through)
			return out.Flush()
		}
	}
}

// retryMS is after how many milliseconds a browser comes back.
const retryMS = 1000

// writeNotice writes an event that is no change: its name, and data with the reason and the
// index. An empty id and an index of 0 are left out.
func writeNotice(out *bufio.Writer, name, reason, id string, index uint64) {
	data, _ := json.Marshal(struct { // of strings and numbers: no error
		Reason string `json:"reason"`
		Index  uint64 `json:"index,omitempty"`
	}{reason, index})
	fmt.Fprintf(out, "retry: %d\nevent: %s\n", retryMS, name)
	if id != "" {
		fmt.Fprintf(out, "id: %s\n", id)
	}
	fmt.Fprintf(out, "data: %s\n\n", data)
}

// WriteUnavailable reports whether r is a watch of a browser's EventSource, which any status
// but 200 would end for good. If so, it answers the reason why there is none now as an
// event, after which the browser comes back by itself.
func WriteUnavailable(w http.ResponseWriter, r *http.Request, reason string) bool {
	if r.URL.Path != "/watch" || !isEventSource(r) {
		return false
	}
	out := beginEvents(w)
	writeNotice(out, "unavailable", reason, "", 0)
	_ = out.Flush() // an error: the client has gone
	return true
}

// isEventSource reports whether r is from a browser's EventSource, or from a library that
// behaves as one: by the HTML standard they send exactly this.
func isEventSource(r *http.Request) bool { return r.Header.Get("Accept") == "text/event-stream" }

// encode returns e as a server-sent event.
func (h History) encode(e *kv.Event) []byte {
	data := struct {
		Index   uint64 `json:"index"`
		Term    uint64 `json:"term"`
		Changes []item `json:"changes"`
	}{e.Index, e.Term, make([]item, len(e.Changes))}
	for i, c := range e.Changes {
		change := &data.Changes[i]
		change.setKey(c.Key)
		if change.Op = "remove"; !c.Removed {
			change.Op = "set"
			change.setValue(c.Value)
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "id: %s\ndata: ", h.ID(e.Index))
	lines := json.NewEncoder(&b)
	lines.SetEscapeHTML(false)
	_ = lines.Encode(data) // strings and numbers always encode
	b.WriteByte('\n')
	return []byte(b.String())
}
