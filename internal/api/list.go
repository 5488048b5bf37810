package api

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"raftkv/internal/kv"
)

// ListRequest asks for keys in order. See WriteList.
type ListRequest struct {
	Prefix  string
	After   string // the keys behind this one in the order of the list; empty: from the first
	Until   string // the keys before this one in the order of their bytes; empty: all
	Reverse bool   // from the last key to the first
	Limit   int    // of the number of keys; 0: none
	Keys    bool   // no values
	Count   bool   // how many there are, in the place of the keys
	Stale   bool
	sized   bool // see needsLength
}

// List parses a ListRequest.
func List(r *http.Request) (q ListRequest, err error) {
	q.sized = needsLength(r)
	values, err := Parse(r, "prefix", "after", "until", "reverse", "limit", "values", "count", "consistency")
	if err != nil {
		return q, err
	}
	if q.Prefix, err = values.prefix(); err != nil {
		return q, err
	}
	if q.After, err = values.StringOr("after", ""); err != nil {
		return q, err
	}
	if q.Until, err = values.StringOr("until", ""); err != nil {
		return q, err
	}
	if values.Has("limit") {
		limit, err := values.Required("limit")
		if err != nil {
			return q, err
		}
		if q.Limit, err = strconv.Atoi(limit); err != nil || q.Limit < 1 {
			return q, badRequest("limit: want a number of keys, 1 or more; leave it out for all")
		}
	}
	withValues := true
	for _, flag := range []struct {
		name string
		set  *bool
	}{{"reverse", &q.Reverse}, {"count", &q.Count}, {"values", &withValues}} {
		if *flag.set, err = values.flag(flag.name, *flag.set); err != nil {
			return q, err
		}
	}
	q.Keys = !withValues
	q.Stale, err = values.stale()
	return q, err
}

// flag returns a parameter that is yes or no, and def if it is not given.
func (v Values) flag(name string, def bool) (bool, error) {
	if !v.Has(name) {
		return def, nil
	}
	text, err := v.Required(name)
	if err == nil && text != "yes" && text != "no" {
		err = badRequest("%s: want yes or no", name)
	}
	return text == "yes", err
}

// scan calls yield for the keys of view that q asks for, in its order and without its limit, until yield returns false.
func (q ListRequest) scan(view *kv.Store, yield func(key string, item kv.Item, lease kv.Lease) bool) {
	if !q.Reverse {
		view.AscendLeased(max(q.Prefix, q.After), func(key string, item kv.Item, lease kv.Lease) bool {
			switch {
			case !strings.HasPrefix(key, q.Prefix), q.Until != "" && key >= q.Until:
				return false
			case key <= q.After && q.After != "":
				return true
			}
			return yield(key, item, lease)
		})
		return
	}
	below := endOfPrefix(q.Prefix)
	for _, bound := range []string{q.Until, q.After} {
		if bound != "" && (below == "" || bound < below) {
			below = bound
		}
	}
	view.DescendLeased(below, func(key string, item kv.Item, lease kv.Lease) bool {
		return strings.HasPrefix(key, q.Prefix) && yield(key, item, lease)
	})
}

// endOfPrefix returns the first string behind all that begin with prefix; empty: there is none.
func endOfPrefix(prefix string) string {
	for last := len(prefix) - 1; last >= 0; last-- {
		if b := prefix[last]; b != 0xff {
			return prefix[:last] + string([]byte{b + 1})
		}
	}
	return ""
}

// lines writes items as lines of JSON. What a long one takes is counted while it is written.
type lines struct {
	out    *bufio.Writer
	json   *json.Encoder
	memory answerMemory
}

func newLines(to io.Writer, memory answerMemory) *lines {
	l := &lines{out: bufio.NewWriterSize(to, 32<<10), memory: memory}
	l.json = json.NewEncoder(l.out)
	l.json.SetEscapeHTML(false)
	return l
}

// write writes a line with that value, which is in it.
func (l *lines) write(line any, value string) error {
	if err := l.memory.hold(lineSize(value)); err != nil {
		return err
	}
	defer l.memory.release()
	return l.json.Encode(line)
}

// stream is an answer in pieces, of which nothing may have been sent yet.
type stream struct {
	io.Writer
	begun bool
}

func (s *stream) Write(p []byte) (int, error) {
	s.begun = true
	return s.Writer.Write(p)
}

// result returns err, which is an Error only if nothing was sent: then it can still be answered.
func (s *stream) result(err error) error {
	if _, ok := errors.AsType[Error](err); ok && s.begun {
		return errors.New(err.Error())
	}
	return err
}

// WriteItems writes keys of view, one JSON object a line, in the order given; one that is not there has "found":false.
// Its errors are as those of WriteList.
func WriteItems(w http.ResponseWriter, view *kv.Store, keys []string) error {
	w.Header().Set("Content-Type", "application/jsonl")
	to := &stream{Writer: DeadlineWriter(w)}
	out := newLines(to, memoryOf(w))
	for _, key := range keys {
		found, lease, ok := view.GetLeased(key)
		line := struct {
			item
			Found *bool `json:"found,omitempty"`
		}{item: item{Index: found.Index}}
		if line.setKey(key); ok {
			line.setValue(found.Value)
			line.setLease(lease)
		} else {
			line.Found = &ok
		}
		if err := out.write(line, found.Value); err != nil {
			return to.result(err)
		}
	}
	return out.out.Flush()
}

// WriteList writes the keys of view that q asks for, one JSON object a line, and in a header whether the limit has left
// some out. If view is a Clone, no other reader or writer of the store waits for it. With an Error, nothing was
// answered; with any other, the beginning was, and only that the connection breaks off keeps the client from taking it
// for all.
func WriteList(w http.ResponseWriter, view *kv.Store, q ListRequest, h History) error {
	index, _ := view.Applied()
	SetAppliedIndexHeader(w, index)
	w.Header().Set("Raftkv-Watch-From", h.ID(index))
	w.Header().Set("Content-Type", "application/jsonl")
	disableProxyBuffering(w)
	write := func(to io.Writer) error { return q.write(newLines(to, memoryOf(w)), view) }
	switch {
	case q.Count:
		n := 0
		q.scan(view, func(string, kv.Item, kv.Lease) bool {
			n++
			return true
		})
		write = func(to io.Writer) error {
			_, err := fmt.Fprintf(to, "{\"count\":%d}\n", n)
			return err
		}
	case q.Limit > 0:
		n := 0
		q.scan(view, func(string, kv.Item, kv.Lease) bool {
			n++
			return n <= q.Limit
		})
		if n > q.Limit {
			w.Header().Set("Raftkv-More", "yes")
		}
	}
	if q.sized {
		setContentLength(w, write)
	}
	to := &stream{Writer: DeadlineWriter(w)}
	return to.result(write(to))
}

func (q ListRequest) write(to *lines, view *kv.Store) error {
	var err error
	n := 0
	q.scan(view, func(key string, found kv.Item, lease kv.Lease) bool {
		line := item{Index: found.Index}
		line.setKey(key)
		if !q.Keys {
			line.setValue(found.Value)
		}
		line.setLease(lease)
		value := found.Value
		if q.Keys {
			value = ""
		}
		err = to.write(line, value)
		n++
		return err == nil && n != q.Limit
	})
	if err != nil {
		return err
	}
	return to.out.Flush()
}
