// Package console is what a node prints.
package console

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

// Writer is where all lines of the node go: logrus's, raft's and the state
// machine's, each write whole, in order. A goroutine writes them, so that a terminal
// that is stopped (Ctrl-S) or a full pipe does not stop the node: when the lines
// that wait have filled the queue, further ones are dropped, and their number told.
type Writer struct {
	out  io.Writer
	done chan struct{} // closed when the goroutine has ended

	mu      sync.Mutex // guards what follows
	changed *sync.Cond
	waiting []byte // lines to be written
	dropped int    // writes that found the queue full
	closed  bool

	printing bool
	printed  *sync.Cond // nothing waits any more
}

// consoleQueue is how many bytes may wait: some seconds of a busy node.
const consoleQueue = 4 << 20

// consolePause is between two writes to the console: what a busy node prints meanwhile
// is one write (a sixth of its processor time, as measured with 64 clients).
const consolePause = 10 * time.Millisecond

func New(out io.Writer) *Writer {
	c := &Writer{out: out, done: make(chan struct{})}
	c.changed, c.printed = sync.NewCond(&c.mu), sync.NewCond(&c.mu)
	go c.run()
	return c
}

// Write queues p, which holds whole lines. It never fails and never waits.
func (c *Writer) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.waiting)+len(p) > consoleQueue {
		c.dropped++
		return len(p), nil
	}
	if c.dropped > 0 {
		c.waiting = AppendPrefix(c.waiting, time.Now(), logrus.WarnLevel)
		c.waiting = fmt.Appendf(c.waiting, "The console was blocked: %d writes to it were dropped\n", c.dropped)
		c.dropped = 0
	}
	c.waiting = append(c.waiting, p...)
	c.changed.Signal()
	return len(p), nil
}

func (c *Writer) run() {
	defer close(c.done)
	var writing []byte
	for {
		c.mu.Lock()
		c.printing = false
		c.printed.Broadcast()
		for len(c.waiting) == 0 && !c.closed {
			c.changed.Wait()
		}
		writing, c.waiting = c.waiting, writing[:0]
		c.printing = len(writing) > 0
		c.mu.Unlock()
		if len(writing) == 0 {
			return
		}
		_, _ = c.out.Write(writing)
		time.Sleep(consolePause)
	}
}

// Flush returns when all that was queued before it was called has been printed.
func (c *Writer) Flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.printing || len(c.waiting) > 0 {
		c.printed.Wait()
	}
}

// Close writes what waits, for half a second at most: the console may be blocked.
func (c *Writer) Close() {
	c.mu.Lock()
	c.closed = true
	c.changed.Signal()
	c.mu.Unlock()
	select {
	case <-c.done:
	case <-time.After(500 * time.Millisecond):
	}
}
