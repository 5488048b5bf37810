package lincheck

import (
	"fmt"
	"strings"
	"testing"
)

// TestLargeValues: a value is sent with the same filler each time, of sizes up to 1 MiB, and one that is read without
// all of it is a finding.
func TestLargeValues(t *testing.T) {
	findings := 0
	c := &Client{failf: func(string, ...any) { findings++ }}
	small, most := 0, 0
	for k := range 2000 {
		value := fmt.Sprint("7", large, k)
		body := sent(value)
		if got := c.value(body); got != value || findings > 0 {
			t.Fatalf("%s: got %s and %d findings, want it back", value, got, findings)
		}
		if most = max(most, len(body)); len(body) < 1<<10 {
			small++
		}
	}
	if small < 500 || most < 900<<10 || most > 1<<20 {
		t.Errorf("of 2,000, got %d of less than 1 KiB, and one of %d bytes: want some 900, and nearly 1 MiB", small, most)
	}
	if got := sent("7-1"); got != "7-1" {
		t.Errorf("a small one: got %q", got)
	}
	for _, damaged := range []string{"7+1", strings.TrimSuffix(sent("7+1"), "x"), sent("7+1") + "x", "7-1~x"} {
		if findings = 0; c.value(damaged) == "" || findings != 1 {
			t.Errorf("%.20q of %d bytes: got %d findings, want one", damaged, len(damaged), findings)
		}
	}
}
