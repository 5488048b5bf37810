package api

import (
	"errors"
	"net/http"
	"sync"
	"sync/atomic"

	"raftkv/internal/kv"
)

// leastRetained is what the versions of the store that are being read may hold beyond the store, at least, in bytes.
const leastRetained = 64 << 20

// RetainedLimit is what they may hold, in bytes, where the data may take maxData; 0: any.
func RetainedLimit(maxData uint64) uint64 { return max(leastRetained, maxData/2) }

// errTooSlow is the error of an answer whose version of the store was given up.
var errTooSlow = errors.New("the reader is slower than the data change, and what it reads takes too much memory by now")

// Version returns the store as it is now, for an answer that is written to the writer, which takes the place of w. When
// the store has changed by more than limit bytes since, that write fails, the one that is under way too, and the answer
// breaks off. release is to be called when the answer is written.
func Version(w http.ResponseWriter, store *kv.Store, limit uint64) (
	view *kv.Store, _ http.ResponseWriter, release func(),
) {
	v := &versionWriter{ResponseWriter: w, controller: http.NewResponseController(w)}
	view, unpin := store.Pin(limit, v.giveUp)
	return view, v, func() {
		unpin()
		v.mu.Lock()
		defer v.mu.Unlock()
		v.over = true
	}
}

type versionWriter struct {
	http.ResponseWriter
	controller *http.ResponseController
	givenUp    atomic.Bool

	mu   sync.Mutex
	over bool // the answer is written: the connection may have the next request
}

// giveUp has writes fail. What sets a deadline for a write does so before it calls Write, which looks after that.
func (v *versionWriter) giveUp() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.over {
		return
	}
	v.givenUp.Store(true)
	_ = v.controller.SetWriteDeadline(past) // an error: the client has gone
}

// Write implements io.Writer.
func (v *versionWriter) Write(p []byte) (int, error) {
	if v.givenUp.Load() {
		return 0, errTooSlow
	}
	n, err := v.ResponseWriter.Write(p)
	if err != nil && v.givenUp.Load() {
		err = errTooSlow
	}
	return n, err
}

// Unwrap is for http.ResponseController.
func (v *versionWriter) Unwrap() http.ResponseWriter { return v.ResponseWriter }
