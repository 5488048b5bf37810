package main

import (
	"context"
	"fmt"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// definite is a request to s with headers, given as name, value, name and so on,
// which is repeated until it has a definite answer, where it leads.
func definite(t testing.TB, s *service, target string, headers ...string) answer {
	t.Helper()
	var a answer
	waitFor(t, target, func() (err error) {
		r := newRequest(t, http.MethodGet, s, target, "")
		for i := 0; i < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		a, err = send(following, r)
		if err == nil && a.status >= 500 {
			err = fmt.Errorf("status %d: %s", a.status, a.body)
		}
		return err
	})
	return a
}

// TestConditionalRequests is what a client sees of conditions, through any node.
func TestConditionalRequests(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3)
	other := set(t, nodes[0], "other", "1")
	was := ""
	for i, tt := range []struct {
		target, header, value string // WAS is the ETag that k had last
		status                int
		says                  string
	}{
		{"/set?key=k&value=1", "If-Match", "*", 412, `If-Match: key "k" is not there: nothing was done; set it with If-None-Match: *`},
		{"/set?key=k&value=1", "If-None-Match", "*", 200, "OK index="},
		{"/set?key=k&value=2", "If-None-Match", "*", 412, `If-None-Match: key "k" has ETag WAS: nothing was done; get it`},
		{"/set?key=k&value=3", "If-Match", fmt.Sprintf(`"%d"`, other), 412, `If-Match: key "k" has ETag WAS: nothing was done; get it again, and send the ETag`},
		{"/set?key=k&value=4", "If-Match", `"abc", WAS`, 200, "OK index="},
		{"/set?key=k&value=5", "If-Match", `"abc","x,y" ,, "1"`, 412, "has ETag WAS"},
		{"/set?key=k&value=6", "If-None-Match", `WAS`, 412, "has ETag WAS"},
		{"/set?key=k&value=7", "If-None-Match", `"1", "abc"`, 200, "OK index="},
		{"/set?key=k&value=8&key=none&value=8", "If-Match", "WAS", 412, `key "none" is not there`},
		{"/remove?key=k", "If-Match", `"1"`, 412, "has ETag WAS"},
		{"/remove?key=k&key=other", "If-Match", `WAS`, 412, `key "other" has ETag`},
		{"/remove?key=k", "If-Match", "WAS", 200, "removed=1"},
		{"/remove?key=k", "If-Match", "*", 412, "is not there"},
	} {
		a := definite(t, nodes[i%3], tt.target, tt.header, strings.ReplaceAll(tt.value, "WAS", was))
		if says := strings.ReplaceAll(tt.says, "WAS", was); a.status != tt.status || !strings.Contains(a.body, says) {
			t.Errorf("%d. %s with %s: %s: got %d %q, want %d %q", i+1, tt.target, tt.header, tt.value, a.status, a.body, tt.status, says)
		}
		if tag := a.header.Get("ETag"); tag != "" {
			was = tag
		}
	}
	if got := checkReplicas(t, nodes...); !reflect.DeepEqual(got, map[string]string{"other": "1"}) {
		t.Errorf("the nodes hold %v, want other=1 alone", got)
	}
}

// TestRepeatedRequests: the same Idempotency-Key is answered the same by any leader,
// also after all nodes have been restarted.
func TestRepeatedRequests(t *testing.T) {
	t.Parallel()
	nodes, dirs := startCluster(t, 3)
	const key, target = `"8e03978e-40d5-43dd-bc93-6894a57f9324"`, "/set?key=k&value=1"
	first := definite(t, nodes[0], target, "Idempotency-Key", key)
	if _, err := indexOf(first); err != nil || first.status != http.StatusOK {
		t.Fatalf("got %d %q, want 200 OK index=N", first.status, first.body)
	}
	set(t, nodes[0], "k", "later")
	again := func(when string, nodes ...*service) {
		t.Helper()
		for i, s := range nodes {
			name := []string{key, strings.Trim(key, `"`)}[i%2] // in double quotes or without, it is the same
			if a := definite(t, s, target, "Idempotency-Key", name); a.body != first.body || a.header.Get("ETag") != first.header.Get("ETag") {
				t.Errorf("%s, at n%d: got %d %q, ETag %s, want the first answer, %q, %s", when, i+1, a.status, a.body, a.header.Get("ETag"), first.body, first.header.Get("ETag"))
			}
			for _, other := range []string{"/set?key=k&value=2", "/remove?key=k", "/remove?prefix=k"} {
				a := definite(t, s, other, "Idempotency-Key", key)
				if err := oneLineNaming(a, "Idempotency-Key", "take a new key"); err != nil || a.status != http.StatusUnprocessableEntity {
					t.Errorf("%s, at n%d: %s with the same key: got %d (%v), want 422", when, i+1, other, a.status, err)
				}
			}
		}
	}
	again("at once", nodes...)
	for range nodes {
		leader, _ := nodes.leader(t)
		waitFor(t, "transfer", func() error {
			_, err := acknowledged(newRequest(t, http.MethodGet, leader, "/transfer", ""))
			return err
		})
		again("under another leader", nodes...)
	}
	for _, s := range nodes {
		if err := s.stop(); err != nil {
			t.Fatal(err)
		}
	}
	for i, s := range nodes {
		nodes[i] = restart(t, s, dirs[i])
	}
	again("after a restart", nodes...)
	if got := checkReplicas(t, nodes...); !reflect.DeepEqual(got, map[string]string{"k": "later"}) {
		t.Errorf("the nodes hold %v, want k=later", got)
	}
}

// TestNoUpdateIsLost: two hundred clients increment one counter, each by reading it
// and setting it with If-Match, at any node.
func TestNoUpdateIsLost(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3)
	set(t, nodes[0], "counter", "0")
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
				was := definite(t, s, "/get?key=counter")
				n, err := strconv.Atoi(was.body)
				if err != nil {
					t.Errorf("counter: got %d %q, want a number", was.status, was.body)
					cancel()
					return
				}
				r := newRequest(t, http.MethodGet, s, fmt.Sprintf("/set?key=counter&value=%d", n+1), "")
				r.Header.Set("If-Match", was.header.Get("ETag"))
				// The key makes it safe to send again what has no definite answer.
				r.Header.Set("Idempotency-Key", fmt.Sprintf("%d-%d", i, attempts[i]))
				var a answer
				waitFor(t, "a definite answer", func() (err error) {
					if a, err = send(following, r); err == nil && a.status >= 500 {
						err = fmt.Errorf("status %d: %s", a.status, a.body)
					}
					return err
				})
				switch a.status {
				case http.StatusOK:
					return
				case http.StatusPreconditionFailed:
				default:
					t.Errorf("set: got %d %q, want 200 or 412", a.status, a.body)
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
	if got := checkReplicas(t, nodes...)["counter"]; got != strconv.Itoa(clients) {
		t.Errorf("counter: got %s, want %d", got, clients)
	}
}
