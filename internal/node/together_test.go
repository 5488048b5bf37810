package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

func newSentOn(wire string) *sentOn { return &sentOn{wire: []byte(wire), done: make(chan struct{})} }

// testPipeline returns a pipeline that nothing runs, with requests in it.
func testPipeline(t *testing.T, wires ...string) (p *pipeline, requests []*sentOn) {
	t.Helper()
	p = newPipeline(t.Context(), raft.Server{ID: "n1"})
	t.Cleanup(func() { p.fail(errNoAnswer) })
	for _, wire := range wires {
		s := newSentOn(wire)
		if ok, err := p.add(s); !ok || err != nil {
			t.Fatalf("add %s: got %v %v, want that there is room", wire, ok, err)
		}
		requests = append(requests, s)
	}
	return p, requests
}

// state is what became of a request so far.
func (s *sentOn) state() string {
	select {
	case <-s.done:
	default:
		return "waits"
	}
	if s.err != nil {
		code, _ := CodeOf(s.err)
		return fmt.Sprint(code)
	}
	return s.response.Status
}

// TestPipelineReads: requests are read in their order, those that wait together, nothing before
// the node takes them, and nothing behind the last.
func TestPipelineReads(t *testing.T) { synctest.Test(t, testPipelineReads) }

func testPipelineReads(t *testing.T) {
	p, _ := testPipeline(t, "one ", "two ", "three")
	read := make(chan string)
	go func() {
		b := make([]byte, 6)
		for {
			n, err := p.Read(b)
			if err != nil {
				read <- err.Error()
				return
			}
			read <- string(b[:n])
		}
	}()
	synctest.Wait() // until the reader waits
	before := len(p.sent)
	p.begin()
	for _, want := range []string{"one tw", "o thre", "e"} {
		if got := <-read; got != want || before != 0 {
			t.Errorf("got %q, with %d before the node took any, want %q", got, before, want)
		}
	}
	late := newSentOn("late")
	_, _ = p.add(late)
	p.end()
	if got, end := <-read, <-read; got != "late" || end != io.EOF.Error() {
		t.Errorf("got %q and %q, want late and EOF", got, end)
	}
	if ok, err := p.add(newSentOn("more")); ok || err != nil {
		t.Errorf("a request behind the end: got %v %v, want false", ok, err)
	}
	for range 4 {
		if !p.answered(&http.Response{Status: "200"}) {
			t.Error("an answer: got false, want that there is a request for it")
		}
	}
	if p.answered(&http.Response{}) || late.state() != "200" {
		t.Errorf("got %s and an answer to nothing, want one answer for each", late.state())
	}
}

// TestPipelineThatIsLost: what may have arrived is unknown, and what was not read is not applied.
func TestPipelineThatIsLost(t *testing.T) {
	for _, tt := range []struct {
		err          error
		sent, queued string
	}{
		{fmt.Errorf("%w: broke off", ErrUnknown), fmt.Sprint(ErrUnknown), fmt.Sprint(ErrNotApplied)},
		{fmt.Errorf("%w: n1", ErrNotLeader), fmt.Sprint(ErrNotLeader), fmt.Sprint(ErrNotLeader)},
	} {
		p, requests := testPipeline(t, "answered", "whole", "part", "queued")
		p.begin()
		_, _ = p.Read(make([]byte, len("answeredwholep")))
		p.answered(&http.Response{Status: "200"})
		p.fail(tt.err)
		for i, want := range []string{"200", tt.sent, tt.sent, tt.queued} {
			if got := requests[i].state(); got != want {
				t.Errorf("%v: %s: got %s, want %s", tt.err, requests[i].wire, got, want)
			}
		}
		if _, err := p.Read(make([]byte, 1)); err == nil {
			t.Error("got no error of a read behind the end")
		}
	}
}

// TestPipelineBounds: a pipeline takes so many requests, for so long; a client that goes takes its own along if it can.
func TestPipelineBounds(t *testing.T) {
	p, requests := testPipeline(t, "one", "two")
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.wait(gone, requests[1]); !errors.Is(err, ErrNotApplied) || len(p.queue) != 1 {
		t.Errorf("a client that goes: got %v with %d in the queue, want ErrNotApplied, 1", err, len(p.queue))
	}
	p.begin()
	_, _ = p.Read(make([]byte, 1))
	if _, err := p.wait(gone, requests[0]); !errors.Is(err, ErrUnknown) {
		t.Errorf("a client that goes behind its request: got %v, want ErrUnknown", err)
	}
	for range maxTogether - 1 {
		_, _ = p.add(newSentOn(""))
	}
	if ok, err := p.add(newSentOn("")); ok || !errors.Is(err, ErrNotApplied) {
		t.Errorf("a request too many: got %v %v, want ErrNotApplied", ok, err)
	}
	p, _ = testPipeline(t)
	p.born = p.born.Add(-2 * pipelineAge)
	first, _ := p.add(newSentOn("last"))
	if second, err := p.add(newSentOn("more")); !first || second || err != nil {
		t.Errorf("an old pipeline: got %v, then %v %v, want the last request, and no more", first, second, err)
	}
	if _, err := readAnswer(bufio.NewReader(strings.NewReader("HTTP/1.1 200 OK\r\nContent-Length: 65537\r\n\r\n" +
		strings.Repeat("x", maxTogetherAnswer+1)))); err == nil {
		t.Error("got no error of a long answer")
	}
}

// speak has the leader take a pipeline: f gets what it reads of it, and writes the answers.
func speak(f func(w http.ResponseWriter, requests *bufio.Reader)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := http.NewResponseController(w)
		_ = c.EnableFullDuplex()
		w.WriteHeader(http.StatusContinue)
		w.WriteHeader(http.StatusOK)
		_ = c.Flush()
		f(w, bufio.NewReader(r.Body))
	})
}

func sendTogether(ctx context.Context, n *testNode, wire string) (string, error) {
	response, err := n.Forward(ctx, nil, ForwardOptions{Whole: []byte(wire), To: func(string) {}})
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

// TestForwardTogether: each request of a follower has its own answer by the leader, over one call.
func TestForwardTogether(t *testing.T) {
	nodes := openCluster(t, 3)
	leader := leaderOf(t, nodes...)
	var calls sync.Map
	leader.SetForwarded(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Store(r, r.URL.Path)
		speak(func(w http.ResponseWriter, requests *bufio.Reader) {
			for {
				line, err := requests.ReadString('\n')
				if err != nil || line == "no more\n" {
					return
				}
				_, _ = fmt.Fprintf(w, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(line), line)
				_ = http.NewResponseController(w).Flush()
			}
		}).ServeHTTP(w, r)
	}))
	for _, n := range nodes {
		if n == leader {
			continue
		}
		waitFor(t, "a follower knows the leader", func() bool { return n.Info().Leader == leader.config.ID })
		var all sync.WaitGroup
		for i := range 100 {
			all.Go(func() {
				line := fmt.Sprintf("request %d\n", i)
				if got, err := sendTogether(t.Context(), n, line); got != line || err != nil {
					t.Errorf("got %q, %v, want %q", got, err, line)
				}
			})
		}
		all.Wait()
		// One that ends in order has done nothing of what it has not answered, and there is a second attempt.
		if _, err := sendTogether(t.Context(), n, "no more\n"); !errors.Is(err, ErrNotApplied) {
			t.Errorf("got %v, want ErrNotApplied", err)
		}
	}
	count := 0
	calls.Range(func(_, path any) bool { count++; return path == TogetherPath })
	if count != 4 { // of each follower: one, and the second attempt
		t.Errorf("got %d calls, want 4 of %s", count, TogetherPath)
	}
	checkReplicas(t, nodes...)
}

// TestForwardTogetherAndLost: an answer that breaks off is an unknown outcome, of every request that was sent.
func TestForwardTogetherAndLost(t *testing.T) {
	nodes := openCluster(t, 3)
	leader := leaderOf(t, nodes...)
	follower := nodes[0]
	if follower == leader {
		follower = nodes[1]
	}
	waitFor(t, "a follower knows the leader", func() bool { return follower.Info().Leader == leader.config.ID })
	leader.SetForwarded(speak(func(_ http.ResponseWriter, requests *bufio.Reader) {
		for range 10 {
			_, _ = requests.ReadString('\n')
		}
		panic(http.ErrAbortHandler)
	}))
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			if got, err := sendTogether(t.Context(), follower, "request\n"); !errors.Is(err, ErrUnknown) {
				t.Errorf("got %q, %v, want ErrUnknown", got, err)
			}
		})
	}
	all.Wait()
	leader.stop()
	to := raft.Server{ID: raft.ServerID(leader.config.ID), Address: raft.ServerAddress(leader.RaftAddress())}
	p, requests := newPipeline(t.Context(), to), newSentOn("request\n")
	_, _ = p.add(requests)
	follower.runPipeline(p)
	if got := requests.state(); got != fmt.Sprint(ErrNotApplied) {
		t.Errorf("a leader that is gone: got %s, want ErrNotApplied", got)
	}
}

// TestForwardTogetherToAnOlderProgram: it has no such call, and gets requests one by one from then on.
func TestForwardTogetherToAnOlderProgram(t *testing.T) {
	n, to := openNode(t, "n1", t.TempDir()), olderNode(t)
	s := newSentOn("request\n")
	p, err := n.together.add(s, to, n.runPipeline)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.wait(t.Context(), s); !errors.Is(err, errAlone) {
		t.Errorf("got %v, want errAlone", err)
	}
	if _, err := n.together.add(newSentOn(""), to, n.runPipeline); !errors.Is(err, errAlone) {
		t.Errorf("a second time: got %v, want errAlone", err)
	}
	n.together.mu.Lock()
	n.together.until = time.Time{} // it is upgraded by and by
	n.together.mu.Unlock()
	if _, err := n.together.add(newSentOn(""), to, func(*pipeline) {}); err != nil {
		t.Errorf("later: got %v, want another pipeline", err)
	}
}
