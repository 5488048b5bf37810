package browser

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"raftkv/internal/testkit"
)

var cost = flag.Int("cost", 0, "measure what an open page costs a busy cluster, in so many pairs of windows")

// TestCost measures writes with the page's three streams open and without, in turns, so that whatever else the machine
// does falls on both. It is no check: it prints what it has measured.
func TestCost(t *testing.T) {
	if *cost == 0 {
		t.Skip("only with -cost")
	}
	nodes := startCluster(t, 3, "LOG_LEVEL=error", "RAFT_ELECTION_TIMEOUT=10s")
	leader, _ := testkit.Leader(t, nodes...)
	ctx, cancel := context.WithCancel(t.Context())
	var done atomic.Int64
	var writers sync.WaitGroup
	for w := range 64 {
		writers.Go(func() {
			client := &http.Client{Transport: &http.Transport{}}
			for i := 0; ctx.Err() == nil; i++ {
				r, err := client.Get(fmt.Sprintf("%s/set?key=%d&value=%d", leader.Base, w, i))
				if err != nil {
					continue
				}
				_, _ = io.Copy(io.Discard, r.Body)
				_ = r.Body.Close()
				if r.StatusCode == http.StatusOK {
					done.Add(1)
				}
			}
		})
	}
	var frames atomic.Int64
	look := func() (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		var streams sync.WaitGroup
		for _, n := range nodes {
			streams.Go(func() {
				request, _ := http.NewRequestWithContext(ctx, http.MethodGet, n.Base+"/events", nil)
				r, err := http.DefaultClient.Do(request)
				if err != nil {
					return
				}
				size, _ := io.Copy(io.Discard, r.Body)
				frames.Add(size)
				_ = r.Body.Close()
			})
		}
		return func() { cancel(); streams.Wait() }
	}
	const window = 2 * time.Second
	measure := func() float64 {
		before, began := done.Load(), time.Now()
		time.Sleep(window)
		return float64(done.Load()-before) / time.Since(began).Seconds()
	}
	measure()
	var ratios, rates []float64
	for range *cost {
		without := measure()
		stop := look()
		with := measure()
		stop()
		after := measure() // what drifts falls on both sides
		ratios, rates = append(ratios, with/((without+after)/2)), append(rates, without)
	}
	cancel()
	writers.Wait()
	slices.Sort(ratios)
	slices.Sort(rates)
	t.Logf("%d pairs: writes a second with no viewer: median %.0f; with the page: median %.3f of that, "+
		"quartiles %.3f to %.3f; frames: %.0f KiB/s", len(ratios), rates[len(rates)/2], ratios[len(ratios)/2],
		ratios[len(ratios)/4], ratios[3*len(ratios)/4], float64(frames.Load())/1024/(window.Seconds()*float64(*cost)))
}
