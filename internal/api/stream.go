// The streams write what takes as long as its reader does: lists and watches.
// Nothing here holds a lock while the client reads.
package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"raftkv/internal/kv"
)

// idle is how long one write or read of a stream may wait for the client. Tests have
// another.
var idle = 30 * time.Second

// Writer returns a writer to w whose limit of time is for each write, not for the
// whole: whoever reads on may take as long as it likes.
func Writer(w http.ResponseWriter) io.Writer {
	return patient{w, http.NewResponseController(w)}
}

type patient struct {
	w          io.Writer
	controller *http.ResponseController
}

func (p patient) Write(b []byte) (int, error) {
	if err := p.controller.SetWriteDeadline(time.Now().Add(idle)); err != nil {
		return 0, err
	}
	return p.w.Write(b)
}

// Reader returns the body of r with a limit of time for each read, as Writer. At the
// end of the body it lifts the limit, which would end the request's context.
func Reader(w http.ResponseWriter, r *http.Request) io.Reader {
	return patientBody{r.Body, http.NewResponseController(w)}
}

type patientBody struct {
	body       io.Reader
	controller *http.ResponseController
}

func (p patientBody) Read(b []byte) (int, error) {
	if err := p.controller.SetReadDeadline(time.Now().Add(idle)); err != nil {
		return 0, err
	}
	n, err := p.body.Read(b)
	if err != nil {
		_ = p.controller.SetReadDeadline(time.Time{})
	}
	return n, err
}

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

// List writes the keys of s that have the prefix and come after after, in order and
// limit at most (0: all), one JSON object a line. It ascends s without a lock that
// anybody else needs, if s is a Clone.
func List(w http.ResponseWriter, s *kv.Store, prefix, after string, limit int) error {
	out := bufio.NewWriterSize(Writer(w), 32<<10)
	lines := json.NewEncoder(out)
	lines.SetEscapeHTML(false)
	var err error
	n := 0
	s.Ascend(max(prefix, after), func(key string, found kv.Item) bool {
		if !strings.HasPrefix(key, prefix) {
			return false
		}
		if key <= after {
			return true
		}
		line := item{Index: found.Index}
		line.setKey(key)
		line.setValue(found.Value)
		err = lines.Encode(line)
		n++
		return err == nil && n != limit
	})
	return errors.Join(err, out.Flush())
}

// Watch writes the events of watcher as server-sent events until ctx ends, the
// client goes, or the watcher is dropped: first its index, then each event, and when
// there was none for keepAlive a comment. Each has an id to resume from.
func Watch(ctx context.Context, w http.ResponseWriter, watcher *kv.Watcher, through uint64, keepAlive time.Duration) error {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	out := bufio.NewWriterSize(Writer(w), 32<<10)
	_, _ = fmt.Fprintf(out, ": watching after index %d\nid: %d\n\n", through, through)
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
				_, _ = out.Write(e.Encoded(encode))
			}
		case errors.Is(err, context.DeadlineExceeded):
			_, _ = fmt.Fprintf(out, ": keep-alive\nid: %d\n\n", through)
		default:
			_, _ = fmt.Fprintf(out, ": %v; watch again with the last id\n\n", err)
			return out.Flush()
		}
	}
}

// encode is e as a server-sent event.
func encode(e *kv.Event) []byte {
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
	fmt.Fprintf(&b, "id: %d\ndata: ", e.Index)
	lines := json.NewEncoder(&b)
	lines.SetEscapeHTML(false)
	_ = lines.Encode(data) // strings and numbers always encode
	b.WriteByte('\n')
	return []byte(b.String())
}
