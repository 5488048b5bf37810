package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// An error of writing an answer means that the client has gone. There is nobody left to
// report it to, so WriteText, WriteLine and WriteJSON ignore it.

// WriteText answers text as one line, with a status.
func WriteText(w http.ResponseWriter, status int, text string) {
	line := strings.ReplaceAll(text, "\n", "; ") + "\n"
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(line)))
	w.WriteHeader(status)
	_, _ = io.WriteString(w, line)
}

// WriteValue answers the bytes of a value. With an error, which is an Error, it has answered nothing.
func WriteValue(w http.ResponseWriter, value string) error {
	memory := memoryOf(w)
	// As it is in the store, where it may be replaced meanwhile, and as bytes.
	if err := memory.hold(2 * int64(len(value))); err != nil {
		return err
	}
	defer memory.release()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(len(value)))
	_, _ = io.WriteString(w, value)
	return nil
}

// WriteLine answers one line, with status 200 unless the status has been sent.
func WriteLine(w http.ResponseWriter, format string, args ...any) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = fmt.Fprintf(w, format+"\n", args...)
}

// WriteJSON answers value, indented: people read it, too.
func WriteJSON(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(value)
}

// SetAppliedIndexHeader sets the header with the index of the last entry that the answer to
// a read takes into account.
func SetAppliedIndexHeader(w http.ResponseWriter, index uint64) {
	w.Header().Set("Raftkv-Applied-Index", strconv.FormatUint(index, 10))
}

// ClearDeadlines lifts the time limits of the http.Server from a request that may take
// longer.
func ClearDeadlines(w http.ResponseWriter) error {
	c := http.NewResponseController(w)
	return errors.Join(c.SetReadDeadline(time.Time{}), c.SetWriteDeadline(time.Time{}))
}

// ioTimeout is how long one read or write of a stream may wait for the client. It is
// shorter in tests.
var ioTimeout = bodyTimeout

// DeadlineWriter returns a writer to w that has a time limit for each write in place of
// one for the whole answer: a client may take as long as it likes, if only it reads on.
func DeadlineWriter(w http.ResponseWriter) io.Writer {
	return deadlineWriter{w, http.NewResponseController(w)}
}

type deadlineWriter struct {
	w          io.Writer
	controller *http.ResponseController
}

func (d deadlineWriter) Write(b []byte) (int, error) {
	if err := d.controller.SetWriteDeadline(time.Now().Add(ioTimeout)); err != nil {
		return 0, err
	}
	return d.w.Write(b)
}

// DeadlineReader returns a reader of r's body that has a time limit for each read, as
// DeadlineWriter has for each write. At the end of the body it lifts the limit, which
// would otherwise cancel the request's context.
func DeadlineReader(w http.ResponseWriter, r *http.Request) io.Reader {
	return deadlineReader{r.Body, http.NewResponseController(w)}
}

type deadlineReader struct {
	body       io.Reader
	controller *http.ResponseController
}

func (d deadlineReader) Read(b []byte) (int, error) {
	if err := d.controller.SetReadDeadline(time.Now().Add(ioTimeout)); err != nil {
		return 0, err
	}
	n, err := d.body.Read(b)
	if err != nil {
		_ = d.controller.SetReadDeadline(time.Time{})
	}
	return n, err
}
