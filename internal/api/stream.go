package api

// Streams last as long as their client reads: lists and watches. Nothing here holds a
// lock while it waits for the client.

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
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

// WriteList writes the keys of view that q asks for, in order, one JSON object a line. If
// view is a Clone, no other reader or writer of the store waits for it.
func WriteList(w http.ResponseWriter, view *kv.Store, q ListRequest, h History) error {
	index, _ := view.Applied()
	SetAppliedIndexHeader(w, index)
	w.Header().Set("Raftkv-Watch-From", h.ID(index))
	w.Header().Set("Content-Type", "application/jsonl")
	disableProxyBuffering(w)
	out := bufio.NewWriterSize(DeadlineWriter(w), 32<<10)
	lines := json.NewEncoder(out)
	lines.SetEscapeHTML(false)
	var err error
	n := 0
	view.Ascend(max(q.Prefix, q.After), func(key string, found kv.Item) bool {
		if !strings.HasPrefix(key, q.Prefix) {
			return false
		}
		if key <= q.After {
			return true
		}
		line := item{Index: found.Index}
		line.setKey(key)
		line.setValue(found.Value)
		err = lines.Encode(line)
		n++
		return err == nil && n != q.Limit
	})
	return errors.Join(err, out.Flush())
}

// disableProxyBuffering asks a proxy to pass a stream on as it comes. nginx does, and by
// default holds back what does not fill a buffer: the events of a watch, for instance.
func disableProxyBuffering(w http.ResponseWriter) { w.Header().Set("X-Accel-Buffering", "no") }

// WriteSnapshot writes a snapshot of view, which nothing else may change meanwhile.
func WriteSnapshot(w http.ResponseWriter, view *kv.Store) error {
	index, _ := view.Applied()
	SetAppliedIndexHeader(w, index)
	w.Header().Set("Content-Type", "application/octet-stream")
	disableProxyBuffering(w)
	return view.WriteSnapshot(DeadlineWriter(w))
}

// WriteWatch writes the events of watcher as server-sent events until ctx ends, the
// client goes, or the watcher is dropped: first the index through, behind which the watch
// begins, then each event, and a comment whenever there was none for keepAlive. Each has
// an id from which the client can resume.
func WriteWatch(
	ctx context.Context, w http.ResponseWriter, watcher *kv.Watcher, through uint64, h History, keepAlive time.Duration,
) error {
	w.Header().Set("Content-Type", "text/event-stream")
	disableProxyBuffering(w)
	out := bufio.NewWriterSize(DeadlineWriter(w), 32<<10)
	_, _ = fmt.Fprintf(out, ": watching after index %d\nid: %s\n\n", through, h.ID(through))
	for {
		// A bufio.Writer keeps its first error.
		if err := errors.Join(out.Flush(), http.NewResponseController(w).Flush()); err != nil {
			return err
		}
		wait, cancel := context.WithTimeout(ctx, keepAlive)
		events, through, err := watcher.Next(wait)
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			for _, e := range events {
				_, _ = out.Write(e.Encoded(h.encode))
			}
		case errors.Is(err, context.DeadlineExceeded):
			_, _ = fmt.Fprintf(out, ": keep-alive\nid: %s\n\n", h.ID(through))
		default:
			_, _ = fmt.Fprintf(out, ": %v; watch again with the last id\n\n", err)
			return out.Flush()
		}
	}
}

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
