package metrics

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus"
)

// TestProfilesAreForThisMachine: a client elsewhere, or behind a proxy, gets none.
func TestProfilesAreForThisMachine(t *testing.T) {
	router := mux.NewRouter()
	(&Metrics{registry: prometheus.NewRegistry()}).Route(router)
	for _, tt := range []struct {
		name, from, forwarded string
		want                  int
	}{
		{name: "IPv4 loopback", from: "127.0.0.1:1", want: http.StatusOK},
		{name: "IPv6 loopback", from: "[::1]:1", want: http.StatusOK},
		{name: "elsewhere", from: "192.0.2.1:1", want: http.StatusForbidden},
		{name: "by a proxy here", from: "127.0.0.1:1", forwarded: "192.0.2.1", want: http.StatusForbidden},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, "/debug/pprof/cmdline", nil)
			r.RemoteAddr = tt.from
			r.Header.Set("X-Forwarded-For", tt.forwarded)
			w := httptest.NewRecorder()
			router.ServeHTTP(w, r)
			if w.Code != tt.want {
				t.Errorf("got %d, want %d", w.Code, tt.want)
			}
		})
	}
}
