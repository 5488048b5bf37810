package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// answer is what a fake node answers to one request; a status of 0 breaks the connection.
type answer struct {
	status int
	header http.Header
	body   string
}

// seen is a request that a fake node has got.
type seen struct {
	method, target, body, key string
	length                    int64
}

// fake is a node that answers as it was told, the last answer again and again.
type fake struct {
	*httptest.Server
	mu      sync.Mutex // guards what follows
	answers []answer
	got     []seen
}

func newFake(t *testing.T, answers ...answer) *fake {
	f := &fake{answers: answers}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/status" {
			http.Error(w, "no status here", http.StatusNotFound)
			return
		}
		body, _ := io.ReadAll(r.Body)
		f.mu.Lock()
		f.got = append(f.got, seen{r.Method, r.RequestURI, string(body), r.Header.Get("Idempotency-Key"), r.ContentLength})
		a := f.answers[0]
		if len(f.answers) > 1 {
			f.answers = f.answers[1:]
		}
		f.mu.Unlock()
		if a.status == 0 {
			panic(http.ErrAbortHandler)
		}
		for name, values := range a.header {
			w.Header()[name] = values
		}
		w.WriteHeader(a.status)
		_, _ = io.WriteString(w, a.body)
	}))
	f.Config.ErrorLog = nil
	t.Cleanup(f.Close)
	return f
}

func (f *fake) requests() []seen {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]seen(nil), f.got...)
}

func newClient(t *testing.T, config Config) *Client {
	t.Helper()
	c, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

var (
	done     = answer{status: 200, header: http.Header{"Etag": {`"7-aa"`}}, body: "OK index=7\n"}
	busy     = answer{status: 503, body: "no leader\n"}
	lost     = answer{status: 504, body: "outcome unknown\n"}
	failed   = answer{status: 412, body: "If-Match: nothing was done\n"}
	denied   = answer{status: 403, body: "denied\n"}
	full     = answer{status: 507, body: "disk full\n"}
	broken   = answer{}
	notFound = answer{status: 404, body: "key \"k\": not found\n"}
)

// TestOutcomeOfWrites: what a write is told after the answers of a node.
func TestOutcomeOfWrites(t *testing.T) {
	all := map[string]error{"not applied": ErrNotApplied, "unknown": ErrUnknown, "precondition": ErrPreconditionFailed,
		"conflict": ErrConflict, "reused": ErrKeyReused, "not found": ErrNotFound}
	for _, tt := range []struct {
		name    string
		answers []answer
		want    string // of all; empty: done
		sent    int    // 0: more often than the answers
	}{
		{name: "done", answers: []answer{done}, sent: 1},
		{name: "busy, then done", answers: []answer{busy, busy, done}, sent: 3},
		{name: "body too slow, then done", answers: []answer{{status: 408}, done}, sent: 2},
		{name: "unclear, then done", answers: []answer{lost, done}, sent: 2},
		{name: "a broken connection, then done", answers: []answer{broken, done}, sent: 2},
		{name: "a proxy without a node, then done", answers: []answer{{status: 502}, done}, sent: 2},
		{name: "always busy", answers: []answer{busy}, want: "not applied"},
		{name: "always unclear", answers: []answer{lost}, want: "unknown"},
		{name: "unclear once, then busy", answers: []answer{lost, busy}, want: "unknown"},
		{name: "broken once, then busy", answers: []answer{broken, busy}, want: "unknown"},
		{name: "a condition", answers: []answer{failed}, want: "not applied precondition", sent: 1},
		{name: "unclear, then a condition", answers: []answer{lost, failed}, want: "not applied precondition", sent: 2},
		{name: "denied", answers: []answer{denied}, want: "not applied", sent: 1},
		{name: "unclear, then denied", answers: []answer{lost, denied}, want: "unknown", sent: 2},
		{name: "a full disk", answers: []answer{full}, want: "not applied", sent: 1},
		{name: "unclear, then a full disk", answers: []answer{lost, full}, want: "unknown", sent: 2},
		{name: "a key reused", answers: []answer{{status: 422}}, want: "not applied reused", sent: 1},
		{name: "unclear, then a key reused", answers: []answer{lost, {status: 422}}, want: "unknown reused", sent: 2},
		{name: "another program", answers: []answer{{status: 200, body: "<html>"}}, want: "unknown", sent: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			node := newFake(t, tt.answers...)
			c := newClient(t, Config{Endpoints: []string{node.URL}, RetryFor: 300 * time.Millisecond})
			if tt.sent > 1 {
				c.retryFor = time.Minute
			}
			result, err := c.Set(t.Context(), "k", []byte("v"))
			if (err == nil) != (tt.want == "") {
				t.Fatalf("got %+v, %v, want %q", result, err, tt.want)
			}
			for name, target := range all {
				if got, want := errors.Is(err, target), hasWord(tt.want, name); got != want {
					t.Errorf("errors.Is(%v, %v): got %v, want %v", err, target, got, want)
				}
			}
			if err == nil && (result.Index != 7 || result.ETag != `"7-aa"`) {
				t.Errorf("got %+v, want index 7 and its ETag", result)
			}
			got := node.requests()
			if tt.sent > 0 && len(got) != tt.sent || len(got) < len(tt.answers) {
				t.Errorf("sent: got %d, want %d (0: more than %d)", len(got), tt.sent, len(tt.answers))
			}
			for _, r := range got {
				if r.key == "" || r.key != got[0].key || r.length != 1 || r.body != "v" {
					t.Errorf("got %+v, want the key of the first, %q, and the body with its length", r, got[0].key)
				}
			}
		})
	}
}

// TestReusedConnection: that net/http finds a connection broken which it has used before does not make
// it send the write again by itself, and tell of the second attempt alone.
func TestReusedConnection(t *testing.T) {
	node := newFake(t, done, broken, busy)
	c := newClient(t, Config{Endpoints: []string{node.URL}})
	if _, err := c.Set(t.Context(), "k", []byte("v")); err != nil {
		t.Fatal(err)
	}
	c.retryFor = 300 * time.Millisecond
	if _, err := c.Set(t.Context(), "k", []byte("v")); !errors.Is(err, ErrUnknown) || errors.Is(err, ErrNotApplied) {
		t.Errorf("got %v, want %v", err, ErrUnknown)
	}
}

// hasWord reports whether text has the words; "not found" is not in "not applied".
func hasWord(text, words string) bool { return strings.Contains(" "+text+" ", " "+words+" ") }

// TestRedirect: a redirect is followed with method, body, length, key and the mark of the length,
// and the next write goes to where it led.
func TestRedirect(t *testing.T) {
	leader := newFake(t, done)
	location := http.Header{"Location": {leader.URL + "/set?key=k&raftkv-length=5"}}
	follower := newFake(t, answer{status: 307, header: location})
	c := newClient(t, Config{Endpoints: []string{follower.URL}})
	for range 2 {
		if _, err := c.Set(t.Context(), "k", []byte("value")); err != nil {
			t.Fatal(err)
		}
	}
	got := leader.requests()
	if len(got) != 2 || len(follower.requests()) != 1 {
		t.Fatalf("got %d requests at the leader and %d at the follower, want 2 and 1", len(got), len(follower.requests()))
	}
	want := seen{"PUT", "/set?key=k&raftkv-length=5", "value", follower.requests()[0].key, 5}
	if got[0] != want {
		t.Errorf("at the leader: got %+v, want %+v", got[0], want)
	}
	if got[1].key == got[0].key {
		t.Errorf("two writes have the key %s, want one each", got[0].key)
	}
}

// TestRedirectsThatAreNotFollowed: nothing was done, and it is told so.
func TestRedirectsThatAreNotFollowed(t *testing.T) {
	loop := newFake(t, done)
	loop.answers = []answer{{status: 307, header: http.Header{"Location": {loop.URL + "/set"}}}}
	nowhere := newFake(t, answer{status: 307})
	for name, node := range map[string]*fake{"a loop": loop, "no Location": nowhere} {
		c := newClient(t, Config{Endpoints: []string{node.URL}, RetryFor: 100 * time.Millisecond})
		if _, err := c.Set(t.Context(), "k", []byte("v")); !errors.Is(err, ErrNotApplied) {
			t.Errorf("%s: got %v, want %v", name, err, ErrNotApplied)
		}
	}
	for _, tt := range []struct {
		from, to string
		want     bool
	}{
		{from: "http://10.0.0.1:8000", to: "http://10.0.0.2:8000", want: true},
		{from: "http://127.0.0.1:8000", to: "http://127.0.0.1:8001", want: true},
		{from: "http://localhost:8000", to: "http://127.0.0.1:8001", want: true},
		{from: "http://10.0.0.1:8000", to: "http://127.0.0.1:8000"},
		{from: "http://kv.example.org", to: "http://LOCALHOST:8000"},
		{from: "http://10.0.0.1:8000", to: "http://[::1]:8000"},
		{from: "https://10.0.0.1", to: "http://10.0.0.2:8000"},
		{from: "http://10.0.0.1", to: "https://10.0.0.2", want: true},
	} {
		to, _ := http.NewRequest("GET", tt.to, nil)
		from, _ := http.NewRequest("GET", tt.from, nil)
		if got := reachableFrom(from.URL, to.URL); got != tt.want {
			t.Errorf("from %s to %s: got %v, want %v", tt.from, tt.to, got, tt.want)
		}
	}
}

// TestOtherEndpoints: a node that does not run, or hangs, costs a try, not the request.
func TestOtherEndpoints(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	down := "http://" + l.Addr().String()
	_ = l.Close()
	hanging := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // else the server does not find out that the client has gone
		<-r.Context().Done()
	}))
	t.Cleanup(hanging.Close)
	up := newFake(t, done)
	c := newClient(t, Config{Endpoints: []string{down, hanging.URL, up.URL}, AttemptTimeout: 100 * time.Millisecond})
	for range 6 {
		c.mu.Lock()
		c.leader = ""
		c.mu.Unlock()
		if _, err := c.Set(t.Context(), "k", []byte("v")); err != nil {
			t.Fatal(err)
		}
	}
	c = newClient(t, Config{Endpoints: []string{down}, RetryFor: 100 * time.Millisecond})
	if _, err := c.Set(t.Context(), "k", nil); !errors.Is(err, ErrNotApplied) {
		t.Errorf("no node runs: got %v, want %v", err, ErrNotApplied)
	}
}

// TestContext: the error has that of the context, and what became of the write.
func TestContext(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer answer
		ended  bool // before the call
		want   error
	}{
		{name: "before it is sent", answer: done, ended: true, want: ErrNotApplied},
		{name: "while busy", answer: busy, want: ErrNotApplied},
		{name: "while unclear", answer: lost, want: ErrUnknown},
	} {
		// A context that ends while an attempt is under way leaves its outcome unknown. On a busy machine that may
		// happen several times, before one ends between two attempts.
		for again := 0; ; again++ {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			if tt.ended {
				cancel()
			}
			_, err := newClient(t, Config{Endpoints: []string{newFake(t, tt.answer).URL}}).Set(ctx, "k", []byte("v"))
			cancel()
			if errors.Is(err, tt.want) && errors.Is(err, ctx.Err()) {
				break
			}
			if again == 20 || tt.ended || !errors.Is(err, ErrUnknown) {
				t.Errorf("%s: got %v, want %v and %v", tt.name, err, tt.want, ctx.Err())
				break
			}
		}
	}
}

// TestMembersAreFound: when the only endpoint can't do it, its /status gives the leader.
func TestMembersAreFound(t *testing.T) {
	leader := newFake(t, done)
	follower := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/status" {
			http.Error(w, "busy", http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintf(w, `{"leader":"n2","members":[{"nodeId":"n3"},`+
			`{"nodeId":"n2","info":{"state":"Leader","httpUrl":%q}}]}`, leader.URL)
	}))
	t.Cleanup(follower.Close)
	if _, err := newClient(t, Config{Endpoints: []string{follower.URL}}).Set(t.Context(), "k", []byte("v")); err != nil {
		t.Error(err)
	}
}

func TestGet(t *testing.T) {
	item := answer{status: 200, header: http.Header{"Etag": {`"7-aa"`}}, body: "v\xff"}
	for _, tt := range []struct {
		name    string
		answers []answer
		missing bool
		fails   bool
	}{
		{name: "there", answers: []answer{busy, broken, lost, item}},
		{name: "not there", answers: []answer{notFound}, missing: true, fails: true},
		{name: "another program's 404", answers: []answer{{status: 404, body: "no such page"}}, fails: true},
		{name: "another program's 200", answers: []answer{{status: 200, body: "hello"}}, fails: true},
	} {
		got, err := newClient(t, Config{Endpoints: []string{newFake(t, tt.answers...).URL}}).Get(t.Context(), "k", Stale())
		if errors.Is(err, ErrNotFound) != tt.missing || (err != nil) != tt.fails || errors.Is(err, ErrNotApplied) {
			t.Errorf("%s: got %v, want an error: %v, %v: %v", tt.name, err, tt.fails, ErrNotFound, tt.missing)
		}
		if err == nil && (string(got.Value) != "v\xff" || got.Index != 7 || got.ETag != `"7-aa"`) {
			t.Errorf("%s: got %+v", tt.name, got)
		}
	}
}

// TestEmptyValue: net/http must not send it again by itself, so it has a body.
func TestEmptyValue(t *testing.T) {
	node := newFake(t, done)
	if _, err := newClient(t, Config{Endpoints: []string{node.URL}}).Set(t.Context(), "k", nil); err != nil {
		t.Fatal(err)
	}
	if got := node.requests()[0]; got.method != "POST" || got.body != "key=k&value=" {
		t.Errorf("got %+v, want a POST of key=k&value=", got)
	}
}

// TestListGoesOn: an answer that breaks off goes on behind the last key, without one twice.
func TestListGoesOn(t *testing.T) {
	node := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Raftkv-Watch-From", "9-aa")
		switch after := r.FormValue("after"); after {
		case "":
			_, _ = io.WriteString(w, `{"key":"a","value":"1","index":4}`+"\n"+`{"key64":"/w==","val`)
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		case "a":
			_, _ = io.WriteString(w, `{"key":"b","value64":"/w==","index":5}`+"\n"+`{"key":"c","value":"","index":6}`+"\n")
		case "c":
			_, _ = io.WriteString(w, `{"key":"d","value":"4","index":7}`+"\n")
		default:
			t.Errorf("after: got %q", after)
		}
	}))
	t.Cleanup(node.Close)
	var got []string
	for item, err := range newClient(t, Config{Endpoints: []string{node.URL}}).List(t.Context(), "", PageSize(2)) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s=%q %s", item.Key, item.Value, item.ETag))
	}
	want := `a="1" "4-aa", b="\xff" "5-aa", c="" "6-aa", d="4" "7-aa"`
	if got := strings.Join(got, ", "); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestTxn(t *testing.T) {
	result := answer{status: 200, body: `{"branch":"then","index":12,"results":[{"op":"set","key":"a","etag":"12-aa"}
,{"op":"get","key64":"/w==","value":"1","etag":"9-aa","found":true}]}`}
	for _, tt := range []struct {
		name     string
		txn      Txn
		answers  []answer
		body     string
		key      bool // it has an Idempotency-Key
		sent     int
		outcome  error
		outcomes int
	}{
		{name: "writes", txn: Txn{
			If:   []Compare{HasETag("a", `"1-aa"`), Absent("b"), Exists("c"), HasValue("d", []byte{0xff})},
			Then: []Op{SetOp("a", []byte("1"))}, Else: []Op{RemoveOp("\xff")}}, answers: []answer{lost, result},
			body: `{"else":[{"remove64":"/w=="}],"if":[{"etag":"1-aa","key":"a"},{"absent":true,"key":"b"},` +
				`{"absent":false,"key":"c"},{"key":"d","value64":"/w=="}],"then":[{"set":"a","value":"1"}]}`,
			key: true, sent: 2},
		{name: "reads", txn: Txn{Then: []Op{GetOp("a")}}, answers: []answer{lost, broken, result},
			body: `{"then":[{"get":"a"}]}`, sent: 3},
		{name: "both", txn: Txn{Then: []Op{GetOp("a")}, Else: []Op{RemoveOp("a")}}, answers: []answer{busy, lost, result},
			body: `{"else":[{"remove":"a"}],"then":[{"get":"a"}]}`, sent: 2, outcome: ErrUnknown},
	} {
		node := newFake(t, tt.answers...)
		got, err := newClient(t, Config{Endpoints: []string{node.URL}}).Txn(t.Context(), tt.txn)
		if !errors.Is(err, tt.outcome) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.outcome)
		}
		if err == nil && (!got.Held || got.Index != 12 || len(got.Results) != 2 || got.Results[0].ETag != `"12-aa"` ||
			got.Results[1].Key != "\xff" || string(got.Results[1].Value) != "1" || !got.Results[1].Found) {
			t.Errorf("%s: got %+v", tt.name, got)
		}
		requests := node.requests()
		if len(requests) != tt.sent {
			t.Errorf("%s: sent %d times, want %d", tt.name, len(requests), tt.sent)
		}
		for _, r := range requests {
			if r.body != tt.body || (r.key != "") != tt.key || r.key != requests[0].key {
				t.Errorf("%s: got %+v, want %s with a key: %v", tt.name, r, tt.body, tt.key)
			}
		}
	}
}

// TestWatch: no event is left out or comes twice, whatever ends a connection.
func TestWatch(t *testing.T) {
	event := func(id int) string {
		return fmt.Sprintf("id: %d-aa\ndata: {\"index\":%[1]d,"+
			"\"changes\":[{\"op\":\"set\",\"key\":\"k\",\"value\":\"%[1]d\"}]}\n\n", id)
	}
	answers := []struct {
		last string // Last-Event-ID that must have come
		answer
	}{
		{"3-aa", answer{status: 200, body: event(4) + "id: 5-aa\ndata: {\"index\":5"}}, // cut off
		{"4-aa", answer{status: 200, body: event(5) + ": keep-alive\nid: 8-aa\n\n"}},   // closed
		{"8-aa", answer{status: 503}}, //
		// Nothing behind an end counts.
		{"8-aa", answer{status: 200, body: "event: end\nid: 9-aa\ndata: {\"reason\":\"r\"}\n\n" + event(1)}},
		{"9-aa", answer{status: 410, body: "gone\n"}}, //
		{"", answer{status: 503}}, //
		{"", answer{status: 200, body: ": watching\nid: 20-aa\n\n" + event(21)}}, // where it goes on
		{"21-aa", answer{status: 200, body: "event: reset\nid: 30-aa\ndata: {\"index\":30}\n\n" +
			"id: 31-aa\ndata: {\"index\":31,\"changes\":[{\"op\":\"remove\",\"key64\":\"/w==\"}]}\n\n"}},
		{"31-aa", answer{status: 400, body: "no\n"}},
	}
	var mu sync.Mutex
	next := 0
	node := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/watch" {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		a := answers[next]
		next = min(next+1, len(answers)-1)
		if got := r.Header.Get("Last-Event-ID"); got != a.last {
			t.Errorf("request %d: Last-Event-ID: got %q, want %q", next, got, a.last)
		}
		if r.FormValue("from") != "" || r.Header.Get("Accept") == "text/event-stream" {
			t.Errorf("request %d: %v, want neither from nor Accept", next, r)
		}
		w.WriteHeader(a.status)
		_, _ = io.WriteString(w, a.body)
	}))
	t.Cleanup(node.Close)
	var got []string
	var last error
	for e, err := range newClient(t, Config{Endpoints: []string{node.URL}}).Watch(t.Context(), "p", From("3-aa")) {
		if last = err; err != nil {
			continue
		}
		text := e.ID
		if e.Reset {
			text += " reset"
		}
		for _, change := range e.Changes {
			text += fmt.Sprintf(" %q=%q %v", change.Key, change.Value, change.Removed)
		}
		got = append(got, text)
	}
	want := `4-aa "k"="4" false, 5-aa "k"="5" false, 20-aa reset, 21-aa "k"="21" false, 30-aa reset, 31-aa "\xff"="" true`
	if got := strings.Join(got, ", "); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if e, ok := errors.AsType[*Error](last); !ok || e.Status != 400 {
		t.Errorf("the last error: got %v, want the 400", last)
	}
}

// TestWatchThatIsSilent: a connection on which nothing comes is given up.
func TestWatchThatIsSilent(t *testing.T) {
	old := idleTimeout
	idleTimeout = 50 * time.Millisecond
	defer func() { idleTimeout = old }()
	var mu sync.Mutex
	requests := 0
	node := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		requests++
		silent := requests == 1
		mu.Unlock()
		_, _ = io.WriteString(w, ": watching\nid: 3-aa\n\n")
		if !silent {
			_, _ = io.WriteString(w, "id: 4-aa\ndata: {\"index\":4}\n\n")
		}
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	t.Cleanup(node.Close)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for e, err := range newClient(t, Config{Endpoints: []string{node.URL}}).Watch(ctx, "") {
		if err != nil || e.ID != "4-aa" {
			t.Errorf("got %+v, %v, want the event 4-aa", e, err)
		}
		return
	}
}

// TestListWatch: a Reset has a list, and the watch goes on from that.
func TestListWatch(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	node := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		last := r.Header.Get("Last-Event-ID")
		asked = append(asked, r.URL.Path+" "+last)
		switch {
		case r.URL.Path == "/list" && len(asked) == 1:
			w.Header().Set("Raftkv-Watch-From", "3-aa")
			_, _ = io.WriteString(w, `{"key":"p","value":"1","index":2}`+"\n")
		case r.URL.Path == "/list":
			w.Header().Set("Raftkv-Watch-From", "9-bb")
		case last == "3-aa":
			w.WriteHeader(http.StatusGone)
		default:
			_, _ = io.WriteString(w, "id: 10-bb\ndata: {\"index\":10,\"changes\":[]}\n\n")
			_ = http.NewResponseController(w).Flush()
		}
	}))
	t.Cleanup(node.Close)
	var got []string
	for e, err := range newClient(t, Config{Endpoints: []string{node.URL}}).ListWatch(t.Context(), "p") {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s %v %d", e.ID, e.Reset, len(e.Items)))
		if e.ID == "10-bb" && !e.Reset && len(got) > 2 {
			break
		}
	}
	if got, want := strings.Join(got, ", "), "3-aa true 1, 9-bb true 0, 10-bb false 0"; got != want {
		t.Errorf("got %s (asked %v), want %s", got, asked, want)
	}
}

func TestJoin(t *testing.T) {
	for _, tt := range []struct {
		name, body string
		want       error
		lines      int
	}{
		{name: "joined", body: "n2: 1 of 5 entries\nOK n2 joined, index=3 members=2\n", lines: 1},
		{name: "rejected late", body: "n2: 1 of 5 entries\nERROR 409 it is another cluster's\n", want: ErrConflict, lines: 1},
		{name: "broke off", body: "n2: 1 of 5 entries\n", want: ErrUnknown, lines: 1},
	} {
		node, lines := newFake(t, answer{status: 200, body: tt.body}), 0
		err := newClient(t, Config{Endpoints: []string{node.URL}}).Join(t.Context(), Member{ID: "n2", Port: 9001},
			func(string) { lines++ })
		if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) || lines != tt.lines {
			t.Errorf("%s: got %v after %d lines, want %v after %d", tt.name, err, lines, tt.want, tt.lines)
		}
	}
	node := newFake(t, lost, done)
	c := newClient(t, Config{Endpoints: []string{node.URL}})
	if err := c.Transfer(t.Context(), ""); !errors.Is(err, ErrUnknown) || len(node.requests()) != 1 {
		t.Errorf("an unclear transfer: got %v after %d requests, want %v after 1", err, len(node.requests()), ErrUnknown)
	}
}

// TestRestore: each node that is asked gets the whole backup, with its length.
func TestRestore(t *testing.T) {
	node := newFake(t, busy, done)
	c := newClient(t, Config{Endpoints: []string{node.URL}})
	if err := c.Restore(t.Context(), bytes.NewReader([]byte("backup"))); err != nil {
		t.Fatal(err)
	}
	got := node.requests()
	if want := (seen{"PUT", "/restore", "backup", "", 6}); len(got) != 2 || got[0] != want || got[1] != want {
		t.Errorf("got %+v, want twice %+v", got, want)
	}
}

func TestConfig(t *testing.T) {
	for _, endpoint := range []string{"", "127.0.0.1:8000", "ftp://127.0.0.1", "http://", "http://h/path", "http://h?q"} {
		if _, err := New(Config{Endpoints: []string{endpoint}}); err == nil {
			t.Errorf("endpoint %q: got no error", endpoint)
		}
	}
	if _, err := New(Config{}); err == nil {
		t.Error("no endpoints: got no error")
	}
}

// TestToken: it is sent with every request, to where a redirect leads too; a refusal is final, and its error has no
// token.
func TestToken(t *testing.T) {
	var mu sync.Mutex
	var got []string
	record := func(r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, r.URL.Path+" "+r.Header.Get("Authorization"))
	}
	leader := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		record(r)
		if r.URL.Path == "/get" {
			http.Error(w, "alice has no right read:k", http.StatusForbidden)
			return
		}
		_, _ = io.WriteString(w, "OK index=7\n")
	}))
	defer leader.Close()
	follower := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		record(r)
		w.Header().Set("Location", leader.URL+r.URL.RequestURI())
		w.WriteHeader(http.StatusTemporaryRedirect)
	}))
	defer follower.Close()
	c := newClient(t, Config{Endpoints: []string{follower.URL}, Token: "secret"})
	if _, err := c.Set(t.Context(), "k", []byte("v")); err != nil {
		t.Errorf("set: %v", err)
	}
	_, err := c.Get(t.Context(), "k")
	failure, ok := errors.AsType[*Error](err)
	if !ok || failure.Status != http.StatusForbidden || strings.Contains(err.Error(), "secret") {
		t.Errorf("get: got %v, want 403 without the token", err)
	}
	mu.Lock()
	defer mu.Unlock()
	want := []string{"/set Bearer secret", "/set Bearer secret", "/get Bearer secret", "/get Bearer secret"}
	if len(got) < 3 || len(got) > len(want) || strings.Join(got, ",") != strings.Join(want[:len(got)], ",") {
		t.Errorf("got %q, want %q", got, want)
	}
}
