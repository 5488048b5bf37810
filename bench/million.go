package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Both runs of this file write with so many clients.
const steadyClients = 64

// runMillion measures what many keys cost a cluster, beside one with few.
func (b *bench) runMillion(ctx context.Context) error {
	const fewKeys = 1000
	snapshotTime := 40 * time.Second // raft looks every 5 to 10 s whether a snapshot is due
	if b.quick {
		snapshotTime = 12 * time.Second
	}
	all := group3(float64(b.keys))
	b.progress.show("starting two clusters")
	few, err := startRaftkv(ctx, group3(fewKeys)+" keys", b.binary, filepath.Join(b.tmp, "few"))
	if err != nil {
		return err
	}
	defer few.stop()
	if err := few.fill(ctx, 0, fewKeys); err != nil {
		return err
	}
	many, err := startRaftkv(ctx, all+" keys", b.binary, filepath.Join(b.tmp, "many"))
	if err != nil {
		return err
	}
	defer many.stop()

	var text strings.Builder
	fmt.Fprintf(&text, "# %s keys\n\n%s\n", all, b.about())
	before, err := memories(many)
	if err != nil {
		return err
	}
	began := time.Now()
	for from := 0; from < b.keys; from += 10_000 {
		b.progress.show(fmt.Sprintf("setting keys: %s of %s", group3(float64(from)), all))
		if err := many.fill(ctx, from, min(from+10_000, b.keys)); err != nil {
			return err
		}
	}
	loaded := time.Since(began)
	after, err := memories(many)
	if err != nil {
		return err
	}
	rows := [][]string{{"set all, " + fmt.Sprint(fillBatch) + " keys a request, one at a time", "",
		loaded.Round(100 * time.Millisecond).String()}}
	add := func(what, want, got string) { rows = append(rows, []string{what, want, got}) }
	addMemory := func(when string, now []float64) {
		var perKey []float64
		for i := range now {
			perKey = append(perKey, (now[i]-before[i])/float64(b.keys)-float64(valueBytes+keyBytes))
		}
		add("memory a key beyond key and value, "+when, "", fmt.Sprintf("%.0f bytes (median of the nodes, which have "+
			"%s MiB)", median(perKey), mebibytes(median(now))))
	}
	addMemory("after setting them", after)

	// At first there are too few entries for a snapshot: fill has put many keys into each.
	restartAll := func(what string, env ...string) error {
		var took []float64
		for i := range many.nodes {
			b.progress.show(fmt.Sprintf("restarting %s, %s", many.nodes[i].id, what))
			t, err := many.restart(ctx, i, env...)
			if err != nil {
				return err
			}
			took = append(took, t.Seconds())
		}
		add("from its start until a node is ready, "+what, "≤ 10 s", fmt.Sprintf("%s s (median of three)",
			short(median(took))))
		return many.level(ctx)
	}
	if err := restartAll("from the log alone"); err != nil {
		return err
	}
	if err := b.compareSizes(ctx, few, many, add); err != nil {
		return err
	}
	few.stop()

	if err := restartAll("after writes", "RAFT_SNAPSHOT_THRESHOLD=500"); err != nil {
		return err
	}
	b.progress.show(fmt.Sprintf("writes with snapshots, %v", snapshotTime))
	got, err := measure(ctx, many, writes, steadyClients, b.keys, b.warm, snapshotTime)
	if err != nil {
		return err
	}
	var spans []span
	for _, p := range many.processes {
		console, err := os.ReadFile(p.log)
		if err != nil {
			return err
		}
		spans = append(spans, snapshotSpans(console)...)
	}
	during, apart := got.split(spans)
	a, c := percentile(during, 99), percentile(apart, 99)
	if len(during) == 0 || len(apart) == 0 {
		add("p99 of writes during a snapshot, of that without", "≤ 2×", fmt.Sprintf("not known: %d snapshots, %d "+
			"writes during them, %d apart from them", len(spans), len(during), len(apart)))
	} else {
		add("p99 of writes during a snapshot on any node, of that without", "≤ 2×",
			fmt.Sprintf("%.2f× (%s ms of %s ms; %d snapshots, %s of the writes during one)",
				float64(a)/float64(c), short(a.Seconds()*1000), short(c.Seconds()*1000), len(spans),
				percent(float64(len(during))/float64(len(during)+len(apart)))))
	}
	if err := restartAll("from a snapshot"); err != nil {
		return err
	}
	if after, err = memories(many); err != nil {
		return err
	}
	addMemory("after a restart from a snapshot", after)

	text.WriteString(table([]string{"what", "wanted", "measured"}, rows))
	text.WriteString("\nMemory is that of the process which no file backs (RssAnon), less what it was before: an " +
		"upper bound, as Go lets the heap grow to twice of what " +
		"lives before it collects. The precise figure, heap a key beyond key and value (wanted: ≤ 150 bytes), is " +
		"that of `go test -run '^$' -bench HeapPerKey ./internal/kv`.\n")
	return b.publish("million", text.String(), nil)
}

// compareSizes sets the writes on many keys beside those on few, in alternating rounds.
func (b *bench) compareSizes(ctx context.Context, few, many *raftkv, add func(what, want, got string)) error {
	r := &results{systems: []string{many.name(), few.name()}}
	f := &faults{}
	b.progress.begin(2 * b.rounds)
	for round := range b.rounds {
		for _, s := range rotated([]system{many, few}, round) {
			keys := b.keys
			if s == system(few) {
				keys = 1000
			}
			b.progress.step(fmt.Sprintf("round %d of %d, writes, %s", round+1, b.rounds, s.name()))
			got, err := measure(ctx, s, writes, steadyClients, keys, b.warm, b.length)
			if err != nil {
				return err
			}
			f.add(s.name(), writes, steadyClients, round, got)
			r.add(writes.name, steadyClients, s.name(), reduce(got))
		}
	}
	c := r.cells[0]
	middle, least, most := ratio(c.rounds[many.name()], c.rounds[few.name()], rate)
	add(fmt.Sprintf("writes a second, %d clients, of those with 1,000 keys", steadyClients), "≥ 80 %",
		fmt.Sprintf("%s (%s to %s; %s of %s)", percent(middle), percent(least), percent(most),
			group3(c.median(many.name(), rate)), group3(c.median(few.name(), rate))))
	for _, line := range f.lines {
		add("failed", "", strings.TrimSpace(strings.TrimPrefix(line, "- ")))
	}
	return nil
}

// memories is the memory of each process, in bytes.
func memories(c *raftkv) (m []float64, err error) {
	for _, p := range c.processes {
		n, err := p.memory()
		if err != nil {
			return nil, err
		}
		m = append(m, float64(n))
	}
	return m, nil
}

// span is a time from and to, both included.
type span struct{ from, to time.Time }

// snapshotSpans finds in a node's console when raft took snapshots, the removal of old
// log entries included. One that is not finished lasts for an hour.
func snapshotSpans(console []byte) (spans []span) {
	open := false
	for line := range bytes.Lines(console) {
		if !bytes.Contains(line, []byte("raft: ")) {
			continue
		}
		first, _, _ := bytes.Cut(line, []byte(" "))
		at, err := time.Parse("2006-01-02T15:04:05.000Z0700", string(first))
		switch {
		case err != nil:
		case bytes.Contains(line, []byte("raft: starting snapshot up to")):
			spans, open = append(spans, span{at, at.Add(time.Hour)}), true
		case open && bytes.Contains(line, []byte("raft: snapshot complete up to")):
			// The console has whole milliseconds.
			spans[len(spans)-1].to, open = at.Add(time.Millisecond), false
		}
	}
	return spans
}

// split divides the operations of s into those that were under way during one of the
// spans, and the others.
func (s sample) split(spans []span) (during, apart []time.Duration) {
	for i, took := range s.took {
		end := s.began.Add(s.ended[i])
		start, inside := end.Add(-took), false
		for _, p := range spans {
			inside = inside || (!end.Before(p.from) && !start.After(p.to))
		}
		if inside {
			during = append(during, took)
		} else {
			apart = append(apart, took)
		}
	}
	return during, apart
}

// runSoak writes for long, and shows what grows.
func (b *bench) runSoak(ctx context.Context) error {
	interval := min(max(b.soak/60, time.Second), 10*time.Second)
	b.progress.show("starting the nodes")
	c, err := startRaftkv(ctx, "raftkv", b.binary, filepath.Join(b.tmp, "soak"))
	if err != nil {
		return err
	}
	defer c.stop()
	if err := c.fill(ctx, 0, b.keys); err != nil {
		return err
	}
	head := []string{"after", "writes/s", "p99 ms", "memory n1", "n2", "n3", "raft.db n1", "n2", "n3", "snapshots n1",
		"n2", "n3"}
	var rows [][]string
	f := &faults{}
	steps := int(b.soak / interval)
	b.progress.begin(steps)
	began := time.Now()
	b.progress.say(strings.Join(head, "  "))
	for round := range steps {
		b.progress.step(fmt.Sprintf("writes, %d clients", steadyClients))
		got, err := measure(ctx, c, writes, steadyClients, b.keys, 0, interval)
		if err != nil {
			return err
		}
		f.add(c.name(), writes, steadyClients, round, got)
		row := []string{time.Since(began).Round(time.Second).String(), group3(got.perSecond()),
			short(percentile(got.took, 99).Seconds() * 1000)}
		m, err := memories(c)
		if err != nil {
			return err
		}
		for _, bytes := range m {
			row = append(row, mebibytes(bytes))
		}
		for _, what := range []string{"raft.db", "snapshots"} {
			for _, n := range c.nodes {
				size, err := sizeOf(filepath.Join(n.volume, what))
				if err != nil {
					return err
				}
				row = append(row, mebibytes(float64(size)))
			}
		}
		rows = append(rows, row)
		b.progress.say(strings.Join(row, "  "))
	}
	var text strings.Builder
	fmt.Fprintf(&text, "# %v of writes by %d clients\n\n%s\nSizes in MiB. Memory is what no file backs "+
		"(RssAnon).\n\n%s", b.soak, steadyClients, b.about(), table(head, rows))
	if len(f.lines) > 0 {
		text.WriteString("\nOperations that failed:\n\n" + strings.Join(f.lines, ""))
	}
	return b.publish("soak", text.String(), nil)
}

// sizeOf is the size of a file, or of all files below a directory, which may come and
// go meanwhile.
func sizeOf(path string) (size int64, err error) {
	err = filepath.WalkDir(path, func(_ string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		if info, err := d.Info(); err == nil {
			size += info.Size()
		}
		return nil
	})
	return size, err
}
