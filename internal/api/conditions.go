package api

import (
	"net/http"
	"strconv"
	"strings"

	"raftkv/internal/command"
)

// errUnmarked is the Error for an ETag without a mark, in the header or member of that name.
func errUnmarked(name, tag string) error {
	return Errorf(http.StatusPreconditionFailed, `%s: "%s" has no mark of the history that it belongs to, `+
		`as ETags of older versions of raftkv: nothing was done; get the key again, and send the ETag that it has then`,
		name, tag)
}

// checkKeysOf returns an error for ETags in a condition of several keys: to which of them one
// belongs can't be said there.
func checkKeysOf(c *command.Command) error {
	if len(c.Pairs) < 2 || c.Options == nil {
		return nil
	}
	name := "If-Match"
	switch {
	case len(c.Match.Indexes) > 0:
	case len(c.NoneMatch.Indexes) > 0:
		name = "If-None-Match"
	default:
		return nil
	}
	return badRequest("%s: with %d keys it takes only *, as an ETag is of one key; "+
		"send a condition for each key to /txn", name, len(c.Pairs))
}

// maxETags bounds the ETags of one condition.
const maxETags = 100

// History is what indexes belong to: those of one cluster mean nothing in another, such as
// the one that a backup was restored into. So ETags and event IDs carry a mark of it, and one
// with another mark matches nothing.
type History struct {
	Mark string // never empty
	// Plain is for a cluster in which another node runs a program that knows no marks: none
	// are given out, and indexes without a mark are taken for this history's.
	Plain bool
}

// ID returns the index with the mark, such as 12-93e28155: an event ID.
func (h History) ID(index uint64) string {
	id := strconv.FormatUint(index, 10)
	if h.Plain {
		return id
	}
	return id + "-" + h.Mark
}

// ETag returns the ETag of a key that was last set by the entry at index.
func (h History) ETag(index uint64) string { return `"` + h.ID(index) + `"` }

// index returns the index of an ID. It is 0, which no key has, if the ID is another history's
// or none that ID returns. Unmarked is true for an index alone, in a history that has marks.
func (h History) index(id string) (index uint64, unmarked bool) {
	digits, mark, marked := strings.Cut(id, "-")
	index, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || strconv.FormatUint(index, 10) != digits || (marked && mark != h.Mark) {
		return 0, false
	}
	if !marked && !h.Plain {
		return 0, true
	}
	return index, false
}

// RejectPreconditions rejects headers that r's path does not honor: a client that sends a
// condition must not get an unconditional write.
func RejectPreconditions(r *http.Request) error {
	return rejectHeaders(r, "If-Match", "If-None-Match", "If-Unmodified-Since", "If-Modified-Since",
		"Idempotency-Key", "Content-Range")
}

func rejectHeaders(r *http.Request, names ...string) error {
	for _, name := range names {
		if len(r.Header.Values(name)) > 0 {
			return badRequest("%s: not supported by %s; nothing was done; leave it out", name, r.URL.Path)
		}
	}
	return nil
}

// options reads the conditions of RFC 9110, section 13, and the Idempotency-Key of
// the IETF's draft; nil when there are none.
func options(r *http.Request, h History) (*command.Options, error) {
	if err := rejectHeaders(r, "If-Unmodified-Since", "If-Modified-Since", "Content-Range"); err != nil {
		return nil, err
	}
	match, err := condition(r, h, "If-Match")
	if err != nil {
		return nil, err
	}
	noneMatch, err := condition(r, h, "If-None-Match")
	if err != nil {
		return nil, err
	}
	key, err := idempotencyKey(r)
	if err != nil {
		return nil, err
	}
	if key == "" && match.IsNone() && noneMatch.IsNone() {
		return nil, nil
	}
	return &command.Options{IdempotencyKey: key, Match: match, NoneMatch: noneMatch}, nil
}

// condition reads * or a list of ETags. A well-formed ETag that this program has not made, or
// of another history, becomes index 0, which no key has.
func condition(r *http.Request, h History, name string) (c command.Condition, err error) {
	lines := r.Header.Values(name)
	if len(lines) == 0 {
		return c, nil
	}
	text := strings.TrimSpace(strings.Join(lines, ","))
	if text == "*" {
		return command.Condition{Any: true}, nil
	}
	var plain error // for the first ETag without a mark
	for {
		text = strings.TrimLeft(text, " \t,") // a list may have empty elements
		if text == "" {
			break
		}
		if strings.HasPrefix(text, `W/"`) {
			return c, badRequest(`%s: weak ETags compare equal to nothing here; `+
				`send the ETag as /get gave it, such as "12"`, name)
		}
		tag, rest, ok := strings.Cut(strings.TrimPrefix(text, `"`), `"`)
		rest = strings.TrimLeft(rest, " \t")
		if !ok || text[0] != '"' || (rest != "" && rest[0] != ',') {
			return c, badRequest(`%s: want * or ETags in double quotes, such as "12", with commas between`, name)
		}
		index, unmarked := h.index(tag)
		if unmarked && plain == nil {
			plain = errUnmarked(name, tag)
		}
		if c.Indexes = append(c.Indexes, index); len(c.Indexes) > maxETags {
			return c, badRequest("%s: more than %d ETags; send fewer", name, maxETags)
		}
		text = rest
	}
	if c.IsNone() {
		return c, badRequest(`%s: empty; want * or an ETag such as "12", or leave it out`, name)
	}
	return c, plain
}

// idempotencyKey reads the header, a string in double quotes as the draft has it, or
// bare as many send it; empty when there is none.
func idempotencyKey(r *http.Request) (string, error) {
	const name = "Idempotency-Key"
	lines := r.Header.Values(name)
	if len(lines) == 0 {
		return "", nil
	}
	if len(lines) > 1 {
		return "", badRequest("%s: given %d times; give it once", name, len(lines))
	}
	key := strings.TrimSpace(lines[0])
	if quoted, ok := strings.CutPrefix(key, `"`); ok {
		if key, ok = unquote(quoted); !ok {
			return "", badRequest(`%s: want a string in double quotes, `+
				`in which only \" and \\ are escaped, and nothing after it`, name)
		}
	} else if strings.ContainsAny(key, " \",;\\") {
		return "", badRequest(`%s: put it in double quotes`, name)
	}
	if len(key) == 0 || len(key) > command.MaxIdempotencyKey {
		return "", badRequest("%s: %d bytes; want 1 to %d, a UUID for instance", name, len(key), command.MaxIdempotencyKey)
	}
	for _, b := range []byte(key) {
		if b < ' ' || b > '~' {
			return "", badRequest("%s: want printable ASCII, a UUID for instance", name)
		}
	}
	return key, nil
}

// unquote reads an sf-string of RFC 8941 from behind its first double quote to its
// end.
func unquote(text string) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '"':
			return b.String(), i == len(text)-1
		case '\\':
			if i++; i == len(text) || (text[i] != '"' && text[i] != '\\') {
				return "", false
			}
		}
		b.WriteByte(text[i])
	}
	return "", false
}

// ResultError returns why the state machine has not applied c, as result has it; nil if it
// has applied it.
func ResultError(c command.Command, result command.Result, h History) error {
	switch {
	case result.Reused:
		return Errorf(http.StatusUnprocessableEntity, "Idempotency-Key was already used for a different request; "+
			"nothing was applied; use a new key for each request")
	case result.LeaseGone(&c):
		return leaseGone(&c, result)
	case result.Failed == 0:
		return nil
	}
	header, has, advice := "If-None-Match", "has ETag "+h.ETag(result.Current), "get it to see what it is"
	if !c.Match.IsNone() && !c.Match.Holds(result.Current) {
		header, advice = "If-Match", "get it again, and send the ETag that it has then"
		if result.Current == 0 {
			has, advice = "is not there", "set it with If-None-Match: *, if it should be"
		}
	}
	return Errorf(http.StatusPreconditionFailed, "%s: key %s %s: nothing was done; %s",
		header, command.AppendQuoted(nil, c.Pairs[result.Failed-1].Key), has, advice)
}

// NotModified reports whether the client of a read has the version with this ETag already:
// status 304 will do. http.ServeContent does not do here: it answers 412 to POST, with an
// empty body, and costs a small read a tenth of its time.
func NotModified(r *http.Request, etag string) bool {
	for known := range strings.SplitSeq(strings.Join(r.Header.Values("If-None-Match"), ","), ",") {
		if known = strings.TrimSpace(known); known == "*" || strings.TrimPrefix(known, "W/") == etag {
			return true
		}
	}
	return false
}
