package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"raftkv/internal/testkit"
)

// TestRoomForTheData: a cluster refuses sets beyond STORE_MAX_BYTES, whichever node is asked and whoever leads, and
// removes work their way out. A repetition of what was applied still has its result.
func TestRoomForTheData(t *testing.T) {
	t.Parallel()
	nodes := testkit.StartCluster(t, binary(t), 3, "STORE_MAX_BYTES=1048576", "HTTP_FOLLOWERS=forward")
	const half = 600 << 10
	value, key := strings.Repeat("v", half), func(k string) string { return "/set?key=" + k }
	leader, followers := testkit.Leader(t, nodes...)
	leader.WaitMessage(t, "The data may take 1.0 MiB (STORE_MAX_BYTES)")
	first := leader.Definite(t, http.MethodPut, key("first"), value, "Idempotency-Key", "once")
	if first.Status != http.StatusOK {
		t.Fatalf("what fits: got %d %q, want 200", first.Status, first.Body)
	}
	refused := func(at *testkit.Node, what, method, target, body string, headers ...string) {
		t.Helper()
		a := at.Definite(t, method, target, body, headers...)
		if err := a.OneLine("STORE_MAX_BYTES", "1048576", "remove keys", "nothing was done"); a.Status != 507 || err != nil {
			t.Errorf("%s: got %d %q, %v, want 507 and a line with what to do", what, a.Status, a.Body, err)
		}
	}
	const txn = `{"then": [{"set": "second", "value": "%s"}]}`
	for _, at := range nodes {
		refused(at, "a set at "+at.ID, http.MethodPut, key("second"), value)
		refused(at, "a transaction at "+at.ID, http.MethodPost, "/txn", fmt.Sprintf(txn, value))
		again := at.Definite(t, http.MethodPut, key("first"), value, "Idempotency-Key", "once")
		if again.Status != http.StatusOK || again.Body != first.Body {
			t.Errorf("the same at %s: got %d %q, want the first answer %q", at.ID, again.Status, again.Body, first.Body)
		}
		if a := at.Definite(t, http.MethodPut, key("first"), value); a.Status != http.StatusOK {
			t.Errorf("a value as large at %s: got %d %q, want 200", at.ID, a.Status, a.Body)
		}
	}
	large := testkit.StartNodes(t, binary(t), 1)[0]
	large.Set(t, "a", value)
	large.Set(t, "b", value)
	backup := large.Ask(t, "/snapshot").Body
	for _, at := range nodes {
		a := at.Definite(t, http.MethodPut, "/restore", backup)
		if err := a.OneLine("STORE_MAX_BYTES", "1048576", "nothing was changed"); a.Status != 507 || err != nil {
			t.Errorf("a backup of more at %s: got %d %q, %v, want 507 and what to do", at.ID, a.Status, a.Body, err)
		}
	}
	leader.Kill(t)
	leader, _ = testkit.Leader(t, followers...)
	refused(leader, "a set at the new leader", http.MethodPut, key("second"), value)
	before := scrapes(t, leader)
	leader.Set(t, "third", strings.Repeat("v", 300<<10))
	testkit.CheckAlert(t, alertRules, "RaftkvDataNearlyFull", before, scrapes(t, leader))
	testkit.Eventually(t, "a warning", func() error {
		a := leader.Ask(t, "/readyz")
		if a.Status != http.StatusOK || !strings.Contains(a.Body, "OK, but the data take 87 % of the 1048576 bytes") {
			return fmt.Errorf("readyz: got %d %q, want 200 and a warning", a.Status, a.Body)
		}
		return nil
	})
	leader.Write(t, "/remove?prefix=fir")
	if a := leader.Definite(t, http.MethodPut, key("second"), value); a.Status != http.StatusOK {
		t.Errorf("after a remove: got %d %q, want 200", a.Status, a.Body)
	}
	all := testkit.CheckReplicas(t, followers...)
	if len(all["second"]) != half || len(all["third"]) != 300<<10 || len(all["first"]) != 0 {
		t.Errorf("got values of %d, %d and %d bytes", len(all["second"]), len(all["third"]), len(all["first"]))
	}
}
