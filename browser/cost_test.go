package browser

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"raftkv/internal/testkit"
)

var cost = flag.Int("cost", 0, "measure what an open page costs a busy cluster, in so many pairs of windows")

// TestCost measures writes with the page's three streams open and without, in turns, so that whatever else the machine
// does falls on both; and the processor time that the nodes use for each, which a busy machine changes less. It is no
// check: it prints what it has measured.
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
	measure := func() (rate, work float64) {
		before, used, began := done.Load(), processorTime(t, nodes), time.Now()
		time.Sleep(window)
		writes := float64(done.Load() - before)
		return writes / time.Since(began).Seconds(), float64(processorTime(t, nodes)-used) / writes
	}
	measure()
	var ratios, rates, works []float64
	for range *cost {
		without, workWithout := measure()
		stop := look()
		with, workWith := measure()
		stop()
		after, workAfter := measure() // what drifts falls on both sides
		ratios, rates = append(ratios, with/((without+after)/2)), append(rates, without)
		works = append(works, workWith/((workWithout+workAfter)/2))
	}
	cancel()
	writers.Wait()
	slices.Sort(ratios)
	slices.Sort(rates)
	slices.Sort(works)
	t.Logf("processor time of the nodes for a write, with the page: median %.3f of that without, quartiles %.3f to %.3f",
		works[len(works)/2], works[len(works)/4], works[3*len(works)/4])
	t.Logf("%d pairs: writes a second with no viewer: median %.0f; with the page: median %.3f of that, "+
		"quartiles %.3f to %.3f; frames: %.0f KiB/s", len(ratios), rates[len(rates)/2], ratios[len(ratios)/2],
		ratios[len(ratios)/4], ratios[3*len(ratios)/4], float64(frames.Load())/1024/(window.Seconds()*float64(*cost)))
}

// processorTime is what the nodes have used so far, in hundredths of a second (proc(5): utime and stime).
func processorTime(t *testing.T, nodes []*testkit.Node) (sum int) {
	t.Helper()
	for _, n := range nodes {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.Cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		_, after, _ := strings.Cut(string(stat), ") ") // of the name
		fields := strings.Fields(after)
		for _, field := range fields[11:13] {
			ticks, err := strconv.Atoi(field)
			if err != nil {
				t.Fatal(err)
			}
			sum += ticks
		}
	}
	return sum
}
