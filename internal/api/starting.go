package api

import (
	"fmt"
	"net/http"
	"sync/atomic"
	"time"
)

// Starting is the handler of a node that reads its volume, which takes seconds when that is large: the process is
// alive, but not ready. Its methods may be called by several goroutines at once.
type Starting struct {
	names   []string
	percent atomic.Int64
	ready   atomic.Pointer[http.Handler]
	started chan struct{} // closed by Ready
	wait    time.Duration // startWait; shorter in tests
}

// startWait is how long a request other than a probe may wait for the end of the start. A small node has ended it by
// then, so that a client which comes as soon as the port is open need not come again.
const startWait = 2 * time.Second

// NewStarting returns a handler that answers /healthz with 200 and all else with 503, until Ready is called. names are
// as for CheckOrigin.
func NewStarting(names []string) *Starting {
	return &Starting{names: names, started: make(chan struct{}), wait: startWait}
}

// SetProgress sets how much of the start is done, 0 to 1.
func (s *Starting) SetProgress(fraction float64) { s.percent.Store(int64(fraction * 100)) }

// Ready has h answer from now on. It is called once.
func (s *Starting) Ready(h http.Handler) {
	s.ready.Store(&h)
	close(s.started)
}

func (s *Starting) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h := s.ready.Load(); h != nil {
		(*h).ServeHTTP(w, r)
		return
	}
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	if err := CheckOrigin(r, s.names); err != nil {
		WriteText(w, http.StatusForbidden, err.Error())
		return
	}
	if r.URL.Path == "/healthz" {
		WriteLine(w, "OK")
		return
	}
	if r.URL.Path != "/readyz" {
		select {
		case <-s.started:
			(*s.ready.Load()).ServeHTTP(w, r)
			return
		case <-time.After(s.wait):
		case <-r.Context().Done():
		}
	}
	w.Header().Set("Retry-After", "1")
	WriteText(w, http.StatusServiceUnavailable,
		fmt.Sprintf("starting: %d %%: nothing was done; it is safe to send it again", s.percent.Load()))
}
