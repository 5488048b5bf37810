package kv

import "slices"

// What may wait for the Next of a Watcher at most. One event always may.
const (
	maxPending      = 8192 // events
	maxPendingBytes = historyBytes
)

// watched is the watchers that take part in each Update, by prefix.
type watched struct {
	groups  map[string]*group
	lengths []int       // of the prefixes in groups, ascending, each once
	count   map[int]int // of groups, by the length of their prefix
	touched []*group    // by the event that is published
}

// group is the watchers of one prefix.
type group struct {
	prefix   string
	watchers map[*Watcher]struct{}

	// Of the event that is published, and zero otherwise: how many of its changes
	// have the prefix, and those if they are not the first n of the event.
	n   int
	own []Change
}

func (wd *watched) add(w *Watcher) {
	if wd.groups == nil {
		wd.groups, wd.count = make(map[string]*group), make(map[int]int)
	}
	g := wd.groups[w.prefix]
	if g == nil {
		g = &group{prefix: w.prefix, watchers: make(map[*Watcher]struct{})}
		wd.groups[w.prefix] = g
		length := len(w.prefix)
		if wd.count[length]++; wd.count[length] == 1 {
			at, _ := slices.BinarySearch(wd.lengths, length)
			wd.lengths = slices.Insert(wd.lengths, at, length)
		}
	}
	g.watchers[w] = struct{}{}
}

// remove removes w, if it is there.
func (wd *watched) remove(w *Watcher) {
	g := wd.groups[w.prefix]
	if g == nil {
		return
	}
	delete(g.watchers, w)
	if len(g.watchers) > 0 {
		return
	}
	delete(wd.groups, w.prefix)
	length := len(w.prefix)
	if wd.count[length]--; wd.count[length] == 0 {
		delete(wd.count, length)
		at, _ := slices.BinarySearch(wd.lengths, length)
		wd.lengths = slices.Delete(wd.lengths, at, at+1)
	}
}

// publish adds e to the history and to what waits for the watchers that it
// concerns. It looks up each changed key once for each length of a prefix, and
// touches no other watcher. The caller holds mu.
func (s *Store) publish(e *Event) {
	s.history.add(e)
	wd := &s.watched
	for i := range e.Changes {
		key := e.Changes[i].Key
		for _, length := range wd.lengths {
			if length > len(key) {
				break
			}
			if g := wd.groups[key[:length]]; g != nil {
				if g.n == 0 {
					wd.touched = append(wd.touched, g)
				}
				g.add(e, i)
			}
		}
	}
	for _, g := range wd.touched {
		s.deliver(g, g.event(e))
		g.n, g.own = 0, nil
	}
	clear(wd.touched)
	wd.touched = wd.touched[:0]
}

// add adds change i of e. It copies nothing as long as there is no gap.
func (g *group) add(e *Event, i int) {
	if g.n < i {
		if g.own == nil {
			g.own = slices.Clone(e.Changes[:g.n])
		}
		g.own = append(g.own, e.Changes[i])
	}
	g.n++
}

// event returns what the watchers of g get of e, which is what e.matching of the
// prefix returns.
func (g *group) event(e *Event) *Event {
	if g.n == len(e.Changes) {
		return e
	}
	part := &Event{Index: e.Index, Term: e.Term, Changes: g.own}
	if g.own == nil {
		part.Changes = e.Changes[:g.n:g.n]
	}
	for i := range part.Changes {
		part.size += part.Changes[i].size()
	}
	return part
}

// deliver gives e to the watchers of g. Those for which too much waits already
// it ends instead: Update waits for nobody.
func (s *Store) deliver(g *group, e *Event) {
	for w := range g.watchers {
		if e.Index > w.after && !w.put(e) {
			s.watched.remove(w)
		}
	}
}

// loseHistory empties the history, which begins after the index floor then, and
// ends all watchers. The caller holds mu.
func (s *Store) loseHistory(floor uint64) {
	s.epoch++
	s.history.clear(floor)
	for _, g := range s.watched.groups {
		for w := range g.watchers {
			w.end(ErrHistoryGone)
		}
	}
	s.watched = watched{}
}
