package storage

import (
	"fmt"
	"runtime/debug"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// guard runs f and turns a panic, and a fault in bbolt's memory map, into an error. It covers the calling goroutine
// only, which is why checkBolt has to run before bbolt, whose panics are partly in others.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch p := recover().(type) {
		case nil:
		case interface{ Addr() uintptr }: // that of a fault, see debug.SetPanicOnFault
			err = fmt.Errorf("%w: raft.db was cut short while it was open, or can't be read", ErrCorrupt)
		default:
			err = fmt.Errorf("%w: %v", ErrCorrupt, p)
		}
	}()
	return f()
}

// guarded has each call of a disk run under guard. Bbolt reads raft.db through a memory map: if the file is cut short
// or overwritten while a node has it open, a read ends in SIGBUS, or in a panic at a page that makes no sense, and
// either would end the process with a trace in the place of a line. Bbolt may hold its locks for ever after that, so
// that every later call returns the first one's error.
type guarded struct {
	disk    LogAndStable
	faulted atomic.Pointer[error]
}

var _ LogAndStable = (*guarded)(nil)

func (g *guarded) run(f func() error) error {
	if err := g.faulted.Load(); err != nil {
		return *err
	}
	panicked := true
	err := guard(func() (err error) { err = f(); panicked = false; return err })
	if panicked {
		g.faulted.Store(&err)
	}
	return err
}

// FirstIndex implements raft.LogStore.
func (g *guarded) FirstIndex() (index uint64, err error) {
	err = g.run(func() (err error) { index, err = g.disk.FirstIndex(); return err })
	return index, err
}

// LastIndex implements raft.LogStore.
func (g *guarded) LastIndex() (index uint64, err error) {
	err = g.run(func() (err error) { index, err = g.disk.LastIndex(); return err })
	return index, err
}

// GetLog implements raft.LogStore.
func (g *guarded) GetLog(index uint64, log *raft.Log) error {
	return g.run(func() error { return g.disk.GetLog(index, log) })
}

// StoreLog implements raft.LogStore.
func (g *guarded) StoreLog(log *raft.Log) error { return g.StoreLogs([]*raft.Log{log}) }

// StoreLogs implements raft.LogStore.
func (g *guarded) StoreLogs(logs []*raft.Log) error {
	return g.run(func() error { return g.disk.StoreLogs(logs) })
}

// DeleteRange implements raft.LogStore.
func (g *guarded) DeleteRange(low, high uint64) error {
	return g.run(func() error { return g.disk.DeleteRange(low, high) })
}

// Set implements raft.StableStore.
func (g *guarded) Set(key, value []byte) error {
	return g.run(func() error { return g.disk.Set(key, value) })
}

// Get implements raft.StableStore.
func (g *guarded) Get(key []byte) (value []byte, err error) {
	err = g.run(func() (err error) { value, err = g.disk.Get(key); return err })
	return value, err
}

// SetUint64 implements raft.StableStore.
func (g *guarded) SetUint64(key []byte, value uint64) error {
	return g.run(func() error { return g.disk.SetUint64(key, value) })
}

// GetUint64 implements raft.StableStore.
func (g *guarded) GetUint64(key []byte) (value uint64, err error) {
	err = g.run(func() (err error) { value, err = g.disk.GetUint64(key); return err })
	return value, err
}
