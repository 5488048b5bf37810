package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"raftkv/internal/kv"
	"raftkv/internal/testkit"
)

// scrape asks s for its metrics.
func scrape(t testing.TB, s *service) testkit.Samples {
	t.Helper()
	samples, err := s.At().Scrape()
	if err != nil {
		t.Fatal(err)
	}
	return samples
}

// requests is the series of how many requests had a path and a status.
func requests(path string, status int) string {
	return fmt.Sprintf(`raftkv_http_request_duration_seconds_count{path=%q,status="%d"}`, path, status)
}

// TestMetricsOfRequests: what was done is what is counted, no more.
func TestMetricsOfRequests(t *testing.T) {
	s := startOne(t)
	ask(t, s, "/get?key=none")
	before := scrape(t, s)
	set(t, s, "key", "value")
	ask(t, s, "/get?key=key")
	ask(t, s, "/get?key=none")
	ask(t, s, "/no/such/path")
	ask(t, s, "/set?key=")
	if got := send1(t, s, http.MethodDelete, "/get?key=key"); got.status != http.StatusMethodNotAllowed {
		t.Errorf("DELETE: got %d, want 405", got.status)
	}
	after := scrape(t, s)
	wanted := testkit.Samples{
		requests("/set", 200): 1, requests("/set", 400): 1, requests("/get", 200): 1, requests("/get", 404): 1,
		requests("other", 404): 1, requests("other", 405): 1, `raftkv_proposals_total{result="applied"}`: 1,
		"raftkv_proposed_entries_total": 1, "raftkv_batch_commands_count": 1, "raftkv_batch_commands_sum": 1,
		"raftkv_keys": 1, "raftkv_data_bytes": float64(len("key" + "value")),
		"raftkv_data_footprint_bytes": float64(kv.ItemFootprint("key", len("value"), kv.Lease{})),
		"raftkv_data_limit_bytes":     0,
		"raftkv_last_index":           1, "raftkv_applied_index": 1, "raftkv_term": 0, "raftkv_leader_changes_total": 0,
		`raftkv_http_requests_failed_total{status="503"}`: 0, `raftkv_http_requests_failed_total{status="504"}`: 0,
	}
	for series, want := range wanted {
		if got, ok := after[series]; !ok || got-before[series] != want {
			t.Errorf("%s: got %v more, %v, want %v", series, got-before[series], ok, want)
		}
	}
	for series := range after {
		if strings.Contains(series, "no/such") {
			t.Errorf("got %s, want no label that a client makes", series)
		}
	}
	ask(t, s, "/snapshot")
	if err := s.node.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	ask(t, s, "/set?key=key&value=value")
	ask(t, s, "/readyz")
	if got := scrape(t, s)[`raftkv_http_requests_failed_total{status="503"}`]; got != 1 {
		t.Errorf("after the end of the node: got %v failed requests, want 1: a set, and not the probe", got)
	}
}

func send1(t testing.TB, s *service, method, target string) answer {
	t.Helper()
	a, err := send(direct, newRequest(t, method, s, target, ""))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestMetricsOfACluster has a leader that sees its members, followers that see none, and a replica that is made to
// differ, of which the alert must come.
func TestMetricsOfACluster(t *testing.T) {
	t.Parallel()
	nodes, _ := startLinked(t)
	leader, followers := testkit.Leader(t, nodes...)
	set(t, leader, "a", "1")
	checkReplicas(t, nodes...)
	well := testkit.Samples{`raftkv_replicas{state="equal"}`: 2, `raftkv_replicas{state="different"}`: 0,
		`raftkv_replicas{state="unknown"}`: 0, "raftkv_leader": 1, "raftkv_leader_last_contact_seconds": 0}
	for _, s := range followers {
		well[`raftkv_member_up{member="`+s.At().ID+`"}`] = 1
		well[`raftkv_member_lag_entries{member="`+s.At().ID+`"}`] = 0
	}
	samples := leader.At().WaitSamples(t, well)
	for _, s := range followers {
		contact := `raftkv_member_last_contact_seconds{member="` + s.At().ID + `"}`
		if got, ok := samples[contact]; !ok || got < 0 {
			t.Errorf("%s: got %v, %v, want seconds", contact, got, ok)
		}
		of := s.At().WaitSamples(t, testkit.Samples{"raftkv_leader": 0, "raftkv_leader_known": 1,
			"raftkv_replicas_differ": 0})
		if got, ok := of["raftkv_leader_last_contact_seconds"]; !ok || got < 0 {
			t.Errorf("%s: last contact of the leader: got %v, %v, want seconds", s.At().ID, got, ok)
		}
		for series := range of {
			if strings.HasPrefix(series, "raftkv_member_") || strings.HasPrefix(series, "raftkv_replicas{") {
				t.Errorf("follower %s: got %s, want it of the leader alone", s.At().ID, series)
			}
		}
		if got := of["raftkv_raft_connections"]; got < 1 {
			t.Errorf("%s: connections at the raft port: got %v, want that of the leader", s.At().ID, got)
		}
		// 307, or 200 while it does not know yet where clients reach the leader: it sends the request on then.
		status := send1(t, s, http.MethodGet, "/set?key=a&value=2").status
		if status != http.StatusTemporaryRedirect && status != http.StatusOK {
			t.Errorf("set at %s: got %d, want 307 or 200", s.At().ID, status)
		}
		if got := scrape(t, s)[requests("/set", status)] - of[requests("/set", status)]; got != 1 {
			t.Errorf("sets at %s with status %d: got %v more, want 1", s.At().ID, status, got)
		}
	}

	before := map[string]testkit.Samples{"leader": scrape(t, leader)}
	wrong := followers[0].machine.Store
	index, term := wrong.Applied()
	wrong.Update(index, term, []byte("not of the log"), func(tx *kv.Tx) { tx.Set("a", []byte("2")) })
	after := leader.At().WaitSamples(t, testkit.Samples{"raftkv_replicas_differ": 1,
		`raftkv_replicas{state="equal"}`: 1, `raftkv_replicas{state="different"}`: 1})
	followers[0].At().WaitSamples(t, testkit.Samples{"raftkv_replicas_differ": 1})
	testkit.CheckAlert(t, "docs/alerts.yml", "RaftkvReplicaDiffers", before, map[string]testkit.Samples{"leader": after})
}

// TestScrapesUnderLoad: scrapes during writes see counters that never go back, and all that was done in the end.
func TestScrapesUnderLoad(t *testing.T) {
	s := startOne(t)
	before := scrape(t, s)
	const writers, each = 8, 25
	done := make(chan struct{})
	var writing, scraping sync.WaitGroup
	for k := range writers {
		writing.Go(func() {
			for range each {
				set(t, s, fmt.Sprint("key", k), "v")
			}
		})
	}
	scraping.Go(func() {
		last := before
		for ended := false; !ended; {
			select {
			case <-done:
				ended = true
			default:
			}
			now, err := s.At().Scrape()
			if err != nil {
				t.Error(err)
				return
			}
			for series, v := range now {
				counts := strings.Contains(series, "_total") || strings.Contains(series, "_count") ||
					strings.Contains(series, "_bucket")
				if counts && strings.HasPrefix(series, "raftkv_") && v < last[series] {
					t.Errorf("%s went from %v to %v", series, last[series], v)
				}
			}
			last = now
		}
	})
	writing.Wait()
	close(done)
	scraping.Wait()
	after := scrape(t, s)
	for _, series := range []string{requests("/set", 200), `raftkv_proposals_total{result="applied"}`,
		"raftkv_batch_commands_sum"} {
		if got := after[series] - before[series]; got != writers*each {
			t.Errorf("%s: got %v more, want %d", series, got, writers*each)
		}
	}
}

// TestStreamsPassTheCount: the middleware holds back no line of a stream.
func TestStreamsPassTheCount(t *testing.T) {
	s := startOne(t)
	index := set(t, s, "a", "1")
	response, err := http.Get(s.At().Base + fmt.Sprintf("/watch?prefix=a&from=%d", index-1))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	waitLine(t, lines, "data:")
	s.At().WaitSamples(t, testkit.Samples{`raftkv_watchers{state="live"}`: 1, `raftkv_watchers{state="behind"}`: 0})
	set(t, s, "a", "2")
	waitLine(t, lines, "data:") // while the stream goes on
	if got := scrape(t, s)[requests("/watch", 200)]; got != 0 {
		t.Errorf("a watch that has not ended: got %v of them, want 0", got)
	}
	_ = response.Body.Close()
	s.At().WaitSamples(t, testkit.Samples{`raftkv_watchers{state="live"}`: 0, requests("/watch", 200): 1})
}

// TestMetricNames: promtool's lint finds nothing to say about the names and units of the node's own metrics.
func TestMetricNames(t *testing.T) {
	s := startOne(t)
	set(t, s, "a", "1")
	response, err := http.Get(s.At().Base + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	var own, raft int
	var linted strings.Builder
	for line := range strings.Lines(string(text)) {
		name := strings.TrimPrefix(strings.TrimPrefix(line, "# HELP "), "# TYPE ")
		if strings.HasPrefix(name, "raftkv_") {
			own++
			linted.WriteString(line)
		} else if strings.HasPrefix(name, "raft_") {
			raft++
		}
	}
	if own == 0 || raft == 0 {
		t.Errorf("got %d lines of raftkv_ and %d of raft_, want some of both", own, raft)
	}
	problems, err := promlint.New(strings.NewReader(linted.String())).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}
