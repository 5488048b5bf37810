package main

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// figures are one sample, reduced: per second, milliseconds, CPU seconds per 1,000
// operations.
type figures struct {
	rate, p50, p99 float64
	server, own    float64
}

func reduce(s sample) figures {
	return figures{
		rate:   s.perSecond(),
		p50:    percentile(s.took, 50).Seconds() * 1000,
		p99:    percentile(s.took, 99).Seconds() * 1000,
		server: s.perThousand(s.server),
		own:    s.perThousand(s.own),
	}
}

// cell is one load with one number of clients: for each system the figures of its
// rounds, in the order of the rounds.
type cell struct {
	load    string
	clients int
	rounds  map[string][]figures
}

// results are all cells, in the order of the table.
type results struct {
	systems []string // in the order of the table; the first is compared to the others
	cells   []*cell
	missing map[string]string // references that there are not, by name: how to get them
}

func (r *results) cell(load string, clients int) *cell {
	for _, c := range r.cells {
		if c.load == load && c.clients == clients {
			return c
		}
	}
	c := &cell{load: load, clients: clients, rounds: make(map[string][]figures)}
	r.cells = append(r.cells, c)
	return c
}

func (r *results) add(load string, clients int, system string, f figures) {
	c := r.cell(load, clients)
	c.rounds[system] = append(c.rounds[system], f)
}

// median returns the median of one figure over the rounds of a system; 0 for none.
func (c *cell) median(system string, of func(figures) float64) float64 {
	return medianOf(c.rounds[system], of)
}

func medianOf(rounds []figures, of func(figures) float64) float64 {
	var all []float64
	for _, f := range rounds {
		all = append(all, of(f))
	}
	return median(all)
}

// ratios returns a figure of a over that of b, round by round.
func ratios(a, b []figures, of func(figures) float64) (all []float64) {
	for i := range min(len(a), len(b)) {
		if of(b[i]) != 0 {
			all = append(all, of(a[i])/of(b[i]))
		}
	}
	return all
}

// ratio returns the median of the ratios, with the least and the greatest; zeros when
// there is none.
func ratio(a, b []figures, of func(figures) float64) (middle, least, most float64) {
	all := ratios(a, b, of)
	if len(all) == 0 {
		return 0, 0, 0
	}
	return median(all), slices.Min(all), slices.Max(all)
}

func rate(f figures) float64   { return f.rate }
func p50(f figures) float64    { return f.p50 }
func p99(f figures) float64    { return f.p99 }
func server(f figures) float64 { return f.server }
func own(f figures) float64    { return f.own }

// share is the client's part of all the CPU time that was used.
func share(f figures) float64 {
	if f.own+f.server == 0 {
		return 0
	}
	return f.own / (f.own + f.server)
}

// mainTable has a row for each system in each cell. The last four columns compare the
// first system to the one of the row. Of a reference that there is not, a row says so, and
// a line below how to get it.
func (r *results) mainTable() string {
	head := []string{"load", "clients", "system", "ops/s", "p50 ms", "p99 ms", "CPU s/1,000", "client's CPU",
		"ops/s ratio", "p50 ratio", "p99 ratio", "CPU ratio"}
	var rows [][]string
	before := ""
	for _, c := range r.cells {
		shown := c.load
		if shown == before {
			shown = ""
		}
		before = c.load
		clients := group3(float64(c.clients))
		for _, system := range r.systems {
			if len(c.rounds[system]) == 0 {
				continue
			}
			row := []string{shown, clients, system, group3(c.median(system, rate)), short(c.median(system, p50)),
				short(c.median(system, p99)),
				short(c.median(system, server)), percent(c.median(system, share)), "", "", "", ""}
			if system != r.systems[0] && len(c.rounds[r.systems[0]]) > 0 {
				row[8] = ranged(ratio(c.rounds[r.systems[0]], c.rounds[system], rate))
				for i, of := range []func(figures) float64{p50, p99, server} {
					middle, _, _ := ratio(c.rounds[r.systems[0]], c.rounds[system], of)
					row[9+i] = fmt.Sprintf("%.2f", middle)
				}
			}
			rows = append(rows, row)
			shown, clients = "", ""
		}
	}
	below := ""
	for _, name := range slices.Sorted(maps.Keys(r.missing)) {
		row := make([]string, len(head))
		row[0], row[2] = "not measured", name
		rows = append(rows, row)
		below += fmt.Sprintf("\nNot measured: %s. To get it: %s.\n", name, r.missing[name])
	}
	return table(head, rows) + below
}

// clientTable shows how far the client is from being what is measured.
func (r *results) clientTable() string {
	var rows [][]string
	for _, c := range r.cells {
		if c.load != bare.name {
			continue
		}
		ceiling := c.median(emptyLabel, rate)
		row := []string{group3(float64(c.clients)), group3(ceiling), short(c.median(emptyLabel, p50)),
			short(c.median(emptyLabel, own)), short(c.median(emptyLabel, server))}
		best, of := 0.0, "-"
		for _, other := range r.cells {
			if f := other.median(r.systems[0], rate); other.clients == c.clients && f > best {
				best, of = f, other.load
			}
		}
		row = append(row, fmt.Sprintf("%s (%s)", percent(best/ceiling), of))
		rows = append(rows, row)
	}
	return table([]string{"clients", "ceiling, ops/s", "p50 ms", "client's CPU s/1,000", "handler's CPU s/1,000",
		"nearest load of raftkv"}, rows)
}

// wanted sets what issue 18 asks for beside what was measured. A comparison with a
// reference that there is not says so; what else was not measured is left out. commit is
// the median time of one bbolt commit in milliseconds.
func (r *results) wanted(commit float64) string {
	var rows [][]string
	add := func(what, want, got string) { rows = append(rows, []string{what, want, got}) }
	find := func(l load, clients int, system string) []figures {
		for _, c := range r.cells {
			if c.load == l.name && c.clients == clients {
				return c.rounds[system]
			}
		}
		return nil
	}
	compare := func(what, want string, a, b []figures, of func(figures) float64) {
		if middle, least, most := ratio(a, b, of); middle > 0 {
			add(what, want, ranged(middle, least, most))
		}
	}
	reference := func(what, want string, l load, clients int, system string, of func(figures) float64) {
		own := find(l, clients, "raftkv")
		if get, missing := r.missing[system]; missing && len(own) > 0 {
			add(what, want, "not measured: "+get)
		}
		compare(what, want, own, find(l, clients, system), of)
	}
	ofEtcd := func(what, want string, l load, clients int, of func(figures) float64, less bool) {
		best := etcdLabel
		cheap, own := medianOf(find(l, clients, etcdLabel), of), medianOf(find(l, clients, etcdGoLabel), of)
		if own > 0 && own < cheap == less {
			best = etcdGoLabel
		}
		what = fmt.Sprintf("%s, %s, of etcd's by the better client", what, clientsText(clients))
		reference(what, want, l, clients, best, of)
	}
	ofOwn := func(what, want string, l, other load, clients int) {
		compare(fmt.Sprintf("%s, %d clients", what, clients), want, find(l, clients, "raftkv"), find(other, clients,
			"raftkv"), rate)
	}
	ofEtcd("p50 of writes", "≤ 0.8×", writes, 1, p50, true)
	ofEtcd("p99 of writes", "≤ 1×", writes, 1, p99, true)
	ofEtcd("writes", "≥ 1.3×", writes, 4, rate, false)
	ofEtcd("writes", "≥ 1.8×", writes, 64, rate, false)
	ofEtcd("writes", "≥ 2×", writes, 256, rate, false)
	for _, clients := range []int{64, 256} {
		ofOwn("writes through the followers, of those at the leader", "≥ 0.8×", forwarded, writes, clients)
	}
	if one := find(writes, 1, "raftkv"); len(one) > 0 && commit > 0 {
		got := medianOf(one, p50)
		add("p50 of writes, 1 client, of two serial bbolt commits", "", fmt.Sprintf("%.2f× (%s ms of 2 × %s ms)",
			got/2/commit, short(got), short(commit)))
	}
	reference("p50 of writes, 1 client, of hraftd's", "≤ 1×", writes, 1, hraftdLabel, p50)
	ofEtcd("linearizable reads on the leader", "≥ 2×", linearizable, 64, rate, false)
	ofEtcd("linearizable reads on the leader", "≥ 1.6×", linearizable, 256, rate, false)
	for _, clients := range []int{64, 256} {
		ofEtcd("linearizable reads on the followers", "≥ 1.6×", onFollowers, clients, rate, false)
		ofOwn("linearizable reads on the leader, of this node's own stale reads", "≥ 0.8×", linearizable, staleReads, clients)
		ofOwn("linearizable reads on the followers, of those on the leader", "≥ 0.6×", onFollowers, linearizable, clients)
	}
	return table([]string{"what", "wanted", "measured"}, rows)
}

func clientsText(n int) string {
	if n == 1 {
		return "1 client"
	}
	return fmt.Sprintf("%d clients", n)
}

// consoleTable compares the first system of r to the second, cell by cell: by the median
// of the pairs, with the quartiles.
func (r *results) consoleTable() string {
	var rows [][]string
	for _, c := range r.cells {
		info, warn := c.median(r.systems[0], rate), c.median(r.systems[1], rate)
		pairs := ratios(c.rounds[r.systems[0]], c.rounds[r.systems[1]], rate)
		rows = append(rows, []string{group3(float64(c.clients)), group3(info), group3(warn),
			fmt.Sprintf("%s (%s to %s)", percent(1-median(pairs)), percent(1-quantile(pairs, 0.75)),
				percent(1-quantile(pairs, 0.25)))})
	}
	return table([]string{"clients", "writes/s, LOG_LEVEL=info", "writes/s, LOG_LEVEL=warn",
		"cost of the console lines (quartiles)"}, rows)
}

// table is a Markdown table that also reads well on a terminal: columns of figures are
// aligned to the right.
func table(head []string, rows [][]string) string {
	widths, right := make([]int, len(head)), make([]bool, len(head))
	for i := range head {
		widths[i], right[i] = max(3, utf8.RuneCountInString(head[i])), true
		for _, row := range rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
			right[i] = right[i] && !strings.ContainsFunc(row[i], unicode.IsLetter)
		}
	}
	var b strings.Builder
	line := func(row []string) {
		for i, text := range row {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text))
			if right[i] {
				text = pad + text
			} else {
				text += pad
			}
			b.WriteString("| " + text + " ")
		}
		b.WriteString("|\n")
	}
	line(head)
	for i, width := range widths {
		if right[i] {
			b.WriteString("| " + strings.Repeat("-", width-1) + ": ")
		} else {
			b.WriteString("| " + strings.Repeat("-", width) + " ")
		}
	}
	b.WriteString("|\n")
	for _, row := range rows {
		line(row)
	}
	return b.String()
}

// group3 is f without decimals, in groups of three digits.
func group3(f float64) string {
	digits := fmt.Sprintf("%.0f", f)
	for i := len(digits) - 3; i > 0 && digits[i-1] != '-'; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// short is f with three significant digits, and no exponent.
func short(f float64) string {
	if f == 0 {
		return "0"
	}
	decimals := 2 - int(math.Floor(math.Log10(math.Abs(f))))
	return fmt.Sprintf("%.*f", min(max(decimals, 0), 4), f)
}

// ranged is a ratio, with the least and the greatest where there are several.
func ranged(middle, least, most float64) string {
	if least == most {
		return fmt.Sprintf("%.2f×", middle)
	}
	return fmt.Sprintf("%.2f× (%.2f–%.2f)", middle, least, most)
}

func percent(f float64) string { return fmt.Sprintf("%.0f %%", f*100) }

// mebibytes is b in MiB.
func mebibytes(b float64) string { return group3(b / (1 << 20)) }

// The picture: one panel a load, in it one group of bars for each number of clients.
const (
	panelWidth, panelHeight = 440, 210
	barArea                 = 130 // height of the highest bar
)

var colours = map[string]string{"raftkv": "#1f77b4", etcdLabel: "#ff7f0e", etcdGoLabel: "#ffbb78",
	hraftdLabel: "#2ca02c", "baseline": "#9ab8d0", certsLabel: "#6a51a3", emptyLabel: "#b0b0b0"}

// svg draws the medians of ops/s.
func (r *results) svg(caption string) string {
	var names []string
	for _, c := range r.cells {
		if !slices.Contains(names, c.load) {
			names = append(names, c.load)
		}
	}
	width, height := 2*panelWidth+40, 70+(len(names)+1)/2*panelHeight+30
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="sans-serif" font-size="12" fill="#222">`+"\n",
		width, height, width, height)
	b.WriteString(`<rect width="100%" height="100%" fill="#fff"/>` + "\n")
	fmt.Fprintf(&b, `<text x="20" y="28" font-size="16" font-weight="bold">Operations a second, by load and number of clients</text>`+"\n")
	for i, system := range r.systems {
		x := 20 + 120*i
		fmt.Fprintf(&b, `<rect x="%d" y="42" width="12" height="12" fill="%s"/><text x="%d" y="52">%s</text>`+"\n", x,
			colour(system), x+17, escape(system))
	}
	for i, name := range names {
		r.panel(&b, name, 20+i%2*panelWidth, 70+i/2*panelHeight)
	}
	fmt.Fprintf(&b, `<text x="20" y="%d" fill="#666">%s</text>`+"\n</svg>\n", height-12, escape(caption))
	return b.String()
}

func (r *results) panel(b *strings.Builder, name string, left, top int) {
	var cells []*cell
	most := 1.0
	for _, c := range r.cells {
		if c.load != name {
			continue
		}
		cells = append(cells, c)
		for system := range c.rounds {
			most = max(most, c.median(system, rate))
		}
	}
	bottom := top + 30 + 14 + barArea
	fmt.Fprintf(b, `<text x="%d" y="%d" font-weight="bold">%s</text>`+"\n", left, top+20, escape(name))
	fmt.Fprintf(b, `<line x1="%d" y1="%d" x2="%d" y2="%d" stroke="#999"/>`+"\n", left, bottom, left+panelWidth-30, bottom)
	groupWidth := (panelWidth - 30) / len(cells)
	for i, c := range cells {
		var present []string
		for _, system := range r.systems {
			if len(c.rounds[system]) > 0 {
				present = append(present, system)
			}
		}
		barWidth := min(38, (groupWidth-8)/max(1, len(present)))
		x := left + i*groupWidth + (groupWidth-barWidth*len(present))/2
		for _, system := range present {
			value := c.median(system, rate)
			h := int(value / most * barArea)
			fmt.Fprintf(b, `<rect x="%d" y="%d" width="%d" height="%d" fill="%s"><title>%s, %s, %d clients: %s ops/s</title></rect>`+"\n",
				x, bottom-h, barWidth-2, h, colour(system), escape(system), escape(name), c.clients, group3(value))
			fmt.Fprintf(b, `<text x="%d" y="%d" font-size="10" text-anchor="middle">%s</text>`+"\n", x+barWidth/2-1,
				bottom-h-4, thousands(value))
			x += barWidth
		}
		fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="middle">%s</text>`+"\n", left+i*groupWidth+groupWidth/2,
			bottom+16, group3(float64(c.clients)))
	}
}

func colour(system string) string { return cmp.Or(colours[system], "#9467bd") }

// thousands is f in thousands, short enough to stand above a bar.
func thousands(f float64) string {
	switch {
	case f >= 10_000:
		return fmt.Sprintf("%.0fk", f/1000)
	case f >= 1000:
		return fmt.Sprintf("%.1fk", f/1000)
	}
	return fmt.Sprintf("%.0f", f)
}

func escape(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(s)
}

// partNames are the parts of RESULTS.md in their order. Each is written by its own
// run, which leaves the others as they are.
var partNames = []string{"main", "million", "soak", "bytes"}

// replacePart returns the text of RESULTS.md with one part replaced or added.
func replacePart(old, name, text string) string {
	var b strings.Builder
	for _, n := range partNames {
		begin, end := "<!-- begin "+n+" -->\n", "<!-- end "+n+" -->\n"
		part := ""
		if _, rest, ok := strings.Cut(old, begin); ok {
			part, _, _ = strings.Cut(rest, end)
		}
		if n == name {
			part = strings.TrimRight(text, "\n") + "\n"
		}
		if part != "" {
			if b.Len() > 0 {
				b.WriteString("\n")
			}
			b.WriteString(begin + part + end)
		}
	}
	return b.String()
}
