// Package metrics shows what a node counts to Prometheus, and Go's profiles to this machine. Only handler.go uses it:
// without its lines there, the node has no metrics, and is the same otherwise.
//
// Nothing is asked of other nodes for a scrape. What the write path pays, as BenchmarkCount and BenchmarkRaftSink have
// it: 0.25 µs for each request (two atomic counters of a histogram, found by path and status), some atomic counters for
// each batch and write of the log, and 7 µs for each batch, which up to 1,024 commands share, for raft's own metrics:
// go-metrics hands each sample to a summary with a lock. A lone write takes 1.1 ms, so that is 0.6 % of it, and less
// with more clients: that is why they are always on.
package metrics

import (
	"net"
	"net/http"
	"net/http/pprof"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/mux"
	raftmetrics "github.com/hashicorp/go-metrics/compat"
	raftprometheus "github.com/hashicorp/go-metrics/compat/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"raftkv/internal/kv"
	"raftkv/internal/node"
)

// maxScrapes is how many scrapes may be answered at once; further ones get 503.
const maxScrapes = 4

// Metrics are those of one node.
type Metrics struct {
	registry *prometheus.Registry
	requests *prometheus.HistogramVec
	failed   *prometheus.CounterVec
}

// raftSink receives raft's own metrics, which are the process's, not a node's.
var raftSink = sync.OnceValue(func() prometheus.Collector {
	// Made without a registry of its own: NewPrometheusSink would take the default one.
	registry := prometheus.NewRegistry()
	sink, err := raftprometheus.NewPrometheusSinkFrom(raftprometheus.PrometheusOpts{Registerer: registry})
	if err != nil {
		panic(err) // an empty registry takes it
	}
	config := raftmetrics.DefaultConfig("")
	config.EnableHostname, config.EnableRuntimeMetrics = false, false
	if _, err := raftmetrics.NewGlobal(config, sink); err != nil {
		panic(err) // only a filter may fail, and there is none
	}
	return sink
})

// New returns the metrics of a node and its store.
func New(n *node.Node, store *kv.Store) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "raftkv_http_request_duration_seconds",
			Help:    "Answered HTTP requests by the path of their route and status; a stream lasts until it ends.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"path", "status"}),
		failed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "raftkv_http_requests_failed_total",
			Help: "Requests answered with 503 or 504, but for /healthz and /readyz, which are there to answer so.",
		}, []string{"status"}),
	}
	for _, status := range []int{http.StatusServiceUnavailable, http.StatusGatewayTimeout} {
		m.failed.WithLabelValues(strconv.Itoa(status)) // there before the first one: a rate needs two values
	}
	m.registry.MustRegister(m.requests, m.failed, collector{n, store}, raftSink(), collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Route adds /metrics and, for clients on this machine alone, /debug/pprof/.
func (m *Metrics) Route(router *mux.Router) {
	router.Handle("/metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: maxScrapes, Timeout: 10 * time.Second,
	})).Methods(http.MethodGet, http.MethodHead)
	profiles := http.NewServeMux()
	profiles.HandleFunc("/debug/pprof/", pprof.Index)
	profiles.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	profiles.HandleFunc("/debug/pprof/profile", pprof.Profile)
	profiles.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	profiles.HandleFunc("/debug/pprof/trace", pprof.Trace)
	router.PathPrefix("/debug/pprof/").Handler(loopbackOnly(profiles)).Methods(http.MethodGet)
}

// loopbackOnly refuses what did not come from this machine. What a proxy on this machine passes on is refused too,
// as its client may be anywhere.
func loopbackOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		proxied := r.Header.Get("X-Forwarded-For") != "" || r.Header.Get("Forwarded") != ""
		if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() || proxied {
			http.Error(w, "profiles are for clients on the node's own machine: ask there, at 127.0.0.1", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Count is the middleware that counts requests. A request that matches no route has the path "other", so that
// clients can't make labels.
func (m *Metrics) Count(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := "other"
		if route := mux.CurrentRoute(r); route != nil {
			path, _ = route.GetPathTemplate()
		}
		began, answer := time.Now(), &answer{ResponseWriter: w, status: http.StatusOK}
		defer func() { // also when the handler panics to break the connection off
			status := strconv.Itoa(answer.status)
			m.requests.WithLabelValues(path, status).Observe(time.Since(began).Seconds())
			unavailable := answer.status == http.StatusServiceUnavailable || answer.status == http.StatusGatewayTimeout
			if unavailable && path != "/healthz" && path != "/readyz" {
				m.failed.WithLabelValues(status).Inc()
			}
		}()
		next.ServeHTTP(answer, r)
	})
}

// answer keeps the status. Unwrap has http.ResponseController find Flush and the deadlines below.
type answer struct {
	http.ResponseWriter
	status int
	sent   bool
}

func (a *answer) WriteHeader(status int) {
	if !a.sent && status >= 200 { // 1xx is not the answer yet
		a.status, a.sent = status, true
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(b []byte) (int, error) {
	a.sent = true
	return a.ResponseWriter.Write(b)
}

func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }
