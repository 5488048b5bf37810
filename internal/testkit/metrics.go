package testkit

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Samples is a scrape: values by series, such as raftkv_replicas{state="equal"}, as /metrics prints them.
type Samples map[string]float64

// Scrape asks the node for its metrics.
func (c Client) Scrape() (Samples, error) {
	text, err := c.get("/metrics")
	if err != nil {
		return nil, err
	}
	samples := make(Samples)
	for line := range strings.Lines(text) {
		at := strings.LastIndexByte(line, ' ')
		if line[0] == '#' || at < 0 {
			continue
		}
		if samples[line[:at]], err = strconv.ParseFloat(strings.TrimSpace(line[at:]), 64); err != nil {
			return nil, err
		}
	}
	return samples, nil
}

// WaitSamples waits until all that is wanted is in a scrape, and returns that scrape.
func (c Client) WaitSamples(t testing.TB, want Samples) (got Samples) {
	t.Helper()
	Eventually(t, c.ID+": samples", func() (err error) {
		if got, err = c.Scrape(); err != nil {
			return err
		}
		for _, series := range slices.Sorted(maps.Keys(want)) {
			if v, ok := got[series]; !ok || v != want[series] {
				return fmt.Errorf("%s: got %v, %v, want %v", series, v, ok, want[series])
			}
		}
		return nil
	})
	return got
}

// CheckAlert has promtool carry out rules, a file of alerts, over the scrapes before, repeated for half an hour, and
// then over the scrapes after, repeated too; both are by instance. The alert must be silent first, and fire within four
// minutes then. Without promtool it checks nothing.
func CheckAlert(t testing.TB, rules, alert string, before, after map[string]Samples) {
	t.Helper()
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Logf("%s is not evaluated: %v", alert, err)
		return
	}
	if rules, err = filepath.Abs(rules); err != nil {
		t.Fatal(err)
	}
	type object = map[string]any
	var series []object
	for instance := range after {
		names := maps.Clone(before[instance])
		maps.Copy(names, after[instance])
		for name := range names {
			if !strings.HasPrefix(name, "raftkv_") {
				continue
			}
			part := func(of Samples) string {
				if v, ok := of[name]; ok {
					return strconv.FormatFloat(v, 'f', -1, 64) + "+0x30"
				}
				return "_x30"
			}
			values := part(before[instance]) + " " + part(after[instance])
			bare, labels, _ := strings.Cut(strings.TrimSuffix(name, "}"), "{")
			labels = strings.TrimPrefix(labels+`,instance="`+instance+`"`, ",")
			series = append(series, object{"series": bare + "{" + labels + "}", "values": values})
		}
	}
	fires := fmt.Sprintf(`(count(ALERTS{alertname=%q,alertstate="firing"}) > bool 0) or vector(0)`, alert)
	want := func(at string, value int) object {
		return object{"expr": fires, "eval_time": at, "exp_samples": []object{{"labels": "{}", "value": value}}}
	}
	text, err := json.Marshal(object{ // JSON is YAML
		"rule_files": []string{rules}, "evaluation_interval": "1m",
		"tests": []object{{
			"interval": "1m", "input_series": series, "promql_expr_test": []object{want("30m", 0), want("34m", 1)},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "test.yml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(promtool, "test", "rules", path).CombinedOutput(); err != nil {
		t.Errorf("%s: want it silent at 30m (value 0) and firing at 34m (value 1): %v\n%s", alert, err, out)
	}
}
