package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/textproto"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
)

// watcherCounts are how many clients watch every key meanwhile. A node lets a quarter of its 4,096 places for watches
// be taken from one address.
var watcherCounts = []int{0, 100, 1000}

// runWatchers measures writes at the leader while clients watch every one of them there.
func (b *bench) runWatchers(ctx context.Context) error {
	b.progress.show("starting the nodes")
	var systems []*raftkv
	for _, s := range []struct{ label, binary string }{{"raftkv", b.binary}, {"baseline", b.baseline}} {
		if s.binary == "" {
			continue
		}
		c, err := startRaftkv(ctx, s.label, s.binary, filepath.Join(b.tmp, s.label+"-watched"))
		if err != nil {
			return err
		}
		defer c.stop()
		if err := c.fill(ctx, 0, b.keys); err != nil {
			return err
		}
		systems = append(systems, c)
	}
	b.progress.begin(b.rounds * len(systems) * len(watcherCounts))
	r, f, told := &results{}, &faults{}, make(map[string][]float64)
	for round := range b.rounds {
		for _, watchers := range watcherCounts {
			for _, s := range systems {
				sum, stop, err := s.watch(ctx, watchers)
				if err != nil {
					return err
				}
				l := writes
				l.name = fmt.Sprintf("writes, %d watchers", watchers)
				before := sum.Load()
				err = b.step(ctx, r, f, b.pace, round, s, l, steadyClients)
				bytes := float64(sum.Load() - before)
				stop()
				if err != nil {
					return err
				}
				key := s.name() + l.name
				told[key] = append(told[key], bytes/(b.warm+b.length).Seconds())
			}
		}
	}
	var rows [][]string
	for _, s := range systems {
		none := r.cell(fmt.Sprintf("writes, %d watchers", watcherCounts[0]), steadyClients)
		for _, watchers := range watcherCounts {
			name := fmt.Sprintf("writes, %d watchers", watchers)
			c := r.cell(name, steadyClients)
			middle, least, most := ratio(c.rounds[s.name()], none.rounds[s.name()], rate)
			rows = append(rows, []string{s.name(), group3(float64(watchers)), group3(c.median(s.name(), rate)),
				ranged(middle, least, most), short(c.median(s.name(), p99)), mebibytes(median(told[s.name()+name]))})
		}
	}
	var text strings.Builder
	fmt.Fprintf(&text, "# Watchers of every write\n\n%s\nWrites by %d clients at the leader, whose events so many "+
		"watchers at the leader are sent, each of all keys, and read by the same process as the clients. The ratio is to "+
		"the writes without watchers in the same round: median, and in brackets the least and the greatest.\n\n%s",
		b.about(), steadyClients, table([]string{"", "watchers", "writes/s", "ratio", "p99 ms", "MiB/s of events"}, rows))
	if len(f.lines) > 0 {
		text.WriteString("\nOperations that failed:\n\n" + strings.Join(f.lines, ""))
	}
	return b.publish("watchers", text.String(), nil)
}

// watch has n connections watch all keys at the leader until stop is called, and counts the bytes that come.
func (c *raftkv) watch(ctx context.Context, n int) (sum *atomic.Int64, stop func(), err error) {
	leader, err := c.leader(ctx)
	if err != nil {
		return nil, nil, err
	}
	sum = new(atomic.Int64)
	var connections []net.Conn
	var readers sync.WaitGroup
	stop = func() {
		for _, c := range connections {
			_ = c.Close()
		}
		readers.Wait()
	}
	for range n {
		conn, err := net.Dial("tcp", c.nodes[leader].http)
		if err != nil {
			stop()
			return nil, nil, err
		}
		connections = append(connections, conn)
		_, err = fmt.Fprintf(conn, "GET /watch HTTP/1.1\r\nHost: %s\r\n\r\n", c.nodes[leader].http)
		var status string
		if err == nil {
			status, err = textproto.NewReader(bufio.NewReaderSize(conn, 512)).ReadLine()
		}
		if err == nil && !strings.Contains(status, " 200 ") {
			err = errors.New(status)
		}
		if err != nil {
			stop()
			return nil, nil, fmt.Errorf("%s: watch: %w", c.name(), err)
		}
		readers.Go(func() {
			buffer := make([]byte, 64<<10)
			for {
				n, err := conn.Read(buffer)
				sum.Add(int64(n))
				if err != nil {
					return
				}
			}
		})
	}
	return sum, stop, nil
}
