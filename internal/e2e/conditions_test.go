package e2e

import (
	"context"
	"fmt"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"raftkv/internal/testkit"
)

// TestConditionalRequests is what a client sees of conditions, through any node.
func TestConditionalRequests(t *testing.T) {
	t.Parallel()
	nodes := startThree(t)
	nodes[0].Set(t, "other", "1")
	other := nodes[0].Ask(t, "/get?key=other").Header.Get("ETag")
	was := ""
	for i, tt := range []struct {
		target, header, value string // WAS is the ETag that k had last
		status                int
		says                  string
	}{
		{target: "/set?key=k&value=1", header: "If-Match", value: "*", status: 412,
			says: `If-Match: key "k" is not there: nothing was done; set it with If-None-Match: *`},
		{target: "/set?key=k&value=1", header: "If-None-Match", value: "*", status: 200, says: "OK index="},
		{target: "/set?key=k&value=2", header: "If-None-Match", value: "*", status: 412,
			says: `If-None-Match: key "k" has ETag WAS: nothing was done; get it`},
		{target: "/set?key=k&value=3", header: "If-Match", value: other, status: 412,
			says: `If-Match: key "k" has ETag WAS: nothing was done; get it again, and send the ETag`},
		{target: "/set?key=k&value=4", header: "If-Match", value: `"abc", WAS`, status: 200, says: "OK index="},
		{target: "/set?key=k&value=5", header: "If-Match", value: `"abc","x,y" ,, "1-00000000"`, status: 412,
			says: "has ETag WAS"},
		{target: "/set?key=k&value=5", header: "If-Match", value: `"1"`, status: 412,
			says: `If-Match: "1" has no mark of the history that it belongs to`},
		{target: "/set?key=k&value=5", header: "If-None-Match", value: `"1"`, status: 412, says: "has no mark"},
		{target: "/set?key=k&value=6", header: "If-None-Match", value: `WAS`, status: 412, says: "has ETag WAS"},
		{target: "/set?key=k&value=7", header: "If-None-Match", value: `"1-00000000", "abc"`, status: 200, says: "OK index="},
		{target: "/set?key=k&value=8&key=none&value=8", header: "If-Match", value: "*", status: 412,
			says: `key "none" is not there`},
		{target: "/set?key=k&value=8&key=other&value=8", header: "If-Match", value: "WAS", status: 400,
			says: "If-Match: with 2 keys it takes only *, as an ETag is of one key; send a condition for each key to /txn"},
		{target: "/remove?key=k&key=other", header: "If-None-Match", value: "WAS", status: 400,
			says: "If-None-Match: with 2 keys it takes only *"},
		{target: "/remove?key=k", header: "If-Match", value: `"1-00000000"`, status: 412, says: "has ETag WAS"},
		{target: "/remove?key=k", header: "If-Match", value: "WAS", status: 200, says: "removed=1"},
		{target: "/remove?key=k", header: "If-Match", value: "*", status: 412, says: "is not there"},
	} {
		a := nodes[i%3].Definite(t, "GET", tt.target, "", tt.header, strings.ReplaceAll(tt.value, "WAS", was))
		if says := strings.ReplaceAll(tt.says, "WAS", was); a.Status != tt.status || !strings.Contains(a.Body, says) {
			t.Errorf("%d. %s with %s: %s: got %d %q, want %d %q", i+1, tt.target, tt.header, tt.value, a.Status, a.Body,
				tt.status, says)
		}
		if tag := a.Header.Get("ETag"); tag != "" {
			was = tag
		}
	}
	if got := testkit.CheckReplicas(t, nodes...); !reflect.DeepEqual(got, map[string]string{"other": "1"}) {
		t.Errorf("the nodes hold %v, want other=1 alone", got)
	}
}

// TestRepeatedRequests: the same Idempotency-Key is answered the same by any leader,
// also after all nodes have been restarted.
func TestRepeatedRequests(t *testing.T) {
	t.Parallel()
	nodes := startThree(t)
	const key, target = `"8e03978e-40d5-43dd-bc93-6894a57f9324"`, "/set?key=k&value=1"
	first := nodes[0].Definite(t, "GET", target, "", "Idempotency-Key", key)
	if _, err := first.Index(); err != nil || first.Status != http.StatusOK {
		t.Fatalf("got %d %q, want 200 OK index=N", first.Status, first.Body)
	}
	nodes[0].Set(t, "k", "later")
	again := func(when string, nodes ...*testkit.Node) {
		t.Helper()
		for i, s := range nodes {
			name := []string{key, strings.Trim(key, `"`)}[i%2] // in double quotes or without, it is the same
			if a := s.Definite(t, "GET", target, "", "Idempotency-Key", name); a.Body != first.Body ||
				a.Header.Get("ETag") != first.Header.Get("ETag") {
				t.Errorf("%s, at n%d: got %d %q, ETag %s, want the first answer, %q, %s", when, i+1, a.Status, a.Body,
					a.Header.Get("ETag"), first.Body, first.Header.Get("ETag"))
			}
			for _, other := range []string{"/set?key=k&value=2", "/remove?key=k", "/remove?prefix=k"} {
				a := s.Definite(t, "GET", other, "", "Idempotency-Key", key)
				if err := a.OneLine("Idempotency-Key", "a new key"); err != nil || a.Status != http.StatusUnprocessableEntity {
					t.Errorf("%s, at n%d: %s with the same key: got %d (%v), want 422", when, i+1, other, a.Status, err)
				}
			}
		}
	}
	again("at once", nodes...)
	for range nodes {
		leader, _ := testkit.Leader(t, nodes...)
		testkit.Eventually(t, "transfer", func() error {
			_, err := testkit.Acknowledged(leader.Request(t, http.MethodGet, "/transfer", ""))
			return err
		})
		again("under another leader", nodes...)
	}
	for _, s := range nodes {
		s.Stop(t, syscall.SIGTERM)
	}
	for _, s := range nodes {
		s.Run(t)
	}
	again("after a restart", nodes...)
	if got := testkit.CheckReplicas(t, nodes...); !reflect.DeepEqual(got, map[string]string{"k": "later"}) {
		t.Errorf("the nodes hold %v, want k=later", got)
	}
}

// TestNoUpdateIsLost: two hundred clients increment one counter, each by reading it
// and setting it with If-Match, at any node.
func TestNoUpdateIsLost(t *testing.T) {
	t.Parallel()
	nodes := startThree(t)
	nodes[0].Set(t, "counter", "0")
	const clients = 200
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var counting sync.WaitGroup
	var attempts [clients]int
	for i := range clients {
		s := nodes[i%len(nodes)]
		counting.Go(func() {
			for ctx.Err() == nil {
				attempts[i]++
				was := s.Definite(t, "GET", "/get?key=counter", "")
				n, err := strconv.Atoi(was.Body)
				if err != nil {
					t.Errorf("counter: got %d %q, want a number", was.Status, was.Body)
					cancel()
					return
				}
				// The key makes it safe to send again what has no definite answer.
				a := s.Definite(t, http.MethodGet, fmt.Sprintf("/set?key=counter&value=%d", n+1), "",
					"If-Match", was.Header.Get("ETag"), "Idempotency-Key", fmt.Sprintf("%d-%d", i, attempts[i]))
				switch a.Status {
				case http.StatusOK:
					return
				case http.StatusPreconditionFailed:
				default:
					t.Errorf("set: got %d %q, want 200 or 412", a.Status, a.Body)
					cancel()
					return
				}
			}
		})
	}
	counting.Wait()
	total := 0
	for _, n := range attempts {
		total += n
	}
	t.Logf("%d attempts for %d increments", total, clients)
	if total == clients {
		t.Error("no attempt failed: the clients did not compete")
	}
	if got := testkit.CheckReplicas(t, nodes...)["counter"]; got != strconv.Itoa(clients) {
		t.Errorf("counter: got %s, want %d", got, clients)
	}
}
