// Package lincheck is for tests only: it records what concurrent clients did to the
// key/value API and what they were told, and checks whether that is linearizable.
//
// Keys that are written or read together are of one group; groups are checked apart.
// No value is set twice in a history and none is empty: a value stands for its ETag.
package lincheck

import (
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// Kind is what an operation does.
type Kind string

const (
	Get       Kind = "get"       // of one key
	List      Kind = "list"      // of all keys of the group, at once
	Set       Kind = "set"       // of one or several keys, at once
	Remove    Kind = "remove"    // of one or several keys, at once
	RemoveAll Kind = "removeall" // of all keys of the group, at once
)

// Input is what a client asks for.
type Input struct {
	Kind   Kind
	Group  string
	Keys   []string
	Values []string // of Set: one for each key
	// The condition of a Set or Remove of one key.
	IfMatch  string // the value that the key must have; empty: none
	IfAbsent bool   // the key must not be there (If-None-Match: *)
}

// Name tells operations apart that are counted apart, such as "set several".
func (in Input) Name() string {
	switch {
	case in.IfMatch != "":
		return string(in.Kind) + " if match"
	case in.IfAbsent:
		return string(in.Kind) + " if absent"
	case len(in.Keys) > 1:
		return string(in.Kind) + " several"
	}
	return string(in.Kind)
}

func (in Input) reads() bool { return in.Kind == Get || in.Kind == List }

// Result is how an operation ended.
type Result string

const (
	Done       Result = "done"
	Failed     Result = "condition failed" // and nothing was done (412)
	NotApplied Result = "not applied"      // and never will be (503, 507, or 307 to the end)
	Unknown    Result = "unknown"          // may be applied, now or later (504, no answer)
)

// Output is what the client was told. What Done does not tell of its kind is empty.
type Output struct {
	Result  Result
	Found   map[string]string // what Get and List have found; a key that is not there is missing
	Removed int               // how many keys a Remove or RemoveAll has removed
}

// Recorder records a history. Its methods may be called by several goroutines.
type Recorder struct {
	begin time.Time

	mu      sync.Mutex // guards what follows
	history []porcupine.Operation
	counts  map[string]map[Result]int
}

// NewRecorder returns an empty one.
func NewRecorder() *Recorder {
	return &Recorder{begin: time.Now(), counts: make(map[string]map[Result]int)}
}

// Do runs an operation of a client, which has one at a time, and records it. run
// must end only when the client knows the output, and call nothing that sends the
// operation more than once if that can apply it twice.
func (r *Recorder) Do(client int, in Input, run func() Output) Output {
	call := time.Since(r.begin)
	out := run()
	r.Add(client, in, out, int64(call), int64(time.Since(r.begin)))
	return out
}

// Add records an operation that was called and returned at these times.
func (r *Recorder) Add(client int, in Input, out Output, call, returned int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	name := in.Name()
	if r.counts[name] == nil {
		r.counts[name] = make(map[Result]int)
	}
	r.counts[name][out.Result]++
	switch {
	case out.Result == NotApplied, out.Result == Unknown && in.reads():
		return // tells nothing
	case out.Result == Unknown:
		returned = math.MaxInt64 // it may take effect at any time, and last means never
	}
	r.history = append(r.history, porcupine.Operation{ClientId: client, Input: in, Output: out, Call: call,
		Return: returned})
}

// Count is how many operations of that Name ended so.
func (r *Recorder) Count(name string, result Result) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counts[name][result]
}

// String tells how many operations of each Name ended how.
func (r *Recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return fmt.Sprint(r.counts)
}

var (
	// ErrNotLinearizable is returned when no order of the operations explains what
	// the clients were told.
	ErrNotLinearizable = errors.New("not linearizable")
	// ErrUndecided is returned when the time did not suffice to tell.
	ErrUndecided = errors.New("undecided")
)

// Check returns nil if the history so far is linearizable. Its error wraps
// ErrNotLinearizable or ErrUndecided; it names a file with a picture of the history,
// made in dir, unless that is empty. limit bounds the check, not the picture.
func (r *Recorder) Check(limit time.Duration, dir string) error {
	r.mu.Lock()
	history := slices.Clone(r.history)
	r.mu.Unlock()
	var err error
	switch result := porcupine.CheckOperationsTimeout(model, history, limit); result {
	case porcupine.Ok:
		return nil
	case porcupine.Illegal:
		err = ErrNotLinearizable
	default:
		err = fmt.Errorf("%w after %v", ErrUndecided, limit)
	}
	if dir == "" {
		return err
	}
	path, drawErr := draw(history, limit, dir)
	if drawErr != nil {
		return errors.Join(err, drawErr)
	}
	return fmt.Errorf("%w: see %s", err, path)
}

// draw makes a page that shows the history.
func draw(history []porcupine.Operation, limit time.Duration, dir string) (path string, err error) {
	_, info := porcupine.CheckOperationsVerbose(model, history, limit)
	page, err := os.CreateTemp(dir, "history-*.html")
	if err != nil {
		return "", err
	}
	err = porcupine.Visualize(model, info, page)
	return page.Name(), errors.Join(err, page.Close())
}

// state is a group: value by key. It is never changed, only copied.
type state map[string]string

var model = porcupine.Model{
	Partition: func(history []porcupine.Operation) (groups [][]porcupine.Operation) {
		at := make(map[string]int)
		for _, op := range history {
			group := op.Input.(Input).Group
			i, ok := at[group]
			if !ok {
				i = len(groups)
				at[group], groups = i, append(groups, nil)
			}
			groups[i] = append(groups[i], op)
		}
		return groups
	},
	Init: func() any { return state{} },
	Step: func(s, in, out any) (bool, any) {
		return step(s.(state), in.(Input), out.(Output))
	},
	Equal: func(a, b any) bool { return maps.Equal(a.(state), b.(state)) },
	Hash: func(s any) (sum uint64) {
		for key, value := range s.(state) {
			h := fnv.New64a()
			_, _ = h.Write([]byte(key + "=" + value))
			sum ^= h.Sum64()
		}
		return sum
	},
	DescribeOperation: func(in, out any) string { return describe(in.(Input), out.(Output)) },
	DescribeState:     func(s any) string { return fmt.Sprint(map[string]string(s.(state))) },
}

// step reports whether an operation may be told out in a state, and what it makes of
// the state.
func step(s state, in Input, out Output) (bool, state) {
	if in.reads() {
		return maps.Equal(out.Found, s.pick(in)), s
	}
	current, there := s[first(in.Keys)]
	holds := (in.IfMatch == "" || in.IfMatch == current) && !(in.IfAbsent && there)
	switch {
	case out.Result == Failed:
		return !holds, s
	case !holds:
		return out.Result == Unknown, s // Unknown may be that it failed
	}
	next, removed := maps.Clone(s), len(s.pick(in))
	switch in.Kind {
	case Set:
		for i, key := range in.Keys {
			next[key] = in.Values[i]
		}
		return true, next
	case RemoveAll:
		clear(next)
	case Remove:
		for _, key := range in.Keys {
			delete(next, key)
		}
	}
	return out.Result == Unknown || out.Removed == removed, next
}

// pick returns what the state has of the keys of an operation.
func (s state) pick(in Input) map[string]string {
	if in.Kind == List || in.Kind == RemoveAll {
		return s
	}
	has := make(map[string]string)
	for _, key := range in.Keys {
		if value, ok := s[key]; ok {
			has[key] = value
		}
	}
	return has
}

func first(keys []string) string {
	if len(keys) == 0 {
		return ""
	}
	return keys[0]
}

func describe(in Input, out Output) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s", in.Kind)
	for i, key := range in.Keys {
		fmt.Fprintf(&b, " %s", key)
		if in.Kind == Set {
			fmt.Fprintf(&b, "=%s", in.Values[i])
		}
	}
	if in.IfMatch != "" {
		fmt.Fprintf(&b, " if %s", in.IfMatch)
	}
	if in.IfAbsent {
		b.WriteString(" if absent")
	}
	switch {
	case out.Result != Done:
		fmt.Fprintf(&b, ": %s", out.Result)
	case in.reads():
		fmt.Fprintf(&b, ": %v", out.Found)
	case in.Kind != Set:
		fmt.Fprintf(&b, ": removed %d", out.Removed)
	}
	return b.String()
}
