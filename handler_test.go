package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"raftkv/internal/api"
	"raftkv/internal/connlimit"
	"raftkv/internal/kv"
	"raftkv/internal/node"
	"raftkv/internal/testkit"
)

// startOne starts a cluster of one, which answers to the name KV.Example too.
func startOne(t testing.TB) *service {
	t.Helper()
	s := startNode(t, "n1", t.TempDir(), func(c *config) {
		c.electionTimeout = 100 * time.Millisecond
		c.httpNames = []string{"KV.Example"}
	})
	leads(t, s)
	return s
}

// exchange sends a request and takes a redirect for an answer.
func exchange(t testing.TB, r *http.Request) answer {
	t.Helper()
	a, err := send(direct, r)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// checkUnchanged calls do, and checks that it adds nothing to the log of s and
// changes nothing of its data.
func checkUnchanged(t testing.TB, s *service, do func()) {
	t.Helper()
	log, data := s.node.Info().LastIndex, items(s.machine.Store.Clone())
	do()
	if got := s.node.Info().LastIndex; got != log {
		t.Errorf("the log went from %d to %d, want no new entry", log, got)
	}
	if got := items(s.machine.Store.Clone()); !maps.Equal(got, data) {
		t.Errorf("the data went from %.200v to %.200v, want no change", data, got)
	}
}

const mebi = 1 << 20

// chunked is a body whose length is not known beforehand: it is sent in chunks.
type chunked struct{ io.Reader }

// unread is a body that must not be sent.
type unread struct{ t testing.TB }

func (u unread) Read([]byte) (int, error) {
	u.t.Error("the body was asked for")
	return 0, io.EOF
}

func (unread) Close() error { return nil }

// TestRefusedRequests is what a client may do wrong. Each answer is one line that
// names what is wrong and what would be right, and each leaves the log as it was.
func TestRefusedRequests(t *testing.T) {
	s := startOne(t)
	set(t, s, "k", "v")
	longKey := strings.Repeat("k", 1025)
	form := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
	only := func(methods string) http.Header { return http.Header{"Allow": {methods}} }
	for _, tt := range []struct {
		name, method, target string
		body                 string
		header               http.Header // of the request
		status               int
		says                 string
		answers              http.Header // in the answer, beside others
	}{
		{name: "set: no key", method: "GET", target: "/set", body: "", header: nil, status: 400, says: "key: missing",
			answers: nil},
		{name: "set: value alone", method: "GET", target: "/set?value=1", body: "", header: nil, status: 400,
			says: "key: missing", answers: nil},
		{name: "set: empty key", method: "GET", target: "/set?key=&value=1", body: "", header: nil, status: 400,
			says: "key: empty; a key has 1 to 1024 bytes", answers: nil},
		{name: "set: one of several keys empty", method: "GET", target: "/set?key=a&value=1&key=&value=2", body: "",
			header: nil, status: 400, says: "key: empty", answers: nil},
		{name: "set: long key", method: "GET", target: "/set?value=1&key=" + longKey, body: "", header: nil, status: 400,
			says: "key: 1025 bytes; a key has 1 to 1024 bytes", answers: nil},
		{name: "set: long key of escapes", method: "GET", target: "/set?value=1&key=" + strings.Repeat("%00", 1025),
			body: "", header: nil, status: 400, says: "1024", answers: nil},
		{name: "set: key without value", method: "GET", target: "/set?key=a", body: "", header: nil, status: 400,
			says: "value: 0 given for 1 of key", answers: nil},
		{name: "set: second key without value", method: "GET", target: "/set?key=a&value=1&key=b", body: "", header: nil,
			status: 400, says: "value: 1 given for 2 of key", answers: nil},
		{name: "set: second value without key", method: "GET", target: "/set?key=a&value=1&value=2", body: "", header: nil,
			status: 400, says: "value: 2 given for 1 of key", answers: nil},
		{name: "set: key twice", method: "GET", target: "/set?key=a&value=1&key=a&value=2", body: "", header: nil,
			status: 400, says: `key: "a" is given twice`, answers: nil},
		{name: "set: unknown parameter", method: "GET", target: "/set?key=a&value=1&valu=2", body: "", header: nil,
			status: 400, says: `"valu": unknown parameter; /set takes key, value`, answers: nil},
		{name: "set: other case", method: "GET", target: "/set?Key=a&value=1", body: "", header: nil, status: 400,
			says: `"Key": unknown parameter`, answers: nil},
		{name: "set: hostile parameter", method: "GET", target: "/set?key=a&value=1&x%0Ay%1B=2", body: "", header: nil,
			status: 400, says: `"x\ny\x1b": unknown parameter`, answers: nil},
		{name: "set: broken escape in the query", method: "GET", target: "/set?key=%zz&value=1", body: "", header: nil,
			status: 400, says: "query: ", answers: nil},
		{name: "set: escape cut off", method: "GET", target: "/set?key=a&value=%4", body: "", header: nil, status: 400,
			says: "percent-encode", answers: nil},
		{name: "set: semicolon", method: "GET", target: "/set?key=a;value=1", body: "", header: nil, status: 400,
			says: "query: ", answers: nil},
		{name: "set: large value", method: "GET", target: "/set?key=a&value=" + strings.Repeat("v", mebi+1), body: "",
			header: nil, status: 413, says: "value: larger than 1048576 bytes", answers: nil},
		{name: "set: large query", method: "GET", target: "/set?key=a&value=" + strings.Repeat("v", 2*mebi), body: "",
			header: nil, status: 413, says: "query: larger than 2097152 bytes", answers: nil},
		{name: "set: large value in a form", method: "POST", target: "/set", body: "key=a&value=" +
			strings.Repeat("v", mebi+1), header: form, status: 413, says: "value: larger than 1048576 bytes", answers: nil},
		{name: "set: large form", method: "POST", target: "/set", body: "key=a&value=" + strings.Repeat("v", 2*mebi),
			header: form, status: 413, says: "form: larger than 2097152 bytes", answers: nil},
		{name: "set: large body", method: "PUT", target: "/set?key=a", body: strings.Repeat("v", mebi+1), header: nil,
			status: 413, says: "value: larger than 1048576 bytes", answers: nil},
		{name: "set: huge body", method: "PUT", target: "/set?key=a", body: strings.Repeat("v", 2*mebi+1), header: nil,
			status: 413, says: "value: larger than 1048576 bytes", answers: nil},
		{name: "set: large form of several", method: "POST", target: "/set?key=a", body: "value=1&key=b&value=" +
			strings.Repeat("v", mebi+1), header: form, status: 413, says: "value: larger", answers: nil},
		{name: "set: PUT with a value", method: "PUT", target: "/set?key=a&value=1", body: "2", header: nil, status: 400,
			says: "value: with PUT the body is the value", answers: nil},
		{name: "set: PUT without a key", method: "PUT", target: "/set", body: "2", header: nil, status: 400,
			says: "key: missing", answers: nil},
		{name: "set: PUT of an empty key", method: "PUT", target: "/set?key=", body: "2", header: nil, status: 400,
			says: "key: empty", answers: nil},
		{name: "set: PUT of a long key", method: "PUT", target: "/set?key=" + longKey, body: "2", header: nil, status: 400,
			says: "1024", answers: nil},
		{name: "set: PUT of two keys", method: "PUT", target: "/set?key=a&key=b", body: "2", header: nil, status: 400,
			says: "key: 2 given; PUT takes one key", answers: nil},
		{name: "set: broken escape in the form", method: "POST", target: "/set", body: "key=a&value=%zz", header: form,
			status: 400, says: "form: ", answers: nil},
		{name: "set: JSON", method: "POST", target: "/set", body: `{"key":"a"}`,
			header: http.Header{"Content-Type": {"application/json"}}, status: 400,
			says: `Content-Type: "application/json"; POST takes application/x-www-form-urlencoded`, answers: nil},
		{name: "set: POST of a value alone", method: "POST", target: "/set?key=a", body: "1",
			header: http.Header{"Content-Type": {"text/plain"}}, status: 400, says: "Content-Type", answers: nil},
		{name: "set: no type", method: "POST", target: "/set?key=a", body: "1", header: http.Header{"Content-Type": {""}},
			status: 400, says: "Content-Type", answers: nil},
		{name: "set: key in query and form", method: "POST", target: "/set?key=a", body: "key=a&value=1&value=2",
			header: form, status: 400, says: `key: "a" is given twice`, answers: nil},
		{name: "set: unknown in the form", method: "POST", target: "/set?key=a", body: "value=1&color=5", header: form,
			status: 400, says: `"color": unknown parameter`, answers: nil},
		{name: "set: HEAD", method: "HEAD", target: "/set?key=a&value=1", body: "", header: nil, status: 405, says: "",
			answers: only("GET, POST, PUT")},
		{name: "set: DELETE", method: "DELETE", target: "/set?key=k", body: "", header: nil, status: 405,
			says: "method DELETE: /set takes GET, POST, PUT", answers: only("GET, POST, PUT")},
		{name: "set: PATCH", method: "PATCH", target: "/set?key=a&value=1", body: "1", header: nil, status: 405,
			says: "GET, POST, PUT", answers: only("GET, POST, PUT")},
		{name: "set: OPTIONS", method: "OPTIONS", target: "/set?key=a&value=1", body: "", header: nil, status: 405,
			says: "GET, POST, PUT", answers: only("GET, POST, PUT")},

		{name: "get: no key", method: "GET", target: "/get", body: "", header: nil, status: 400, says: "key: missing",
			answers: nil},
		{name: "get: empty key", method: "GET", target: "/get?key=", body: "", header: nil, status: 400,
			says: "key: empty; a key has 1 to 1024 bytes", answers: nil},
		{name: "get: long key", method: "GET", target: "/get?key=" + longKey, body: "", header: nil, status: 400,
			says: "key: 1025 bytes", answers: nil},
		{name: "get: two keys", method: "GET", target: "/get?key=k&key=k", body: "", header: nil, status: 400,
			says: `key: "k" is given twice in one request; give it once`, answers: nil},
		{name: "get: unknown parameter", method: "GET", target: "/get?key=k&value=1", body: "", header: nil, status: 400,
			says: `"value": unknown parameter; /get takes key`, answers: nil},
		{name: "get: broken escape", method: "GET", target: "/get?key=%", body: "", header: nil, status: 400,
			says: "query: ", answers: nil},
		{name: "get: PUT", method: "PUT", target: "/get?key=k", body: "1", header: nil, status: 405,
			says: "method PUT: /get takes GET, HEAD, POST", answers: only("GET, HEAD, POST")},
		{name: "get: DELETE", method: "DELETE", target: "/get?key=k", body: "", header: nil, status: 405,
			says: "method DELETE", answers: only("GET, HEAD, POST")},
		{name: "get: not found", method: "GET", target: "/get?key=none", body: "", header: nil, status: 404,
			says: `key "none": not found`, answers: nil},
		{name: "get: hostile key not found", method: "GET", target: "/get?key=a%0Ab%1B%FF", body: "", header: nil,
			status: 404, says: `key "a\nb\x1b\xff": not found`, answers: nil},
		{name: "get: POST not found", method: "POST", target: "/get", body: "key=none", header: form, status: 404,
			says: `key "none": not found`, answers: nil},
		{name: "get: HEAD not found", method: "HEAD", target: "/get?key=none", body: "", header: nil, status: 404,
			says: "", answers: nil},

		{name: "remove: no key", method: "GET", target: "/remove", body: "", header: nil, status: 400,
			says: "key: missing", answers: nil},
		{name: "remove: empty key", method: "GET", target: "/remove?key=", body: "", header: nil, status: 400,
			says: "key: empty", answers: nil},
		{name: "remove: long key", method: "GET", target: "/remove?key=" + longKey, body: "", header: nil, status: 400,
			says: "1024", answers: nil},
		{name: "remove: key twice", method: "GET", target: "/remove?key=k&key=k", body: "", header: nil, status: 400,
			says: `key: "k" is given twice`, answers: nil},
		{name: "remove: unknown parameter", method: "GET", target: "/remove?key=k&vlaue=1", body: "", header: nil,
			status: 400, says: `"vlaue": unknown parameter; /remove takes key, prefix`, answers: nil},
		{name: "remove: large form", method: "POST", target: "/remove", body: "key=k" + strings.Repeat("&", 2*mebi),
			header: form, status: 413, says: "form: larger than 2097152 bytes", answers: nil},
		{name: "remove: HEAD", method: "HEAD", target: "/remove?key=k", body: "", header: nil, status: 405, says: "",
			answers: only("GET, POST")},
		{name: "remove: PUT", method: "PUT", target: "/remove?key=k", body: "1", header: nil, status: 405,
			says: "method PUT: /remove takes GET, POST", answers: only("GET, POST")},
		{name: "remove: DELETE", method: "DELETE", target: "/remove?key=k", body: "", header: nil, status: 405,
			says: "method DELETE", answers: only("GET, POST")},

		{name: "remove: empty prefix", method: "GET", target: "/remove?prefix=", body: "", header: nil, status: 400,
			says: "prefix: empty, which would remove every key", answers: nil},
		{name: "remove: long prefix", method: "GET", target: "/remove?prefix=" + longKey, body: "", header: nil,
			status: 400, says: "prefix: 1025 bytes", answers: nil},
		{name: "remove: two prefixes", method: "GET", target: "/remove?prefix=k&prefix=l", body: "", header: nil,
			status: 400, says: "prefix: given 2 times", answers: nil},
		{name: "remove: key and prefix", method: "GET", target: "/remove?prefix=k&key=k", body: "", header: nil,
			status: 400, says: "prefix: given together with key", answers: nil},
		{name: "remove: prefix with a condition", method: "GET", target: "/remove?prefix=k", body: "",
			header: http.Header{"If-Match": {"*"}}, status: 400, says: "prefix: with If-Match", answers: nil},

		{name: "condition: weak ETag", method: "GET", target: "/set?key=a&value=1", body: "",
			header: http.Header{"If-Match": {`W/"12"`}}, status: 400, says: "If-Match: weak ETags compare equal to nothing",
			answers: nil},
		{name: "condition: weak in a list", method: "GET", target: "/remove?key=a", body: "",
			header: http.Header{"If-None-Match": {`"1", W/"12"`}}, status: 400, says: "If-None-Match: weak", answers: nil},
		{name: "condition: no quotes", method: "GET", target: "/set?key=a&value=1", body: "",
			header: http.Header{"If-Match": {"12"}}, status: 400,
			says: `If-Match: want * or ETags in double quotes, such as "12"`, answers: nil},
		{name: "condition: open quotes", method: "GET", target: "/set?key=a&value=1", body: "",
			header: http.Header{"If-Match": {`"12`}}, status: 400, says: "If-Match: want", answers: nil},
		{name: "condition: no comma", method: "GET", target: "/set?key=a&value=1", body: "",
			header: http.Header{"If-Match": {`"12" "13"`}}, status: 400, says: "If-Match: want", answers: nil},
		{name: "condition: star in a list", method: "GET", target: "/set?key=a&value=1", body: "",
			header: http.Header{"If-Match": {`"12", *`}}, status: 400, says: "If-Match: want", answers: nil},
		{name: "condition: empty", method: "GET", target: "/set?key=a&value=1", body: "",
			header: http.Header{"If-Match": {""}}, status: 400, says: "If-Match: empty", answers: nil},
		{name: "condition: commas", method: "GET", target: "/set?key=a&value=1", body: "",
			header: http.Header{"If-None-Match": {" , ,"}}, status: 400, says: "If-None-Match: empty", answers: nil},
		{name: "condition: many", method: "GET", target: "/set?key=a&value=1", body: "",
			header: http.Header{"If-Match": {strings.Repeat(`"1",`, 101)}}, status: 400,
			says: "If-Match: more than 100 ETags", answers: nil},
		{name: "condition: date", method: "GET", target: "/set?key=a&value=1", body: "",
			header: http.Header{"If-Unmodified-Since": {"Mon, 23 Nov 2026 14:17:46 GMT"}}, status: 400,
			says: "If-Unmodified-Since: not supported by /set", answers: nil},
		{name: "condition: range", method: "PUT", target: "/set?key=a", body: "1",
			header: http.Header{"Content-Range": {"bytes 0-0/2"}}, status: 400, says: "Content-Range: not supported",
			answers: nil},
		{name: "Idempotency-Key: empty", method: "GET", target: "/set?key=a&value=1", body: "",
			header: http.Header{"Idempotency-Key": {""}}, status: 400, says: "Idempotency-Key: 0 bytes; want 1 to 255",
			answers: nil},
		{name: "Idempotency-Key: empty string", method: "GET", target: "/set?key=a&value=1", body: "",
			header: http.Header{"Idempotency-Key": {`""`}}, status: 400, says: "Idempotency-Key: 0 bytes", answers: nil},
		{name: "Idempotency-Key: long", method: "GET", target: "/set?key=a&value=1", body: "",
			header: http.Header{"Idempotency-Key": {strings.Repeat("k", 256)}}, status: 400,
			says: "Idempotency-Key: 256 bytes; want 1 to 255", answers: nil},
		{name: "Idempotency-Key: two", method: "GET", target: "/set?key=a&value=1", body: "",
			header: http.Header{"Idempotency-Key": {"a", "b"}}, status: 400, says: "Idempotency-Key: given 2 times",
			answers: nil},
		{name: "Idempotency-Key: a list", method: "GET", target: "/set?key=a&value=1", body: "",
			header: http.Header{"Idempotency-Key": {"a,b"}}, status: 400, says: "Idempotency-Key: put it in double quotes",
			answers: nil},
		{name: "Idempotency-Key: open", method: "GET", target: "/set?key=a&value=1", body: "",
			header: http.Header{"Idempotency-Key": {`"a`}}, status: 400, says: "Idempotency-Key: want a string in double " +
				"quotes", answers: nil},
		{name: "Idempotency-Key: parameters", method: "GET", target: "/set?key=a&value=1", body: "",
			header: http.Header{"Idempotency-Key": {`"a";b`}}, status: 400, says: "Idempotency-Key: want a string",
			answers: nil},
		{name: "Idempotency-Key: not ASCII", method: "GET", target: "/remove?key=a", body: "",
			header: http.Header{"Idempotency-Key": {"schön"}}, status: 400, says: "Idempotency-Key: want printable ASCII",
			answers: nil},

		{name: "list: limit 0", method: "GET", target: "/list?limit=0", body: "", header: nil, status: 400,
			says: "limit: want a number of keys, 1 or more", answers: nil},
		{name: "list: limit in words", method: "GET", target: "/list?limit=ten", body: "", header: nil, status: 400,
			says: "limit: want", answers: nil},
		{name: "list: two limits", method: "GET", target: "/list?limit=1&limit=2", body: "", header: nil, status: 400,
			says: "limit: given 2 times", answers: nil},
		{name: "list: long prefix", method: "GET", target: "/list?prefix=" + longKey, body: "", header: nil, status: 400,
			says: "prefix: 1025 bytes; a key has at most 1024", answers: nil},
		{name: "list: key", method: "GET", target: "/list?key=a", body: "", header: nil, status: 400,
			says:    `"key": unknown parameter; /list takes prefix, after, until, reverse, limit, values, count, consistency`,
			answers: nil},
		{name: "list: consistency", method: "GET", target: "/list?consistency=eventual", body: "", header: nil,
			status: 400, says: "consistency: want linearizable (the default) or stale", answers: nil},
		{name: "watch: from in words", method: "GET", target: "/watch?from=now", body: "", header: nil, status: 400,
			says: "from: want an index", answers: nil},
		{name: "watch: from nothing", method: "GET", target: "/watch?from=", body: "", header: nil, status: 400,
			says: "from: want an index", answers: nil},
		{name: "watch: event ID in words", method: "GET", target: "/watch", body: "",
			header: http.Header{"Last-Event-Id": {"x"}}, status: 400, says: "Last-Event-ID: want an index", answers: nil},
		{name: "watch: long prefix", method: "GET", target: "/watch?prefix=" + longKey, body: "", header: nil, status: 400,
			says: "prefix: 1025 bytes", answers: nil},
		{name: "watch: from the future", method: "GET", target: "/watch?from=1000000", body: "", header: nil, status: 410,
			says: "from: 1000000 is not reached yet", answers: nil},
		{name: "watch: from the future, in words", method: "GET", target: "/watch?from=1000000&consistency=linearizable",
			body: "", header: nil, status: 410, says: "from: 1000000 is not reached yet", answers: nil},
		{name: "snapshot: parameter", method: "GET", target: "/snapshot?key=a", body: "", header: nil, status: 400,
			says: `"key": unknown parameter; /snapshot takes consistency`, answers: nil},
		{name: "restore: GET", method: "GET", target: "/restore", body: "", header: nil, status: 405,
			says: "method GET: /restore takes PUT", answers: only("PUT")},
		{name: "restore: nothing", method: "PUT", target: "/restore", body: "", header: nil, status: 400,
			says: "body: read snapshot: snapshot is damaged: it ends in header: nothing was changed", answers: nil},
		{name: "restore: text", method: "PUT", target: "/restore", body: "not a backup", header: nil, status: 400,
			says: "nothing was changed; send what /snapshot gave", answers: nil},
		{name: "restore: condition", method: "PUT", target: "/restore", body: "", header: http.Header{"If-Match": {`"1"`}},
			status: 400, says: "If-Match: not supported by /restore", answers: nil},

		{name: "join: nothing", method: "GET", target: "/join", body: "", header: nil, status: 400,
			says: "nodeId: missing", answers: nil},
		{name: "join: no port", method: "GET", target: "/join?nodeId=n2", body: "", header: nil, status: 400,
			says: "raftPort: missing", answers: nil},
		{name: "join: no ID", method: "GET", target: "/join?raftPort=9001", body: "", header: nil, status: 400,
			says: "nodeId: missing", answers: nil},
		{name: "join: empty ID", method: "GET", target: "/join?nodeId=&raftPort=9001", body: "", header: nil, status: 400,
			says: "nodeId: want 1 to 64 letters", answers: nil},
		{name: "join: hostile ID", method: "GET", target: "/join?nodeId=n2%0AINFO&raftPort=9001", body: "", header: nil,
			status: 400, says: "nodeId: want", answers: nil},
		{name: "join: long ID", method: "GET", target: "/join?nodeId=" + strings.Repeat("n", 65) + "&raftPort=9001",
			body: "", header: nil, status: 400, says: "nodeId: want 1 to 64", answers: nil},
		{name: "join: two IDs", method: "GET", target: "/join?nodeId=n2&nodeId=n3&raftPort=9001", body: "", header: nil,
			status: 400, says: "nodeId: given 2 times", answers: nil},
		{name: "join: port 0", method: "GET", target: "/join?nodeId=n2&raftPort=0", body: "", header: nil, status: 400,
			says: "raftPort: want a port, 1 to 65535", answers: nil},
		{name: "join: port 65536", method: "GET", target: "/join?nodeId=n2&raftPort=65536", body: "", header: nil,
			status: 400, says: "raftPort: want", answers: nil},
		{name: "join: port with a host", method: "GET", target: "/join?nodeId=n2&raftPort=127.0.0.1:9001", body: "",
			header: nil, status: 400, says: "raftPort: want", answers: nil},
		{name: "join: unknown parameter", method: "GET", target: "/join?nodeId=n2&raftport=9001", body: "", header: nil,
			status: 400, says: `"raftport": unknown parameter; /join takes nodeId, raftPort`, answers: nil},
		{name: "join: PUT", method: "PUT", target: "/join?nodeId=n2&raftPort=9001", body: "", header: nil, status: 405,
			says: "method PUT", answers: only("GET, POST")},

		{name: "status: unknown parameter", method: "GET", target: "/status?key=1", body: "", header: nil, status: 400,
			says: `"key": unknown parameter`, answers: nil},
		{name: "status: DELETE", method: "DELETE", target: "/status", body: "", header: nil, status: 405,
			says: "method DELETE", answers: only("GET, HEAD, POST")},
		{name: "no such path", method: "GET", target: "/none", body: "", header: nil, status: 404,
			says: "/set /get /remove /txn /list /watch /join /leave /transfer /status /snapshot /restore", answers: nil},
		{name: "no such path, hostile", method: "GET", target: "/a%0Ab", body: "", header: nil, status: 404,
			says: "no such path", answers: nil},
		{name: "path with a slash", method: "GET", target: "/set/?key=a&value=1", body: "", header: nil, status: 404,
			says: "no such path", answers: nil},
		{name: "path with two slashes", method: "PUT", target: "//set?key=a", body: "1", header: nil, status: 404,
			says: "no such path; there are /set", answers: nil},
		{name: "path with a dot", method: "GET", target: "/./set?key=a&value=1", body: "", header: nil, status: 404,
			says: "no such path", answers: nil},
		{name: "path in capitals", method: "GET", target: "/SET?key=a&value=1", body: "", header: nil, status: 404,
			says: "no such path", answers: nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRequest(t, tt.method, s, tt.target, tt.body)
			maps.Copy(r.Header, tt.header)
			if len(tt.body) > 64<<10 {
				r.Header.Set("Expect", "100-continue") // as curl does: what is refused need not be sent
			}
			checkUnchanged(t, s, func() {
				a := exchange(t, r)
				if a.status != tt.status {
					t.Errorf("got %d, want %d", a.status, tt.status)
				}
				if err := oneLineNaming(a, tt.says); err != nil && tt.method != http.MethodHead {
					t.Error(err)
				}
				for name := range tt.answers {
					if got, want := a.header.Get(name), tt.answers.Get(name); got != want {
						t.Errorf("%s: got %q, want %q", name, got, want)
					}
				}
			})
		})
	}

	t.Run("large body unsent", func(t *testing.T) {
		r := newRequest(t, http.MethodPut, s, "/set?key=a", "")
		r.Body, r.ContentLength, r.GetBody = unread{t}, mebi+1, nil
		r.Header.Set("Expect", "100-continue")
		if a := exchange(t, r); a.status != http.StatusRequestEntityTooLarge {
			t.Errorf("got %d %q, want 413", a.status, a.body)
		}
	})
	t.Run("chunks", func(t *testing.T) {
		r := newRequest(t, http.MethodPut, s, "/set?key=a", "")
		r.Body, r.ContentLength, r.GetBody = io.NopCloser(chunked{strings.NewReader(strings.Repeat("v", mebi+1))}), -1, nil
		checkUnchanged(t, s, func() {
			a := exchange(t, r)
			if err := oneLineNaming(a, "value: larger than 1048576 bytes"); err != nil ||
				a.status != http.StatusRequestEntityTooLarge {
				t.Errorf("got %d (%v), want 413", a.status, err)
			}
		})
	})
	checkReplicas(t, s)
}

// raw sends what may not be HTTP, ends the sending side, and reads the answer.
func raw(t testing.TB, s *service, text string) answer {
	t.Helper()
	c, err := net.Dial("tcp", s.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{response.StatusCode, response.Header, string(body)}
}

// TestBrokenRequests is what no HTTP library sends: above all, what was cut off on
// the way is not taken for whole.
func TestBrokenRequests(t *testing.T) {
	s := startOne(t)
	for _, tt := range []struct {
		name, text string
		status     int
	}{
		{name: "PUT cut off", text: "PUT /set?key=a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nabc",
			status: 400},
		{name: "PUT of chunks cut off", text: "PUT /set?key=a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: " +
			"chunked\r\n\r\n3\r\nabc\r\n", status: 400},
		{name: "PUT of broken chunks", text: "PUT /set?key=a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: " +
			"chunked\r\n\r\nabc\r\n", status: 400},
		{name: "form cut off", text: "POST /set HTTP/1.1\r\nHost: localhost\r\nContent-Type: " +
			"application/x-www-form-urlencoded\r\nContent-Length: 20\r\n\r\nkey=a&value=1", status: 400},
		{name: "no Host", text: "GET /set?key=a&value=1 HTTP/1.1\r\n\r\n", status: 400},
		{name: "two Hosts", text: "GET /set?key=a&value=1 HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
			status: 400},
		{name: "no Host, HTTP/1.0, a web page", text: "GET /set?key=a&value=1 HTTP/1.0\r\n" +
			"Origin: http://evil.example\r\n\r\n", status: 403},
		{name: "foreign Host in the request line", text: "GET http://evil.example/set?key=a&value=1 HTTP/1.1\r\nHost: " +
			"localhost\r\n\r\n", status: 403},
		{name: "space in the query", text: "GET /set?key=a b&value=1 HTTP/1.1\r\nHost: localhost\r\n\r\n", status: 400},
		{name: "unknown method", text: "STEAL /set?key=a&value=1 HTTP/1.1\r\nHost: localhost\r\n\r\n", status: 405},
		{name: "connect", text: "CONNECT /set?key=a&value=1 HTTP/1.1\r\nHost: localhost\r\n\r\n", status: 405},
	} {
		t.Run(tt.name, func(t *testing.T) {
			checkUnchanged(t, s, func() {
				if a := raw(t, s, tt.text); a.status != tt.status {
					t.Errorf("got %d %q, want %d", a.status, a.body, tt.status)
				}
			})
		})
	}
	checkReplicas(t, s)
}

func TestAcceptedRequests(t *testing.T) {
	s := startOne(t)
	var every [256]byte
	for i := range every {
		every[i] = byte(i)
	}
	for _, tt := range []struct{ name, key, value string }{
		{name: "text", key: "k", value: "value"},
		{name: "empty value", key: "empty", value: ""},
		{name: "all bytes", key: string(every[:]), value: string(every[:])},
		{name: "query syntax", key: "a&b=c+d %;#?/", value: "&=+% ;#?/\r\n"},
		{name: "key that looks like a path", key: "../../etc//passwd", value: "x"},
		{name: "longest key", key: strings.Repeat("k", 1024), value: "x"},
		{name: "longest value", key: "large", value: strings.Repeat("v", mebi)},
	} {
		query := "/set?" + pair(tt.key, tt.value)
		keyOnly := "?" + url.Values{"key": {tt.key}}.Encode()
		inChunks := newRequest(t, http.MethodPut, s, "/set"+keyOnly, "")
		inChunks.Body, inChunks.ContentLength, inChunks.GetBody = io.NopCloser(chunked{strings.NewReader(tt.value)}), -1, nil
		emptyPost := newRequest(t, http.MethodPost, s, query, "")
		emptyPost.Header.Del("Content-Type")
		withCharset := newRequest(t, http.MethodPost, s, "/set", pair(tt.key, tt.value))
		withCharset.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=UTF-8")
		for _, way := range []struct {
			name    string
			request *http.Request
		}{
			{name: "GET", request: newRequest(t, http.MethodGet, s, query, "")},
			{name: "POST of a form", request: newRequest(t, http.MethodPost, s, "/set", pair(tt.key, tt.value))},
			{name: "POST of a form with a charset", request: withCharset},
			{name: "POST of a query", request: emptyPost},
			{name: "POST with the key in the query", request: newRequest(t, http.MethodPost, s, "/set"+keyOnly,
				url.Values{"value": {tt.value}}.Encode())},
			{name: "PUT", request: newRequest(t, http.MethodPut, s, "/set"+keyOnly, tt.value)},
			{name: "PUT in chunks", request: inChunks},
		} {
			t.Run(tt.name+", "+way.name, func(t *testing.T) {
				if len(way.request.URL.RawQuery) > 2*mebi {
					t.Skip("too large for a query")
				}
				a := exchange(t, way.request)
				index, err := indexOf(a)
				if err != nil || a.status != http.StatusOK {
					t.Fatalf("set: got %d %q, want 200 and OK index=N", a.status, a.body)
				}
				if want, _ := s.machine.Applied(); index != want {
					t.Errorf("set: got index %d, want that of the last command, %d", index, want)
				}
				mark, _ := s.node.History()
				etag := fmt.Sprintf(`"%d-%s"`, index, mark)
				if got := a.header.Get("ETag"); got != etag {
					t.Errorf("set: ETag: got %s, want %s", got, etag)
				}

				another := set(t, s, "another", "1")
				for _, r := range []*http.Request{
					newRequest(t, http.MethodGet, s, "/get"+keyOnly, ""),
					newRequest(t, http.MethodPost, s, "/get", keyOnly[1:]),
					newRequest(t, http.MethodHead, s, "/get"+keyOnly, ""),
				} {
					a, want := exchange(t, r), tt.value
					if got := a.header.Get("Content-Length"); got != strconv.Itoa(len(want)) {
						t.Errorf("%s /get: Content-Length: got %s, want %d", r.Method, got, len(want))
					}
					if r.Method == http.MethodHead {
						want = ""
					}
					if a.status != http.StatusOK || a.body != want {
						t.Errorf("%s /get: got %d %.100q, want 200 %.100q", r.Method, a.status, a.body, want)
					}
					if got := a.header.Get("ETag"); got != etag {
						t.Errorf("%s /get: ETag: got %s, want that of the set, %s", r.Method, got, etag)
					}
					if got := a.header.Get("X-Content-Type-Options"); got != "nosniff" {
						t.Errorf("%s /get: X-Content-Type-Options: got %q, want nosniff", r.Method, got)
					}
				}
				if got := ask(t, s, "/remove"+keyOnly); got.status != http.StatusOK ||
					got.body != fmt.Sprintf("OK index=%d removed=1\n", another+1) {
					t.Errorf("remove: got %d %q, want OK index=%d removed=1", got.status, got.body, another+1)
				}
				if got := ask(t, s, "/get"+keyOnly); got.status != http.StatusNotFound {
					t.Errorf("get after the remove: got %d, want 404", got.status)
				}
			})
		}
	}
	checkReplicas(t, s)
}

func TestSeveralKeysInOneEntry(t *testing.T) {
	s := startOne(t)
	index := write(t, s, "/set?key=a&key=b&value=1&value=2&key=c&value=")
	for key, want := range map[string]string{"a": "1", "b": "2", "c": ""} {
		if got, ok := s.machine.Store.Get(key); !ok || got.Value != want || got.Index != index {
			t.Errorf("%s: got %v, %v, want %q at %d", key, got, ok, want, index)
		}
	}
	for _, tt := range []struct {
		request *http.Request
		removed int
	}{
		{request: newRequest(t, http.MethodGet, s, "/remove?key=a&key=none&key=b", ""), removed: 2},
		{request: newRequest(t, http.MethodPost, s, "/remove?key=a", "key=b"), removed: 0},
		{request: newRequest(t, http.MethodPost, s, "/remove", "key=c"), removed: 1},
	} {
		index++
		want := fmt.Sprintf("OK index=%d removed=%d\n", index, tt.removed)
		if got := exchange(t, tt.request); got.status != http.StatusOK || got.body != want {
			t.Errorf("%s %s: got %d %q, want 200 %q", tt.request.Method, tt.request.URL, got.status, got.body, want)
		}
	}
	if got := checkReplicas(t, s); len(got) != 0 {
		t.Errorf("the node holds %v, want nothing", got)
	}
}

// TestNoAnswerIsKept: no cache may keep an answer, whatever it is: a set that arrives as GET
// would be answered without being done. What is a stream tells proxies not to hold it back.
func TestNoAnswerIsKept(t *testing.T) {
	s := startOne(t)
	streams := map[string]bool{"/list": true, "/snapshot": true}
	for _, target := range []string{
		"/set?key=a&value=1", "/get?key=a", "/get?key=none", "/list", "/remove?key=a", "/status", "/snapshot", "/healthz",
		"/readyz", "/none", "//set?key=a", "/set", "/join", "/restore", "/transfer?nodeId=n9",
	} {
		r := newRequest(t, http.MethodGet, s, target, "")
		got := exchange(t, r).header
		if got.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: Cache-Control: got %q, want no-store", target, got.Get("Cache-Control"))
		}
		want := ""
		if streams[target] {
			want = "no"
		}
		if got.Get("X-Accel-Buffering") != want {
			t.Errorf("%s: X-Accel-Buffering: got %q, want %q", target, got.Get("X-Accel-Buffering"), want)
		}
	}
	refused := newRequest(t, http.MethodGet, s, "/get?key=a", "")
	refused.Header.Set("Origin", "http://evil.example")
	if got := exchange(t, refused); got.status != http.StatusForbidden || got.header.Get("Cache-Control") != "no-store" {
		t.Errorf("a refused request: got %d, Cache-Control %q, want 403 and no-store", got.status,
			got.header.Get("Cache-Control"))
	}
}

// TestProbeWithoutAHost is HAProxy's "option httpchk GET /readyz" as it comes: HTTP/1.0, and no
// Host.
func TestProbeWithoutAHost(t *testing.T) {
	s := startOne(t)
	c, err := net.Dial("tcp", s.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := io.WriteString(c, "GET /readyz HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	got, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = got.Body.Close() }()
	if got.StatusCode != http.StatusOK {
		t.Errorf("got %d, want 200", got.StatusCode)
	}
}

// TestOriginIsChecked: whatever a web page of another site makes a browser send changes
// nothing, on whatever path and by whatever method, and learns nothing, not even that there
// is no such path. The rules are tested in internal/api, CheckOrigin.
func TestOriginIsChecked(t *testing.T) {
	s := startOne(t)
	own := s.listener.Addr().String()
	for _, tt := range []struct {
		name, host string
		header     http.Header
		names      string // what the line names
	}{
		{name: "link", host: own, header: http.Header{"Sec-Fetch-Site": {"cross-site"}}, names: "Sec-Fetch-Site"},
		{name: "script", host: own, header: http.Header{"Origin": {"http://evil.example"}}, names: "Origin"},
		{name: "DNS rebinding", host: "evil.example", names: `Host: "evil.example"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			checkUnchanged(t, s, func() {
				for _, request := range []string{
					"GET /set?key=guard&value=1", "POST /set?key=guard&value=1", "GET /get?key=guard", "GET /status",
					"GET /remove?key=guard", "GET /list", "GET /healthz", "GET /none", "DELETE /set",
				} {
					method, target, _ := strings.Cut(request, " ")
					r := newRequest(t, method, s, target, "")
					r.Host = tt.host
					maps.Copy(r.Header, tt.header)
					a := exchange(t, r)
					if err := oneLineNaming(a, tt.names); err != nil || a.status != http.StatusForbidden {
						t.Errorf("%s: got %d (%v), want 403", request, a.status, err)
					}
				}
			})
		})
	}
	for _, host := range []string{own, "localhost", "kv.example"} {
		r := newRequest(t, http.MethodGet, s, "/set?"+pair("guard", host), "")
		r.Host = host
		r.Header.Set("Sec-Fetch-Site", "same-origin")
		r.Header.Set("Origin", "http://"+host)
		if a := exchange(t, r); a.status != http.StatusOK {
			t.Errorf("own page at %s: got %d %q, want 200", host, a.status, a.body)
		}
	}
	checkReplicas(t, s)
}

// TestErrorTable is what the errors of the node become. What needs a cluster, 307
// above all, is in cluster_test.go.
func TestErrorTable(t *testing.T) {
	out := new(logBuffer)
	h := &handler{log: newLogger(out, "debug")}
	for _, tt := range []struct {
		err        error
		status     int
		retryAfter bool
		says       string
	}{
		{err: fmt.Errorf("%w: enqueue timeout", node.ErrNotApplied), status: 503, retryAfter: true,
			says: "safe to send it again"},
		{err: fmt.Errorf("%w: this node is shutting down", node.ErrNotApplied), status: 503, retryAfter: true,
			says: "shutting down"},
		{err: node.ErrNoLeader, status: 503, retryAfter: true, says: "nothing was done"},
		{err: fmt.Errorf("%w: n2 does not answer: %w", node.ErrNoLeader, errors.New("refused\nconnection")), status: 503,
			retryAfter: true, says: "no leader is known: n2"},
		{err: fmt.Errorf("%w: no answer within 10s", node.ErrUnknown), status: 504, retryAfter: false,
			says: "it may yet be applied: read before you send it again"},
		{err: fmt.Errorf("%w: %w", node.ErrUnknown, context.Canceled), status: 504, retryAfter: false,
			says: "outcome unknown"},
		{err: fmt.Errorf("%w: %w", node.ErrUnknown, errors.New("leadership lost while committing log")), status: 504,
			retryAfter: false, says: "leadership lost"},
		{err: fmt.Errorf("%w: n2 holds data", node.ErrConflict), status: 409, retryAfter: false, says: "n2 holds data"},
		{err: errors.Join(fmt.Errorf("%w: a", node.ErrConflict), errors.New("b")), status: 409, retryAfter: false,
			says: "; b"},
		{err: api.Errorf(http.StatusBadRequest, "key: missing"), status: 400, retryAfter: false, says: "key: missing"},
		{err: fmt.Errorf("wrapped: %w", api.Errorf(http.StatusRequestEntityTooLarge, "value: larger")), status: 413,
			retryAfter: false, says: "value: larger"},
		{err: errors.New("of no row\nin the table"), status: 500, retryAfter: false, says: "of no row; in the table"},
	} {
		w := httptest.NewRecorder()
		h.writeError(w, httptest.NewRequest(http.MethodGet, "/set?key=a", nil), tt.err)
		a := answer{w.Code, w.Header(), w.Body.String()}
		if a.status != tt.status {
			t.Errorf("%v: got %d, want %d", tt.err, a.status, tt.status)
		}
		if err := oneLineNaming(a, tt.says); err != nil {
			t.Errorf("%v: %v", tt.err, err)
		}
		if got := a.header.Get("Retry-After") != ""; got != tt.retryAfter {
			t.Errorf("%v: Retry-After: got %v, want %v", tt.err, got, tt.retryAfter)
		}
		if a.header.Get("Location") != "" {
			t.Errorf("%v: got a Location, want none", tt.err)
		}
	}

	// A client that has gone is no error of the node's, and is never told 200.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	said := out.String()
	w := httptest.NewRecorder()
	h.writeError(w, httptest.NewRequest(http.MethodGet, "/status", nil).WithContext(ctx), ctx.Err())
	if w.Code == http.StatusOK || out.String() != said {
		t.Errorf("a client that has gone: got %d, and on the console %q, want an error and nothing", w.Code,
			strings.TrimPrefix(out.String(), said))
	}
}

func TestTooManyRequestsAreNotApplied(t *testing.T) {
	h := &handler{log: newLogger(io.Discard, "error")}
	answered, hold, held := 0, make(chan struct{}), make(chan struct{})
	limited := api.NewSlots(1, nil).Handler(func(_ http.ResponseWriter, r *http.Request) error {
		if answered++; r.URL.Path == "/hold" {
			close(held)
			<-hold
		}
		return nil
	}, h.writeError)
	get := func(path string) answer {
		w := httptest.NewRecorder()
		limited.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://localhost"+path, nil))
		return answer{w.Code, w.Header(), w.Body.String()}
	}
	done := make(chan struct{})
	go func() { defer close(done); get("/hold") }()
	<-held
	a := get("/set")
	if err := oneLineNaming(a, "under way"); err != nil || a.status != http.StatusServiceUnavailable ||
		a.header.Get("Retry-After") == "" || answered != 1 {
		t.Errorf("got %d %v (%v), want 503 with Retry-After and nothing done", a.status, a.header, err)
	}
	close(hold)
	<-done
	for i := range 3 { // each gives its slot back
		if a := get("/set"); a.status != http.StatusOK || answered != i+2 {
			t.Errorf("got %d %q, and %d answered, want 200 and %d", a.status, a.body, answered, i+2)
		}
	}
}

// TestStoppedNode: what comes too late is refused, and definitely not applied.
func TestStoppedNode(t *testing.T) {
	s := startOne(t)
	set(t, s, "k", "v")
	h := newHandler(s.node, s.machine.Store, s.log, nil, api.NewMemory(64<<20), false)
	if err := s.stop(); err != nil {
		t.Fatalf("stop: %v", err)
	}
	for _, target := range []string{"/set?key=late&value=1", "/remove?key=k"} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://localhost"+target, nil))
		a := answer{w.Code, w.Header(), w.Body.String()}
		if err := oneLineNaming(a, "shutting down", "safe"); err != nil || a.status != http.StatusServiceUnavailable {
			t.Errorf("%s: got %d %q (%v), want 503", target, a.status, a.body, err)
		}
	}
	if err := s.stop(); err != nil {
		t.Errorf("stop again: %v", err)
	}
	if got := checkReplicas(t, s); !maps.Equal(got, map[string]string{"k": "v"}) {
		t.Errorf("the node holds %v, want what it held", got)
	}
}

// documented are the statuses of docs/http.md, and 301: mux cleans paths. The node
// of these tests always leads, so that 307, 503 and 504 are not among them.
var documented = []int{200, 301, 304, 400, 403, 404, 405, 409, 410, 412, 413, 422}

// checked is a handler that holds every answer of s to what is promised. It expects one
// request at a time.
type checked struct {
	s *service
	h http.Handler

	mu      sync.Mutex // held while a request is answered; guards failure
	failure string     // the first broken promise
}

// seen is a ResponseWriter that keeps the status and the start of the body.
type seen struct {
	http.ResponseWriter
	status int
	body   []byte
}

func (s *seen) WriteHeader(status int) {
	s.status = cmp.Or(s.status, status)
	s.ResponseWriter.WriteHeader(status)
}

func (s *seen) Write(b []byte) (int, error) {
	s.status = cmp.Or(s.status, http.StatusOK)
	s.body = append(s.body, b[:min(len(b), max(0, 4<<10-len(s.body)))]...)
	return s.ResponseWriter.Write(b)
}

func (s *seen) Unwrap() http.ResponseWriter { return s.ResponseWriter }

func (c *checked) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fail := func(format string, args ...any) {
		if c.failure == "" {
			c.failure = fmt.Sprintf("%s %.200q: ", r.Method, r.RequestURI) + fmt.Sprintf(format, args...)
		}
	}
	before := c.s.node.Info().LastIndex
	answered := &seen{ResponseWriter: w}
	func() {
		defer func() {
			if p := recover(); p != nil {
				fail("panic: %v\n%s", p, debug.Stack())
			}
		}()
		c.h.ServeHTTP(answered, r)
	}()
	gone := r.Context().Err() != nil
	status := cmp.Or(answered.status, http.StatusOK)
	if !slices.Contains(documented, status) && !gone {
		fail("got status %d %q, want one of %v", status, answered.body, documented)
	}
	if status >= 400 {
		if err := oneLineNaming(answer{status, w.Header(), string(answered.body)}); err != nil {
			fail("status %d: %v", status, err)
		}
	}
	if gone && status >= 500 { // outcome unknown: what may yet come is before this
		c.h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet,
			"http://localhost/set?key=barrier&value=", nil))
		return
	}
	writes := slices.Contains([]string{"/set", "/remove", "/restore"}, r.URL.Path) &&
		slices.Contains([]int{200, 412, 422}, status)
	if after := c.s.node.Info().LastIndex; after != before && !writes {
		fail("status %d, and the log went from %d to %d, want no new entry", status, before, after)
	}
}

// broken returns the first promise that was broken, when no request is under way.
func (c *checked) broken() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failure
}

// recorder is an httptest.ResponseRecorder with deadlines, which it ignores.
type recorder struct{ *httptest.ResponseRecorder }

func (recorder) SetReadDeadline(time.Time) error  { return nil }
func (recorder) SetWriteDeadline(time.Time) error { return nil }

// FuzzHandler: whatever a client sends, no handler panics, the answer is one that is
// documented, what is refused is not in the log, and the node goes on. With wire, body
// is all that is sent, on a connection; else it makes a request with the rest.
func FuzzHandler(f *testing.F) {
	s := startNode(f, "n1", f.TempDir(), func(c *config) {
		c.electionTimeout, c.snapshotThreshold, c.logLevel = time.Second, 1000, "warn"
		c.dial = func(context.Context, string) (net.Conn, error) { return nil, errors.New("no node is there") }
	})
	leads(f, s)
	set(f, s, "a", "1") // the first write or read of a term adds an entry of its own
	h := &checked{s: s, h: newHandler(s.node, s.machine.Store, s.log, []string{"kv.example"}, api.NewMemory(64<<20), false)}
	address := serveElsewhere(f, s, func(server *http.Server, l net.Listener) error {
		server.Handler = h
		return api.Serve(server, l, nil)
	})
	var backup bytes.Buffer
	if err := kv.New().WriteSnapshot(&backup); err != nil {
		f.Fatal(err)
	}
	const form = "Content-Type: application/x-www-form-urlencoded"
	for _, seed := range []struct{ method, target, header, body string }{
		{method: "GET", target: "/set?key=a&value=1", header: "", body: ""},
		{method: "GET", target: "/set?key=a&value=1&key=b&value=%00%ff",
			header: "If-Match: \"12\", \"13\"\r\nIdempotency-Key: \"a\\\"b\"", body: ""},
		{method: "GET", target: "/set?key=a&value=1", header: "If-None-Match: *", body: ""},
		{method: "GET", target: "/set?key=a&value=1&x%0Ay%1B=2", header: "", body: ""},
		{method: "GET", target: "/set?key=%zz&value=%4;", header: "Idempotency-Key: schön", body: ""},
		{method: "POST", target: "/set?key=a", header: form, body: "value=1&key=b&value=2"},
		{method: "POST", target: "/set", header: form + "; charset=\"\r\nTransfer-Encoding: chunked",
			body: "3\r\nkey\r\n0\r\n\r\n"},
		{method: "POST", target: "/set", header: "Content-Type: application/json", body: `{"key":"a"}`},
		{method: "PUT", target: "/set?key=a", header: "Content-Length: 10", body: "cut off"},
		{method: "PUT", target: "/set?key=a", header: "Expect: 100-continue\r\nContent-Length: 1048577", body: "x"},
		{method: "PUT", target: "/set?key=a", header: "Content-Range: bytes 0-0/2", body: "x"},
		{method: "DELETE", target: "/set?key=k", header: "", body: ""},
		{method: "HEAD", target: "/get?key=a", header: "If-None-Match: W/\"3\"", body: ""},
		{method: "GET", target: "/get?key=a%0Ab%1B%FF&consistency=stale", header: "", body: ""},
		{method: "GET", target: "/remove?key=a&key=b", header: "", body: ""},
		{method: "GET", target: "/remove?prefix=a", header: "If-Match: *", body: ""},
		{method: "GET", target: "/list?prefix=a&after=b&limit=18446744073709551616", header: "", body: ""},
		{method: "GET", target: "/list?limit=1", header: "Origin: http://localhost\r\nSec-Fetch-Site: same-origin", body: ""},
		{method: "GET", target: "/watch?from=1", header: "", body: ""},
		{method: "GET", target: "/watch?from=1000000&consistency=stale", header: "", body: ""},
		{method: "GET", target: "/watch", header: "Last-Event-Id: -1", body: ""},
		{method: "GET", target: "/join?nodeId=n2&raftPort=9001&raftHost=%5B::1%5D", header: "", body: ""},
		{method: "GET", target: "/join?nodeId=n2&raftPort=9001&suffrage=nonvoter", header: "", body: ""},
		{method: "POST", target: "/leave", header: form, body: "nodeId=n1"},
		{method: "GET", target: "/transfer?nodeId=n1", header: "", body: ""},
		{method: "GET", target: "/status", header: "Host: evil.example", body: ""},
		{method: "GET", target: "/snapshot", header: "", body: ""},
		{method: "PUT", target: "/restore", header: "", body: backup.String()},
		{method: "PUT", target: "/restore", header: "", body: "not a backup"},
		{method: "PUT", target: "/restore", header: "If-Match: \"1\"", body: ""},
		{method: "GET", target: "/readyz", header: "", body: ""},
		{method: "GET", target: "//a/../set?key=a&value=1", header: "", body: ""},
		{method: "CONNECT", target: "/set?key=a", header: "", body: ""},
		{method: "OPTIONS", target: "*", header: "", body: ""},
		{method: "GET", target: "http://evil.example/set?key=a&value=1", header: "", body: ""},
	} {
		f.Add(seed.method, seed.target, seed.header, seed.body, false)
	}
	for _, text := range []string{
		"GET /set?key=a&value=1 HTTP/1.1\r\nHost: localhost\r\n\r\nGET /get?key=a HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"GET /watch HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"PUT /set?key=a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
		"PUT /set?key=a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"GET /set?key=a b&value=1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"GET /set?key=a&value=1 HTTP/1.0\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\x16\x03\x01\x02\x00\x01", "GET", "\r\n\r\n", "",
	} {
		f.Add("", "", "", text, true)
	}
	f.Fuzz(func(t *testing.T, method, target, header, body string, wire bool) {
		if wire {
			checkWire(t, address, body)
		} else if r := parseRequest(method, target, header, body); r != nil {
			limit := 30 * time.Second
			if r.URL.Path == "/watch" {
				limit = 5 * time.Millisecond // it lasts as long as its client reads
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			h.ServeHTTP(recorder{httptest.NewRecorder()}, r.WithContext(ctx))
		}
		if failure := h.broken(); failure != "" {
			t.Fatal(failure)
		}
		if a := askAddress(t, address, "/healthz"); a.status != http.StatusOK {
			t.Fatalf("/healthz afterwards: got %d %q, want 200", a.status, a.body)
		}
	})
}

// parseRequest is the request that a server makes of these; nil when they are none.
func parseRequest(method, target, header, body string) *http.Request {
	text := method + " " + target + " HTTP/1.1\r\n"
	names := strings.ToLower("\n" + header)
	if !strings.Contains(names, "\nhost:") {
		text += "Host: localhost\r\n"
	}
	if !strings.Contains(names, "\ncontent-length:") && !strings.Contains(names, "\ntransfer-encoding:") {
		text += fmt.Sprintf("Content-Length: %d\r\n", len(body))
	}
	if header != "" {
		header += "\r\n"
	}
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text + header + "\r\n" + body)))
	if err != nil {
		return nil
	}
	return r
}

// checkWire sends text on a connection and reads the answers to it.
func checkWire(t testing.TB, address, text string) {
	c := dial(t, address)
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	go func() { // the node may close the connection, or not read on, before it has all
		_, _ = io.WriteString(c, text)
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	r := bufio.NewReader(c)
	for {
		response, err := http.ReadResponse(r, nil)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) {
			return // ErrUnexpectedEOF also of no answer at all
		}
		if err != nil {
			if _, ok := errors.AsType[net.Error](err); ok {
				t.Fatalf("no end of the answers to %.500q: %v", text, err)
			}
			return // the body of an answer to a HEAD, which is not there
		}
		if response.StatusCode == http.StatusInternalServerError {
			t.Fatalf("got 500 to %.500q", text)
		}
		if _, err := io.Copy(io.Discard, response.Body); err != nil {
			return
		}
	}
}

// serveElsewhere has serve serve s on another port, with a server of its own.
func serveElsewhere(t testing.TB, s *service, serve func(*http.Server, net.Listener) error) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := api.NewServer(newHandler(s.node, s.machine.Store, s.log, nil, api.NewMemory(64<<20), false), s.log.Warnf)
	server.ErrorLog = log.New(io.Discard, "", 0)
	served := make(chan error, 1)
	go func() { served <- serve(server, l) }()
	t.Cleanup(func() {
		_ = server.Close()
		<-served
	})
	return l.Addr().String()
}

func dial(t testing.TB, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func askAddress(t testing.TB, address, target string) answer {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, "http://"+address+target, nil)
	if err != nil {
		t.Fatal(err)
	}
	return exchange(t, r)
}

// TestGiantHeaders: they are refused before they are whole, with a status that says so.
func TestGiantHeaders(t *testing.T) {
	s := startOne(t)
	checkUnchanged(t, s, func() {
		for name, start := range map[string]string{
			"one line":    "GET /set?key=a&value=1 HTTP/1.1\r\nHost: localhost\r\nX: ",
			"many lines":  "GET /set?key=a&value=1 HTTP/1.1\r\nHost: localhost\r\n",
			"giant query": "GET /set?key=a&value=",
		} {
			c := dial(t, s.listener.Addr().String())
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(30 * time.Second))
			filler := strings.Repeat("x", 1<<10)
			if name == "many lines" {
				filler = strings.Repeat("X: y\r\n", 1<<10)
			}
			go func() { // for ever: the node must not wait for the end
				_, err := io.WriteString(c, start)
				for err == nil {
					_, err = io.WriteString(c, filler)
				}
			}()
			response, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Errorf("%s: %v, want an answer", name, err)
			} else if response.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
				t.Errorf("%s: got %d, want 431", name, response.StatusCode)
			}
		}
	})
	if a := ask(t, s, "/healthz"); a.status != http.StatusOK {
		t.Errorf("/healthz afterwards: got %d %q, want 200", a.status, a.body)
	}
}

// TestHeldHeadersAreBounded: connections that never end their headers hold no more than
// api.MaxHeaderBytes together; here a server is given less.
func TestHeldHeadersAreBounded(t *testing.T) {
	s := startOne(t)
	const most = 8 * mebi
	address := serveElsewhere(t, s, func(server *http.Server, l net.Listener) error {
		return server.Serve(connlimit.Listen(l, api.MaxConnections, most))
	})
	before := heap()
	text := "GET /set?key=a&value=" + strings.Repeat("v", mebi)
	for range 100 {
		c := dial(t, address)
		defer c.Close()
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
	}
	if a := askAddress(t, address, "/set?key=k&value="+strings.Repeat("v", mebi)); a.status != http.StatusOK {
		t.Errorf("a large set beside them: got %d %q, want 200", a.status, a.body)
	}
	got := heap() - before
	t.Logf("100 headers of 1 MiB that do not end take %.1f MiB", float64(got)/mebi)
	if want := int64(6 * most); got > want { // net/http copies a line as it grows
		t.Errorf("the heap grew by %d bytes, want %d at most", got, want)
	}
}

// heap is how many bytes are in use, of the heap and of stacks.
func heap() int64 {
	runtime.GC()
	runtime.GC() // of pools, too
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// TestSlowSenders: a connection whose header does not end in time is closed, whether its
// client sends nothing or a byte now and then. api.NewServer's limit is 10 s; here it is
// less.
func TestSlowSenders(t *testing.T) {
	s := startOne(t)
	h := newHandler(s.node, s.machine.Store, s.log, nil, api.NewMemory(64<<20), false)
	if got := api.NewServer(h, s.log.Warnf).ReadHeaderTimeout; got <= 0 ||
		got > 10*time.Second {
		t.Errorf("ReadHeaderTimeout: got %v, want 10s at most", got)
	}
	const limit = 200 * time.Millisecond
	address := serveElsewhere(t, s, func(server *http.Server, l net.Listener) error {
		server.ReadHeaderTimeout = limit
		return api.Serve(server, l, nil)
	})
	checkUnchanged(t, s, func() {
		for name, text := range map[string]string{
			"nothing":          "",
			"a byte at a time": "GET /set?key=a&value=" + strings.Repeat("v", 10000),
			"after a whole request": "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" + "GET /set?key=a&value=" +
				strings.Repeat("v", 10000),
		} {
			t.Run(name, func(t *testing.T) {
				c := dial(t, address)
				defer c.Close()
				go func() {
					for i := range len(text) {
						if _, err := io.WriteString(c, text[i:i+1]); err != nil {
							return
						}
						time.Sleep(limit / 100)
					}
				}()
				_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
				_, err := io.Copy(io.Discard, c)
				if late, ok := errors.AsType[net.Error](err); ok && late.Timeout() {
					t.Errorf("it was not closed")
				}
			})
		}
	})
}

// TestIdleConnections: 10,000 connections on which nothing happens, half of them new and
// half after a request, keep no client out, end no watch, and take a bounded amount of
// memory.
func TestIdleConnections(t *testing.T) {
	s := startOne(t)
	set(t, s, "k", "v")
	address := serveElsewhere(t, s, func(server *http.Server, l net.Listener) error {
		server.ReadHeaderTimeout, server.IdleTimeout = time.Hour, time.Hour // it is not these that make room
		return api.Serve(server, l, nil)
	})
	count := 10000
	// Both ends of each are in this process.
	limit := testkit.MaxFiles(t)
	if room := max(1, limit/2-500); count > room {
		t.Logf("ulimit -n is %d: %d connections in place of %d; the bound is at %d", limit, room, count,
			api.MaxConnections)
		count = room
	}
	watch := dial(t, address)
	defer watch.Close()
	_ = watch.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(watch, "GET /watch?prefix=watched HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	events := bufio.NewScanner(watch)
	waitLine(t, events, ": watching")
	checkUnchanged(t, s, func() {
		before := heap()
		conns := make([]net.Conn, count)
		defer func() {
			for _, c := range conns {
				if c != nil {
					_ = c.Close()
				}
			}
		}()
		for i := range conns {
			conns[i] = dial(t, address)
			if i%2 == 0 {
				continue
			}
			// The answer tells that it was accepted, so that the kernel's queue is never full.
			_, err := io.WriteString(conns[i], "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
			_ = conns[i].SetReadDeadline(time.Now().Add(30 * time.Second))
			b := make([]byte, 15)
			if err == nil {
				_, err = io.ReadFull(conns[i], b)
			}
			if err != nil || string(b) != "HTTP/1.1 200 OK" {
				t.Fatalf("connection %d: got %q, %v, want 200", i, b, err)
			}
		}
		begin := time.Now()
		c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
		for range 10 {
			r, err := http.NewRequest(http.MethodGet, "http://"+address+"/get?key=k", nil)
			if err != nil {
				t.Fatal(err)
			}
			a, err := send(c, r)
			if err != nil || a.status != http.StatusOK || a.body != "v" {
				t.Errorf("a new client: got %d %q, %v, want 200 and v", a.status, a.body, err)
			}
		}
		t.Logf("10 new clients beside %d idle connections took %v", count, time.Since(begin))
		if count > api.MaxConnections {
			_ = conns[0].SetReadDeadline(time.Now().Add(30 * time.Second))
			if _, err := conns[0].Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the oldest connection: got %v, want that it is closed", err)
			}
		}
		each := (heap() - before) / int64(min(count, api.MaxConnections))
		t.Logf("an idle connection takes %d bytes, both ends", each)
		if each > 64<<10 {
			t.Errorf("an idle connection takes %d bytes, want 65536 at most", each)
		}
	})
	set(t, s, "watched", "1")
	waitLine(t, events, "data: ")
}

// waitLine reads lines up to one that begins with start.
func waitLine(t testing.TB, lines *bufio.Scanner, start string) {
	t.Helper()
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), start) {
			return
		}
	}
	t.Fatalf("got an end (%v), want a line that begins with %q", lines.Err(), start)
}

// BenchmarkHandler is of one request, without the network: a get by a cluster of one,
// which needs nobody's word, a stale one, a list of 100 keys, and what is refused. A
// set waits for its fsync.
func BenchmarkHandler(b *testing.B) {
	s := startNode(b, "n1", b.TempDir(), func(c *config) { c.logLevel = "warn" })
	leads(b, s)
	for i := range 100 {
		set(b, s, fmt.Sprintf("key%02d", i), strings.Repeat("v", 110))
	}
	h := newHandler(s.node, s.machine.Store, s.log, nil, api.NewMemory(64<<20), false)
	for _, bb := range []struct {
		name, target string
		status       int
	}{
		{name: "get", target: "/get?key=key50", status: 200},
		{name: "stale", target: "/get?key=key50&consistency=stale", status: 200},
		{name: "list", target: "/list?consistency=stale", status: 200},
		{name: "refused", target: "/set?key=key50", status: 400},
		{name: "set", target: "/set?key=key50&value=" + strings.Repeat("v", 110), status: 200},
	} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				w := recorder{httptest.NewRecorder()}
				h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://localhost"+bb.target, nil))
				if w.Code != bb.status {
					b.Fatalf("got %d %s, want %d", w.Code, w.Body, bb.status)
				}
			}
		})
	}
}

// TestLabIsOff: a node that was not started with RAFT_LAB=1 neither cuts a link nor ends.
func TestLabIsOff(t *testing.T) {
	s := startOne(t)
	for _, query := range []string{"", "do=heal", "do=cut", "do=kill"} {
		a := ask(t, s, "/lab?"+query)
		if err := oneLineNaming(a, "RAFT_LAB=1"); err != nil || a.status != http.StatusForbidden {
			t.Fatalf("/lab?%s: got %d (%v), want 403", query, a.status, err)
		}
	}
	checkReplicas(t, s)
}
