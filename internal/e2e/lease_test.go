package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"raftkv/internal/testkit"
)

// TestLeases is what a client sees of TTLs and sessions: through any node, over a backup into another cluster, and
// over the death of the leader that timed them.
func TestLeases(t *testing.T) {
	t.Parallel()
	nodes := startThree(t)
	refused := nodes[1].Definite(t, http.MethodGet, "/set?key=early&value=1&lease=session", "")
	if want := `lease: key "session" is not there`; refused.Status != http.StatusPreconditionFailed ||
		!strings.Contains(refused.Body, want) {
		t.Errorf("a lease of a key that is not there: got %d %q, want 412", refused.Status, refused.Body)
	}
	nodes[1].Write(t, "/set?key=session&value=n7&ttl=20m")
	nodes[2].Write(t, "/set?key=service/a&value=10.0.0.7&key=service/b&value=10.0.0.7&lease=session")
	nodes[0].Write(t, "/set?key=stays&value=1&ttl=1s")
	nodes[0].Write(t, "/set?key=stays&value=2") // without a ttl, it has none any more
	get := nodes[1].Ask(t, "/get?key=session")
	if got := get.Header.Get("Raftkv-TTL"); got != "20m0s" {
		t.Errorf("Raftkv-TTL: got %q, want 20m0s", got)
	}
	want := []string{"service/a  session", "service/b  session", "session 20m0s ", "stays  "}
	leases := func(n testkit.Client) (got []string) {
		t.Helper()
		for d := json.NewDecoder(strings.NewReader(n.Ask(t, "/list").Body)); d.More(); {
			var line struct{ Key, TTL, Lease string }
			if err := d.Decode(&line); err != nil {
				t.Fatal(err)
			}
			got = append(got, line.Key+" "+line.TTL+" "+line.Lease)
		}
		return got
	}
	check := func(what string, n testkit.Client) {
		t.Helper()
		if got := leases(n); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: got %q, want %q", what, got, want)
		}
	}
	for _, n := range nodes {
		check("list", n.Client)
	}
	backup := nodes[2].Ask(t, "/snapshot").Body

	fresh := startThree(t)
	if a := fresh[0].Definite(t, http.MethodPut, "/restore", backup); a.Status != http.StatusOK {
		t.Fatalf("restore: got %d %q, want 200", a.Status, a.Body)
	}
	check("restored", fresh[1].Client)

	// From here on the session has two seconds; its leader dies, and all nodes take a snapshot and start again.
	begin := time.Now()
	fresh[1].Write(t, "/set?key=session&value=n7&ttl=2s")
	leader, others := testkit.Leader(t, fresh...)
	leader.Kill(t)
	for _, n := range others {
		testkit.Eventually(t, "the session and its services go at "+n.ID, func() error {
			values, err := n.Values()
			if err == nil && len(values) != 1 {
				err = fmt.Errorf("got %v, want stays alone", values)
			}
			return err
		})
	}
	if took := time.Since(begin); took < 2*time.Second {
		t.Errorf("the session went after %v, want 2 s or more", took)
	}
	leader.Start(t)
	leader.WaitReady(t)
	testkit.CheckReplicas(t, fresh...)
	if got := testkit.CheckReplicas(t, nodes...); len(got) != 4 {
		t.Errorf("the first cluster: got %v, want all 4 keys", got)
	}
}
