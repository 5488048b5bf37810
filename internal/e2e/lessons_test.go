package e2e

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// lesson.sh runs one lesson of this package with these.
var (
	askFlag  = flag.Bool("lesson.ask", false, "lessons: wait for Enter before each command")
	showFlag = flag.Bool("lesson.show", false, "lessons: show each step, on the ports of the page if they are free")
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
