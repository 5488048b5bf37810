package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// interval is how often the file is read again.
const interval = time.Second

// Tokens are those of a file, as it is now. Its methods may be called by several goroutines at once.
type Tokens struct {
	path    string
	logf    func(format string, args ...any)
	current atomic.Pointer[table]
	stop    chan struct{} // closed by Close
	once    sync.Once
	done    sync.WaitGroup

	text   []byte // of current
	failed string // the error of the last reading; empty: there was none

	mu    sync.Mutex // guards what follows
	bound map[*binding]struct{}
}

// binding ends what a Holder does when the rights of it change.
type binding struct {
	holder *Holder
	cancel context.CancelCauseFunc
}

// Open reads the tokens of a file, which must be this user's, or root's, and which nobody else may read. Each second it
// is read again. What can't be used then leaves the former tokens in force; logf prints that, once, and that other ones
// are in force. Close ends it.
func Open(path string, logf func(format string, args ...any)) (*Tokens, error) {
	t := &Tokens{path: path, logf: logf, stop: make(chan struct{}), bound: make(map[*binding]struct{})}
	text, err := read(path)
	if err != nil {
		return nil, err
	}
	now, err := parse(text)
	if err != nil {
		return nil, err
	}
	t.text = text
	t.current.Store(now)
	t.done.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				t.reload()
			case <-t.stop:
				return
			}
		}
	})
	return t, nil
}

// Close ends reading. It may be called twice, and for nil.
func (t *Tokens) Close() {
	if t == nil {
		return
	}
	t.once.Do(func() { close(t.stop) })
	t.done.Wait()
}

// Find returns the holder of a token; nil: it is nobody's.
func (t *Tokens) Find(token string) *Holder { return t.current.Load().find(token) }

// Anonymous returns the Holder of what needs no token; nil: everything needs one.
func (t *Tokens) Anonymous() *Holder { return t.current.Load().anonymous }

// ErrRightsChanged is the cause when the context of Bind ends because the file has changed.
var ErrRightsChanged = errors.New("the token was taken back, or has other rights now")

// Bind returns a context that ends when the line of h in the file is removed or changed. release must be called.
func (t *Tokens) Bind(ctx context.Context, h *Holder) (_ context.Context, release func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	b := &binding{h, cancel}
	t.mu.Lock()
	t.bound[b] = struct{}{}
	t.mu.Unlock()
	t.check(b) // the file may have changed since h was found
	return ctx, func() {
		t.mu.Lock()
		delete(t.bound, b)
		t.mu.Unlock()
		cancel(nil)
	}
}

func (t *Tokens) check(b *binding) {
	if h := t.current.Load().again(b.holder); h == nil || h.Name != b.holder.Name ||
		!slices.Equal(h.rights, b.holder.rights) {
		b.cancel(ErrRightsChanged)
	}
}

// reload reads the file again. It is called by one goroutine.
func (t *Tokens) reload() {
	text, err := read(t.path)
	if err == nil && bytes.Equal(text, t.text) {
		t.failed = ""
		return
	}
	var now *table
	if err == nil {
		now, err = parse(text)
	}
	if err != nil {
		if message := err.Error(); message != t.failed {
			t.failed = message
			t.logf("HTTP_TOKENS: %s can't be used; the former tokens are in force: %v", t.path, err)
		}
		return
	}
	t.text, t.failed = text, ""
	t.current.Store(now)
	t.mu.Lock()
	for b := range t.bound {
		t.check(b)
	}
	t.mu.Unlock()
	t.logf("HTTP_TOKENS: %s was read again: %d tokens", t.path, len(now.holders))
}

// read returns the content of a file that only its user may read.
func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it is not a file")
	}
	if err := checkMode(path, info); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = fmt.Errorf("larger than %d bytes", maxFile)
	}
	return text, err
}
