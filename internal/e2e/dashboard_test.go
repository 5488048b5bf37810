package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"raftkv/internal/testkit"
)

// TestDashboard: each query of docs/dashboard.json, put to a Prometheus that scrapes three nodes at work, gives
// numbers.
func TestDashboard(t *testing.T) {
	slow(t)
	program, err := exec.LookPath("prometheus")
	if err != nil {
		t.Skip(err)
	}
	t.Parallel()
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	text, err := os.ReadFile("../../docs/dashboard.json")
	if err == nil {
		err = json.Unmarshal(text, &dashboard)
	}
	if err != nil {
		t.Fatal(err)
	}
	nodes := testkit.StartCluster(t, binary(t), 3, "RAFT_SNAPSHOT_THRESHOLD=20")
	var targets []string
	for _, n := range nodes {
		targets = append(targets, "127.0.0.1:"+n.HTTPPort)
	}
	list, err := json.Marshal(targets) // JSON is YAML
	if err != nil {
		t.Fatal(err)
	}
	dir, port := t.TempDir(), testkit.FreePort(t)
	config := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "global: {scrape_interval: 1s, scrape_timeout: 1s}\n"+
		"scrape_configs: [{job_name: raftkv, static_configs: [{targets: %s}]}]\n", list), 0o600); err != nil {
		t.Fatal(err)
	}
	testkit.Start(t, exec.Command(program, "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address=127.0.0.1:"+port, "--log.level=warn"))

	ctx, cancel := context.WithCancel(t.Context())
	worked := make(chan struct{})
	t.Cleanup(func() { cancel(); <-worked })
	go func() { // what there are rates of
		defer close(worked)
		pace := time.NewTicker(10 * time.Millisecond)
		defer pace.Stop()
		for i := 0; ctx.Err() == nil; i++ {
			<-pace.C
			for _, n := range nodes {
				target := fmt.Sprintf("%s/set?key=%d&value=%[2]d", n.Base, i%100)
				if response, err := testkit.Following.Get(target); err == nil {
					_, _ = io.Copy(io.Discard, response.Body)
					_ = response.Body.Close()
				}
			}
		}
	}()

	queries := 0
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			expr := strings.NewReplacer("$__rate_interval", "30s", "$instance", ".+").Replace(target.Expr)
			testkit.Eventually(t, panel.Title+": "+expr, func() error { return queryGivesNumbers(port, expr) })
			queries++
		}
	}
	if queries < 20 {
		t.Errorf("got %d queries, want those of the dashboard", queries)
	}
}

// queryGivesNumbers returns an error unless a query has a result, which is a number in at least one series.
func queryGivesNumbers(port, expr string) error {
	response, err := http.Get("http://127.0.0.1:" + port + "/api/v1/query?" + url.Values{"query": {expr}}.Encode())
	if err != nil {
		return err
	}
	defer response.Body.Close()
	var answer struct {
		Status, Error string
		Data          struct {
			Result []struct{ Value [2]any } // time and value, a string
		}
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return err
	}
	if answer.Status != "success" {
		return fmt.Errorf("got %s: %s", answer.Status, answer.Error)
	}
	for _, series := range answer.Data.Result {
		if series.Value[1] != "NaN" {
			return nil
		}
	}
	return errors.New("got no number")
}
