package page

import (
	"testing"

	"raftkv/internal/events"
	"raftkv/internal/node"
)

// logOf is a source whose log has these terms, from index 1 on.
type logOf []uint64

func (l logOf) Frame() node.Frame { return node.Frame{Last: uint64(len(l))} }

func (l logOf) Cells(above uint64, _ bool) (cells []node.Cell) {
	for i := above; i < uint64(len(l)); i++ {
		cells = append(cells, node.Cell{Index: i + 1, Term: l[i]})
	}
	return cells
}

// TestRepairedCells: each entry is sent once, and again when it is another one: after a repair, be the log as long as
// before, and after events that were dropped.
func TestRepairedCells(t *testing.T) {
	f := frames{node: logOf{1, 1, 2}}
	for _, step := range []struct {
		name    string
		log     logOf
		events  []events.Event
		dropped uint64
		want    []uint64 // indexes of the cells
		news    bool
	}{
		{name: "first", log: logOf{1, 1, 2}, want: []uint64{1, 2, 3}, news: true},
		{name: "nothing new", log: logOf{1, 1, 2}, want: nil, news: false},
		{name: "an event", log: logOf{1, 1, 2}, events: []events.Event{{Kind: events.Voted}}, want: nil, news: true},
		{name: "an entry", log: logOf{1, 1, 2, 2}, want: []uint64{4}, news: true},
		{name: "a repair", log: logOf{1, 1, 3, 3}, events: []events.Event{{Kind: events.Repair, From: 3, To: 4}},
			want: []uint64{3, 4}, news: true},
		{name: "dropped events", log: logOf{1, 1, 4, 4}, events: []events.Event{{Kind: events.Stored}}, dropped: 7,
			want: []uint64{1, 2, 3, 4}, news: true},
		{name: "another log", log: logOf{5}, want: []uint64{1}, news: true},
	} {
		f.node = step.log
		frame, news := f.next(step.events, step.dropped)
		var got []uint64
		for _, c := range frame.Cells {
			got = append(got, c.Index)
			if c.Term != step.log[c.Index-1] {
				t.Errorf("%s: got term %d for entry %d, want %d", step.name, c.Term, c.Index, step.log[c.Index-1])
			}
		}
		if len(got) != len(step.want) || (len(got) > 0 && got[0] != step.want[0]) || news != step.news ||
			frame.Dropped != step.dropped || len(frame.Events) != len(step.events) {
			t.Errorf("%s: got cells %v, news %t, want %v, %t", step.name, got, news, step.want, step.news)
		}
	}
}
