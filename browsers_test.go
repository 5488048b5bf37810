package main

import (
	"cmp"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"raftkv/internal/api"
)

// waysOfPages are the ways in which a page of another site can have a browser send a set. They are those that need no
// leave of the node: whatever a preflight has to precede is not sent at all. site and mode are what Chromium 156 sends
// of Fetch Metadata to a loopback address; to a name over plain http it sends none. Origin is sent to both.
var waysOfPages = []struct {
	name, method string // default GET
	mode, dest   string
	origin       bool
}{
	{name: "img", mode: "no-cors", dest: "image"},
	{name: "script", mode: "no-cors", dest: "script"},
	{name: "iframe", mode: "navigate", dest: "iframe"},
	{name: "style sheet", mode: "no-cors", dest: "style"},
	{name: "fetch", mode: "no-cors", dest: "empty"},
	{name: "fetch with POST", method: "POST", mode: "no-cors", dest: "empty", origin: true},
	{name: "sendBeacon", method: "POST", mode: "no-cors", dest: "empty", origin: true},
	{name: "EventSource", mode: "cors", dest: "empty", origin: true},
	{name: "form with GET in an iframe", mode: "navigate", dest: "iframe"},
	{name: "form with POST in an iframe", method: "POST", mode: "navigate", dest: "iframe", origin: true},
	{name: "video", mode: "no-cors", dest: "video"},
	{name: "prefetch", mode: "no-cors", dest: "empty"},
	{name: "link", mode: "navigate", dest: "document"},
	{name: "form with GET", mode: "navigate", dest: "document"},
	{name: "form with POST", method: "POST", mode: "navigate", dest: "document", origin: true},
}

// changingPaths are those on which a request does something that others notice, be it a snapshot on the disk.
var changingPaths = []string{"/set?key=page&value=1", "/remove?key=k", "/txn", "/join?nodeId=n2&raftPort=1",
	"/leave?nodeId=n1", "/transfer", "/snapshot", "/restore", "/lab"}

// TestPagesOfOtherSites: none of the ways writes, whether the node is reached by a loopback address or, over plain
// http, by a name.
func TestPagesOfOtherSites(t *testing.T) {
	s := startNode(t, "n1", t.TempDir(), func(c *config) { c.httpNames = []string{"node.test"} })
	leads(t, s)
	set(t, s, "k", "v")
	_, port, _ := strings.Cut(s.listener.Addr().String(), ":")
	header := func(loopback, origin bool, mode, dest string) http.Header {
		h := http.Header{"User-Agent": {"Mozilla/5.0 (X11; Linux x86_64) Chrome/156.0.0.0"}, "Accept": {"*/*"},
			"Accept-Language": {"en-US,en;q=0.9"}}
		if origin {
			h.Set("Origin", "http://evil.test:8080")
		}
		if loopback {
			h.Set("Sec-Fetch-Site", "cross-site")
			h.Set("Sec-Fetch-Mode", mode)
			h.Set("Sec-Fetch-Dest", dest)
		}
		return h
	}
	request := func(method, target, host string, h http.Header) answer {
		r := newRequest(t, method, s, target, "")
		r.Host = host
		maps.Copy(r.Header, h)
		return exchange(t, r)
	}
	checkUnchanged(t, s, func() {
		written := 0
		for _, host := range []string{"127.0.0.1:" + port, "node.test:" + port} {
			for _, way := range waysOfPages {
				h := header(host != "node.test:"+port, way.origin, way.mode, way.dest)
				a := request(cmp.Or(way.method, http.MethodGet), "/set?key=page&value=1", host, h)
				if a.status != http.StatusForbidden {
					written++
					t.Errorf("%s at %s: got %d %q, want 403", way.name, host, a.status, a.body)
				}
			}
		}
		t.Logf("%d of %d wrote", written, 2*len(waysOfPages))
		for _, target := range changingPaths {
			h := header(false, false, "", "")
			if a := request(http.MethodGet, target, "node.test:"+port, h); a.status != http.StatusForbidden {
				t.Errorf("a link to %s: got %d %q, want 403", target, a.status, a.body)
			}
			// A page's script may set Accept-Language, to what Node.js sends, but not what else that sends.
			h.Set("Accept-Language", "*")
			if a := request(http.MethodGet, target, "node.test:"+port, h); a.status != http.StatusForbidden {
				t.Errorf("fetch of %s with Accept-Language: *: got %d %q, want 403", target, a.status, a.body)
			}
		}
		for _, method := range []string{"PUT", "DELETE", "OPTIONS"} {
			if a := request(method, "/get?key=k", "node.test:"+port, header(false, false, "", "")); a.status != 403 {
				t.Errorf("%s /get: got %d %q, want 403", method, a.status, a.body)
			}
		}
	})
	if a := request(http.MethodGet, "/get?key=k", "node.test:"+port, header(false, false, "", "")); a.status != 200 {
		t.Errorf("a read by a browser: got %d %q, want 200", a.status, a.body)
	}
	own := header(false, false, "", "")
	own.Set("Origin", "http://node.test:"+port)
	if a := request(http.MethodPost, "/set?key=page&value=1", "node.test:"+port, own); a.status != 200 {
		t.Errorf("POST of the node's own page: got %d %q, want 200", a.status, a.body)
	}
}

// TestProgramsArePrograms: with the headers that they send by themselves, the clients that are no browsers set.
func TestProgramsArePrograms(t *testing.T) {
	s := startNode(t, "n1", t.TempDir(), func(c *config) { c.httpNames = []string{"node.test"} })
	leads(t, s)
	for name, header := range map[string]http.Header{
		"curl":             {"User-Agent": {"curl/7.88.1"}, "Accept": {"*/*"}},
		"wget":             {"User-Agent": {"Wget/1.21.3"}, "Accept": {"*/*"}, "Accept-Encoding": {"identity"}},
		"Go":               {"User-Agent": {"Go-http-client/1.1"}, "Accept-Encoding": {"gzip"}},
		"Python's urllib":  {"User-Agent": {"Python-urllib/3.11"}, "Accept-Encoding": {"identity"}},
		"Python's request": {"User-Agent": {"python-requests/2.34.2"}, "Accept": {"*/*"}},
		"fetch of Node.js": {"Accept": {"*/*"}, "Accept-Language": {"*"}, "Sec-Fetch-Mode": {"cors"}, "User-Agent": {"node"},
			"Accept-Encoding": {"gzip, deflate"}},
	} {
		r := newRequest(t, http.MethodGet, s, "/set?key=a&value=1", "")
		r.Host = "node.test"
		maps.Copy(r.Header, header)
		if a := exchange(t, r); a.status != http.StatusOK {
			t.Errorf("%s: got %d %q, want 200", name, a.status, a.body)
		}
	}
}

// TestPathsReadOrChange: a new path is taken for one that changes something, until package api knows that it does not;
// each must be in the one list or the other on purpose.
func TestPathsReadOrChange(t *testing.T) {
	s := startOne(t)
	h := newHandler(s.node, s.machine.Store, s.log, nil, api.NewMemory(64<<20), false)
	for _, path := range h.paths {
		if path == "/debug/pprof/" { // a profile costs processor time
			continue
		}
		r := newRequest(t, http.MethodGet, s, path, "")
		r.Header.Set("Accept-Language", "en")
		reads := api.CheckOrigin(r, nil) == nil
		changes := slices.ContainsFunc(changingPaths, func(target string) bool {
			p, _, _ := strings.Cut(target, "?")
			return p == path
		})
		if reads == changes {
			t.Errorf("%s: taken for a read: %t, want %t", path, reads, !changes)
		}
	}
}
