package metrics

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/gorilla/mux"
	raftmetrics "github.com/hashicorp/go-metrics/compat"
)

// BenchmarkCount is what the middleware adds to a request.
func BenchmarkCount(b *testing.B) {
	m := New(nil, nil)
	router := mux.NewRouter()
	router.Use(m.Count)
	router.Handle("/set", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	r := httptest.NewRequest(http.MethodPost, "/set", nil)
	w := httptest.NewRecorder()
	bare := mux.NewRouter()
	bare.Handle("/set", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	for name, handler := range map[string]http.Handler{"bare": bare, "counted": router} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				handler.ServeHTTP(w, r)
			}
		})
	}
}

// BenchmarkRaftSink is what raft's own metrics add to a batch of one entry on a leader without followers: these are
// the calls that raft and raft-boltdb make for it.
func BenchmarkRaftSink(b *testing.B) {
	raftSink()
	for b.Loop() {
		began := time.Now()
		raftmetrics.IncrCounter([]string{"raft", "apply"}, 1)
		raftmetrics.SetGauge([]string{"raft", "leader", "dispatchNumLogs"}, 1)
		raftmetrics.SetGauge([]string{"raft", "commitNumLogs"}, 1)
		raftmetrics.AddSample([]string{"raft", "fsm", "applyBatchNum"}, 1)
		raftmetrics.AddSample([]string{"raft", "boltdb", "logsPerBatch"}, 1)
		raftmetrics.AddSample([]string{"raft", "boltdb", "logSize"}, 100)
		raftmetrics.AddSample([]string{"raft", "boltdb", "logBatchSize"}, 100)
		raftmetrics.AddSample([]string{"raft", "boltdb", "writeCapacity"}, 1)
		for _, name := range []string{"commitTime", "enqueue", "applyBatch", "dispatchLog", "storeLogs"} {
			raftmetrics.MeasureSince([]string{"raft", name}, began)
		}
	}
}
