package browser

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"raftkv/internal/testkit"
)

var (
	shots   = flag.String("shots", "", "directory for the screenshots; empty: none are kept")
	picture = flag.String("picture", "", "file for the picture of docs/page.md; empty: it is not made")
	axePath = flag.String("axe", "", "axe.min.js of axe-core; empty: accessibility is not checked")
)

// electionTimeout gives a leader that is cut off time to take a write: it steps down after 3/5 of it.
const electionTimeout = "2s"

var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "raftkv-browser-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "raftkv")
	cmd := exec.Command("go", "build", "-o", path, ".")
	cmd.Dir = ".."
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	if path, err := binary(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

func startCluster(t *testing.T, size int, env ...string) []*testkit.Node {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	return testkit.StartCluster(t, path, size, append([]string{"RAFT_LAB=1", "RAFT_ELECTION_TIMEOUT=" + electionTimeout},
		env...)...)
}

// startChromium starts a browser, which ends with t.
func startChromium(t *testing.T) context.Context {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox, chromedp.WindowSize(1280, 900))
	if path, err := exec.LookPath("chromium"); err == nil {
		options = append(options, chromedp.ExecPath(path))
	}
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	if err := chromedp.Run(ctx); err != nil {
		t.Fatal(err)
	}
	return ctx
}

// tab is a page of a node, open in the browser.
type tab struct {
	t    *testing.T
	ctx  context.Context
	name string

	mu       sync.Mutex
	requests []string // URLs
	problems []string // errors on the browser's console, dialogs
}

// open opens the page of a node. At the end of t it must have asked nobody but hosts, and have put no error on the
// console but that a node does not answer.
func open(t *testing.T, browser context.Context, n *testkit.Node, allowed []*testkit.Node,
	actions ...chromedp.Action) *tab {
	t.Helper()
	var bases []string
	for _, n := range allowed {
		bases = append(bases, n.Base+"/")
	}
	return openURL(t, browser, n.ID, n.Base+"/", bases, actions...)
}

// openURL opens a page that may ask for what begins with one of bases.
func openURL(t *testing.T, browser context.Context, name, address string, bases []string,
	actions ...chromedp.Action) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(browser)
	p := &tab{t: t, ctx: ctx, name: name}
	chromedp.ListenTarget(ctx, func(event any) {
		p.mu.Lock()
		defer p.mu.Unlock()
		switch e := event.(type) {
		case *network.EventRequestWillBeSent:
			p.requests = append(p.requests, e.Request.URL)
		case *runtime.EventExceptionThrown:
			p.problems = append(p.problems, e.ExceptionDetails.Error())
		case *cdplog.EventEntryAdded:
			if e.Entry.Level == cdplog.LevelError && !strings.Contains(e.Entry.Text, "net::ERR_") &&
				!strings.Contains(e.Entry.Text, "a status of 50") { // what the node itself has answered to a client
				p.problems = append(p.problems, e.Entry.Text+" "+e.Entry.URL)
			}
		case *page.EventJavascriptDialogOpening:
			p.problems = append(p.problems, "a dialog: "+e.Message)
		}
	})
	t.Cleanup(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, asked := range p.requests {
			if !slices.ContainsFunc(bases, func(base string) bool { return strings.HasPrefix(asked, base) }) &&
				!strings.HasPrefix(asked, "data:") && !strings.HasPrefix(asked, "blob:") {
				t.Errorf("page of %s: got a request to %s, want none beyond the cluster", p.name, asked)
			}
		}
		for _, problem := range p.problems {
			t.Errorf("page of %s: got %s on the console, want nothing", p.name, problem)
		}
		cancel()
	})
	if err := chromedp.Run(ctx); err != nil { // a limit on this one would be the end of the tab
		t.Fatal(err)
	}
	p.do(append(actions, chromedp.Navigate(address))...)
	return p
}

// do runs actions, within a bound.
func (p *tab) do(actions ...chromedp.Action) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, testkit.Bound)
	defer cancel()
	if err := chromedp.Run(ctx, actions...); err != nil {
		p.t.Fatalf("page of %s: %v", p.name, err)
	}
}

// get evaluates a script.
func get[T any](p *tab, script string) (value T) {
	p.t.Helper()
	p.do(chromedp.Evaluate(script, &value))
	return value
}

// wait waits until a script is true; on failure it shows what the page has.
func (p *tab) wait(what, script string) {
	p.t.Helper()
	testkit.Eventually(p.t, what, func() error {
		var ok bool
		ctx, cancel := context.WithTimeout(p.ctx, 20*time.Second)
		defer cancel()
		if err := chromedp.Run(ctx, chromedp.Evaluate(script, &ok)); err != nil {
			return err
		}
		if !ok {
			return errors.New("the page has: " + get[string](p, `document.body.innerText.slice(0, 3000)`))
		}
		return nil
	})
}

// shot keeps a screenshot.
func (p *tab) shot(name string) {
	p.t.Helper()
	if *shots == "" {
		return
	}
	var png []byte
	p.do(chromedp.FullScreenshot(&png, 100))
	if err := os.WriteFile(filepath.Join(*shots, name+".png"), png, 0o644); err != nil {
		p.t.Fatal(err)
	}
	if name == "2-cut-off" && *picture != "" {
		if err := writePicture(*picture, png); err != nil {
			p.t.Fatal(err)
		}
	}
}

// ask fills the client's form and sends it.
func (p *tab) ask(node, how, key, value string) {
	p.t.Helper()
	quote := func(s string) string { b, _ := json.Marshal(s); return string(b) }
	p.do(chromedp.Evaluate(fmt.Sprintf(`$('node').value=%s; $('key').value=%s; $('value').value=%s;
		document.querySelector('#ask button[value=%s]').click()`, quote(node), quote(key), quote(value), how), nil))
}

// press clicks a button by its accessible name.
func (p *tab) press(label string) {
	p.t.Helper()
	p.do(chromedp.Click(`button[aria-label="`+label+`"]`, chromedp.ByQuery))
}

const answer = `(document.querySelector('#answers li')||{innerText:''}).innerText`

// axe checks the page by axe-core: no serious violation.
func (p *tab) axe(when string) {
	p.t.Helper()
	if *axePath == "" {
		return
	}
	source, err := os.ReadFile(*axePath)
	if err != nil {
		p.t.Fatal(err)
	}
	var found string
	p.do(chromedp.Evaluate(string(source)+`;0`, nil), chromedp.Evaluate(`axe.run(document,{iframes:false}).then(r =>
		r.violations.filter(v => v.impact === 'serious' || v.impact === 'critical').map(v =>
		v.id + ': ' + v.help + ': ' + v.nodes.map(n =>
			n.html.slice(0, 120) + ' ' + n.failureSummary).slice(0, 3).join(' | ')).join('\n'))`,
		&found, func(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }))
	if found != "" {
		p.t.Errorf("axe, %s: got %s, want no serious violation", when, found)
	}
}

// cells is a script for the classes of the cells of a node, joined, of the entries at the end of its row.
func cells(node string) string {
	return `[...document.querySelectorAll('#grid tbody tr')].filter(r =>
		r.cells[0].firstChild.textContent.startsWith('` + node +
		`')).map(r => [...r.cells].slice(1).map(c => c.className).join('|')).join()`
}

// TestStory is what a newcomer sees by two clicks: a leader that is cut off, an election, a 504 beside a dashed cell,
// and the repair after healing; with the page open at that leader, and at another node.
func TestStory(t *testing.T) {
	t.Parallel()
	browser := startChromium(t)
	nodes := startCluster(t, 3)
	leader, others := testkit.Leader(t, nodes...)
	at, elsewhere := open(t, browser, leader, nodes), open(t, browser, others[0], nodes)
	for _, p := range []*tab{at, elsewhere} {
		p.wait("three nodes and their leader", fmt.Sprintf(`document.querySelectorAll('#grid tbody tr').length === 3 &&
			document.querySelectorAll('#ring g').length === 3 && $('head').innerText.startsWith('%s leads term') &&
			$('head').innerText.endsWith('3 members, a majority is 2')`, leader.ID))
		for _, n := range nodes {
			p.wait("all entries applied at "+n.ID, `(c => c !== '' &&
				c.split('|').every(x => x === 'has com app'))(`+cells(n.ID)+`)`)
		}
	}

	// A set at a follower: its redirect is shown, and then the leader's answer.
	at.ask(others[0].ID, "set", "fruit", "apple")
	at.wait("307, then 200", fmt.Sprintf(`(a => a.includes('307 from %s') && a.includes('200 from %s') &&
		a.includes('OK index='))(%s)`,
		others[0].ID, leader.ID, answer))
	at.wait("the entry", `[...document.querySelectorAll('#grid td')].filter(c =>
		c.textContent === 'fruit=apple').length === 3`)
	at.ask(others[1].ID, "stale", "fruit", "")
	at.wait("a stale read", fmt.Sprintf(`(a => a.includes('200 from %s') && a.includes('apple') &&
		a.includes('last heard the leader'))(%s)`,
		others[1].ID, answer))
	at.shot("1-cluster")

	// The 504.
	elsewhere.press("cut off " + leader.ID)
	elsewhere.wait("the cut is done", `$('did').innerText.startsWith('OK')`)
	at.ask(leader.ID, "set", "fruit", "lost")
	for _, p := range []*tab{at, elsewhere} {
		p.wait("a dashed cell", `(c => c.endsWith('|has'))(`+cells(leader.ID)+`)`)
		p.wait("cut links", `document.querySelectorAll('#ring .cut').length === 2`)
	}
	at.wait("504", `(a => a.includes('504 from `+leader.ID+`') &&
		a.includes('may or may not be applied'))(`+answer+`)`)
	next, _ := testkit.Leader(t, others...)
	for _, p := range []*tab{at, elsewhere} {
		p.wait("the new leader", `$('head').innerText.startsWith('`+next.ID+` leads term')`)
	}
	elsewhere.ask(next.ID, "set", "fruit", "kept")
	elsewhere.wait("200", `(a => a.includes('200 from `+next.ID+`'))(`+answer+`)`)
	at.shot("2-cut-off")
	elsewhere.shot("3-cut-off-elsewhere")
	at.axe("cut off")
	at.press("heal " + leader.ID)
	for _, p := range []*tab{at, elsewhere} {
		p.wait("the repair", `[...document.querySelectorAll('#story li')].some(l =>
			l.innerText.includes('`+leader.ID+` drops entry'))`)
		p.wait("whole again", `(c => c !== '' && c.split('|').every(x => x === 'has com app'))(`+cells(leader.ID)+`)`)
		p.wait("no cut links", `document.querySelectorAll('#ring .cut').length === 0`)
	}
	at.shot("4-healed")
	if got := testkit.CheckReplicas(t, nodes...)["fruit"]; got != "kept" {
		t.Errorf("fruit: got %q, want kept", got)
	}

	// What was seen is kept, and played.
	file := filepath.Join(t.TempDir(), "frames.jsonl")
	lines := get[string](at, `[JSON.stringify({raftkv: 'frames', v: 1}), ...kept.map(r =>
		JSON.stringify(r))].join('\n')`)
	if err := os.WriteFile(file, []byte(lines), 0o644); err != nil {
		t.Fatal(err)
	}
	if *shots != "" {
		_ = os.WriteFile(filepath.Join(*shots, "story.jsonl"), []byte(lines), 0o644)
	}
	at.do(chromedp.SetUploadFiles(`#file`, []string{file}, chromedp.ByQuery))
	at.wait("the end of the story", `$('slider').value === $('slider').max &&
		$('head').innerText.startsWith('`+next.ID+` leads')`)
	at.do(chromedp.Evaluate(`seek(kept.findIndex(r => r.answer &&
		r.answer.steps.some(s => s.status === 504)))`, nil))
	at.wait("the 504, played", `(a => a.includes('504 from `+leader.ID+`'))(`+answer+`) &&
		(c => c.endsWith('|has'))(`+cells(leader.ID)+`)`)
	at.shot("5-played")
	at.do(chromedp.Click(`#live`, chromedp.ByQuery))
	at.wait("now again", `(c => c.split('|').every(x => x === 'has com app'))(`+cells(leader.ID)+`)`)

	// Two leaders at once, as a file has them: raft's lease makes that too short to be waited for.
	two := `{"raftkv":"frames","v":1}` + "\n"
	for i, id := range []string{"n1", "n2"} {
		two += fmt.Sprintf(`{"at":1000,"frame":{"v":1,"node":%q,"at":1000,"state":"Leader","term":%d,"leader":%q,`+
			`"first":1,"last":1,"commit":1,"applied":1,"snapshot":0,"members":[{"id":"n1"},{"id":"n2"}],`+
			`"cells":[{"i":1,"t":%d,"k":"no-op","s":""}]}}`,
			id, i+2, id, i+2) + "\n"
	}
	if err := os.WriteFile(file, []byte(two), 0o644); err != nil {
		t.Fatal(err)
	}
	at.do(chromedp.SetUploadFiles(`#file`, []string{file}, chromedp.ByQuery))
	at.wait("two leaders", `$('head').innerText.startsWith('Two leaders at once: n1 in term 2, n2 in term 3.')`)
}

// TestKill: the page goes on when its own node ends, and shows what the others do; and when the node is back.
func TestKill(t *testing.T) {
	t.Parallel()
	browser := startChromium(t)
	nodes := startCluster(t, 3)
	leader, others := testkit.Leader(t, nodes...)
	p := open(t, browser, leader, nodes)
	p.wait("three nodes", `document.querySelectorAll('#grid tbody tr').length === 3`)
	p.press("kill -9 " + leader.ID)
	leader.WaitEnd(t, testkit.StopBound)
	next, _ := testkit.Leader(t, others...)
	p.wait("the new leader", `$('head').innerText.startsWith('`+next.ID+` leads term')`)
	p.wait("the node that is gone", `document.querySelector('#ring g[data-id=`+
		leader.ID+`]').classList.contains('gone')`)
	p.ask(next.ID, "set", "k", "after")
	p.wait("200", `(a => a.includes('200 from `+next.ID+`'))(`+answer+`)`)
	p.ask(leader.ID, "get", "k", "")
	p.wait("no answer", `(a => a.includes('no answer from `+leader.ID+`'))(`+answer+`)`)
	p.shot("6-own-node-killed")
	p.axe("own node killed")
	leader.Start(t)
	p.wait("it is back", `(c => c !== '' && c.split('|').every(x => x === 'has com app'))(`+cells(leader.ID)+`) && `+
		`!document.querySelector('#ring g[data-id=`+leader.ID+`]').classList.contains('gone')`)
	testkit.CheckReplicas(t, nodes...)
}

// TestLoad: 1,000 keys do not freeze the page, a snapshot is shown, and so is a node that joins; hostile keys and
// values are text.
func TestLoad(t *testing.T) {
	t.Parallel()
	browser := startChromium(t)
	nodes := startCluster(t, 3, "RAFT_SNAPSHOT_THRESHOLD=50", "LOG_LEVEL=warn")
	leader, _ := testkit.Leader(t, nodes...)
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	n4 := testkit.NewNode(t, path, "n4", "RAFT_LAB=1", "RAFT_ELECTION_TIMEOUT="+electionTimeout)
	p := open(t, browser, leader, append(nodes, n4))
	p.wait("three nodes", `document.querySelectorAll('#grid tbody tr').length === 3`)
	p.do(chromedp.Evaluate(`var longest = 0, last = performance.now(); setInterval(() => {
		const t = performance.now(); longest = Math.max(longest, t - last); last = t; }, 20); 0`, nil))
	began := time.Now()
	var sets sync.WaitGroup
	for w := range 20 {
		sets.Go(func() {
			for i := range 50 {
				r, err := http.Get(leader.Base + "/set?" + url.Values{"key": {fmt.Sprint(w*50 + i)}, "value": {"v"}}.Encode())
				if err != nil || r.StatusCode != http.StatusOK {
					t.Errorf("a set: %v, %v", r, err)
					return
				}
				_ = r.Body.Close()
			}
		})
	}
	sets.Wait()
	took := time.Since(began)
	for _, n := range nodes {
		p.wait("all applied at "+n.ID, `nodes.get('`+n.ID+`').frame.applied >= `+
			fmt.Sprint(mustStatus(t, leader).AppliedIndex))
	}
	longest := get[float64](p, `longest`)
	t.Logf("1,000 sets in %v; the page stood still for %.0f ms at most", took.Round(time.Millisecond), longest)
	if longest > 2000 {
		t.Errorf("the page stood still for %.0f ms, want that it goes on", longest)
	}
	p.shot("7-load")
	p.wait("a snapshot", `[...document.querySelectorAll('#story li')].some(l =>
		l.innerText.includes('has a snapshot up to entry'))`)

	n4.Start(t)
	testkit.Join(t, leader.Client, n4.Client, n4.RaftPort)
	p.wait("four nodes", `document.querySelectorAll('#grid tbody tr').length === 4 &&
		$('head').innerText.includes('4 members, a majority is 3')`)
	p.wait("what n4 has by a snapshot", cells("n4")+`.includes('snap') || `+cells("n4")+`.includes('has com app')`)

	hostile := "<script>alert(1)</script>\u202eevil"
	p.ask(leader.ID, "set", hostile, hostile)
	p.wait("its answer", `(a => a.includes('200 from'))(`+answer+`)`)
	p.ask(leader.ID, "get", hostile, "")
	p.wait("as text", `(a => a.includes('<script>alert(1)</script>\\u202eevil'))(`+answer+`)`)
	p.wait("the cell", `[...document.querySelectorAll('#grid td')].some(c =>
		c.textContent.startsWith('<script>alert(1)</script>\\u202eevil'))`)
	if get[bool](p, `/[\u202a-\u202e\u2066-\u2069]/.test(document.body.innerText)`) {
		t.Error("got an override of the writing direction in the page, want it escaped")
	}
	p.shot("8-hostile")
	testkit.CheckReplicas(t, append(nodes, n4)...)
}

func mustStatus(t *testing.T, n *testkit.Node) testkit.Status {
	t.Helper()
	s, err := n.Status()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestForms: the keyboard alone, a phone's width, dark, reduced motion.
func TestForms(t *testing.T) {
	t.Parallel()
	browser := startChromium(t)
	nodes := startCluster(t, 3)
	testkit.Leader(t, nodes...)
	p := open(t, browser, nodes[0], nodes)
	p.wait("three nodes", `document.querySelectorAll('#grid tbody tr').length === 3`)
	p.axe("light")

	// By Tab alone every control is reached; in the log the arrows go on; Enter sends.
	reached := map[string]bool{}
	for range 60 {
		p.do(chromedp.KeyEvent(kb.Tab))
		on := get[string](p, `(e => e.getAttribute('aria-label') || e.id || e.value || e.tagName)(document.activeElement)`)
		reached[on] = true
		if on == "TD" {
			before := get[string](p, `$('what').innerText`)
			p.do(chromedp.KeyEvent(kb.ArrowLeft))
			if after := get[string](p, `$('what').innerText`); after == before || !strings.Contains(after, ": entry ") {
				t.Errorf("an arrow in the log: got %q, then %q, want another entry", before, after)
			}
		}
		if on == "value" && !reached["sent"] {
			reached["sent"] = true
			p.do(chromedp.KeyEvent(kb.Enter))
			p.wait("an answer", `(a => a.includes('200 from'))(`+answer+`)`)
		}
	}
	for _, want := range []string{"TD", "sent", "cut off n1", "kill -9 n3", "make leader n2", "oneway", "node", "key",
		"value",
		"get", "stale", "keep", "file", "What happens, newest first"} {
		if !reached[want] {
			t.Errorf("by Tab: got no way to %s, only to %v", want, reached)
		}
	}

	p.do(chromedp.EmulateViewport(390, 844))
	p.wait("no line is wider than a phone", `document.documentElement.scrollWidth <= 390`)
	p.shot("9-phone")
	p.axe("390 px")

	p.do(chromedp.EmulateViewport(1280, 900), emulate("prefers-color-scheme", "dark"))
	p.wait("dark", `getComputedStyle(document.body).backgroundColor === 'rgb(21, 23, 26)'`)
	p.shot("10-dark")
	p.axe("dark")

	p.do(emulate("prefers-reduced-motion", "reduce"))
	p.wait("what moved has arrived", `document.querySelectorAll('.dot').length === 0`)
	p.ask("n1", "set", "k", "still")
	p.wait("an answer", `(a => a.includes('200 from'))(`+answer+`)`)
	if n := get[int](p, `document.querySelectorAll('.dot').length`); n != 0 {
		t.Errorf("with reduced motion: got %d dots that move, want none", n)
	}
	testkit.CheckReplicas(t, nodes...)
}
