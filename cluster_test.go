package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"raftkv/internal/kv"
	"raftkv/internal/node"
)

// logBuffer is a console kept in memory. It may be written and read concurrently.
type logBuffer struct {
	mu   sync.Mutex // guards text
	text []byte
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text = append(b.text, p...)
	return len(p), nil
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.text)
}

// consoleOf returns all that s, which startNode has started, has printed.
func consoleOf(s *service) string {
	s.console.Flush()
	printed, _ := consoles.Load(s)
	return printed.(*logBuffer).String()
}

var consoles sync.Map // *service: *logBuffer

var ownLine = regexp.MustCompile(`(?m)^[A-Z]{4}\[[^]]*\] (.*)$`)

// messages returns what s has said itself, in order and without the beginnings of
// the lines; not the lines of hashicorp/raft.
func messages(s *service) (said []string) {
	for _, line := range ownLine.FindAllStringSubmatch(consoleOf(s), -1) {
		said = append(said, line[1])
	}
	return said
}

// appliedLines returns the messages about applied commands.
func appliedLines(s *service) []string {
	return slices.DeleteFunc(messages(s), func(m string) bool {
		return !strings.HasPrefix(m, "set key=") && !strings.HasPrefix(m, "remove key=")
	})
}

// startNode starts a node on free ports, or those that mutate (which may be nil)
// sets, and stops it when t ends. Its console is shown if t failed.
func startNode(t testing.TB, id, dir string, mutate func(*config)) *service {
	t.Helper()
	c := config{
		nodeID:            id,
		volume:            dir,
		httpAddress:       "127.0.0.1:" + processPort(t),
		raftAddress:       "127.0.0.1:" + processPort(t),
		snapshotThreshold: 8192,
		electionTimeout:   250 * time.Millisecond,
		logLevel:          "debug",
	}
	if mutate != nil {
		mutate(&c)
	}
	out := new(logBuffer)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console of %s:\n%s", id, out)
		}
	})
	var s *service
	waitFor(t, "the ports of "+id, func() (err error) {
		// A port that a node had before may be another test's for a moment.
		if s, err = start(c, out); err != nil && !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatalf("start %s: %v", id, err)
		}
		return err
	})
	consoles.Store(s, out)
	t.Cleanup(func() { _ = s.stop(); consoles.Delete(s) })
	return s
}

// restart starts the node that s was, which has been stopped, from its volume and
// on its raft port.
func restart(t testing.TB, s *service, dir string) *service {
	t.Helper()
	info := s.node.Info()
	return startNode(t, info.NodeID, dir, func(c *config) { c.raftAddress = info.RaftAddress })
}

// cluster is some members of one cluster.
type cluster []*service

// startCluster starts n1, n2 and so on, each in its own volume, and joins all of
// them through n1.
func startCluster(t testing.TB, size int) (nodes cluster, dirs []string) {
	t.Helper()
	for i := range size {
		dirs = append(dirs, t.TempDir())
		nodes = append(nodes, startNode(t, "n"+strconv.Itoa(i+1), dirs[i], nil))
	}
	for _, s := range nodes {
		leads(t, s)
	}
	for _, s := range nodes[1:] {
		join(t, nodes[0], s)
	}
	return nodes, dirs
}

// leads waits until s leads, and all of its log is committed: a new leader begins
// with an entry of its own.
func leads(t testing.TB, s *service) {
	t.Helper()
	waitFor(t, "leadership", func() error { return settled(s.node.Info()) })
}

func settled(info node.Info) error {
	if info.State != "Leader" || info.CommitIndex < info.LastIndex {
		return fmt.Errorf("%s is a %s at %d of %d", info.NodeID, info.State, info.CommitIndex, info.LastIndex)
	}
	return nil
}

// join joins s through the /join of a member, and returns the answer.
func join(t testing.TB, member, s *service) answer {
	t.Helper()
	var a answer
	waitFor(t, "join of "+s.node.Info().NodeID, func() (err error) {
		a, err = acknowledged(newRequest(t, http.MethodGet, member, joinPath(s), ""))
		return err
	})
	return a
}

func joinPath(s *service) string {
	info := s.node.Info()
	return "/join?nodeId=" + info.NodeID + "&raftPort=" + port(info.RaftAddress)
}

func port(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}

// now returns the leader of the cluster and its followers, or an error while not
// all agree on who that is.
func (c cluster) now() (leader *service, followers cluster, term uint64, err error) {
	for _, s := range c {
		info := s.node.Info()
		term = max(term, info.Term)
		if info.State == "Leader" {
			leader = s
		} else {
			followers = append(followers, s)
		}
	}
	if leader == nil || len(followers) != len(c)-1 {
		return nil, nil, 0, fmt.Errorf("%d of %d are followers", len(followers), len(c))
	}
	if err := settled(leader.node.Info()); err != nil {
		return nil, nil, 0, err
	}
	for _, s := range c {
		if info := s.node.Info(); info.Term != term || info.Leader != leader.node.Info().NodeID {
			return nil, nil, 0, fmt.Errorf("%s follows %q in term %d, want term %d", info.NodeID, info.Leader, info.Term, term)
		}
	}
	return leader, followers, term, nil
}

// leader waits until all agree on who leads.
func (c cluster) leader(t testing.TB) (leader *service, followers cluster) {
	t.Helper()
	waitFor(t, "one leader", func() (err error) {
		leader, followers, _, err = c.now()
		return err
	})
	return leader, followers
}

// underOneLeader calls check with the leader and its followers. The error that
// check returns ends t, unless the leadership changed meanwhile: then it is called
// again.
func (c cluster) underOneLeader(t testing.TB, check func(leader *service, followers cluster) error) {
	t.Helper()
	waitFor(t, "one leader throughout", func() error {
		leader, followers, term, err := c.now()
		if err != nil {
			return err
		}
		err = check(leader, followers)
		if _, _, after, changed := c.now(); changed != nil || after != term {
			return fmt.Errorf("the leadership changed; before that: %v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		return nil
	})
}

// waitFor polls until the condition, which says what is amiss, holds. The bound is
// for what never comes to hold: no test depends on it.
func waitFor(t testing.TB, what string, condition func() error) {
	t.Helper()
	end := time.Now().Add(time.Minute)
	for err := condition(); err != nil; err = condition() {
		if time.Now().After(end) {
			t.Fatalf("%s: still %v", what, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// checkReplicas waits until all have applied the same last command, and checks
// that they hold the same data, which it returns.
func checkReplicas(t testing.TB, nodes ...*service) map[string]string {
	t.Helper()
	clones := make([]*kv.Store, len(nodes))
	waitFor(t, "the same applied index on all nodes", func() error {
		for i, s := range nodes {
			clones[i] = s.machine.Store.Clone()
			got, gotTerm := clones[i].Applied()
			if want, wantTerm := clones[0].Applied(); got != want || gotTerm != wantTerm {
				return fmt.Errorf("%s at %d of term %d, %s at %d of term %d",
					s.node.Info().NodeID, got, gotTerm, nodes[0].node.Info().NodeID, want, wantTerm)
			}
		}
		return nil
	})
	wantIndex, wantHash := clones[0].Hash()
	for i, s := range nodes {
		if index, hash := clones[i].Hash(); index != wantIndex || hash != wantHash {
			t.Errorf("%s came to %d by entries whose hash is %x, want %d, %x", s.node.Info().NodeID, index, hash, wantIndex, wantHash)
		}
	}
	want := items(clones[0])
	values := make(map[string]string, len(want))
	for key, item := range want {
		values[key] = item.Value
	}
	for i, s := range nodes {
		if got := items(clones[i]); !maps.Equal(got, want) {
			t.Errorf("%s holds %.2000v, want what %s holds, %.2000v", s.node.Info().NodeID, got, nodes[0].node.Info().NodeID, want)
		}
	}
	return values
}

func items(store *kv.Store) map[string]kv.Item {
	m := make(map[string]kv.Item, store.Len())
	store.Ascend("", func(key string, item kv.Item) bool {
		m[key] = item
		return true
	})
	return m
}

// answer is what a node has answered.
type answer struct {
	status int
	header http.Header
	body   string
}

// direct takes a redirect for an answer; following goes where it leads. With
// "Expect: 100-continue" a body is sent only when the node asks for it.
var (
	transport = &http.Transport{ExpectContinueTimeout: time.Minute, MaxIdleConnsPerHost: 16}
	direct    = &http.Client{Transport: transport, Timeout: time.Minute,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	following = &http.Client{Transport: transport, Timeout: time.Minute}
)

// newRequest is a request to s for a path with a query.
func newRequest(t testing.TB, method string, s *service, target, body string) *http.Request {
	t.Helper()
	r, err := http.NewRequest(method, "http://"+s.listener.Addr().String()+target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	return r
}

func send(c *http.Client, r *http.Request) (answer, error) {
	response, err := c.Do(r)
	if err != nil {
		return answer{}, err
	}
	body, err := io.ReadAll(response.Body)
	return answer{response.StatusCode, response.Header, string(body)}, errors.Join(err, response.Body.Close())
}

// acknowledged is send, where the request leads; an answer other than 200 is an
// error.
func acknowledged(r *http.Request) (answer, error) {
	a, err := send(following, r)
	if err == nil && a.status != http.StatusOK {
		err = fmt.Errorf("status %d: %s", a.status, a.body)
	}
	return a, err
}

// ask sends a GET, and takes a redirect for an answer.
func ask(t testing.TB, s *service, target string) answer {
	t.Helper()
	a, err := send(direct, newRequest(t, http.MethodGet, s, target, ""))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func pair(key, value string) string { return url.Values{"key": {key}, "value": {value}}.Encode() }

// write sends a request that changes the data to s, or where s leads it, until it
// is acknowledged, and returns the index in the answer.
func write(t testing.TB, s *service, target string) (index uint64) {
	t.Helper()
	waitFor(t, target, func() error {
		a, err := acknowledged(newRequest(t, http.MethodGet, s, target, ""))
		if err == nil {
			index, err = indexOf(a)
		}
		return err
	})
	return index
}

func set(t testing.TB, s *service, key, value string) (index uint64) {
	t.Helper()
	return write(t, s, "/set?"+pair(key, value))
}

var okIndex = regexp.MustCompile(`^OK index=([1-9][0-9]*)(?: removed=[0-9]+)?\n$`)

func indexOf(a answer) (uint64, error) {
	found := okIndex.FindStringSubmatch(a.body)
	if found == nil {
		return 0, fmt.Errorf("answer %q, want OK index=N", a.body)
	}
	return strconv.ParseUint(found[1], 10, 64)
}

func TestJoinedNodesHoldTheSame(t *testing.T) {
	t.Parallel()
	nodes := cluster{startNode(t, "n1", t.TempDir(), nil), startNode(t, "n2", t.TempDir(), nil), startNode(t, "n3", t.TempDir(), nil)}
	for _, s := range nodes {
		leads(t, s)
	}
	n1, n2 := nodes[0], nodes[1]
	set(t, n1, "before", "the others joined")

	for i, s := range nodes[1:] {
		id := s.node.Info().NodeID
		a := join(t, n1, s)
		want := regexp.MustCompile(fmt.Sprintf(`^OK %s (joined, index=[0-9]+|is a member already,) members=%d\n$`, id, i+2))
		if !want.MatchString(a.body) {
			t.Errorf("join of %s: got %q, want %s", id, a.body, want)
		}
		said := strings.Join(messages(n1), "\n")
		story := "Join handler called\nnode is " + id + "\nJoining node " + id + " on host " + s.node.RaftAddress()
		if !strings.Contains(said, story) {
			t.Errorf("n1 said %q, want in it %q", said, story)
		}
		if got, want := s.node.Info().ClusterID, n1.node.Info().ClusterID; got != want {
			t.Errorf("cluster of %s: got %s, want that of n1, %s", id, got, want)
		}
	}
	if got, _ := n2.machine.Store.Get("before"); got.Value != "the others joined" {
		t.Errorf("a node that has joined has %q, want what was set before", got.Value)
	}

	want := map[string]string{"before": "the others joined"}
	var writers sync.WaitGroup
	for i, s := range nodes {
		for j := range 10 {
			key := fmt.Sprintf("%d-%d", i, j)
			want[key] = key
		}
		writers.Go(func() {
			for j := range 10 {
				key := fmt.Sprintf("%d-%d", i, j)
				set(t, s, key, key)
			}
		})
	}
	writers.Wait()
	write(t, n2, "/set?key=a&value=1&key=b&value=2&key=c&value=3")
	write(t, n1, "/remove?key=b&key=never&key=0-0")
	want["a"], want["c"] = "1", "3"
	delete(want, "0-0")
	if got := checkReplicas(t, nodes...); !maps.Equal(got, want) {
		t.Errorf("the nodes hold %v, want %v", got, want)
	}

	nodes.underOneLeader(t, func(leader *service, followers cluster) error {
		before := leader.node.Info().LastIndex
		for _, s := range nodes {
			a := ask(t, leader, joinPath(s))
			if want := "OK " + s.node.Info().NodeID + " is a member already, members=3\n"; a.status != http.StatusOK || a.body != want {
				return fmt.Errorf("join of a member: got %d %q, want 200 %q", a.status, a.body, want)
			}
		}
		if after := leader.node.Info().LastIndex; after != before {
			return fmt.Errorf("join of a member: the log went from %d to %d, want no new entry", before, after)
		}
		for _, s := range nodes {
			var status node.Status
			a := ask(t, s, "/status")
			if err := json.Unmarshal([]byte(a.body), &status); err != nil || len(status.Members) != 3 {
				return fmt.Errorf("status of %s: %v, in %s, want three members", s.node.Info().NodeID, err, a.body)
			}
			for _, m := range status.Members {
				if m.Suffrage != "Voter" {
					return fmt.Errorf("status of %s: %s is a %s, want a Voter", status.NodeID, m.NodeID, m.Suffrage)
				}
			}
			if a := ask(t, s, "/readyz"); a.status != http.StatusOK {
				return fmt.Errorf("readyz of %s: got %d %q, want 200", status.NodeID, a.status, a.body)
			}
		}
		return nil
	})
	checkReplicas(t, nodes...)
}

func TestFollowerSendsToTheLeader(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3)
	set(t, nodes[0], "k", "v")
	checkReplicas(t, nodes...)

	nodes.underOneLeader(t, func(leader *service, followers cluster) error {
		f := followers[0]
		before := leader.node.Info().LastIndex
		for _, tt := range []struct{ target, says string }{
			{"/set?" + pair("a +&", "new\nvalue"), "Set handler called"},
			{"/remove?key=k", "Remove handler called"},
			{"/join?nodeId=n9&raftPort=9009", "Join handler called,node is n9"},
		} {
			said := len(messages(f))
			a := ask(t, f, tt.target)
			location := "http://" + leader.listener.Addr().String() + tt.target
			if a.status != http.StatusTemporaryRedirect || a.header.Get("Location") != location {
				return fmt.Errorf("%s: got %d to %q, want 307 to %q", tt.target, a.status, a.header.Get("Location"), location)
			}
			if err := oneLineNaming(a, "http://"+leader.listener.Addr().String(), leader.node.Info().NodeID, "nothing was done"); err != nil {
				return fmt.Errorf("%s: %w", tt.target, err)
			}
			got := strings.Join(messages(f)[said:], ",")
			if want := tt.says + ",Not a leader, do nothing"; got != want {
				return fmt.Errorf("%s: the follower says %q, want %q", tt.target, got, want)
			}
		}
		if after := leader.node.Info().LastIndex; after != before {
			return fmt.Errorf("the log went from %d to %d, want no new entry", before, after)
		}
		if a := ask(t, f, "/get?key=k"); a.status != http.StatusOK || a.body != "v" {
			return fmt.Errorf("get at a follower: got %d %q %v, want the value", a.status, a.body, a.header)
		}
		return nil
	})

	// What can follow a redirect need not know who leads.
	value := strings.Repeat("\x00\xff", 50<<10)
	nodes.underOneLeader(t, func(_ *service, followers cluster) error {
		for _, r := range []*http.Request{
			newRequest(t, http.MethodGet, followers[0], "/set?"+pair("get", "1"), ""),
			newRequest(t, http.MethodPost, followers[0], "/set", pair("post", "2")),
			newRequest(t, http.MethodPut, followers[1], "/set?key=put", value),
			newRequest(t, http.MethodGet, followers[1], "/remove?key=k", ""),
		} {
			if _, err := acknowledged(r); err != nil {
				return fmt.Errorf("%s %s: %w", r.Method, r.URL, err)
			}
		}
		return nil
	})
	got := checkReplicas(t, nodes...)
	if want := map[string]string{"get": "1", "post": "2", "put": value}; !maps.Equal(got, want) {
		t.Errorf("the nodes hold %.200v, want %.200v", got, want)
	}
}

func TestWithoutQuorum(t *testing.T) {
	t.Parallel()
	nodes, dirs := startCluster(t, 3)
	set(t, nodes[0], "k", "v")
	checkReplicas(t, nodes...)

	leader, _ := nodes.leader(t)
	for _, s := range nodes {
		if s != leader {
			s.abort()
		}
	}
	// Whether it knows already that it does not lead any more, or not.
	for i := 0; i == 0 || leader.node.Info().State == "Leader"; i++ {
		a := ask(t, leader, "/set?key=uncertain&value=1")
		if a.status != http.StatusServiceUnavailable && a.status != http.StatusGatewayTimeout {
			t.Fatalf("set without a quorum: got %d %q, want 503 or 504", a.status, a.body)
		}
	}
	waitFor(t, "a node that knows no leader", func() error {
		if info := leader.node.Info(); info.Leader != "" {
			return fmt.Errorf("it knows %s", info.Leader)
		}
		return nil
	})
	before := leader.node.Info().LastIndex
	for _, target := range []string{"/set?key=refused&value=1", "/remove?key=k", "/join?nodeId=n9&raftPort=9009", "/readyz"} {
		a := ask(t, leader, target)
		if a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" {
			t.Errorf("%s without a leader: got %d %v, want 503 with Retry-After", target, a.status, a.header)
		}
		if err := oneLineNaming(a, "no leader"); err != nil {
			t.Errorf("%s without a leader: %v", target, err)
		}
	}
	if after := leader.node.Info().LastIndex; after != before {
		t.Errorf("refused requests: the log went from %d to %d, want no new entry", before, after)
	}
	if a := ask(t, leader, "/get?key=k"); a.status != http.StatusServiceUnavailable || !strings.Contains(a.body, "consistency=stale") {
		t.Errorf("get without a leader: got %d %q, want 503 and the way out", a.status, a.body)
	}
	a := ask(t, leader, "/get?consistency=stale&key=k")
	if a.status != http.StatusOK || a.body != "v" {
		t.Errorf("stale get without a leader: got %d %q, want this node's own copy", a.status, a.body)
	}
	for _, name := range []string{"Raftkv-Applied-Index", "Raftkv-Last-Contact"} {
		if a.header.Get(name) == "" {
			t.Errorf("stale get without a leader: got no %s", name)
		}
	}
	if a := ask(t, leader, "/get?consistency=eventual&key=k"); a.status != http.StatusBadRequest || !strings.Contains(a.body, "consistency") {
		t.Errorf("get with another consistency: got %d %q, want 400 that names it", a.status, a.body)
	}
	if a := ask(t, leader, "/healthz"); a.status != http.StatusOK {
		t.Errorf("healthz without a leader: got %d, want 200", a.status)
	}

	for i, s := range nodes {
		if s != leader {
			nodes[i] = restart(t, s, dirs[i])
		}
	}
	set(t, leader, "after", "2")
	got := checkReplicas(t, nodes...)
	delete(got, "uncertain") // applied or not, but the same everywhere
	if want := map[string]string{"k": "v", "after": "2"}; !maps.Equal(got, want) {
		t.Errorf("the nodes hold %v, want %v", got, want)
	}
}

func TestStopKeepsAcknowledgedWrites(t *testing.T) {
	t.Parallel()
	nodes, dirs := startCluster(t, 3)

	var (
		mu    sync.Mutex // guards acked
		acked = make(map[string]string)
		count = func() int {
			mu.Lock()
			defer mu.Unlock()
			return len(acked)
		}
		more = func(n int) {
			t.Helper()
			n += count()
			waitFor(t, "acknowledged writes", func() error {
				if got := count(); got < n {
					return fmt.Errorf("%d of %d", got, n)
				}
				return nil
			})
		}
		writers sync.WaitGroup
		done    = make(chan struct{})
	)
	for w := range 4 {
		writers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				key := fmt.Sprintf("%d-%d", w, i)
				r := newRequest(t, http.MethodPut, nodes[i%len(nodes)], "/set?key="+key, key)
				if _, err := acknowledged(r); err == nil {
					mu.Lock()
					acked[key] = key
					mu.Unlock()
				}
			}
		})
	}
	stopWriters := sync.OnceFunc(func() {
		close(done)
		writers.Wait()
	})
	defer stopWriters()

	more(20)
	leader, followers := nodes.leader(t)
	if err := leader.stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	more(20)
	stopWriters()

	check := func(nodes ...*service) {
		t.Helper()
		got := checkReplicas(t, nodes...)
		for key, value := range acked {
			if got[key] != value {
				t.Errorf("%s was acknowledged: got %q, want %q", key, got[key], value)
			}
		}
	}
	check(followers...)
	again := restart(t, leader, dirs[slices.Index(nodes, leader)])
	set(t, followers[0], "last", "1")
	check(append(followers, again)...)
}

func TestRestartFromTheLog(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := startNode(t, "n1", dir, nil)
	leads(t, s)
	set(t, s, "a", "1")
	set(t, s, "a", "2")
	write(t, s, "/set?key=b&value=3&key=c&value=")
	write(t, s, "/remove?key=b")
	set(t, s, "\xff\x00", "\xfe\n")
	want, lines := items(s.machine.Store.Clone()), appliedLines(s)
	if len(lines) != 6 {
		t.Fatalf("the node says %q, want 6 lines", lines)
	}
	for range 2 { // what is read from a log stays there
		if err := s.stop(); err != nil {
			t.Fatalf("stop: %v", err)
		}
		s = restart(t, s, dir)
		waitFor(t, "the log applied", func() error {
			if got := appliedLines(s); !slices.Equal(got, lines) {
				return fmt.Errorf("the node says %q, want %q", got, lines)
			}
			return nil
		})
		if got := items(s.machine.Store.Clone()); !maps.Equal(got, want) {
			t.Errorf("after a restart: got %v, want %v", got, want)
		}
	}
	set(t, s, "after", "4")
	checkReplicas(t, s)
}

func TestRestartOfAllNodes(t *testing.T) {
	t.Parallel()
	nodes, dirs := startCluster(t, 3)
	for i := range 10 {
		set(t, nodes[i%3], strconv.Itoa(i), "1")
	}
	want := checkReplicas(t, nodes...)
	id := nodes[0].node.Info().ClusterID
	for _, s := range nodes {
		if err := s.stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
	}
	for i, s := range nodes {
		nodes[i] = restart(t, s, dirs[i])
		if got := nodes[i].node.Info().ClusterID; got != id {
			t.Errorf("cluster ID after a restart: got %s, want %s", got, id)
		}
	}
	set(t, nodes[1], "after", "2")
	want["after"] = "2"
	if got := checkReplicas(t, nodes...); !maps.Equal(got, want) {
		t.Errorf("after a restart: got %v, want %v", got, want)
	}
}

// TestSnapshots takes about 20 s, most of which it waits for raft's own snapshots:
// it looks every 5 to 10 s whether one is due.
func TestSnapshots(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := startNode(t, "n1", dir, func(c *config) { c.snapshotThreshold = 1 })
	leads(t, s)
	for i := range 20 {
		set(t, s, strconv.Itoa(i), "first")
	}
	// The log is kept back to the older of two snapshots.
	snapshotted(t, s, dir, 1)
	write(t, s, "/set?key=0&value=second&key=%FF%00&value=%FE%0A")
	write(t, s, "/remove?key=1")
	snapshotted(t, s, dir, 2)
	want := items(s.machine.Store.Clone())
	if len(want) != 20 {
		t.Errorf("the node holds %d keys, want 20", len(want))
	}

	restored := func(tail ...string) {
		t.Helper()
		if err := s.stop(); err != nil {
			t.Fatalf("stop: %v", err)
		}
		s = restart(t, s, dir) // takes no more snapshots
		leads(t, s)
		waitFor(t, "the log applied", func() error {
			if got := items(s.machine.Store.Clone()); !maps.Equal(got, want) {
				return fmt.Errorf("after a restart: got %v, want %v", got, want)
			}
			if got := appliedLines(s); len(got) != len(tail) || !strings.HasPrefix(strings.Join(got, "\n"), strings.Join(tail, "\n")) {
				return fmt.Errorf("after a restart, the node says %q, want %q", got, tail)
			}
			return nil
		})
		if got := strings.Join(messages(s), "\n"); !strings.Contains(got, "Restored a snapshot: 20 keys, index=") {
			t.Errorf("after a restart, the node says %q, want that it has restored a snapshot", got)
		}
	}
	restored()
	line := fmt.Sprintf(`set key="2" value="third" index=%d term=`, set(t, s, "2", "third"))
	want = items(s.machine.Store.Clone())
	restored(line)

	// One that joins gets the snapshot, and the log after it.
	joiner := startNode(t, "n2", t.TempDir(), nil)
	leads(t, joiner)
	join(t, s, joiner)
	if got := messages(joiner); !slices.ContainsFunc(got, func(m string) bool { return strings.HasPrefix(m, "Restored a snapshot: 20 keys") }) {
		t.Errorf("the node that has joined says %q, want that it has restored a snapshot", got)
	}
	set(t, joiner, "3", "fourth")
	checkReplicas(t, s, joiner)
	waitFor(t, "the lines of the log behind the snapshot", func() error {
		if got, want := appliedLines(joiner), appliedLines(s); !slices.Equal(got, want) {
			return fmt.Errorf("%q, want %q", got, want)
		}
		return nil
	})
}

// snapshotted waits until the volume in dir has so many snapshots, the newest of
// all that s has applied.
func snapshotted(t testing.TB, s *service, dir string, count int) {
	t.Helper()
	waitFor(t, "a snapshot", func() error {
		paths, err := filepath.Glob(filepath.Join(dir, "snapshots", "*-*-*"))
		if err != nil {
			t.Fatal(err)
		}
		var newest uint64
		for _, path := range paths {
			if strings.HasSuffix(path, ".tmp") {
				return fmt.Errorf("%s is being written", path)
			}
			index, err := strconv.ParseUint(strings.Split(filepath.Base(path), "-")[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			newest = max(newest, index)
		}
		if applied, _ := s.machine.Applied(); len(paths) < count || newest < applied {
			return fmt.Errorf("%d, the newest at %d of %d", len(paths), newest, applied)
		}
		return nil
	})
}

func TestJoinIsRefused(t *testing.T) {
	t.Parallel()
	var (
		n1       = startNode(t, "n1", t.TempDir(), nil)
		empty    = startNode(t, "n2", t.TempDir(), nil)
		withData = startNode(t, "n3", t.TempDir(), nil)
		other    = cluster{startNode(t, "n4", t.TempDir(), nil), startNode(t, "n5", t.TempDir(), nil)}
		all      = append(cluster{n1, empty, withData}, other...)
	)
	for _, s := range all {
		leads(t, s)
	}
	join(t, other[0], other[1])
	set(t, n1, "k", "v")
	set(t, withData, "own", "data")

	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobodysPort := port(nobody.Addr().String())
	if err := nobody.Close(); err != nil {
		t.Fatal(err)
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	stranger := httptest.NewServer(http.NotFoundHandler())
	defer stranger.Close()

	for _, tt := range []struct {
		name   string
		target string
		joiner *service // nil: none
		says   []string
	}{
		{"nobody listens", "/join?nodeId=n2&raftPort=" + nobodysPort, nil, []string{nobodysPort, "raftPort"}},
		{"silence", "/join?nodeId=n2&raftPort=" + port(silent.Addr().String()), nil, []string{"raftPort"}},
		{"no raftkv node", "/join?nodeId=n2&raftPort=" + port(stranger.Listener.Addr().String()), nil, []string{"raftPort"}},
		{"an HTTP port", "/join?nodeId=n2&raftPort=" + port(empty.listener.Addr().String()), empty, []string{"raftPort"}},
		{"another ID", "/join?nodeId=n9&raftPort=" + port(empty.node.RaftAddress()), empty, []string{"n2", "n9", "nodeId"}},
		{"the ID of this node", "/join?nodeId=n1&raftPort=" + port(empty.node.RaftAddress()), empty, []string{"n1", "n2", "nodeId"}},
		{"this node under another ID", "/join?nodeId=n2&raftPort=" + port(n1.node.RaftAddress()), nil, []string{"n1", "raftPort"}},
		{"data", joinPath(withData), withData, []string{"n3", "1 key", "volume"}},
		{"member of another cluster", joinPath(other[0]), other[0], []string{"n4", "another cluster"}},
		{"follower in another cluster", joinPath(other[1]), other[1], []string{"n5", "another cluster"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			checkReplicas(t, other...)
			before, data := n1.node.Info(), items(n1.machine.Store.Clone())
			var joinerBefore node.Info
			var joinerData map[string]kv.Item
			if tt.joiner != nil {
				joinerBefore, joinerData = tt.joiner.node.Info(), items(tt.joiner.machine.Store.Clone())
			}
			a := ask(t, n1, tt.target)
			if a.status != http.StatusConflict {
				t.Errorf("got %d %q, want 409", a.status, a.body)
			}
			if err := oneLineNaming(a, tt.says...); err != nil {
				t.Error(err)
			}
			if after := n1.node.Info(); !reflect.DeepEqual(after, before) || !maps.Equal(items(n1.machine.Store.Clone()), data) {
				t.Errorf("the cluster went from %+v to %+v, want no change", before, after)
			}
			if tt.joiner == nil {
				return
			}
			after := tt.joiner.node.Info()
			if after.ClusterID != joinerBefore.ClusterID || after.AppliedIndex != joinerBefore.AppliedIndex ||
				!maps.Equal(items(tt.joiner.machine.Store.Clone()), joinerData) {
				t.Errorf("the joining node went from %+v to %+v, want no change", joinerBefore, after)
			}
			set(t, n1, tt.name, "1")
			set(t, tt.joiner, tt.name, "2")
			if tt.joiner == empty {
				write(t, empty, "/remove?"+url.Values{"key": {tt.name}}.Encode())
			}
		})
	}
	checkReplicas(t, other...)
	checkReplicas(t, n1)

	// Refused for what was asked, not for what it is.
	join(t, n1, empty)
	set(t, empty, "joined", "1")
	checkReplicas(t, n1, empty)
}

func TestConsoleTellsEachCommandOnce(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3)

	type command struct{ target, line string }
	var commands []command
	for _, tt := range []struct{ key, value, line string }{
		{"plain", "1", `set key="plain" value="1"`},
		{"a\nINFO[2026-01-01T00:00:00.000Z] set key=\"forged\"", "1", `set key="a\nINFO[2026-01-01T00:00:00.000Z] set key=\"forged\"" value="1"`},
		{"b", "\r\nINFO[2026-01-01T00:00:00.000Z] set key=\"forged\"\r\n", `set key="b" value="\r\nINFO[2026-01-01T00:00:00.000Z] set key=\"forged\"\r\n"`},
		{"\x1b[2J\x1b[31mred", "\x1b]0;title\a", `set key="\x1b[2J\x1b[31mred" value="\x1b]0;title\a"`},
		{`" value="2" index=1 term=1`, `\"`, `set key="\" value=\"2\" index=1 term=1" value="\\\""`},
		{"\xff\xfe\xc3", "\x00\x7f\u0085", `set key="\xff\xfe\xc3" value="\x00\x7f\u0085"`},
		{"\u202etxt.exe", "\u2028", `set key="\u202etxt.exe" value="\u2028"`},
		{"schön", "日本", `set key="schön" value="日本"`},
		{strings.Repeat("é", 40), strings.Repeat("v", 1000),
			`set key="` + strings.Repeat("é", 32) + `"...(80 bytes) value="` + strings.Repeat("v", 64) + `"...(1000 bytes)`},
	} {
		commands = append(commands, command{"/set?" + pair(tt.key, tt.value), tt.line})
		remove, _, _ := strings.Cut("remove"+strings.TrimPrefix(tt.line, "set"), " value=")
		if tt.key == `" value="2" index=1 term=1` {
			remove = `remove key="\" value=\"2\" index=1 term=1"`
		}
		commands = append(commands, command{"/remove?" + url.Values{"key": {tt.key}}.Encode(), remove})
	}
	acked := make(map[uint64]string) // line by index
	for i, c := range commands {
		acked[write(t, nodes[i%3], c.target)] = c.line
	}

	for _, s := range nodes {
		id := s.node.Info().NodeID
		waitFor(t, "the lines of "+id, func() error {
			want := appliedLines(nodes[0])
			told, err := byIndex(appliedLines(s))
			if err != nil {
				t.Fatalf("%s says %v", id, err)
			}
			for index, line := range acked {
				if told[index] != line {
					return fmt.Errorf("it says of entry %d %q, want %q", index, told[index], line)
				}
			}
			// A command whose outcome was unknown was sent again.
			for index, line := range told {
				if !slices.ContainsFunc(commands, func(c command) bool { return c.line == line }) {
					return fmt.Errorf("it says of entry %d %q, want nothing but what was sent", index, line)
				}
			}
			if got := appliedLines(s); !slices.Equal(got, want) {
				return fmt.Errorf("it says %q, want what n1 says, %q", got, want)
			}
			return nil
		})
		checkPrintable(t, s)
	}
	checkReplicas(t, nodes...)
}

var lineEnd = regexp.MustCompile(` index=([0-9]+) term=[0-9]+$`)

// byIndex takes the lines about applied commands apart. Their indexes must ascend.
func byIndex(lines []string) (map[uint64]string, error) {
	var last uint64
	told := make(map[uint64]string, len(lines))
	for _, line := range lines {
		at := lineEnd.FindStringSubmatchIndex(line)
		if at == nil {
			return nil, fmt.Errorf("%q, want an index at the end", line)
		}
		index, err := strconv.ParseUint(line[at[2]:at[3]], 10, 64)
		if err != nil || index <= last {
			return nil, fmt.Errorf("%q after entry %d, want the order of the log", line, last)
		}
		last = index
		told[index] = line[:at[0]]
	}
	return told, nil
}

// checkPrintable checks that nothing but text has reached the console of s, and no
// line but its own and raft's.
func checkPrintable(t testing.TB, s *service) {
	t.Helper()
	text := consoleOf(s)
	if !utf8.ValidString(text) {
		t.Errorf("the console of %s is not UTF-8", s.node.Info().NodeID)
	}
	if i := strings.IndexFunc(text, func(r rune) bool { return r != '\n' && !strconv.IsPrint(r) }); i >= 0 {
		t.Errorf("the console of %s has a control character: %q", s.node.Info().NodeID, text[i:min(i+80, len(text))])
	}
	raftLine := regexp.MustCompile(`^[0-9-]{10}T[0-9:.]+[Z0-9:+-]* \[[A-Z]+\] +raft[a-z.]*: `)
	for line := range strings.Lines(text) {
		if line = strings.TrimSuffix(line, "\n"); !ownLine.MatchString(line) && !raftLine.MatchString(line) {
			t.Errorf("the console of %s has the line %q, want its own or raft's", s.node.Info().NodeID, line)
		}
		if strings.HasPrefix(line, "INFO[2026-01-01T00:00:00.000Z] ") {
			t.Errorf("the console of %s has a forged line, %q", s.node.Info().NodeID, line)
		}
	}
}

// oneLineNaming returns an error unless the body is one line of text that contains
// all that it should name.
func oneLineNaming(a answer, names ...string) error {
	if strings.Count(a.body, "\n") != 1 || !strings.HasSuffix(a.body, "\n") {
		return fmt.Errorf("body: got %.500q, want one line", a.body)
	}
	if got := a.header.Get("Content-Type"); got != "text/plain; charset=utf-8" {
		return fmt.Errorf("Content-Type: got %q, want plain text", got)
	}
	for _, name := range names {
		if !strings.Contains(a.body, name) {
			return fmt.Errorf("body: got %.500q, want %q in it", a.body, name)
		}
	}
	return nil
}

// TestReplicasThatDiffer: a node whose state machine was given what is not in the log
// is no longer ready, nor is the leader that found it out.
func TestReplicasThatDiffer(t *testing.T) {
	t.Parallel()
	nodes, _ := startCluster(t, 3)
	set(t, nodes[0], "a", "1")
	checkReplicas(t, nodes...)
	leader, followers := nodes.leader(t)
	wrong := followers[0].machine.Store
	index, term := wrong.Applied()
	wrong.Update(index, term, []byte("not of the log"), func(tx *kv.Tx) { tx.Set("a", []byte("2")) })
	for _, s := range []*service{leader, followers[0]} {
		waitFor(t, s.node.Info().NodeID+" not ready", func() error {
			a, err := send(direct, newRequest(t, http.MethodGet, s, "/readyz", ""))
			if err == nil && (a.status != http.StatusServiceUnavailable || oneLineNaming(a, "the replicas differ", "/leave") != nil) {
				err = fmt.Errorf("got %d %q, want 503, and that the replicas differ", a.status, a.body)
			}
			return err
		})
	}
	var status node.Status
	if err := json.Unmarshal([]byte(ask(t, leader, "/status").body), &status); err != nil || status.Replicas.Equal || status.Health.Replicas == "" {
		t.Errorf("status: got %+v, %+v (%v), want that the replicas differ", status.Replicas, status.Health, err)
	}
	if !strings.Contains(consoleOf(leader), "the replicas differ") {
		t.Error("the console of the leader has no word of it")
	}
}
