package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"raftkv/internal/kv"
	"raftkv/internal/testkit"
)

// largeForm is a form of nearly 2 MiB, which sets two keys.
func largeForm() string {
	value := strings.Repeat("v", 1<<20-100)
	return "key=a&value=" + value + "&key=b&value=" + value
}

// TestMemoryInFlight: 200 requests of 2 MiB at once, whose last byte comes late, take no more memory than
// INFLIGHT_MAX_BYTES beyond what the node takes for its data and its log. Each of them is carried out, or is refused
// with a 503 and may be sent again.
func TestMemoryInFlight(t *testing.T) {
	slow(t)
	const clients, budget = 200, 64 << 20
	n := testkit.NewNode(t, plainBinary(t), "n1", "RAFT_ELECTION_TIMEOUT=100ms", "LOG_LEVEL=warn",
		fmt.Sprint("INFLIGHT_MAX_BYTES=", budget))
	n.Start(t)
	form := largeForm()
	n.WaitReady(t)
	before := sampleMemory(t, n)
	for range 50 { // with what the log cache and the history of watches take
		n.Definite(t, http.MethodPut, "/set?key=a", form[:1<<20])
	}
	alone := before.peak()
	during := sampleMemory(t, n)
	var all sync.WaitGroup
	var mu sync.Mutex
	statuses := make(map[int]int)
	sent := make(chan struct{}, clients)
	last := make(chan struct{})
	for range clients {
		all.Go(func() {
			status, retry, err := postSlowly(strings.TrimPrefix(n.Base, "http://"), form, sent, last)
			if status == http.StatusServiceUnavailable && retry == "" {
				t.Error("got a 503 without Retry-After")
			}
			if err != nil { // on a busy machine, it sends for longer than a refused body is read
				status = http.StatusServiceUnavailable
			}
			mu.Lock()
			defer mu.Unlock()
			statuses[status]++
		})
	}
	enough := time.After(2 * time.Second) // what is not read is not all sent
	for range clients {
		select {
		case <-sent:
		case <-enough:
			enough = nil
		}
		if enough == nil {
			break
		}
	}
	close(last)
	all.Wait()
	peak := during.peak()
	t.Logf("%d MiB before, %d MiB with %d requests of 2 MiB, of which %v", alone>>20, peak>>20, clients, statuses)
	if peak > alone+2*budget+96<<20 { // the collector lets as much garbage be
		t.Errorf("got %d MiB, want %d of before, twice the %d of INFLIGHT_MAX_BYTES and a constant", peak>>20, alone>>20,
			budget>>20)
	}
	if statuses[http.StatusOK] == 0 || statuses[http.StatusOK]+statuses[http.StatusServiceUnavailable] != clients {
		t.Errorf("got %v, want 200 and 503 alone", statuses)
	}
}

// postSlowly sends a form to /set, whose last byte only when last is closed, and returns the status and Retry-After of
// the answer.
func postSlowly(address, form string, sent chan<- struct{}, last <-chan struct{}) (status int, retry string,
	err error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	go func() {
		_, _ = fmt.Fprintf(c, "POST /set HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n"+
			"Content-Length: %d\r\n\r\n", len(form))
		_, _ = io.WriteString(c, form[:len(form)-1])
		sent <- struct{}{}
		<-last
		_, _ = io.WriteString(c, form[len(form)-1:])
	}()
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, "", err
	}
	_, err = io.Copy(io.Discard, response.Body)
	return response.StatusCode, response.Header.Get("Retry-After"), err
}

// TestRestoreTakesLittleMemory: a backup is received and verified without its data being in memory, so that one with
// more than may be can't end the node, although how much that is shows only as it comes.
func TestRestoreTakesLittleMemory(t *testing.T) {
	slow(t)
	const most = 128 << 20
	n := testkit.NewNode(t, plainBinary(t), "n1", "RAFT_ELECTION_TIMEOUT=100ms", "LOG_LEVEL=warn",
		fmt.Sprint("STORE_MAX_BYTES=", most))
	n.Start(t)
	n.Set(t, "kept", "as it is")
	n.WaitReady(t)
	large := kv.New()
	large.Update(1, 1, nil, func(tx *kv.Tx) {
		value := make([]byte, 1<<20)
		for i := range most>>20 + 1 {
			tx.Set(fmt.Sprint("key", i), value)
		}
	})
	before := sampleMemory(t, n)
	n.Set(t, "kept", "as it was")
	alone := before.peak()
	during := sampleMemory(t, n)
	backup, to := io.Pipe() // of unknown length
	go func() { _ = to.CloseWithError(large.WriteSnapshot(to)) }()
	r, err := http.NewRequest(http.MethodPut, n.Base+"/restore", backup)
	if err != nil {
		t.Fatal(err)
	}
	a, err := testkit.Send(testkit.Direct, r)
	peak := during.peak()
	t.Logf("%d MiB before, %d MiB while a backup of more than %d MiB came", alone>>20, peak>>20, most>>20)
	if err == nil {
		err = a.OneLine("STORE_MAX_BYTES", "nothing was changed")
	}
	if err != nil || a.Status != http.StatusInsufficientStorage {
		t.Errorf("got %d %q, %v, want 507", a.Status, a.Body, err)
	}
	if peak > alone+96<<20 {
		t.Errorf("got %d MiB, want little more than the %d MiB of before", peak>>20, alone>>20)
	}
	if got := n.Definite(t, http.MethodGet, "/get?key=kept", ""); got.Body != "as it was" {
		t.Errorf("got %q, want what was there before", got.Body)
	}
	if left, err := filepath.Glob(filepath.Join(n.Volume, "restore-*")); len(left) > 0 || err != nil {
		t.Errorf("got %v, %v left on the volume, want nothing", left, err)
	}
}
