package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"raftkv/internal/events"
	"raftkv/internal/node"
	"raftkv/internal/testkit"
)

// startTrio starts a cluster of three in the lab.
func startTrio(t *testing.T) (leader *service, others []*service) {
	t.Helper()
	var nodes []*service
	for i := range 3 {
		nodes = append(nodes, startNode(t, fmt.Sprintf("n%d", i+1), t.TempDir(), func(c *config) { c.lab = true }))
		leads(t, nodes[i])
	}
	for _, s := range nodes[1:] {
		join(t, nodes[0], s)
	}
	return testkit.Leader(t, nodes...)
}

// watchFrames returns the frames of a node as they come, until t ends.
func watchFrames(t *testing.T, s *service) <-chan node.Frame {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	r, err := direct.Do(newRequest(t, http.MethodGet, s, "/events", "").WithContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Body.Close() })
	if got := r.Header.Get("Content-Type"); r.StatusCode != http.StatusOK || got != "text/event-stream" {
		t.Fatalf("got %d, %s, want 200 and a stream of events", r.StatusCode, got)
	}
	frames := make(chan node.Frame, 1000)
	go func() {
		defer close(frames)
		lines := bufio.NewScanner(r.Body)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				var f node.Frame
				if json.Unmarshal([]byte(data), &f) == nil {
					frames <- f
				}
			}
		}
	}()
	return frames
}

// framesWith collects what frames have, until it is enough.
func framesWith(t *testing.T, what string, frames <-chan node.Frame,
	enough func(all []events.Event, cells map[uint64]node.Cell, f node.Frame) bool) {
	t.Helper()
	var all []events.Event
	cells := make(map[uint64]node.Cell)
	late := time.After(testkit.Bound)
	for {
		select {
		case f, ok := <-frames:
			if !ok {
				t.Fatalf("%s: the frames ended; got %+v, %v", what, all, cells)
			}
			all = append(all, f.Events...)
			for _, c := range f.Cells {
				cells[c.Index] = c
			}
			if enough(all, cells, f) {
				return
			}
		case <-late:
			t.Fatalf("%s: not in time; got %+v, %v", what, all, cells)
		}
	}
}

// TestFrames: what a node shows of itself: the end of its log at first, then each entry as it is stored and sent, an
// election that another one wins, and the repair of a log.
func TestFrames(t *testing.T) {
	t.Parallel()
	leader, others := startTrio(t)
	id := leader.node.ID()
	set(t, leader, "k", "v")
	last := leader.node.Info().LastIndex
	frames := watchFrames(t, leader)
	framesWith(t, "the end of the log", frames, func(_ []events.Event, cells map[uint64]node.Cell, f node.Frame) bool {
		return f.Version == node.FrameVersion && f.Node == id && f.State == "Leader" && f.Leader == id && f.Vote == id &&
			f.VoteTerm == f.Term && f.First == 1 && f.Last >= last && f.Commit >= last && f.Applied >= last && f.Lab &&
			len(f.Members) == 3 && f.Members[1].HTTP != "" && f.Cuts == nil &&
			cells[1].Kind == "members" && cells[1].Text == "n1" && cells[last].Kind == "set" && cells[last].Text == "k=v"
	})
	index := set(t, leader, "line\n\u202eend", strings.Repeat("x", 100))
	framesWith(t, "an entry on its way", frames, func(all []events.Event, cells map[uint64]node.Cell, f node.Frame) bool {
		stored := slices.ContainsFunc(all, func(e events.Event) bool {
			return e.Kind == events.Stored && e.From <= index && index <= e.To && e.Term == f.Term
		})
		sent := 0
		for _, other := range others {
			if slices.ContainsFunc(all, func(e events.Event) bool {
				return e.Kind == events.Append && e.Member == other.node.ID() && e.From <= index && index <= e.To && e.OK
			}) {
				sent++
			}
		}
		return stored && sent == 2 && cells[index].Text == `line\n\u202eend=`+strings.Repeat("x", 48)+"…"
	})

	// Cut off, it keeps an entry that the others never have, and drops it when it hears of them again.
	if a := ask(t, leader, "/lab?do=cut"); a.status != http.StatusOK {
		t.Fatalf("cut: got %d %q", a.status, a.body)
	}
	next, _ := testkit.Leader(t, others...)
	at := watchFrames(t, next)
	set(t, next, "k", "kept")
	framesWith(t, "two cuts", frames, func(_ []events.Event, _ map[uint64]node.Cell, f node.Frame) bool {
		return len(f.Cuts) == 2
	})
	framesWith(t, "no answer", at, func(all []events.Event, _ map[uint64]node.Cell, _ node.Frame) bool {
		return slices.ContainsFunc(all, func(e events.Event) bool {
			return e.Kind == events.Append && e.Member == id && e.Error != ""
		})
	})
	if a := ask(t, leader, "/lab?do=heal"); a.status != http.StatusOK {
		t.Fatalf("heal: got %d %q", a.status, a.body)
	}
	framesWith(t, "the other leader", frames, func(all []events.Event, _ map[uint64]node.Cell, f node.Frame) bool {
		return f.Cuts == nil && f.Leader == next.node.ID() && slices.ContainsFunc(all, func(e events.Event) bool {
			return e.Kind == events.State && e.Text == "Follower"
		})
	})
	checkReplicas(t, append(others, leader)...)
}

// TestPageOrigins: the page of a member may read /events and /status of another, and nothing else; anybody may be shown
// the page; and nothing of it may be put into a page of another site.
func TestPageOrigins(t *testing.T) {
	t.Parallel()
	leader, others := startTrio(t)
	member := others[0].node.HTTPURL()
	testkit.Eventually(t, "the members are heard", func() error {
		if urls := leader.node.MemberURLs(); len(urls) != 3 {
			return fmt.Errorf("got %v, want three", urls)
		}
		return nil
	})
	page := http.Header{"Origin": {member}, "Sec-Fetch-Site": {"same-site"}, "Sec-Fetch-Mode": {"cors"}}
	stranger := http.Header{"Origin": {"http://127.0.0.1:1"}, "Sec-Fetch-Site": {"same-site"}}
	link := http.Header{"Sec-Fetch-Site": {"cross-site"}, "Sec-Fetch-Mode": {"navigate"}}
	for _, test := range []struct {
		name, request string
		header        http.Header
		host          string
		status        int
		allowed       string // Access-Control-Allow-Origin
	}{
		{name: "status for a member", request: "GET /status", header: page, status: 200, allowed: member},
		{name: "set for a member", request: "GET /set?key=a&value=1", header: page, status: 403},
		{name: "get for a member", request: "GET /get?key=a", header: page, status: 403},
		{name: "list for a member", request: "GET /list", header: page, status: 403},
		{name: "lab for a member", request: "GET /lab?do=heal", header: page, status: 403},
		{name: "POST of a member", request: "POST /status", header: page, status: 403},
		{name: "status for a stranger", request: "GET /status", header: stranger, status: 403},
		{name: "events for a stranger", request: "GET /events", header: stranger, status: 403},
		{name: "status for a rebound name", request: "GET /status", header: page, host: "evil.example", status: 403,
			allowed: member},
		{name: "link to the page", request: "GET /", header: link, status: 200},
		{name: "frame of the relay", request: "GET /relay", header: link, status: 200},
		{name: "link to a set", request: "GET /set?key=a&value=1", header: link, status: 403},
		{name: "script from the page", request: "GET /", header: http.Header{"Sec-Fetch-Site": {"cross-site"},
			"Sec-Fetch-Mode": {"no-cors"}}, status: 403},
		{name: "page of a rebound name", request: "GET /", header: link, host: "evil.example", status: 403},
	} {
		t.Run(test.name, func(t *testing.T) {
			method, target, _ := strings.Cut(test.request, " ")
			r := newRequest(t, method, leader, target, "")
			for name, values := range test.header {
				r.Header[name] = values
			}
			if test.host != "" {
				r.Host = test.host
			}
			a := exchange(t, r)
			if got := a.header.Get("Access-Control-Allow-Origin"); a.status != test.status || got != test.allowed {
				t.Errorf("got %d for %q, want %d for %q: %s", a.status, got, test.status, test.allowed, a.body)
			}
		})
	}
	a := ask(t, leader, "/")
	for _, want := range []string{"default-src 'none'", "frame-ancestors 'none'", "connect-src 'self' ", member} {
		if got := a.header.Get("Content-Security-Policy"); !strings.Contains(got, want) {
			t.Errorf("/: got the policy %s, want %s in it", got, want)
		}
	}
	a = ask(t, leader, "/relay")
	if got := a.header.Get("Content-Security-Policy"); !strings.Contains(got, "frame-ancestors 'self' ") ||
		!strings.Contains(got, member) {
		t.Errorf("/relay: got the policy %s, want that members may have it in a frame", got)
	}
	r := newRequest(t, http.MethodGet, leader, "/", "")
	r.Host = "localhost:" + port(leader.listener.Addr().String())
	if a := exchange(t, r); a.status != http.StatusTemporaryRedirect ||
		a.header.Get("Location") != leader.node.HTTPURL()+"/" {
		t.Errorf("by localhost: got %d to %q, want 307 to %s/", a.status, a.header.Get("Location"), leader.node.HTTPURL())
	}

	// A redirect that a script can see.
	r = newRequest(t, http.MethodPost, others[0], "/set?key=a&value=1", "")
	r.Header.Set("Raftkv-Redirect", "shown")
	if a := exchange(t, r); a.status != http.StatusTemporaryRedirect || a.header.Get("Location") != "" ||
		a.header.Get("Raftkv-Location") != leader.node.HTTPURL()+"/set?key=a&value=1" {
		t.Errorf("got %d, Location %q, Raftkv-Location %q, want 307 and the latter alone", a.status, a.header.Get("Location"),
			a.header.Get("Raftkv-Location"))
	}
	checkReplicas(t, append(others, leader)...)
}

// TestTooManyWatch: the number of those who look is bounded, one that goes makes room, and a node that ends is not
// held up by them.
func TestTooManyWatch(t *testing.T) {
	t.Parallel()
	s := startOne(t)
	var first context.CancelFunc
	for i := range events.MaxViews {
		ctx, cancel := context.WithCancel(t.Context())
		t.Cleanup(cancel)
		if i == 0 {
			first = cancel
		}
		r, err := direct.Do(newRequest(t, http.MethodGet, s, "/events", "").WithContext(ctx))
		if err != nil || r.StatusCode != http.StatusOK {
			t.Fatalf("view %d: got %v, %v, want 200", i, r, err)
		}
		t.Cleanup(func() { _ = r.Body.Close() })
	}
	if a := ask(t, s, "/events"); a.status != http.StatusServiceUnavailable || oneLineNaming(a, "close a page") != nil {
		t.Errorf("one more: got %d %q, want 503", a.status, a.body)
	}
	first()
	testkit.Eventually(t, "room", func() error {
		view := s.node.Watch()
		if view == nil {
			return errors.New("none")
		}
		view.Close()
		return nil
	})
	checkReplicas(t, s)
}
