package main

import (
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"strings"
	"testing"
	"time"
)

func TestTable(t *testing.T) {
	got := table([]string{"load", "ops/s"}, [][]string{{"writes", "7"}, {"≥ reads", "12,345"}})
	want := "" +
		"| load    |  ops/s |\n" +
		"| ------- | -----: |\n" +
		"| writes  |      7 |\n" +
		"| ≥ reads | 12,345 |\n"
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// filled are results of two rounds, raftkv at twice of etcd's rate and then at three times.
func filled() *results {
	r := &results{systems: []string{"raftkv", "etcd", emptyLabel}}
	r.add(writes.name, 64, "raftkv", figures{rate: 2000, p50: 1, p99: 5, server: 0.3, own: 0.1})
	r.add(writes.name, 64, "etcd", figures{rate: 1000, p50: 2, p99: 5, server: 0.2, own: 0.2})
	r.add(writes.name, 64, "raftkv", figures{rate: 6000, p50: 3, p99: 15, server: 0.3, own: 0.1})
	r.add(writes.name, 64, "etcd", figures{rate: 2000, p50: 4, p99: 5, server: 0.2, own: 0.2})
	r.add(writes.name, 1, "raftkv", figures{rate: 400, p50: 2.5, p99: 4, server: 1, own: 0.1})
	r.add(bare.name, 64, emptyLabel, figures{rate: 40_000, p50: 0.5, p99: 1, server: 0.02, own: 0.01})
	return r
}

func TestMainTable(t *testing.T) {
	lines := strings.Split(filled().mainTable(), "\n")
	for i, want := range map[int][]string{
		2: {"writes", "64", "raftkv", "4,000", "2.00", "10.0", "0.300", "25 %", "", "", "", ""},
		3: {"", "", "etcd", "1,500", "3.00", "5.00", "0.200", "50 %", "2.50× (2.00–3.00)", "0.62", "2.00", "1.50"},
		4: {"", "1", "raftkv", "400", "2.50", "4.00", "1.00", "9 %", "", "", "", ""},
		5: {bare.name, "64", emptyLabel, "40,000", "0.500", "1.00", "0.0200", "33 %", "", "", "", ""},
	} {
		var got []string
		for _, text := range strings.Split(strings.Trim(lines[i], "|"), "|") {
			got = append(got, strings.TrimSpace(text))
		}
		if strings.Join(got, "|") != strings.Join(want, "|") {
			t.Errorf("line %d:\ngot  %q\nwant %q", i, got, want)
		}
	}
}

func TestWanted(t *testing.T) {
	got := filled().wanted(1)
	for _, want := range []string{"2.50× (2.00–3.00)", "1.25× (2.50 ms of 2 × 1.00 ms)"} {
		if !strings.Contains(got, want) {
			t.Errorf("it lacks %q:\n%s", want, got)
		}
	}
	if strings.Contains(got, "followers") {
		t.Errorf("it has what was not measured:\n%s", got)
	}
}

// Beside hraftd: p50 of writes with one client, round by round.
func TestWantedOfHraftd(t *testing.T) {
	r := filled()
	r.add(writes.name, 1, hraftdLabel, figures{rate: 500, p50: 2})
	if got, want := r.wanted(1), "| p50 of writes, 1 client, of hraftd's                 |   ≤ 1× | "+
		"1.25× "; !strings.Contains(got, want) {
		t.Errorf("it lacks %q:\n%s", want, got)
	}
}

// The comparison is with the client that did better by the figure.
func TestWantedOfTheBetterClient(t *testing.T) {
	r := filled()
	r.add(writes.name, 64, etcdGoLabel, figures{rate: 4000, p50: 1})
	r.add(writes.name, 1, etcdLabel, figures{rate: 1000, p50: 1, p99: 8})
	r.add(writes.name, 1, etcdGoLabel, figures{rate: 500, p50: 2, p99: 2})
	got := r.wanted(1)
	for _, want := range []string{
		"| p50 of writes, 1 client, of etcd's by the better client | ≤ 0.8× | 2.50× ",
		"| p99 of writes, 1 client, of etcd's by the better client |   ≤ 1× | 2.00× ",
		"| writes, 64 clients, of etcd's by the better client      | ≥ 1.8× | 0.50× ",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("it lacks %q:\n%s", want, got)
		}
	}
}

// What there is not is named, with how to get it, and only where it would be compared.
func TestMissing(t *testing.T) {
	r := filled()
	r.missing = map[string]string{hraftdLabel: "go install it"}
	lines := strings.Split(r.mainTable(), "\n")
	if got := strings.Fields(strings.ReplaceAll(lines[6], "|", " ")); strings.Join(got, " ") != "not measured hraftd" {
		t.Errorf("row of the table: got %q", got)
	}
	if got, want := r.mainTable(), "\n\nNot measured: hraftd. To get it: go install it.\n"; !strings.HasSuffix(got, want) {
		t.Errorf("it does not end in %q:\n%s", want, got)
	}
	if got := r.wanted(1); strings.Count(got, "not measured: go install it") != 1 {
		t.Errorf("want one row of what was not measured:\n%s", got)
	}
	r.cells = r.cells[:1] // without writes of one client
	if got := r.wanted(1); strings.Contains(got, hraftdLabel) {
		t.Errorf("it has what would not be compared:\n%s", got)
	}
}

func TestApplies(t *testing.T) {
	for _, tt := range []struct {
		load   load
		system string
		n      int
		want   bool
	}{
		{load: writes, system: "raftkv", n: 1024, want: true},
		{load: bare, system: "raftkv", n: 1, want: false},
		{load: bare, system: emptyLabel, n: 1, want: true},
		{load: writes, system: emptyLabel, n: 1, want: false},
		{load: writes, system: hraftdLabel, n: 1, want: true},
		{load: writes, system: hraftdLabel, n: 256, want: true},
		{load: writes, system: hraftdLabel, n: 1024, want: false},
		{load: staleReads, system: hraftdLabel, n: 1, want: false},
		{load: mix, system: hraftdLabel, n: 1, want: false},
		{load: bare, system: hraftdLabel, n: 1, want: false},
	} {
		if got := applies(tt.load, tt.system, tt.n); got != tt.want {
			t.Errorf("%s, %s, %d clients: got %v, want %v", tt.load.name, tt.system, tt.n, got, tt.want)
		}
	}
}

func TestClientTable(t *testing.T) {
	if got, want := filled().clientTable(), "10 % (writes)"; !strings.Contains(got, want) {
		t.Errorf("it lacks %q:\n%s", want, got)
	}
}

func TestConsoleTable(t *testing.T) {
	r := &results{systems: []string{"info", "warn"}}
	for _, rate := range []float64{950, 940, 100, 960, 9000} { // two that drifted
		r.add(writes.name, 64, "info", figures{rate: rate})
		r.add(writes.name, 64, "warn", figures{rate: 1000})
	}
	if got, want := r.consoleTable(), "5 % (4 % to 6 %)"; !strings.Contains(got, want) {
		t.Errorf("it lacks %q:\n%s", want, got)
	}
}

func TestSVG(t *testing.T) {
	picture := filled().svg("<caption> & more")
	d := xml.NewDecoder(strings.NewReader(picture))
	for {
		if _, err := d.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("not XML: %v", err)
		}
	}
	// The highest bar of a panel is as high as there is room for.
	if !strings.Contains(picture, `height="130" fill="`+colours["raftkv"]) {
		t.Errorf("no bar of full height:\n%s", picture)
	}
}

func TestNumbers(t *testing.T) {
	for f, want := range map[float64]string{0: "0", 7: "7", 999: "999", 1000: "1,000", 1234567: "1,234,567",
		-1000: "-1,000", -100: "-100"} {
		if got := group3(f); got != want {
			t.Errorf("group3(%v): got %q, want %q", f, got, want)
		}
	}
	for f, want := range map[float64]string{0: "0", 0.01234: "0.0123", 0.00001: "0.0000", 1.5: "1.50", 12.34: "12.3",
		123.4: "123", 12345: "12345"} {
		if got := short(f); got != want {
			t.Errorf("short(%v): got %q, want %q", f, got, want)
		}
	}
	for f, want := range map[float64]string{7: "7", 1500: "1.5k", 28700: "29k"} {
		if got := thousands(f); got != want {
			t.Errorf("thousands(%v): got %q, want %q", f, got, want)
		}
	}
}

func TestReplacePart(t *testing.T) {
	soak := replacePart("", "soak", "# soak")
	both := replacePart(soak, "main", "# main\n")
	want := "<!-- begin main -->\n# main\n<!-- end main -->\n\n<!-- begin soak -->\n# soak\n<!-- end soak -->\n"
	if both != want {
		t.Errorf("got\n%swant\n%s", both, want)
	}
	if got, want := replacePart(both, "main", "new"), strings.Replace(want, "# main", "new", 1); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestCPUOf(t *testing.T) {
	const stat = "42 (a) b (c) S 1 42 42 0 -1 4194304 100 0 0 0 150 25 0 0 20 0 8 0 100 1000000 500"
	got, err := cpuOf([]byte(stat))
	if want := 1750 * time.Millisecond; got != want || err != nil {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if _, err := cpuOf([]byte("42 (a) S 1")); err == nil {
		t.Error("too short: got no error")
	}
}

func TestBusyOf(t *testing.T) {
	const stat = "cpu  100 20 30 4000 500 6 7 8 90 10\ncpu0 1 2 3 4 5 6 7 8 9 10\n"
	if got, want := busyOf([]byte(stat)), 1710*time.Millisecond; got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestMountOf(t *testing.T) {
	const mounts = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n" +
		"30 22 0:26 / /tmp rw,nosuid - tmpfs tmpfs rw\n" +
		"31 22 0:27 / /tmp/disk rw - xfs /dev/vdb rw\n"
	for dir, want := range map[string]string{"/": "ext4 (/dev/vda)", "/tmpfs": "ext4 (/dev/vda)",
		"/tmp": "tmpfs (tmpfs)", "/tmp/disk/a": "xfs (/dev/vdb)"} {
		if got := mountOf(mounts, dir); got != want {
			t.Errorf("%s: got %q, want %q", dir, got, want)
		}
	}
}

func TestSnapshotSpans(t *testing.T) {
	const console = `2026-11-23T14:17:45.106Z [INFO]  raft: snapshot complete up to: index=1
INFO[2026-11-23T14:17:46.000Z] set key="raft: starting snapshot up to" value="1" index=12 term=2
2026-11-23T14:17:46.100Z [INFO]  raft: starting snapshot up to: index=500
2026-11-23T14:17:46.200Z [INFO]  snapshot: creating new snapshot: path=/tmp
2026-11-23T14:17:46.300Z [INFO]  raft: snapshot complete up to: index=500
2026-11-23T14:17:50.000Z [INFO]  raft: starting snapshot up to: index=900
`
	spans := snapshotSpans([]byte(console))
	if len(spans) != 2 {
		t.Fatalf("got %d spans, want 2: %v", len(spans), spans)
	}
	at := func(text string) time.Time {
		when, err := time.Parse(time.RFC3339, "2026-11-23T"+text+"Z")
		if err != nil {
			t.Fatal(err)
		}
		return when
	}
	if got := spans[0]; !got.from.Equal(at("14:17:46.1")) || !got.to.Equal(at("14:17:46.301")) {
		t.Errorf("the first: got %v", got)
	}

	s := sample{began: at("14:17:46")}
	add := func(start, took time.Duration) {
		s.took, s.ended = append(s.took, took), append(s.ended, start+took)
	}
	add(0, 99*time.Millisecond)                   // before
	add(50*time.Millisecond, 60*time.Millisecond) // into it
	add(0, time.Second)                           // around it
	add(299*time.Millisecond, 5*time.Millisecond) // out of it
	add(302*time.Millisecond, 3*time.Millisecond) // after
	add(5*time.Second, time.Millisecond)          // in the one that is not finished
	if during, apart := s.split(spans); len(during) != 4 || len(apart) != 2 {
		t.Errorf("got %v during and %v apart, want 4 and 2", during, apart)
	}
}

func TestFreePorts(t *testing.T) {
	ports, err := freePorts(20)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for _, p := range ports {
		if seen[p] {
			t.Errorf("port %s comes twice", p)
		}
		seen[p] = true
	}
}

func TestParseFlags(t *testing.T) {
	for _, args := range [][]string{
		{"-clients", "0"}, {"-clients", "1,x"}, {"-rounds", "0"}, {"-keys", "5"}, {"-only", "("}, {"-nonsense"}, {"word"},
		{"-million", "-soak", "1m"}, {"-value", "0"}, {"-baseline", "/nowhere/raftkv"}, {"-certs", "/nowhere"},
	} {
		if _, err := parseFlags(args, io.Discard); !errors.Is(err, errUsage) {
			t.Errorf("%q: got %v, want an error of usage", args, err)
		}
	}
	if _, err := parseFlags([]string{"-h"}, io.Discard); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("-h: got %v, want %v", err, flag.ErrHelp)
	}
	s, err := parseFlags([]string{"-quick", "-million"}, io.Discard)
	if err != nil || s.keys != 20_000 || s.rounds != 1 || len(s.clients) != 5 {
		t.Errorf("got %+v, %v", s, err)
	}
}
