package peer

import (
	"io"
	"maps"
	"math"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// servedLimit is for how long a member that takes nothing counts as one that is being served.
const servedLimit = 10 * time.Second

// served knows which entries the members need next. Its methods may be called concurrently.
type served struct {
	mu    sync.Mutex
	needs map[raft.ServerID]need // guarded by mu
}

// need is the index after which a member needs entries, until a time.
type need struct {
	after uint64
	until time.Time
}

// serve notes that a member has, or is being sent, all up to an index.
func (s *served) serve(id raft.ServerID, after uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.needs == nil {
		s.needs = make(map[raft.ServerID]need)
	}
	s.needs[id] = need{after, time.Now().Add(servedLimit)}
}

// least returns the least index of all needs, math.MaxUint64 if there is none.
func (s *served) least() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(s.needs, func(_ raft.ServerID, n need) bool { return now.After(n.until) })
	least := uint64(math.MaxUint64)
	for _, n := range s.needs {
		least = min(least, n.after)
	}
	return least
}

// reading calls f at each read.
type reading struct {
	io.Reader
	f func()
}

func (r reading) Read(b []byte) (int, error) {
	r.f()
	return r.Reader.Read(b)
}
