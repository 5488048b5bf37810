package client

import (
	"errors"
	"fmt"
	"net/http"
)

// What became of a request, for errors.Is. The first two never blur: of every error of a write
// exactly one of ErrNotApplied and ErrUnknown holds.
var (
	// ErrNotApplied: nothing was done, and nothing will be. It is safe to ask again.
	ErrNotApplied = errors.New("not applied")
	// ErrUnknown: it may have been done, or be done yet. Read before asking again, or ask again
	// with the same IdempotencyKey.
	ErrUnknown = errors.New("outcome unknown")
	// ErrPreconditionFailed: a condition of the write does not hold; nothing was done.
	ErrPreconditionFailed = errors.New("precondition failed")
	// ErrNotFound: there is no such key, or no such node.
	ErrNotFound = errors.New("not found")
	// ErrConflict: a change of the members was rejected; nothing was changed.
	ErrConflict = errors.New("conflict")
	// ErrKeyReused: the IdempotencyKey was used for another request; nothing was done.
	ErrKeyReused = errors.New("idempotency key reused")
)

// Error is why a request was not done, or is not known to be. errors.Is finds in it what became
// of the request and, where there is one, the error of the context or of the connection.
type Error struct {
	Status  int    // of the last answer; 0: there was none
	Message string // one line: that of the node, or why there was no answer

	write   bool
	unknown bool  // an attempt of the write may have been done
	missing bool  // a node has answered that there is no such key or node
	cause   error // of the connection or the context, or nil
}

func (e *Error) Error() string {
	text := e.Message
	if e.Status != 0 {
		text = fmt.Sprintf("status %d: %s", e.Status, text)
	}
	if e.write && e.unknown {
		text = ErrUnknown.Error() + ": " + text
	}
	return "raftkv: " + text
}

// Is reports whether target is what became of the request.
func (e *Error) Is(target error) bool {
	switch target {
	case ErrUnknown:
		return e.write && e.unknown
	case ErrNotApplied:
		return e.write && !e.unknown
	case ErrPreconditionFailed:
		return e.Status == http.StatusPreconditionFailed
	case ErrNotFound:
		return e.missing
	case ErrConflict:
		return e.Status == http.StatusConflict
	case ErrKeyReused:
		return e.Status == http.StatusUnprocessableEntity
	}
	return false
}

// Unwrap returns the error of the connection or of the context, if there was one.
func (e *Error) Unwrap() error { return e.cause }
