package page

import (
	"reflect"

	"raftkv/internal/events"
	"raftkv/internal/node"
)

// source is what a node.Node has for frames.
type source interface {
	Frame() node.Frame
	Cells(above uint64, hidden bool) []node.Cell
}

// frames makes the frames of one view.
type frames struct {
	node   source
	hidden bool

	before node.Frame // without cells and events
	cells  uint64     // up to this index they were sent
}

// next returns the next frame, with the events since the one before and so many dropped before these. news reports
// whether there is anything in it that was not in the one before.
func (f *frames) next(all []events.Event, dropped uint64) (frame node.Frame, news bool) {
	for _, e := range all {
		if e.Kind == events.Repair { // the entries there are others now
			f.cells = min(f.cells, e.From-1)
		}
	}
	if dropped > 0 { // which may have been of a repair
		f.cells = 0
	}
	frame = f.node.Frame()
	news = !reflect.DeepEqual(frame, f.before) || len(all) > 0
	f.before = frame
	if frame.Last < f.cells {
		f.cells = 0
	}
	frame.Cells = f.node.Cells(f.cells, f.hidden)
	if n := len(frame.Cells); n > 0 {
		f.cells = frame.Cells[n-1].Index
	}
	frame.Events, frame.Dropped = all, dropped
	return frame, news || len(frame.Cells) > 0
}
