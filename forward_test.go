package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"raftkv/internal/api"
	"raftkv/internal/forward"
	"raftkv/internal/node"
	"raftkv/internal/testkit"
)

// startForwarding starts a cluster of three, whose followers send requests on, with a network
// between. Its election timeout is long, so that no other leader comes on a busy machine.
func startForwarding(t testing.TB) (leader *service, followers []*service, network *testkit.Network) {
	t.Helper()
	network = testkit.New(t)
	var nodes []*service
	for _, id := range []string{"n1", "n2", "n3"} {
		s := startNode(t, id, t.TempDir(), func(c *config) {
			c.dial, c.forward, c.electionTimeout = network.Dialer(id), true, 2*time.Second
		})
		network.Place(id, s.node.RaftAddress())
		leads(t, s)
		if nodes = append(nodes, s); len(nodes) > 1 {
			join(t, nodes[0], s)
		}
	}
	leader, followers = testkit.Leader(t, nodes...)
	return leader, followers, network
}

// TestForwarding: with HTTP_FOLLOWERS=forward every request that only the leader can carry out
// is answered by a follower as the leader answers it.
func TestForwarding(t *testing.T) {
	leader, followers, _ := startForwarding(t)
	follower := followers[0]
	id := follower.node.Info().NodeID
	const form = "application/x-www-form-urlencoded"
	large := strings.Repeat("v", mebi)
	var tag string // of k
	for _, tt := range []struct {
		name, method, target, body string
		chunked                    bool
		header                     []string // TAG stands for tag
		status                     int
		says                       string
	}{
		{name: "set", method: "GET", target: "/set?key=k&value=1", status: 200, says: "OK index="},
		{name: "set if absent", method: "GET", target: "/set?key=k&value=2", header: []string{"If-None-Match", "*"},
			status: 412, says: "nothing was done"},
		{name: "set if match", method: "GET", target: "/set?key=k&value=3", header: []string{"If-Match", "TAG"}, status: 200,
			says: "OK index="},
		{name: "form", method: "POST", target: "/set", body: "key=form&value=1", header: []string{"Content-Type", form},
			status: 200, says: "OK index="},
		{name: "value", method: "PUT", target: "/set?key=put", body: "new", status: 200, says: "OK index="},
		{name: "empty value", method: "PUT", target: "/set?key=empty", status: 200, says: "OK index="},
		{name: "large value", method: "PUT", target: "/set?key=large", body: large, status: 200, says: "OK index="},
		{name: "large value in chunks", method: "PUT", target: "/set?key=chunked", body: large, chunked: true, status: 200,
			says: "OK index="},
		{name: "value that waits", method: "PUT", target: "/set?key=waits", body: "new",
			header: []string{"Expect", "100-continue"}, status: 200, says: "OK index="},
		{name: "large query", method: "GET", target: "/set?key=query&value=" + large, status: 200, says: "OK index="},
		{name: "too large", method: "PUT", target: "/set?key=big", body: large + "v", status: 413, says: "value: larger"},
		{name: "too large in chunks", method: "PUT", target: "/set?key=big", body: large + large, chunked: true, status: 413,
			says: "value: larger"},
		{name: "lost body", method: "PUT", target: "/set?key=put&raftkv-length=3", status: 400, says: "followed a redirect"},
		{name: "wrong parameter", method: "GET", target: "/set?kye=k", status: 400, says: `"kye": unknown parameter`},
		{name: "once", method: "GET", target: "/set?key=once&value=1", header: []string{"Idempotency-Key", "a"}, status: 200,
			says: "OK index="},
		{name: "other request", method: "GET", target: "/set?key=once&value=2", header: []string{"Idempotency-Key", "a"},
			status: 422, says: "Idempotency-Key"},
		{name: "transaction", method: "POST", target: "/txn", body: `{"then":[{"set":"txn","value":"1"},{"get":"k"}]}`,
			status: 200, says: `"value":"3"`},
		{name: "remove", method: "POST", target: "/remove", body: "key=form", header: []string{"Content-Type", form},
			status: 200, says: "removed=1"},
		{name: "removal of nobody", method: "GET", target: "/leave?nodeId=n9", status: 404, says: "no such node"},
		{name: "join of a member", method: "GET", target: testkit.JoinPath(id, port(follower.node.RaftAddress())),
			status: 200, says: "is a member already"},
	} {
		r := newRequest(t, tt.method, follower, tt.target, tt.body)
		for i := 0; i < len(tt.header); i += 2 {
			r.Header.Set(tt.header[i], strings.ReplaceAll(tt.header[i+1], "TAG", tag))
		}
		if tt.chunked {
			r.Body, r.ContentLength, r.GetBody = io.NopCloser(chunked{strings.NewReader(tt.body)}), -1, nil
		}
		a := exchange(t, r)
		if a.status != tt.status || !strings.Contains(a.body, tt.says) {
			t.Errorf("%s: got %d %.300q, want %d %q", tt.name, a.status, a.body, tt.status, tt.says)
		}
		if got := a.header.Get(forward.Header); got != id {
			t.Errorf("%s: %s: got %q, want %s", tt.name, forward.Header, got, id)
		}
		if tt.name == "set" || tt.name == "set if match" {
			if tag = a.header.Get("ETag"); tag == "" {
				t.Errorf("%s: got no ETag", tt.name)
			}
		}
	}
	// The other follower does the same, and a backup goes back through it.
	backup := ask(t, follower, "/snapshot")
	set(t, follower, "k", "later")
	r := newRequest(t, http.MethodPut, followers[1], "/restore", backup.body)
	r.ContentLength, r.GetBody = -1, nil
	if a := exchange(t, r); a.status != http.StatusOK || !strings.Contains(a.body, "keys=9") {
		t.Errorf("restore: got %d %q, want 200 keys=9", a.status, a.body)
	}
	got := checkReplicas(t, append(followers, leader)...)
	for key, want := range map[string]string{"k": "3", "put": "new", "empty": "", "large": large, "chunked": large,
		"waits": "new", "query": large, "once": "1", "txn": "1"} {
		if value, ok := got[key]; !ok || value != want {
			t.Errorf("%s: got %.20q %v, want %.20q", key, value, ok, want)
		}
	}
	if len(got) != 9 {
		t.Errorf("got %d keys, want 9", len(got))
	}
	// A node joins, leads and leaves by a follower.
	n4 := startNode(t, "n4", t.TempDir(), nil)
	leads(t, n4)
	for _, target := range []string{testkit.JoinPath("n4", port(n4.node.RaftAddress())), "/leave?nodeId=n4",
		"/transfer?nodeId=" + id} {
		if a := ask(t, follower, target); a.status != http.StatusOK || !strings.Contains(a.body, "OK ") ||
			a.header.Get(forward.Header) != id {
			t.Errorf("%s: got %d %q %v, want 200 OK, sent on", target, a.status, a.body, a.header)
		}
	}
	set(t, leader, "after", "1") // which does not lead any more
	checkReplicas(t, append(followers, leader)...)
}

// TestForwardedBodyStreams: a body is passed on as it comes, and an answer before its end, too.
func TestForwardedBodyStreams(t *testing.T) {
	leader, followers, _ := startForwarding(t)
	follower := followers[0]
	conn := dial(t, follower.listener.Addr().String())
	_ = conn.SetDeadline(time.Now().Add(testkit.Bound))
	const size = 32 * mebi
	_, _ = fmt.Fprintf(conn, "PUT /restore HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n", size)
	// What is no backup is refused as soon as the leader sees that, long before its end.
	before := heap()
	sent := 0
	part := bytes.Repeat([]byte("x"), mebi)
	for range size / mebi {
		n, err := conn.Write(part)
		if sent += n; err != nil {
			break
		}
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("after %d bytes: %v, want an answer", sent, err)
	}
	line, _ := bufio.NewReader(response.Body).ReadString('\n')
	if response.StatusCode != http.StatusBadRequest {
		t.Errorf("got %d %q, want 400", response.StatusCode, line)
	}
	runtime.GC()
	if grown := heap() - before; grown > 16*mebi {
		t.Errorf("the heap grew by %d bytes, want that the body is not kept", grown)
	}
	checkReplicas(t, append(followers, leader)...)
}

// TestNoSecondHop: what another node has sent on is answered here, and nowhere else: two
// followers that point at each other are no loop. And only what a leader does is answered.
func TestNoSecondHop(t *testing.T) {
	leader, followers, _ := startForwarding(t)
	its := newHandler(followers[0].node, followers[0].machine.Store, followers[0].log, nil, api.NewMemory(64<<20), false)
	its.forwards = true
	h := forward.Handler(its.leaders, followers[0].node.Leads)
	for _, tt := range []struct {
		name, request string
		status        int
	}{
		{name: "set", request: "GET /set?key=k&value=1", status: http.StatusServiceUnavailable},
		{name: "value", request: "PUT /set?key=k", status: http.StatusServiceUnavailable},
		{name: "join", request: "GET /join?nodeId=n9&raftPort=1", status: http.StatusServiceUnavailable},
		{name: "restore", request: "PUT /restore", status: http.StatusServiceUnavailable},
		{name: "what any node does", request: "GET /list", status: http.StatusNotFound},
		{name: "no request", request: "what", status: http.StatusBadRequest},
	} {
		w := httptest.NewRecorder()
		call := httptest.NewRequest(http.MethodPost, "/forward", strings.NewReader(tt.request+" HTTP/1.1\r\nHost: x\r\n\r\n"))
		h.ServeHTTP(recorder{w}, call)
		if w.Code != tt.status || w.Header().Get("Location") != "" || w.Header().Get(forward.Header) != "" {
			t.Errorf("%s: got %d %q %v, want %d", tt.name, w.Code, w.Body, w.Header(), tt.status)
		}
	}
	// So it is with those that travel together, and a node that does not lead takes none to begin with.
	for _, leads := range []bool{true, false} {
		s := httptest.NewServer(forward.Handler(its.leaders, func() bool { return leads }))
		a := exchange(t, newCall(t, s.URL+node.TogetherPath, "GET /set?key=k&value=1 HTTP/1.1\r\n\r\n"))
		if answered := strings.HasPrefix(a.body, "HTTP/1.1 503 "); answered != leads || !leads && a.body != "" ||
			strings.Contains(a.body, forward.Header) {
			t.Errorf("together, as if it led %v: got %d %q, want a 503 only then", leads, a.status, a.body)
		}
		s.Close()
	}
	checkReplicas(t, append(followers, leader)...)
}

func newCall(t *testing.T, url, body string) *http.Request {
	t.Helper()
	r, err := http.NewRequest(http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Expect", "100-continue")
	return r
}

// TestForwardingTogether: what many clients send by followers at once is done once each, and each gets its
// own answer: conditions and keys are the leader's to decide.
func TestForwardingTogether(t *testing.T) {
	leader, followers, _ := startForwarding(t)
	var clients sync.WaitGroup
	var first atomic.Int32
	for i := range 120 {
		clients.Go(func() {
			at := followers[i%2]
			ask := func(target, body string, headers ...string) answer {
				method := http.MethodPut
				if body == "" {
					method = http.MethodGet
				}
				r := newRequest(t, method, at, target, body)
				for h := 0; h < len(headers); h += 2 {
					r.Header.Set(headers[h], headers[h+1])
				}
				a, err := send(direct, r)
				if err != nil {
					t.Errorf("%s: %v", target, err)
				}
				return a
			}
			key, value := fmt.Sprint("k", i), strings.Repeat(fmt.Sprint(i), 20)
			if a := ask("/set?key="+key, value); a.status != http.StatusOK || a.header.Get(forward.Header) != at.node.ID() {
				t.Errorf("%s: got %d %q, want 200, sent on", key, a.status, a.body)
			}
			switch a := ask("/set?key=first&value="+fmt.Sprint(i), "", "If-None-Match", "*"); a.status {
			case http.StatusOK:
				first.Add(1)
			case http.StatusPreconditionFailed:
			default:
				t.Errorf("first: got %d %q, want 200 or 412", a.status, a.body)
			}
			once := []string{"Idempotency-Key", key}
			a, again := ask("/set?key=once-"+key+"&value=1", "", once...), ask("/set?key=once-"+key+"&value=1", "", once...)
			if a.status != http.StatusOK || again.body != a.body {
				t.Errorf("once: got %q, then %q, want the same", a.body, again.body)
			}
		})
	}
	clients.Wait()
	if got := first.Load(); got != 1 {
		t.Errorf("got %d clients that were first, want 1", got)
	}
	has := checkReplicas(t, append(followers, leader)...)
	for i := range 120 {
		if got, want := has[fmt.Sprint("k", i)], strings.Repeat(fmt.Sprint(i), 20); got != want {
			t.Errorf("k%d: got %q, want %q", i, got, want)
		}
	}
}

// TestForwardingOfAGuess: also a node that redirects sends a request on, where the leader
// listens on all addresses and has not said by which clients reach it.
func TestForwardingOfAGuess(t *testing.T) {
	for _, advertised := range []string{"", "http://kv.example:8000"} {
		nodes := make([]*service, 2)
		for i, id := range []string{"n1", "n2"} {
			nodes[i] = startNode(t, id, t.TempDir(), func(c *config) {
				c.electionTimeout, c.httpAddress, c.httpURL = 2*time.Second, "0.0.0.0:0", advertised
			})
			leads(t, nodes[i])
		}
		join(t, nodes[0], nodes[1])
		leader, others := testkit.Leader(t, nodes...)
		a := ask(t, others[0], "/set?key=k&value=v")
		sent := a.status == http.StatusOK && a.header.Get(forward.Header) == others[0].node.ID()
		if redirected := a.status == http.StatusTemporaryRedirect; sent != (advertised == "") || sent == redirected {
			t.Errorf("HTTP_ADVERTISE=%q: got %d %q %v, want that it is sent on only without it", advertised, a.status, a.body,
				a.header)
		}
		checkReplicas(t, others[0], leader)
	}
}

// TestForwardingWithoutALeader: what certainly was not done is a 503, and what may be is a 504.
func TestForwardingWithoutALeader(t *testing.T) {
	leader, followers, network := startForwarding(t)
	follower, at := followers[0], leader.node.Info().NodeID
	set(t, follower, "k", "before") // so that there is a connection
	// The leader takes the request, and its answer does not come.
	network.Hold(at, follower.node.Info().NodeID)
	var waiting sync.WaitGroup
	waiting.Go(func() {
		a, err := send(direct, newRequest(t, http.MethodGet, follower, "/set?key=unknown&value=1", ""))
		if err != nil || a.status != http.StatusGatewayTimeout || !strings.Contains(a.body, "read before you send it again") {
			t.Errorf("an answer that is lost: got %d %q %v, want 504", a.status, a.body, err)
		}
	})
	waitFor(t, "the leader has it", func() error {
		if _, ok := leader.machine.Store.Get("unknown"); !ok {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	network.Isolate(at)
	waiting.Wait()
	network.Heal()
	testkit.Leader(t, append(followers, leader)...)
	checkReplicas(t, append(followers, leader)...)

	// Nothing was sent.
	leader, followers = testkit.Leader(t, append(followers, leader)...)
	for _, s := range append([]*service{leader}, followers[1:]...) {
		_ = s.stop()
	}
	waitFor(t, "503", func() error {
		a := ask(t, followers[0], "/set?key=k&value=never")
		if a.status == http.StatusServiceUnavailable && a.header.Get("Retry-After") != "" {
			return nil
		}
		return fmt.Errorf("got %d %q, want 503", a.status, a.body)
	})
	if got := checkReplicas(t, followers[0]); got["k"] != "before" || got["unknown"] != "1" {
		t.Errorf("got %v, want k=before unknown=1", got)
	}
}
