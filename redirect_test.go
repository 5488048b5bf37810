package main

import (
	"bufio"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"raftkv/internal/api"
	"raftkv/internal/testkit"
)

// startTwo starts a cluster of two, and returns its follower and its leader.
func startTwo(t testing.TB) (follower, leader *service) {
	t.Helper()
	calm := func(c *config) { c.electionTimeout = 2 * time.Second } // no other leader comes on a busy machine
	nodes := []*service{startNode(t, "n1", t.TempDir(), calm), startNode(t, "n2", t.TempDir(), calm)}
	for _, s := range nodes {
		leads(t, s)
	}
	join(t, nodes[0], nodes[1])
	leader, others := testkit.Leader(t, nodes...)
	return others[0], leader
}

// TestFollowerLeavesTheBody: a follower answers before it has read a body, so that a client
// still has it, and refuses one that the client could not send again.
func TestFollowerLeavesTheBody(t *testing.T) {
	follower, leader := startTwo(t)
	set(t, leader, "k", "before")
	const known, form = "Content-Length: 5\r\n", "Content-Type: application/x-www-form-urlencoded\r\n"
	const unknown, waits = "Transfer-Encoding: chunked\r\n", "Expect: 100-continue\r\n"
	for _, tt := range []struct {
		name, request, header string // without the body
		location              string // empty: 503
	}{
		{name: "value", request: "PUT /set?key=k", header: known, location: "/set?key=k&raftkv-length=5"},
		{name: "form", request: "POST /set?key=k", header: known + form, location: "/set?key=k&raftkv-length=5"},
		{name: "form of a remove", request: "POST /remove", header: known + form, location: "/remove?raftkv-length=5"},
		{name: "form of a join", request: "POST /join", header: known + form, location: "/join?raftkv-length=5"},
		{name: "form of a leave", request: "POST /leave", header: known + form, location: "/leave?raftkv-length=5"},
		{name: "form of a transfer", request: "POST /transfer", header: known + form, location: "/transfer?raftkv-length=5"},
		{name: "backup", request: "PUT /restore", header: known, location: "/restore?raftkv-length=5"},
		{name: "value that waits", request: "PUT /set?key=k", header: unknown + waits,
			location: "/set?key=k&raftkv-length=chunked"},
		{name: "backup that waits", request: "PUT /restore", header: unknown + waits,
			location: "/restore?raftkv-length=chunked"},
		{name: "value of unknown length", request: "PUT /set?key=k", header: unknown},
		{name: "form of unknown length", request: "POST /set?key=k", header: unknown + form},
		{name: "backup of unknown length", request: "PUT /restore", header: unknown},
	} {
		conn := dial(t, follower.listener.Addr().String())
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second)) // of a node that waits for the body for 30 s
		_, _ = io.WriteString(conn, tt.request+" HTTP/1.1\r\nHost: localhost\r\n"+tt.header+"\r\n")
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%s: got %v, want an answer before the body", tt.name, err)
		}
		line, _ := bufio.NewReader(response.Body).ReadString('\n')
		want, location := http.StatusServiceUnavailable, ""
		if tt.location != "" {
			want, location = http.StatusTemporaryRedirect, leader.At().Base+tt.location
		}
		if got := response.Header.Get("Location"); response.StatusCode != want || got != location {
			t.Errorf("%s: got %d to %q: %s, want %d to %q", tt.name, response.StatusCode, got, line, want, location)
		}
	}

	// A client that comes without its body is refused by the leader.
	a := exchange(t, newRequest(t, http.MethodPut, leader, "/set?key=k&raftkv-length=5", ""))
	err := oneLineNaming(a, "body: 0 bytes of \"5\"", "nothing was done")
	if err != nil || a.status != http.StatusBadRequest {
		t.Errorf("got %d %v, want 400", a.status, err)
	}
	// One that has it is not.
	value := strings.Repeat("v", mebi/2)
	r := follower.At().Request(t, http.MethodPut, "/set?key=large", value)
	if _, err := testkit.Acknowledged(r); err != nil {
		t.Error(err)
	}
	// And what is no problem anywhere is none here.
	r = follower.At().Request(t, http.MethodPost, "/get", url.Values{"key": {"k"}}.Encode())
	if a := exchange(t, r); a.status != http.StatusOK || a.body != "before" {
		t.Errorf("get by a form at a follower: got %d %q, want 200 before", a.status, a.body)
	}
	if got := checkReplicas(t, follower, leader); got["k"] != "before" || got["large"] != value {
		t.Errorf("got %.100v, want k as before, and the large value", got)
	}
}

// TestAdvertisedAddress: a client is sent where the leader says that clients reach it, and
// the leader answers to that name, and to the one that it has among the nodes.
func TestAdvertisedAddress(t *testing.T) {
	nodes := make([]*service, 2)
	for i, id := range []string{"n1", "n2"} {
		nodes[i] = startNode(t, id, t.TempDir(), func(c *config) {
			c.electionTimeout = 2 * time.Second
			c.httpURL, c.raftAddress = "https://"+id+".example:8443", "localhost:0"
		})
		leads(t, nodes[i])
	}
	join(t, nodes[0], nodes[1])
	leader, others := testkit.Leader(t, nodes...)
	a := ask(t, others[0], "/set?key=k&value=v")
	want := "https://" + leader.node.Info().NodeID + ".example:8443/set?key=k&value=v"
	if a.header.Get("Location") != want {
		t.Errorf("got %d to %q, want %q", a.status, a.header.Get("Location"), want)
	}
	for host, want := range map[string]int{leader.node.Info().NodeID + ".example": http.StatusOK,
		"other.example": http.StatusForbidden} {
		r := newRequest(t, http.MethodGet, leader, "/set?key=k&value=v", "")
		r.Host = host
		if a := exchange(t, r); a.status != want {
			t.Errorf("Host %s: got %d %q, want %d", host, a.status, a.body, want)
		}
	}
	checkReplicas(t, nodes...)
}

// TestGetHonorsIfMatch: a condition on a read is no different from one on a write.
func TestGetHonorsIfMatch(t *testing.T) {
	s := startOne(t)
	mark, _ := s.node.History()
	etag := api.History{Mark: mark}.ETag(set(t, s, "k", "v"))
	for _, tt := range []struct {
		name, target, match, noneMatch string
		status                         int
	}{
		{name: "it holds", target: "/get?key=k", match: etag, status: http.StatusOK},
		{name: "another", target: "/get?key=k", match: `"1"`, status: http.StatusPreconditionFailed},
		{name: "another, before If-None-Match", target: "/get?key=k", match: `"1"`, noneMatch: etag,
			status: http.StatusPreconditionFailed},
		{name: "both hold", target: "/get?key=k", match: etag, noneMatch: etag, status: http.StatusNotModified},
		{name: "no such key", target: "/get?key=none", match: etag, status: http.StatusNotFound},
	} {
		r := newRequest(t, http.MethodGet, s, tt.target, "")
		r.Header.Set("If-Match", tt.match)
		if tt.noneMatch != "" {
			r.Header.Set("If-None-Match", tt.noneMatch)
		}
		if a := exchange(t, r); a.status != tt.status {
			t.Errorf("%s: got %d %q, want %d", tt.name, a.status, a.body, tt.status)
		}
	}
}

// TestReadyLeader: a balancer that asks for the leader finds that one alone.
func TestReadyLeader(t *testing.T) {
	follower, leader := startTwo(t)
	for _, tt := range []struct {
		s      *service
		target string
		want   int
	}{
		{s: leader, target: "/readyz?leader", want: http.StatusOK},
		{s: follower, target: "/readyz?leader", want: http.StatusServiceUnavailable},
		{s: follower, target: "/readyz", want: http.StatusOK},
	} {
		if a := ask(t, tt.s, tt.target); a.status != tt.want {
			t.Errorf("%s of %s: got %d %q, want %d", tt.target, tt.s.node.Info().NodeID, a.status, a.body, tt.want)
		}
	}
}
