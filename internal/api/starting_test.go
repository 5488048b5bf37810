package api

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestStarting: a node that starts is alive, not ready, and does nothing.
func TestStarting(t *testing.T) {
	s := NewStarting(nil)
	s.wait = time.Millisecond
	s.SetProgress(0.405)
	const busy = "starting: 40 %: nothing was done; it is safe to send it again\n"
	for _, test := range []struct {
		name, host, target, origin string
		status                     int
		body, retry                string
	}{
		{"alive", "localhost", "/healthz", "", 200, "OK\n", ""},
		{"not ready", "localhost", "/readyz", "", 503, busy, "1"},
		{"a write", "localhost", "/set?key=a&value=b", "", 503, busy, "1"},
		{"a path that there is not", "localhost", "/none", "", 503, busy, "1"},
		{"a web page", "localhost", "/healthz", "http://evil.test", 403, "Origin: ", ""},
		{"a foreign name", "evil.test", "/healthz", "", 403, "Host: ", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, test.target, nil)
			r.Host = test.host
			if test.origin != "" {
				r.Header.Set("Origin", test.origin)
			}
			w := httptest.NewRecorder()
			s.ServeHTTP(w, r)
			if w.Code != test.status || !strings.HasPrefix(w.Body.String(), test.body) {
				t.Errorf("got %d %q, want %d %q", w.Code, w.Body, test.status, test.body)
			}
			if got := w.Header().Get("Retry-After"); got != test.retry {
				t.Errorf("Retry-After: got %q, want %q", got, test.retry)
			}
			if got := w.Header().Get("Cache-Control"); got != "no-store" {
				t.Errorf("Cache-Control: got %q, want no-store", got)
			}
		})
	}
	s.wait = time.Minute
	waited := make(chan int, 1)
	go func() {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://localhost/set", nil))
		waited <- w.Code
	}()
	s.Ready(http.NotFoundHandler())
	if got := <-waited; got != http.StatusNotFound {
		t.Errorf("a request that waits for the end: got %d, want the status of the other handler", got)
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/healthz", nil))
	if w.Code != http.StatusNotFound {
		t.Errorf("ready: got %d, want the status of the other handler", w.Code)
	}
}
