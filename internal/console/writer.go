// Package console writes what a node prints: lines of logrus, of raft and of the state
// machine, in one format, without ever making the node wait for its terminal.
package console

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

const (
	// maxQueued is how many bytes may wait to be printed: some seconds of a busy node.
	maxQueued = 4 << 20
	// writePause is the pause between two writes to the console, so that what a busy node
	// prints meanwhile is one write. Without it, a sixth of the processor time went there,
	// as measured with 64 clients.
	writePause = 10 * time.Millisecond
	// closeLimit is how long Close waits for a console that takes nothing.
	closeLimit = 500 * time.Millisecond
)

// Writer queues the lines of a node and has a goroutine print them, each write whole and in
// order. So a stopped terminal (Ctrl-S) or a full pipe does not stop the node: once the
// queue is full, lines are dropped, and their number is printed when there is room again.
type Writer struct {
	out    io.Writer
	format logrus.Formatter // of its own line

	mu        sync.Mutex // guards what follows
	changed   *sync.Cond // any of it
	queued    []byte     // lines that the goroutine has not taken yet
	unprinted int        // bytes of them and of what the goroutine is printing
	dropped   int        // writes that found the queue full
	closed    bool
}

// New returns a Writer that prints to out, and a line of its own in format. It must be closed.
func New(out io.Writer, format logrus.Formatter) *Writer {
	w := &Writer{out: out, format: format}
	w.changed = sync.NewCond(&w.mu)
	go w.print()
	return w
}

// Write queues p, which holds whole lines. It copies p, never fails and never waits.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.queued)+len(p) > maxQueued {
		w.dropped++
		return len(p), nil
	}
	before := len(w.queued)
	if w.dropped > 0 {
		line, _ := w.format.Format(&logrus.Entry{Time: time.Now(), Level: logrus.WarnLevel,
			Message: fmt.Sprintf("The console was blocked: %d writes to it were dropped", w.dropped)})
		w.queued = append(w.queued, line...)
		w.dropped = 0
	}
	w.queued = append(w.queued, p...)
	w.unprinted += len(w.queued) - before
	w.changed.Broadcast()
	return len(p), nil
}

// print prints what is queued until the Writer is closed and nothing is queued.
func (w *Writer) print() {
	var lines []byte
	for {
		w.mu.Lock()
		w.unprinted -= len(lines)
		w.changed.Broadcast()
		for len(w.queued) == 0 && !w.closed {
			w.changed.Wait()
		}
		lines, w.queued = w.queued, lines[:0]
		w.mu.Unlock()
		if len(lines) == 0 {
			return
		}
		_, _ = w.out.Write(lines)
		time.Sleep(writePause)
	}
}

// Flush waits until everything that was queued has been printed.
func (w *Writer) Flush() { w.flush(time.Hour) }

func (w *Writer) flush(limit time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	late := false
	defer time.AfterFunc(limit, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		late = true
		w.changed.Broadcast()
	}).Stop()
	for w.unprinted > 0 && !late {
		w.changed.Wait()
	}
}

// Close prints what is queued, for closeLimit at most: the console may be blocked. What is
// written afterwards may or may not be printed.
func (w *Writer) Close() {
	w.mu.Lock()
	w.closed = true
	w.changed.Broadcast()
	w.mu.Unlock()
	w.flush(closeLimit)
}
