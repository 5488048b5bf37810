package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	bytesClients = 4
	requestBytes = 512 << 10 // of values in one request, if one value is not larger
	// bytesThreshold is low, so that snapshots are taken while small values are set for a few seconds.
	bytesThreshold = "RAFT_SNAPSHOT_THRESHOLD=500"
)

// runBytes measures what values of some sizes cost, by the size of all data.
func (b *bench) runBytes(ctx context.Context) error {
	length := 20 * time.Second // raft looks every 5 to 10 s whether a snapshot is due for the number of entries
	if b.quick {
		length = 12 * time.Second
	}
	var rows [][]string
	for _, size := range []int{100, 10 << 10, 1 << 20} {
		for _, data := range []int{64 << 20, 1 << 30} {
			name := fmt.Sprintf("values of %s, %d MiB", group3(float64(size)), data>>20)
			if !b.only.MatchString(name) || (b.quick && data > 64<<20) {
				continue
			}
			row, err := b.measureBytes(ctx, name, size, data/size, length)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			rows = append(rows, append([]string{group3(float64(size)), fmt.Sprint(data >> 20)}, row...))
			b.progress.say(strings.Join(rows[len(rows)-1], "  "))
		}
	}
	var text strings.Builder
	fmt.Fprintf(&text, "# Large values\n\n%s\nEach row is a cluster of its own: the data are set once, in requests of %d KiB or one "+
		"value, by %d clients, who then set single keys for %v, with %s; a node is restarted after that. Sizes in MiB, the median "+
		"of the nodes; memory is what no file backs (RssAnon). Written is what the nodes wrote to their disks for each byte of "+
		"values while the data were set, log and snapshots together.\n\n%s", b.about(), requestBytes>>10, bytesClients, length,
		bytesThreshold, table([]string{"value, bytes", "data", "raft.db", "memory", "written a byte and node",
			"ready after a restart, s", "sets/s", "p99 ms", "p99 ms during a snapshot", "snapshots"}, rows))
	return b.publish("bytes", text.String(), nil)
}

// measureBytes measures one row: count keys with values of so many bytes.
func (b *bench) measureBytes(ctx context.Context, name string, size, count int, length time.Duration) ([]string, error) {
	b.progress.show(name + ": starting a cluster")
	c, err := startRaftkv(ctx, name, b.binary, filepath.Join(b.tmp, fmt.Sprint(size, "-", count)), bytesThreshold)
	if err != nil {
		return nil, err
	}
	defer c.stop()
	leader, err := c.leader(ctx)
	if err != nil {
		return nil, err
	}
	target := "http://" + c.nodes[leader].http + "/set"
	before, err := diskWrites(c)
	if err != nil {
		return nil, err
	}
	b.progress.show(name + ": setting the data")
	each := max(requestBytes/size, 1)
	if _, err := setValues(ctx, target, size, func(n int) (from, to int) {
		from = n * each
		return from, min(from+each, count)
	}, time.Time{}); err != nil {
		return nil, err
	}
	after, err := diskWrites(c)
	if err != nil {
		return nil, err
	}
	b.progress.show(fmt.Sprintf("%s: single sets, %v", name, length))
	got, err := setValues(ctx, target, size, func(int) (from, to int) {
		from = rand.IntN(count)
		return from, from + 1
	}, time.Now().Add(length))
	if err != nil {
		return nil, err
	}
	var spans []span
	for _, p := range c.processes {
		console, err := os.ReadFile(p.log)
		if err != nil {
			return nil, err
		}
		spans = append(spans, snapshotSpans(console)...)
	}
	during, apart := got.split(spans)
	memory, err := memories(c)
	if err != nil {
		return nil, err
	}
	var volumes []float64
	for _, n := range c.nodes {
		n, err := sizeOf(filepath.Join(n.volume, "raft.db"))
		if err != nil {
			return nil, err
		}
		volumes = append(volumes, float64(n))
	}
	b.progress.show(name + ": restarting a node")
	ready, err := c.restart(ctx, (leader+1)%len(c.nodes), bytesThreshold)
	if err != nil {
		return nil, err
	}
	ms := func(d []time.Duration) string {
		if len(d) == 0 {
			return "-"
		}
		return short(percentile(d, 99).Seconds() * 1000)
	}
	written := (after - before) / float64(size*count) / float64(len(c.nodes))
	return []string{mebibytes(median(volumes)), mebibytes(median(memory)), fmt.Sprintf("%.1f", written),
		short(ready.Seconds()), group3(got.perSecond()), ms(apart), ms(during), fmt.Sprint(len(spans))}, nil
}

// setValues has bytesClients set the keys that next returns for the n-th request, until it returns none or end, which may
// be zero, has come.
func setValues(ctx context.Context, target string, size int, next func(n int) (from, to int), end time.Time) (sample, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := sample{began: time.Now()}
	var mu sync.Mutex // guards n, s and failure
	n, failure := 0, error(nil)
	var all sync.WaitGroup
	for id := range uint64(bytesClients) {
		random := rand.New(rand.NewPCG(id, 1))
		all.Go(func() {
			value := make([]byte, size)
			for ctx.Err() == nil && (end.IsZero() || time.Now().Before(end)) {
				mu.Lock()
				from, to := next(n)
				n++
				mu.Unlock()
				if from >= to {
					return
				}
				form := url.Values{}
				for k := from; k < to; k++ {
					for i := range value {
						value[i] = 'a' + byte(random.Uint32()%26)
					}
					form.Add("key", key(k))
					form.Add("value", string(value))
				}
				began := time.Now()
				var err error
				for limit := began.Add(time.Minute); ; { // a busy machine may lose its leader for a moment
					err = postForm(ctx, target, form)
					if _, busy := errors.AsType[badStatus](err); !busy || time.Now().After(limit) {
						break
					}
					wait(ctx, 100*time.Millisecond)
				}
				mu.Lock()
				s.took, s.ended = append(s.took, time.Since(began)), append(s.ended, time.Since(s.began))
				if err != nil && failure == nil {
					failure = err
					cancel()
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	s.length = time.Since(s.began)
	return s, failure
}

func postForm(ctx context.Context, target string, form url.Values) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, target, strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	var body bytes.Buffer
	_, err = body.ReadFrom(response.Body)
	if err = errors.Join(err, response.Body.Close()); err == nil && response.StatusCode != http.StatusOK {
		err = badStatus{url: target, text: body.String(), status: response.StatusCode}
	}
	return err
}

var writeBytes = regexp.MustCompile(`(?m)^write_bytes: (\d+)$`)

// diskWrites is how many bytes the nodes have caused to be written to a disk, in all.
func diskWrites(c *raftkv) (sum float64, err error) {
	for _, p := range c.processes {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", p.Process.Pid))
		if err != nil {
			return 0, err
		}
		found := writeBytes.FindSubmatch(text)
		if found == nil {
			return 0, fmt.Errorf("no write_bytes in %q", text)
		}
		n, err := strconv.ParseFloat(string(found[1]), 64)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}
