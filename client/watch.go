package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Event is what one entry of the log changed or, with Reset, that what changed is not known.
type Event struct {
	ID      string // for From: all later changes follow it
	Index   uint64 // of the entry; of a Reset: all later changes follow
	Changes []Change
	// Reset: the nodes no longer have all changes since the last event, or a restore has replaced
	// everything. List again: all changes after this event follow, those that the list has
	// included. ListWatch does that by itself.
	Reset bool
	// Items is everything that there is, for a Reset of ListWatch.
	Items []Item
}

// Change is what became of one key.
type Change struct {
	Key     string
	Value   []byte // nil if it was removed
	Removed bool
}

// From makes a watch begin behind the ID of an event.
func From(id string) ReadOption { return parameter("from", id) }

// Watch follows the changes of keys with a prefix, from now on or From an ID: each entry is one
// Event, in order, none is left out and none comes twice. It goes on at another node after a fault
// of any kind, until ctx ends or the consumer stops. An error is the last that comes: that of ctx,
// or a refusal that no other node would take back.
func (c *Client) Watch(ctx context.Context, prefix string, options ...ReadOption) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		query := url.Values{"prefix": {prefix}}
		r := read("/watch", query, options)
		r.stream, r.forever, r.anywhere = true, true, true
		w := watch{id: query.Get("from"), yield: yield}
		query.Del("from")
		for failures := 0; ; failures++ {
			r.header.Del("Last-Event-ID")
			if w.id != "" {
				r.header.Set("Last-Event-ID", w.id)
			}
			begun := time.Now()
			response, err := c.do(ctx, r)
			if e, ok := errors.AsType[*Error](err); ok && e.Status == http.StatusGone && w.id != "" {
				w.id, w.reset = "", true
				continue
			}
			if err != nil {
				yield(Event{}, err)
				return
			}
			goOn := w.read(response)
			_ = response.Body.Close()
			if !goOn {
				return
			}
			if time.Since(begun) > maxPause {
				failures = 0
			}
			if !sleep(ctx, pause(failures)) {
				yield(Event{}, &Error{Message: "watch: " + context.Cause(ctx).Error(), cause: context.Cause(ctx)})
				return
			}
		}
	}
}

// watch is a Watch through its connections.
type watch struct {
	id    string // of the last event; empty: none yet
	reset bool   // the next ID is where the watch goes on behind a gap
	yield func(Event, error) bool
}

// read hands on the events of one connection, and returns false if the consumer wants no more. An
// event counts once the empty line behind it has come: what is cut off before has no effect.
func (w *watch) read(response *http.Response) (goOn bool) {
	in := bufio.NewReader(response.Body)
	var id, name, data string
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return true
		}
		field, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case line != "\n":
			switch field {
			case "id":
				id = value
			case "event":
				name = value
			case "data":
				data = value
			}
			continue
		case id != "" && w.id == "" && w.reset || name == "reset":
			w.id, w.reset = id, false
			index, _ := indexOf(id)
			if !w.yield(Event{ID: id, Index: index, Reset: true}, nil) {
				return false
			}
		case name == "" && data != "":
			event, err := parseEvent(id, data)
			if err != nil {
				return true // the connection is not to be trusted; from the last ID again
			}
			w.id = id
			if !w.yield(event, nil) {
				return false
			}
		case id != "":
			w.id = id
		}
		if name == "end" || name == "unavailable" {
			return true
		}
		id, name, data = "", "", ""
	}
}

func parseEvent(id, data string) (Event, error) {
	var wire struct {
		Index   uint64
		Changes []wireItem
	}
	if err := json.Unmarshal([]byte(data), &wire); err != nil || id == "" {
		return Event{}, fmt.Errorf("event %q: %w", id, err)
	}
	event := Event{ID: id, Index: wire.Index}
	for _, w := range wire.Changes {
		change := Change{Key: w.key(), Removed: w.Op == "remove"}
		if !change.Removed {
			change.Value = w.value()
		}
		event.Changes = append(event.Changes, change)
	}
	return event, nil
}

// ListWatch follows the state of all keys with a prefix. The first event is a Reset whose Items are
// everything that there is; those behind it are the changes to that. Another Reset has new Items,
// in the place of all before. An error is the last that comes, as of Watch.
func (c *Client) ListWatch(ctx context.Context, prefix string) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for failures := 0; ; {
			first := Event{Reset: true}
			r := read("/list", url.Values{"prefix": {prefix}}, nil)
			r.stream, r.forever = true, true
			from, err := c.page(ctx, r, func(item Item) bool {
				first.Items = append(first.Items, item)
				return true
			})
			if _, refused := errors.AsType[*Error](err); refused {
				yield(Event{}, err)
				return
			}
			if err != nil { // it broke off
				if !sleep(ctx, pause(failures)) {
					yield(Event{}, &Error{Message: err.Error(), cause: context.Cause(ctx)})
					return
				}
				failures++
				continue
			}
			first.ID = from
			first.Index, _ = indexOf(from)
			if !yield(first, nil) {
				return
			}
			failures = 0
			for event, err := range c.Watch(ctx, prefix, From(from)) {
				if err == nil && event.Reset {
					break
				}
				if !yield(event, err) || err != nil {
					return
				}
			}
		}
	}
}
