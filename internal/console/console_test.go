package console

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"raftkv/internal/command"
)

// terminal is a console that takes nothing while it is blocked.
type terminal struct {
	blocked sync.Mutex // locked: it blocks

	mu      sync.Mutex // guards printed
	printed bytes.Buffer
}

func (t *terminal) Write(p []byte) (int, error) {
	t.blocked.Lock()
	defer t.blocked.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.printed.Write(p)
}

func (t *terminal) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.printed.String()
}

// TestWriterKeepsTheOrder: each write is whole, after the one before it.
func TestWriterKeepsTheOrder(t *testing.T) {
	out := new(terminal)
	w := New(out, Formatter{})
	var want strings.Builder
	for i := range 1000 {
		line := fmt.Sprintf("line %d\n", i)
		want.WriteString(line)
		if n, err := w.Write([]byte(line)); n != len(line) || err != nil {
			t.Fatalf("Write: got %d, %v, want %d", n, err, len(line))
		}
	}
	w.Flush()
	if got := out.String(); got != want.String() {
		t.Errorf("got %d bytes, want the 1,000 lines in order (%d bytes)", len(got), want.Len())
	}
	w.Close()
}

// TestBlockedConsole: a terminal that is stopped stops nobody. What does not fit into the
// queue is dropped, and counted in a line when there is room again.
func TestBlockedConsole(t *testing.T) {
	out := new(terminal)
	w := New(out, Formatter{})
	out.blocked.Lock()
	_, _ = w.Write([]byte("first\n"))
	line := []byte(strings.Repeat("x", 1<<20-1) + "\n")
	const writes = 16
	for range writes { // none of them waits
		_, _ = w.Write(line)
	}
	w.mu.Lock()
	queued, dropped := len(w.queued), w.dropped
	w.mu.Unlock()
	if queued > maxQueued || dropped < writes-2*maxQueued/len(line) {
		t.Errorf("%d bytes queued and %d writes dropped, want at most %d bytes", queued, dropped, maxQueued)
	}
	out.blocked.Unlock()
	w.Flush()
	_, _ = w.Write([]byte("last\n"))
	w.Close()
	notice := regexp.MustCompile(`WARN\[[^]]*\] The console was blocked: (\d+) writes to it were dropped\nlast\n$`)
	if match := notice.FindStringSubmatch(out.String()); match == nil || match[1] != fmt.Sprint(dropped) {
		t.Errorf("got the end %q, want a line that %d writes were dropped, then the last one",
			out.String()[max(0, len(out.String())-200):], dropped)
	}
}

// TestCloseOfABlockedConsole: the process must be able to end.
func TestCloseOfABlockedConsole(t *testing.T) {
	out := new(terminal)
	w := New(out, Formatter{})
	out.blocked.Lock()
	defer out.blocked.Unlock()
	_, _ = w.Write([]byte("line\n"))
	closed := make(chan struct{})
	go func() { w.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(30 * time.Second):
		t.Error("Close waits for a console that takes nothing")
	}
}

// TestAppendCommand has the lines of every kind of command, and of every outcome.
func TestAppendCommand(t *testing.T) {
	transaction := &command.Transaction{
		If:   []command.Compare{{Key: "k", What: command.Absent}},
		Then: []command.Operation{{Op: command.OpSet, Key: "k", Value: []byte("v")}, {Op: command.OpRemove, Key: "l"}},
		Else: []command.Operation{{Op: command.OpGet, Key: "k"}},
	}
	done := make([]command.OperationResult, len(transaction.Then))
	pair := func(key, value string) []command.Pair { return []command.Pair{{Key: key, Value: []byte(value)}} }
	for _, test := range []struct {
		name    string
		command command.Command
		result  command.Result
		want    string
	}{
		{name: "set", command: command.Command{Kind: command.Set, Pairs: pair("k", "v w")},
			result: command.Result{Index: 12}, want: "set key=\"k\" value=\"v w\" index=12 term=2\n"},
		{name: "a line for each key", command: command.Command{Kind: command.Remove, Pairs: append(pair("a", ""), pair("b",
			"")...)},
			result: command.Result{Index: 12}, want: "remove key=\"a\" index=12 term=2\nremove key=\"b\" index=12 term=2\n"},
		{name: "remove a prefix", command: command.Command{Kind: command.RemovePrefix, Pairs: pair("a/", "")},
			result: command.Result{Index: 12, Removed: 3}, want: "remove prefix=\"a/\" removed=3 index=12 term=2\n"},
		{name: "a condition that does not hold", command: command.Command{Kind: command.Set, Pairs: pair("k", "v")},
			result: command.Result{Index: 12, Failed: 1},
			want:   "condition failed: set key=\"k\" value=\"v\" index=12 term=2\n"},
		{name: "a repetition", command: command.Command{Kind: command.Set, Pairs: pair("k", "v")},
			result: command.Result{Index: 7}, want: "done before, index=7: set key=\"k\" value=\"v\" index=12 term=2\n"},
		{name: "a reused key", command: command.Command{Kind: command.Set, Pairs: pair("k", "v")},
			result: command.Result{Index: 12, Reused: true},
			want:   "refused, Idempotency-Key of another request: set key=\"k\" value=\"v\" index=12 term=2\n"},
		{name: "no-op", command: command.Command{Kind: command.Noop}, result: command.Result{Index: 12},
			want: "no-op index=12 term=2\n"},
		{name: "raise the format", command: command.Command{Kind: command.RaiseFormat, To: 2},
			result: command.Result{Index: 12}, want: "cluster format 2 index=12 term=2\n"},
		{name: "a transaction and what it did", command: command.Command{Kind: command.Txn, Txn: transaction},
			result: command.Result{Index: 12, Txn: &command.TxnResult{Held: true, Operations: done}},
			want: "transaction conditions=1 held=true index=12 term=2\n" +
				"set key=\"k\" value=\"v\" index=12 term=2\nremove key=\"l\" index=12 term=2\n"},
		{name: "a transaction whose conditions do not hold", command: command.Command{Kind: command.Txn, Txn: transaction},
			result: command.Result{Index: 12, Txn: &command.TxnResult{Operations: done[:1]}},
			want:   "transaction conditions=1 held=false index=12 term=2\n"},
		{name: "a transaction with a lease that is gone", command: command.Command{Kind: command.Txn, Txn: transaction},
			result: command.Result{Index: 12, Txn: &command.TxnResult{Held: true}},
			want:   "condition failed: transaction conditions=1 held=true index=12 term=2\n"},
		{name: "set with a lease", command: command.Command{Kind: command.Set, Pairs: pair("k", "v"),
			Options: &command.Options{Lease: command.Lease{TTL: 90 * time.Second, Key: "s"}}},
			result: command.Result{Index: 12}, want: "set key=\"k\" value=\"v\" ttl=1m30s lease=\"s\" index=12 term=2\n"},
		{name: "expiry of one of two", command: command.Command{Kind: command.Expire, Txn: &command.Transaction{
			If: []command.Compare{{Key: "a"}, {Key: "b"}}}},
			result: command.Result{Index: 12, Txn: &command.TxnResult{Operations: []command.OperationResult{{}, {Found: true}}}},
			want:   "expire key=\"b\" index=12 term=2\n"},
		{name: "a transaction with a reused key", command: command.Command{Kind: command.Txn, Txn: transaction},
			result: command.Result{Index: 12, Reused: true},
			want: "refused, Idempotency-Key of another request: " +
				"transaction conditions=1 held=false index=12 term=2\n"},
		{name: "restore", command: command.Command{Kind: command.Restore, Items: 5},
			result: command.Result{Index: 12, Counted: true}, want: "restore keys=5 complete=true index=12 term=2\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := string(AppendCommand(nil, Prefix{text: []byte("> ")}, test.command, test.result, 12, 2))
			want := "> " + strings.ReplaceAll(strings.TrimSuffix(test.want, "\n"), "\n", "\n> ") + "\n"
			if got != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
		})
	}
}

// TestAppendCommandJSON: each line is one JSON object, whatever is in a key.
func TestAppendCommandJSON(t *testing.T) {
	transaction := &command.Transaction{
		If:   []command.Compare{{Key: "k", What: command.Absent}},
		Then: []command.Operation{{Op: command.OpSet, Key: "k", Value: []byte("v")}, {Op: command.OpRemove, Key: "l"}},
	}
	done := make([]command.OperationResult, len(transaction.Then))
	pair := func(key, value string) []command.Pair { return []command.Pair{{Key: key, Value: []byte(value)}} }
	now := time.Date(2026, 11, 25, 14, 28, 11, 82e6, time.UTC)
	const begin, end = `{"level":"info","time":"2026-11-25T14:28:11.082Z","msg":`, `,"index":12,"term":2}`
	for _, test := range []struct {
		name    string
		command command.Command
		result  command.Result // its Index is 12 if it has none
		want    string         // of all lines, without begin and end
	}{
		{name: "set", command: command.Command{Kind: command.Set, Pairs: pair("k", "v w")},
			want: `"set","key":"k","value":"v w"`},
		{name: "a line for each key", command: command.Command{Kind: command.Remove,
			Pairs: append(pair("a", ""), pair("b", "")...)}, want: `"remove","key":"a"` + "\n" + `"remove","key":"b"`},
		{name: "characters that do not print", command: command.Command{Kind: command.Set,
			Pairs: pair("\"\\\n\x00\x7f\u0085\u2028\u202e\U000e0001é", "\x1b[2J")},
			want: `"set","key":"\"\\\u000a\u0000\u007f\u0085\u2028\u202e\udb40\udc01é","value":"\u001b[2J"`},
		{name: "not UTF-8", command: command.Command{Kind: command.Set, Pairs: pair("\xff", "\xfe\xfd")},
			want: `"set","key64":"/w==","value64":"/v0="`},
		{name: "long", command: command.Command{Kind: command.Set,
			Pairs: pair("x"+strings.Repeat("é", 40), strings.Repeat("\xff", 100))},
			want: `"set","key":"x` + strings.Repeat("é", 31) + `","keyBytes":81,"value64":"` +
				strings.Repeat("/", 85) + `w==","valueBytes":100`},
		{name: "remove a prefix", command: command.Command{Kind: command.RemovePrefix, Pairs: pair("a/", "")},
			result: command.Result{Removed: 3}, want: `"remove prefix","prefix":"a/","removed":3`},
		{name: "a condition that does not hold", command: command.Command{Kind: command.Set, Pairs: pair("k", "v")},
			result: command.Result{Failed: 1}, want: `"set","outcome":"condition failed","key":"k","value":"v"`},
		{name: "a repetition", command: command.Command{Kind: command.Set, Pairs: pair("k", "v")},
			result: command.Result{Index: 7},
			want:   `"set","outcome":"done before","firstIndex":7,"key":"k","value":"v"`},
		{name: "a reused key", command: command.Command{Kind: command.Remove, Pairs: pair("k", "")},
			result: command.Result{Reused: true},
			want:   `"remove","outcome":"refused, Idempotency-Key of another request","key":"k"`},
		{name: "no-op", command: command.Command{Kind: command.Noop}, want: `"no-op"`},
		{name: "unstage", command: command.Command{Kind: command.Unstage}, want: `"begin or give up a restore"`},
		{name: "stage", command: command.Command{Kind: command.Stage, Pairs: pair("k", "v")},
			want: `"stage of a restore","pairs":1`},
		{name: "restore", command: command.Command{Kind: command.Restore, Items: 5},
			result: command.Result{Counted: true}, want: `"restore","keys":5,"complete":true`},
		{name: "raise the format", command: command.Command{Kind: command.RaiseFormat, To: 2},
			want: `"cluster format","format":2`},
		{name: "a transaction and what it did", command: command.Command{Kind: command.Txn, Txn: transaction},
			result: command.Result{Txn: &command.TxnResult{Held: true, Operations: done}},
			want: `"transaction","conditions":1,"held":true` + "\n" + `"set","key":"k","value":"v"` + "\n" +
				`"remove","key":"l"`},
		{name: "a transaction whose conditions do not hold", command: command.Command{Kind: command.Txn, Txn: transaction},
			result: command.Result{Txn: &command.TxnResult{Operations: nil}}, want: `"transaction","conditions":1,"held":false`},
		{name: "a kind that is not known here", command: command.Command{Kind: 99}, want: `"command of kind 99"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.result.Index = cmp.Or(test.result.Index, 12)
			prefix := NewPrefix(Format("json"), now, logrus.InfoLevel)
			got := string(AppendCommand(nil, prefix, test.command, test.result, 12, 2))
			want := begin + strings.ReplaceAll(test.want, "\n", end+"\n"+begin) + end + "\n"
			if got != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
			for line := range strings.Lines(got) {
				if !json.Valid([]byte(line)) {
					t.Errorf("got %q, want a JSON object", line)
				}
			}
		})
	}
}

func TestFatal(t *testing.T) {
	for _, test := range []struct {
		format string
		want   string // regular expression
	}{
		{format: "text", want: `^raftkv: a; b \(advice\)\n$`},
		{format: "", want: `^raftkv: a; b \(advice\)\n$`},
		{format: "json", want: `^\{"level":"fatal","msg":"a; b \(advice\)","time":"[^"]+"\}\n$`},
	} {
		t.Run(test.format, func(t *testing.T) {
			var out bytes.Buffer
			Fatal(&out, test.format, errors.New("a\nb"), " (advice)")
			if got := out.String(); !regexp.MustCompile(test.want).MatchString(got) {
				t.Errorf("got %q, want %s", got, test.want)
			}
		})
	}
}

// TestBlockedConsoleJSON: the Writer's own line is in the format of the others.
func TestBlockedConsoleJSON(t *testing.T) {
	out := new(terminal)
	w := New(out, Format("json"))
	w.mu.Lock()
	w.dropped = 3
	w.mu.Unlock()
	_, _ = w.Write([]byte("last\n"))
	w.Close()
	want := `^\{"level":"warning","msg":"The console was blocked: 3 writes to it were dropped","time":"[^"]+"\}\nlast\n$`
	if got := out.String(); !regexp.MustCompile(want).MatchString(got) {
		t.Errorf("got %q, want %s", got, want)
	}
}

func ExampleFormatter() {
	entry := &logrus.Entry{
		Time:    time.Date(2026, 11, 25, 14, 28, 11, 82e6, time.UTC),
		Level:   logrus.InfoLevel,
		Message: "Set handler called",
	}
	line, _ := Formatter{}.Format(entry)
	fmt.Print(string(line))
	// Output: INFO[2026-11-25T14:28:11.082Z] Set handler called
}

// TestNamesAndHiddenValues: a line has the name of the client, if it is known, and no value where those are hidden.
func TestNamesAndHiddenValues(t *testing.T) {
	set := command.Command{Kind: command.Set, By: "alice", Pairs: []command.Pair{{Key: "k", Value: []byte("secret1")}}}
	transaction := &command.Transaction{Then: []command.Operation{{Op: command.OpSet, Key: "t", Value: []byte("secret")}}}
	for _, tt := range []struct {
		name, text, json string
		command          command.Command
		hide             bool
	}{
		{name: "both", command: set, hide: true, text: `set key="k" by=alice value=(7 bytes) index=12`,
			json: `"key":"k","valueBytes":7,"by":"alice","index":12`},
		{name: "a name alone", command: set, text: `set key="k" by=alice value="secret1" index=12`,
			json: `"key":"k","value":"secret1","by":"alice","index":12`},
		{name: "hidden alone", command: command.Command{Kind: command.Set, Pairs: set.Pairs}, hide: true,
			text: `set key="k" value=(7 bytes) index=12`, json: `"key":"k","valueBytes":7,"index":12`},
		{name: "a removal",
			command: command.Command{Kind: command.RemovePrefix, By: "bob", Pairs: []command.Pair{{Key: "k"}}},
			text:    `remove prefix="k" removed=0 by=bob index=12`, json: `"prefix":"k","removed":0,"by":"bob","index":12`},
		{name: "a transaction", command: command.Command{Kind: command.Txn, By: "bob", Txn: transaction}, hide: true,
			text: `set key="t" by=bob value=(6 bytes) index=12`, json: `"key":"t","valueBytes":6,"by":"bob","index":12`},
	} {
		result := command.Result{Index: 12}
		if tt.command.Kind == command.Txn {
			result.Txn = &command.TxnResult{Held: true, Operations: []command.OperationResult{{Found: true}}}
		}
		for _, format := range []struct {
			prefix Prefix
			want   string
		}{{Prefix{HideValues: tt.hide}, tt.text}, {Prefix{HideValues: tt.hide, json: true}, tt.json}} {
			got := string(AppendCommand(nil, format.prefix, tt.command, result, 12, 2))
			if !strings.Contains(got, format.want) || tt.hide && strings.Contains(got, "secret") {
				t.Errorf("%s: got %s, want %q in it", tt.name, got, format.want)
			}
		}
	}
}
