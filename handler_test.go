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
		{"set: no key", "GET", "/set", "", nil, 400, "key: missing", nil},
		{"set: value alone", "GET", "/set?value=1", "", nil, 400, "key: missing", nil},
		{"set: empty key", "GET", "/set?key=&value=1", "", nil, 400, "key: empty; a key has 1 to 1024 bytes", nil},
		{"set: one of several keys empty", "GET", "/set?key=a&value=1&key=&value=2", "", nil, 400, "key: empty", nil},
		{"set: long key", "GET", "/set?value=1&key=" + longKey, "", nil, 400, "key: 1025 bytes; a key has 1 to 1024 bytes", nil},
		{"set: long key of escapes", "GET", "/set?value=1&key=" + strings.Repeat("%00", 1025), "", nil, 400, "1024", nil},
		{"set: key without value", "GET", "/set?key=a", "", nil, 400, "value: 0 given for 1 of key", nil},
		{"set: second key without value", "GET", "/set?key=a&value=1&key=b", "", nil, 400, "value: 1 given for 2 of key", nil},
		{"set: second value without key", "GET", "/set?key=a&value=1&value=2", "", nil, 400, "value: 2 given for 1 of key", nil},
		{"set: key twice", "GET", "/set?key=a&value=1&key=a&value=2", "", nil, 400, `key: "a" is given twice`, nil},
		{"set: unknown parameter", "GET", "/set?key=a&value=1&valu=2", "", nil, 400, `"valu": unknown parameter; /set takes key, value`, nil},
		{"set: other case", "GET", "/set?Key=a&value=1", "", nil, 400, `"Key": unknown parameter`, nil},
		{"set: hostile parameter", "GET", "/set?key=a&value=1&x%0Ay%1B=2", "", nil, 400, `"x\ny\x1b": unknown parameter`, nil},
		{"set: broken escape in the query", "GET", "/set?key=%zz&value=1", "", nil, 400, "query: ", nil},
		{"set: escape cut off", "GET", "/set?key=a&value=%4", "", nil, 400, "percent-encode", nil},
		{"set: semicolon", "GET", "/set?key=a;value=1", "", nil, 400, "query: ", nil},
		{"set: large value", "GET", "/set?key=a&value=" + strings.Repeat("v", mebi+1), "", nil, 413, "value: larger than 1048576 bytes", nil},
		{"set: large query", "GET", "/set?key=a&value=" + strings.Repeat("v", 2*mebi), "", nil, 413, "query: larger than 2097152 bytes", nil},
		{"set: large value in a form", "POST", "/set", "key=a&value=" + strings.Repeat("v", mebi+1), form, 413, "value: larger than 1048576 bytes", nil},
		{"set: large form", "POST", "/set", "key=a&value=" + strings.Repeat("v", 2*mebi), form, 413, "form: larger than 2097152 bytes", nil},
		{"set: large body", "PUT", "/set?key=a", strings.Repeat("v", mebi+1), nil, 413, "value: larger than 1048576 bytes", nil},
		{"set: huge body", "PUT", "/set?key=a", strings.Repeat("v", 2*mebi+1), nil, 413, "value: larger than 1048576 bytes", nil},
		{"set: large form of several", "POST", "/set?key=a", "value=1&key=b&value=" + strings.Repeat("v", mebi+1), form, 413, "value: larger", nil},
		{"set: PUT with a value", "PUT", "/set?key=a&value=1", "2", nil, 400, "value: with PUT the body is the value", nil},
		{"set: PUT without a key", "PUT", "/set", "2", nil, 400, "key: missing", nil},
		{"set: PUT of an empty key", "PUT", "/set?key=", "2", nil, 400, "key: empty", nil},
		{"set: PUT of a long key", "PUT", "/set?key=" + longKey, "2", nil, 400, "1024", nil},
		{"set: PUT of two keys", "PUT", "/set?key=a&key=b", "2", nil, 400, "key: 2 given; PUT takes one key", nil},
		{"set: broken escape in the form", "POST", "/set", "key=a&value=%zz", form, 400, "form: ", nil},
		{"set: JSON", "POST", "/set", `{"key":"a"}`, http.Header{"Content-Type": {"application/json"}}, 400, `Content-Type: "application/json"; POST takes application/x-www-form-urlencoded`, nil},
		{"set: POST of a value alone", "POST", "/set?key=a", "1", http.Header{"Content-Type": {"text/plain"}}, 400, "Content-Type", nil},
		{"set: no type", "POST", "/set?key=a", "1", http.Header{"Content-Type": {""}}, 400, "Content-Type", nil},
		{"set: key in query and form", "POST", "/set?key=a", "key=a&value=1&value=2", form, 400, `key: "a" is given twice`, nil},
		{"set: unknown in the form", "POST", "/set?key=a", "value=1&ttl=5", form, 400, `"ttl": unknown parameter`, nil},
		{"set: HEAD", "HEAD", "/set?key=a&value=1", "", nil, 405, "", only("GET, POST, PUT")},
		{"set: DELETE", "DELETE", "/set?key=k", "", nil, 405, "method DELETE: /set takes GET, POST, PUT", only("GET, POST, PUT")},
		{"set: PATCH", "PATCH", "/set?key=a&value=1", "1", nil, 405, "GET, POST, PUT", only("GET, POST, PUT")},
		{"set: OPTIONS", "OPTIONS", "/set?key=a&value=1", "", nil, 405, "GET, POST, PUT", only("GET, POST, PUT")},

		{"get: no key", "GET", "/get", "", nil, 400, "key: missing", nil},
		{"get: empty key", "GET", "/get?key=", "", nil, 400, "key: empty; a key has 1 to 1024 bytes", nil},
		{"get: long key", "GET", "/get?key=" + longKey, "", nil, 400, "key: 1025 bytes", nil},
		{"get: two keys", "GET", "/get?key=k&key=k", "", nil, 400, "key: given 2 times; give it once", nil},
		{"get: unknown parameter", "GET", "/get?key=k&value=1", "", nil, 400, `"value": unknown parameter; /get takes key`, nil},
		{"get: broken escape", "GET", "/get?key=%", "", nil, 400, "query: ", nil},
		{"get: PUT", "PUT", "/get?key=k", "1", nil, 405, "method PUT: /get takes GET, HEAD, POST", only("GET, HEAD, POST")},
		{"get: DELETE", "DELETE", "/get?key=k", "", nil, 405, "method DELETE", only("GET, HEAD, POST")},
		{"get: not found", "GET", "/get?key=none", "", nil, 404, `key "none": not found`, nil},
		{"get: hostile key not found", "GET", "/get?key=a%0Ab%1B%FF", "", nil, 404, `key "a\nb\x1b\xff": not found`, nil},
		{"get: POST not found", "POST", "/get", "key=none", form, 404, `key "none": not found`, nil},
		{"get: HEAD not found", "HEAD", "/get?key=none", "", nil, 404, "", nil},

		{"remove: no key", "GET", "/remove", "", nil, 400, "key: missing", nil},
		{"remove: empty key", "GET", "/remove?key=", "", nil, 400, "key: empty", nil},
		{"remove: long key", "GET", "/remove?key=" + longKey, "", nil, 400, "1024", nil},
		{"remove: key twice", "GET", "/remove?key=k&key=k", "", nil, 400, `key: "k" is given twice`, nil},
		{"remove: unknown parameter", "GET", "/remove?key=k&vlaue=1", "", nil, 400, `"vlaue": unknown parameter; /remove takes key, prefix`, nil},
		{"remove: large form", "POST", "/remove", "key=k" + strings.Repeat("&", 2*mebi), form, 413, "form: larger than 2097152 bytes", nil},
		{"remove: HEAD", "HEAD", "/remove?key=k", "", nil, 405, "", only("GET, POST")},
		{"remove: PUT", "PUT", "/remove?key=k", "1", nil, 405, "method PUT: /remove takes GET, POST", only("GET, POST")},
		{"remove: DELETE", "DELETE", "/remove?key=k", "", nil, 405, "method DELETE", only("GET, POST")},

		{"remove: empty prefix", "GET", "/remove?prefix=", "", nil, 400, "prefix: empty, which would remove every key", nil},
		{"remove: long prefix", "GET", "/remove?prefix=" + longKey, "", nil, 400, "prefix: 1025 bytes", nil},
		{"remove: two prefixes", "GET", "/remove?prefix=k&prefix=l", "", nil, 400, "prefix: given 2 times", nil},
		{"remove: key and prefix", "GET", "/remove?prefix=k&key=k", "", nil, 400, "prefix: given together with key", nil},
		{"remove: prefix with a condition", "GET", "/remove?prefix=k", "", http.Header{"If-Match": {"*"}}, 400, "prefix: with If-Match", nil},

		{"condition: weak ETag", "GET", "/set?key=a&value=1", "", http.Header{"If-Match": {`W/"12"`}}, 400, "If-Match: weak ETags compare equal to nothing", nil},
		{"condition: weak in a list", "GET", "/remove?key=a", "", http.Header{"If-None-Match": {`"1", W/"12"`}}, 400, "If-None-Match: weak", nil},
		{"condition: no quotes", "GET", "/set?key=a&value=1", "", http.Header{"If-Match": {"12"}}, 400, `If-Match: want * or ETags in double quotes, such as "12"`, nil},
		{"condition: open quotes", "GET", "/set?key=a&value=1", "", http.Header{"If-Match": {`"12`}}, 400, "If-Match: want", nil},
		{"condition: no comma", "GET", "/set?key=a&value=1", "", http.Header{"If-Match": {`"12" "13"`}}, 400, "If-Match: want", nil},
		{"condition: star in a list", "GET", "/set?key=a&value=1", "", http.Header{"If-Match": {`"12", *`}}, 400, "If-Match: want", nil},
		{"condition: empty", "GET", "/set?key=a&value=1", "", http.Header{"If-Match": {""}}, 400, "If-Match: empty", nil},
		{"condition: commas", "GET", "/set?key=a&value=1", "", http.Header{"If-None-Match": {" , ,"}}, 400, "If-None-Match: empty", nil},
		{"condition: many", "GET", "/set?key=a&value=1", "", http.Header{"If-Match": {strings.Repeat(`"1",`, 101)}}, 400, "If-Match: more than 100 ETags", nil},
		{"condition: date", "GET", "/set?key=a&value=1", "", http.Header{"If-Unmodified-Since": {"Mon, 23 Nov 2026 14:17:46 GMT"}}, 400, "If-Unmodified-Since: not supported by /set", nil},
		{"condition: range", "PUT", "/set?key=a", "1", http.Header{"Content-Range": {"bytes 0-0/2"}}, 400, "Content-Range: not supported", nil},
		{"Idempotency-Key: empty", "GET", "/set?key=a&value=1", "", http.Header{"Idempotency-Key": {""}}, 400, "Idempotency-Key: 0 bytes; want 1 to 255", nil},
		{"Idempotency-Key: empty string", "GET", "/set?key=a&value=1", "", http.Header{"Idempotency-Key": {`""`}}, 400, "Idempotency-Key: 0 bytes", nil},
		{"Idempotency-Key: long", "GET", "/set?key=a&value=1", "", http.Header{"Idempotency-Key": {strings.Repeat("k", 256)}}, 400, "Idempotency-Key: 256 bytes; want 1 to 255", nil},
		{"Idempotency-Key: two", "GET", "/set?key=a&value=1", "", http.Header{"Idempotency-Key": {"a", "b"}}, 400, "Idempotency-Key: given 2 times", nil},
		{"Idempotency-Key: a list", "GET", "/set?key=a&value=1", "", http.Header{"Idempotency-Key": {"a,b"}}, 400, "Idempotency-Key: put it in double quotes", nil},
		{"Idempotency-Key: open", "GET", "/set?key=a&value=1", "", http.Header{"Idempotency-Key": {`"a`}}, 400, "Idempotency-Key: want a string in double quotes", nil},
		{"Idempotency-Key: parameters", "GET", "/set?key=a&value=1", "", http.Header{"Idempotency-Key": {`"a";b`}}, 400, "Idempotency-Key: want a string", nil},
		{"Idempotency-Key: not ASCII", "GET", "/remove?key=a", "", http.Header{"Idempotency-Key": {"schön"}}, 400, "Idempotency-Key: want printable ASCII", nil},

		{"list: limit 0", "GET", "/list?limit=0", "", nil, 400, "limit: want a number of keys, 1 or more", nil},
		{"list: limit in words", "GET", "/list?limit=ten", "", nil, 400, "limit: want", nil},
		{"list: two limits", "GET", "/list?limit=1&limit=2", "", nil, 400, "limit: given 2 times", nil},
		{"list: long prefix", "GET", "/list?prefix=" + longKey, "", nil, 400, "prefix: 1025 bytes; a key has at most 1024", nil},
		{"list: key", "GET", "/list?key=a", "", nil, 400, `"key": unknown parameter; /list takes prefix, after, limit, consistency`, nil},
		{"list: consistency", "GET", "/list?consistency=eventual", "", nil, 400, "consistency: want linearizable (the default) or stale", nil},
		{"watch: from in words", "GET", "/watch?from=now", "", nil, 400, "from: want an index", nil},
		{"watch: from nothing", "GET", "/watch?from=", "", nil, 400, "from: want an index", nil},
		{"watch: event ID in words", "GET", "/watch", "", http.Header{"Last-Event-Id": {"x"}}, 400, "Last-Event-ID: want an index", nil},
		{"watch: long prefix", "GET", "/watch?prefix=" + longKey, "", nil, 400, "prefix: 1025 bytes", nil},
		{"watch: from the future", "GET", "/watch?from=1000000", "", nil, 410, "from: 1000000 is not reached yet", nil},
		{"watch: from the future, in words", "GET", "/watch?from=1000000&consistency=linearizable", "", nil, 410, "from: 1000000 is not reached yet", nil},
		{"snapshot: parameter", "GET", "/snapshot?key=a", "", nil, 400, `"key": unknown parameter; /snapshot takes consistency`, nil},
		{"restore: GET", "GET", "/restore", "", nil, 405, "method GET: /restore takes PUT", only("PUT")},
		{"restore: nothing", "PUT", "/restore", "", nil, 400, "body: read snapshot: snapshot is damaged: it ends in header: nothing was changed", nil},
		{"restore: text", "PUT", "/restore", "not a backup", nil, 400, "nothing was changed; send what /snapshot gave", nil},
		{"restore: condition", "PUT", "/restore", "", http.Header{"If-Match": {`"1"`}}, 400, "If-Match: not supported by /restore", nil},

		{"join: nothing", "GET", "/join", "", nil, 400, "nodeId: missing", nil},
		{"join: no port", "GET", "/join?nodeId=n2", "", nil, 400, "raftPort: missing", nil},
		{"join: no ID", "GET", "/join?raftPort=9001", "", nil, 400, "nodeId: missing", nil},
		{"join: empty ID", "GET", "/join?nodeId=&raftPort=9001", "", nil, 400, "nodeId: want 1 to 64 letters", nil},
		{"join: hostile ID", "GET", "/join?nodeId=n2%0AINFO&raftPort=9001", "", nil, 400, "nodeId: want", nil},
		{"join: long ID", "GET", "/join?nodeId=" + strings.Repeat("n", 65) + "&raftPort=9001", "", nil, 400, "nodeId: want 1 to 64", nil},
		{"join: two IDs", "GET", "/join?nodeId=n2&nodeId=n3&raftPort=9001", "", nil, 400, "nodeId: given 2 times", nil},
		{"join: port 0", "GET", "/join?nodeId=n2&raftPort=0", "", nil, 400, "raftPort: want a port, 1 to 65535", nil},
		{"join: port 65536", "GET", "/join?nodeId=n2&raftPort=65536", "", nil, 400, "raftPort: want", nil},
		{"join: port with a host", "GET", "/join?nodeId=n2&raftPort=127.0.0.1:9001", "", nil, 400, "raftPort: want", nil},
		{"join: unknown parameter", "GET", "/join?nodeId=n2&raftport=9001", "", nil, 400, `"raftport": unknown parameter; /join takes nodeId, raftPort`, nil},
		{"join: PUT", "PUT", "/join?nodeId=n2&raftPort=9001", "", nil, 405, "method PUT", only("GET, POST")},

		{"status: unknown parameter", "GET", "/status?key=1", "", nil, 400, `"key": unknown parameter`, nil},
		{"status: DELETE", "DELETE", "/status", "", nil, 405, "method DELETE", only("GET, HEAD, POST")},
		{"no such path", "GET", "/", "", nil, 404, "/set /get /remove /list /watch /join /leave /transfer /status /snapshot /restore", nil},
		{"no such path, hostile", "GET", "/a%0Ab", "", nil, 404, "no such path", nil},
		{"path with a slash", "GET", "/set/?key=a&value=1", "", nil, 404, "no such path", nil},
		{"path in capitals", "GET", "/SET?key=a&value=1", "", nil, 404, "no such path", nil},
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
			if err := oneLineNaming(a, "value: larger than 1048576 bytes"); err != nil || a.status != http.StatusRequestEntityTooLarge {
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
		{"PUT cut off", "PUT /set?key=a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nabc", 400},
		{"PUT of chunks cut off", "PUT /set?key=a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", 400},
		{"PUT of broken chunks", "PUT /set?key=a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nabc\r\n", 400},
		{"form cut off", "POST /set HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 20\r\n\r\nkey=a&value=1", 400},
		{"no Host", "GET /set?key=a&value=1 HTTP/1.1\r\n\r\n", 400},
		{"two Hosts", "GET /set?key=a&value=1 HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400},
		{"no Host, HTTP/1.0", "GET /set?key=a&value=1 HTTP/1.0\r\n\r\n", 403},
		{"foreign Host in the request line", "GET http://evil.example/set?key=a&value=1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 403},
		{"space in the query", "GET /set?key=a b&value=1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400},
		{"unknown method", "STEAL /set?key=a&value=1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 405},
		{"connect", "CONNECT /set?key=a&value=1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 405},
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
		{"text", "k", "value"},
		{"empty value", "empty", ""},
		{"all bytes", string(every[:]), string(every[:])},
		{"query syntax", "a&b=c+d %;#?/", "&=+% ;#?/\r\n"},
		{"key that looks like a path", "../../etc//passwd", "x"},
		{"longest key", strings.Repeat("k", 1024), "x"},
		{"longest value", "large", strings.Repeat("v", mebi)},
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
			{"GET", newRequest(t, http.MethodGet, s, query, "")},
			{"POST of a form", newRequest(t, http.MethodPost, s, "/set", pair(tt.key, tt.value))},
			{"POST of a form with a charset", withCharset},
			{"POST of a query", emptyPost},
			{"POST with the key in the query", newRequest(t, http.MethodPost, s, "/set"+keyOnly, url.Values{"value": {tt.value}}.Encode())},
			{"PUT", newRequest(t, http.MethodPut, s, "/set"+keyOnly, tt.value)},
			{"PUT in chunks", inChunks},
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
				etag := fmt.Sprintf("%q", strconv.FormatUint(index, 10))
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
				if got := ask(t, s, "/remove"+keyOnly); got.status != http.StatusOK || got.body != fmt.Sprintf("OK index=%d removed=1\n", another+1) {
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
		{newRequest(t, http.MethodGet, s, "/remove?key=a&key=none&key=b", ""), 2},
		{newRequest(t, http.MethodPost, s, "/remove?key=a", "key=b"), 0},
		{newRequest(t, http.MethodPost, s, "/remove", "key=c"), 1},
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
		{fmt.Errorf("%w: enqueue timeout", node.ErrNotApplied), 503, true, "safe to send it again"},
		{fmt.Errorf("%w: this node is shutting down", node.ErrNotApplied), 503, true, "shutting down"},
		{node.ErrNoLeader, 503, true, "nothing was done"},
		{fmt.Errorf("%w: n2 does not answer: %w", node.ErrNoLeader, errors.New("refused\nconnection")), 503, true, "no leader is known: n2"},
		{fmt.Errorf("%w: no answer within 10s", node.ErrUnknown), 504, false, "it may yet be applied: read before you send it again"},
		{fmt.Errorf("%w: %w", node.ErrUnknown, context.Canceled), 504, false, "outcome unknown"},
		{fmt.Errorf("%w: %w", node.ErrUnknown, errors.New("leadership lost while committing log")), 504, false, "leadership lost"},
		{fmt.Errorf("%w: n2 holds data", node.ErrConflict), 409, false, "n2 holds data"},
		{errors.Join(fmt.Errorf("%w: a", node.ErrConflict), errors.New("b")), 409, false, "; b"},
		{api.Errorf(http.StatusBadRequest, "key: missing"), 400, false, "key: missing"},
		{fmt.Errorf("wrapped: %w", api.Errorf(http.StatusRequestEntityTooLarge, "value: larger")), 413, false, "value: larger"},
		{errors.New("of no row\nin the table"), 500, false, "of no row; in the table"},
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
		t.Errorf("a client that has gone: got %d, and on the console %q, want an error and nothing", w.Code, strings.TrimPrefix(out.String(), said))
	}
}

func TestTooManyRequestsAreNotApplied(t *testing.T) {
	h := &handler{log: newLogger(io.Discard, "error")}
	answered, hold, held := 0, make(chan struct{}), make(chan struct{})
	limited := h.limit(1)(func(_ http.ResponseWriter, r *http.Request) error {
		if answered++; r.URL.Path == "/hold" {
			close(held)
			<-hold
		}
		return nil
	})
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
	h := newHandler(s.node, s.machine.Store, s.log, nil)
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
		c.h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "http://localhost/set?key=barrier&value=", nil))
		return
	}
	writes := slices.Contains([]string{"/set", "/remove", "/restore"}, r.URL.Path) && slices.Contains([]int{200, 412, 422}, status)
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
	h := &checked{s: s, h: newHandler(s.node, s.machine.Store, s.log, []string{"kv.example"})}
	address := serveElsewhere(f, s, func(server *http.Server, l net.Listener) error {
		server.Handler = h
		return api.Serve(server, l)
	})
	var backup bytes.Buffer
	if err := kv.New().WriteSnapshot(&backup); err != nil {
		f.Fatal(err)
	}
	const form = "Content-Type: application/x-www-form-urlencoded"
	for _, seed := range []struct{ method, target, header, body string }{
		{"GET", "/set?key=a&value=1", "", ""},
		{"GET", "/set?key=a&value=1&key=b&value=%00%ff", "If-Match: \"12\", \"13\"\r\nIdempotency-Key: \"a\\\"b\"", ""},
		{"GET", "/set?key=a&value=1", "If-None-Match: *", ""},
		{"GET", "/set?key=a&value=1&x%0Ay%1B=2", "", ""},
		{"GET", "/set?key=%zz&value=%4;", "Idempotency-Key: schön", ""},
		{"POST", "/set?key=a", form, "value=1&key=b&value=2"},
		{"POST", "/set", form + "; charset=\"\r\nTransfer-Encoding: chunked", "3\r\nkey\r\n0\r\n\r\n"},
		{"POST", "/set", "Content-Type: application/json", `{"key":"a"}`},
		{"PUT", "/set?key=a", "Content-Length: 10", "cut off"},
		{"PUT", "/set?key=a", "Expect: 100-continue\r\nContent-Length: 1048577", "x"},
		{"PUT", "/set?key=a", "Content-Range: bytes 0-0/2", "x"},
		{"DELETE", "/set?key=k", "", ""},
		{"HEAD", "/get?key=a", "If-None-Match: W/\"3\"", ""},
		{"GET", "/get?key=a%0Ab%1B%FF&consistency=stale", "", ""},
		{"GET", "/remove?key=a&key=b", "", ""},
		{"GET", "/remove?prefix=a", "If-Match: *", ""},
		{"GET", "/list?prefix=a&after=b&limit=18446744073709551616", "", ""},
		{"GET", "/list?limit=1", "Origin: http://localhost\r\nSec-Fetch-Site: same-origin", ""},
		{"GET", "/watch?from=1", "", ""},
		{"GET", "/watch?from=1000000&consistency=stale", "", ""},
		{"GET", "/watch", "Last-Event-Id: -1", ""},
		{"GET", "/join?nodeId=n2&raftPort=9001&raftHost=%5B::1%5D", "", ""},
		{"GET", "/join?nodeId=n2&raftPort=9001&suffrage=nonvoter", "", ""},
		{"POST", "/leave", form, "nodeId=n1"},
		{"GET", "/transfer?nodeId=n1", "", ""},
		{"GET", "/status", "Host: evil.example", ""},
		{"GET", "/snapshot", "", ""},
		{"PUT", "/restore", "", backup.String()},
		{"PUT", "/restore", "", "not a backup"},
		{"PUT", "/restore", "If-Match: \"1\"", ""},
		{"GET", "/readyz", "", ""},
		{"GET", "//a/../set?key=a&value=1", "", ""},
		{"CONNECT", "/set?key=a", "", ""},
		{"OPTIONS", "*", "", ""},
		{"GET", "http://evil.example/set?key=a&value=1", "", ""},
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
	server := api.NewServer(newHandler(s.node, s.machine.Store, s.log, nil), s.log.Warnf)
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
	if got := api.NewServer(newHandler(s.node, s.machine.Store, s.log, nil), s.log.Warnf).ReadHeaderTimeout; got <= 0 || got > 10*time.Second {
		t.Errorf("ReadHeaderTimeout: got %v, want 10s at most", got)
	}
	const limit = 200 * time.Millisecond
	address := serveElsewhere(t, s, func(server *http.Server, l net.Listener) error {
		server.ReadHeaderTimeout = limit
		return api.Serve(server, l)
	})
	checkUnchanged(t, s, func() {
		for name, text := range map[string]string{
			"nothing":               "",
			"a byte at a time":      "GET /set?key=a&value=" + strings.Repeat("v", 10000),
			"after a whole request": "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" + "GET /set?key=a&value=" + strings.Repeat("v", 10000),
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
		return api.Serve(server, l)
	})
	count := 10000
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	// Both ends of each are in this process.
	if room := max(1, int(min(limit.Cur, 1<<20))/2-500); count > room {
		t.Logf("ulimit -n is %d: %d connections in place of %d; the bound is at %d", limit.Cur, room, count, api.MaxConnections)
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
	h := newHandler(s.node, s.machine.Store, s.log, nil)
	for _, bb := range []struct {
		name, target string
		status       int
	}{
		{"get", "/get?key=key50", 200},
		{"stale", "/get?key=key50&consistency=stale", 200},
		{"list", "/list?consistency=stale", 200},
		{"refused", "/set?key=key50", 400},
		{"set", "/set?key=key50&value=" + strings.Repeat("v", 110), 200},
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
