package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// lesson.sh runs one lesson of this package with these.
var (
	askFlag  = flag.Bool("lesson.ask", false, "lessons: wait for Enter before each command")
	showFlag = flag.Bool("lesson.show", false, "lessons: show each step, on the ports of the page if they are free")
	keepFlag = flag.String("lesson.keep", "", "lessons: directory for what the page would show, a kept file for each")
)

// TestLessons runs docs/lessons as TestDocs runs the other pages, each on a cluster of its own: n1, n2 and n3 as the
// start scripts have them, joined through n1. Their environment is in the page, as <!-- NAME=value -->.
func TestLessons(t *testing.T) {
	slow(t)
	pages, err := filepath.Glob("../../docs/lessons/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatalf("docs/lessons: got %v, %v, want files", pages, err)
	}
	for _, page := range pages {
		t.Run(strings.TrimSuffix(filepath.Base(page), ".md"), func(t *testing.T) {
			port := 8000
			if !*showFlag {
				t.Parallel()
			}
			if !*showFlag || !arePagePortsFree(port) {
				port = freePorts(t)
			}
			r := newReaderAt(t, binary(t), port)
			text := string(read(t, page))
			if *showFlag {
				r.guide = newGuide(*askFlag)
				r.guide.prose(fmt.Sprintf("(three nodes of its own start, on ports %d to %d; Ctrl-C ends it)", port, port+2))
			}
			for _, comment := range regexp.MustCompile(`<!-- (\w+=\w+) -->`).FindAllStringSubmatch(text, -1) {
				r.env = append(r.env, comment[1])
			}
			guide := r.guide
			r.guide = nil
			for i := 1; i <= 3; i++ {
				name := fmt.Sprint("n", i)
				r.open(name, fmt.Sprintf("./startn%d.sh", i))
				r.terminals[name].follow(t, []string{fmt.Sprintf("INFO[2026-11-23T14:17:46.192Z] Term 2: n%d leads", i)})
			}
			r.run([]string{`$ curl "http://localhost:8000/join?nodeId=n2&raftPort=9001"`, "OK n2 joined, index=4 members=2",
				`$ curl "http://localhost:8000/join?nodeId=n3&raftPort=9002"`, "OK n3 joined, index=6 members=3"})
			r.guide = guide
			if *keepFlag != "" {
				stop := r.keep(filepath.Join(*keepFlag, strings.TrimSuffix(filepath.Base(page), ".md")+".jsonl"))
				defer stop()
			}
			r.read(text)
		})
	}
}

// guide shows a person what a reader does. A nil guide does nothing.
type guide struct {
	lines       chan string // what the person enters; nil: nothing is asked
	interrupted chan os.Signal
}

func newGuide(ask bool) *guide {
	g := &guide{interrupted: make(chan os.Signal, 1)}
	signal.Notify(g.interrupted, os.Interrupt) // so that the nodes are ended
	if ask {
		g.lines = make(chan string)
		go func() {
			for in := bufio.NewScanner(os.Stdin); in.Scan(); {
				g.lines <- in.Text()
			}
			close(g.lines)
		}()
	}
	return g
}

func (g *guide) prose(text string) {
	if g == nil {
		return
	}
	if text = strings.TrimSpace(regexp.MustCompile(`<!--.*?-->\n*`).ReplaceAllString(text, "")); text != "" {
		fmt.Printf("\n%s\n", text)
	}
}

// command shows what is done next, and returns once the person agrees.
func (g *guide) command(t *testing.T, what string) {
	if g == nil {
		return
	}
	fmt.Printf("\n  %s", what)
	select {
	case <-g.interrupted:
		t.Fatal("stopped by Ctrl-C")
	default:
	}
	if g.lines == nil {
		fmt.Println()
		return
	}
	select {
	case _, ok := <-g.lines:
		if !ok {
			t.Fatal("stopped: no more input")
		}
	case <-g.interrupted:
		t.Fatal("stopped by Ctrl-C")
	}
}

// outcome shows what was printed, and whether it is as the page has it.
func (g *guide) outcome(ok bool, lines []string) {
	if g == nil {
		return
	}
	for _, line := range lines {
		fmt.Print("  ", line)
	}
	if ok {
		fmt.Println("  \u2713 as the page has it")
	} else {
		fmt.Println("  \u2717 the page has something else:")
	}
}

// keep writes what the page would keep of n1 to n4 (docs/page.md), until stop, with the ports of the pages. Of what
// repeats, as heartbeats do, there is a frame a second, so that the files are small.
func (r *reader) keep(path string) (stop func()) {
	ctx, cancel := context.WithCancel(r.t.Context())
	var mu sync.Mutex // guards kept
	var kept []string
	add := func(name string, value any) {
		mu.Lock()
		defer mu.Unlock()
		text, err := json.Marshal(map[string]any{"at": time.Now().UnixMilli(), name: value})
		if err != nil {
			r.t.Error(err)
		}
		kept = append(kept, r.toPage(string(text)))
	}
	var looking sync.WaitGroup
	for i := range 4 {
		looking.Go(func() {
			for ; ctx.Err() == nil; time.Sleep(100 * time.Millisecond) { // the node may be down
				request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/events", r.port+i),
					nil)
				if err != nil {
					r.t.Error(err)
					return
				}
				answer, err := http.DefaultClient.Do(request)
				if err != nil {
					continue
				}
				idle := time.Time{} // of the last frame without news
				lines := bufio.NewScanner(answer.Body)
				lines.Buffer(nil, 1<<20)
				for lines.Scan() {
					data, ok := strings.CutPrefix(lines.Text(), "data: ")
					if !ok {
						continue
					}
					if !hasNews(data) {
						if time.Since(idle) < time.Second {
							continue
						}
						idle = time.Now()
					}
					add("frame", json.RawMessage(data))
				}
				_ = answer.Body.Close()
				if ctx.Err() == nil {
					add("lost", fmt.Sprint("n", i+1))
				}
			}
		})
	}
	return func() {
		time.Sleep(time.Second) // what the last command has changed is seen
		cancel()
		looking.Wait()
		text := `{"raftkv":"frames","v":1}` + "\n" + strings.Join(kept, "\n") + "\n"
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			r.t.Error(err)
		}
	}
}

// hasNews reports whether a frame has more than heartbeats that were answered.
func hasNews(frame string) bool {
	var f struct {
		Cells  []json.RawMessage
		Events []struct {
			K    string
			Upto uint64
			OK   bool
		}
	}
	if err := json.Unmarshal([]byte(frame), &f); err != nil || len(f.Cells) > 0 {
		return true
	}
	for _, e := range f.Events {
		if e.K != "append" || e.Upto > 0 || !e.OK {
			return true
		}
	}
	return false
}
