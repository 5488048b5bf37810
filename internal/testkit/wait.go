package testkit

import (
	"bytes"
	"fmt"
	"sync"
	"testing"
	"time"
)

// Bound is for what must happen at some time: it is reached only when something is broken.
const Bound = time.Minute

// Eventually polls until condition returns nil, and ends the test if it never does. The error of condition states what
// is missing.
func Eventually(t testing.TB, what string, condition func() error) {
	t.Helper()
	if err := Poll(Bound, condition); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// Poll calls condition until it returns nil, for as long as limit allows. It returns the last error of condition.
func Poll(limit time.Duration, condition func() error) error {
	for start := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		err := condition()
		if err == nil {
			return nil
		}
		if time.Since(start) > limit {
			return fmt.Errorf("not within %v: %w", limit, err)
		}
	}
}

// Buffer is a console kept in memory. Its methods may be called concurrently.
type Buffer struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
