package storage

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

// TestReceive: a snapshot that was received is the one that raft creates next with the same metadata, byte for byte;
// one that is not as it should be leaves nothing behind.
func TestReceive(t *testing.T) {
	dir, _ := testVolume(t, 20)
	v := mustOpen(t, dir)
	t.Cleanup(func() { _ = v.Close() })
	servers := raft.Configuration{Servers: []raft.Server{{ID: "n1", Address: "127.0.0.1:9000"}}}
	_, transport := raft.NewInmemTransport("127.0.0.1:9000")
	state := strings.Repeat("state", 2<<20) // three steps of the sink
	restored := 0
	whole := func(r io.Reader) error { _, err := io.Copy(io.Discard, r); return err }
	receive := func(size int, verify func(io.Reader) error) (*Received, error) {
		return v.Snapshots.Receive(30, 2, servers, 1, transport, int64(size), strings.NewReader(state),
			func(r io.Reader) (restore func(), err error) { return func() { restored++ }, verify(r) })
	}
	unfinished := func() int {
		t.Helper()
		left, err := filepath.Glob(filepath.Join(dir, "snapshots", "*.tmp"))
		if err != nil {
			t.Fatal(err)
		}
		return len(left)
	}

	damaged := errors.New("damaged")
	for name, err := range map[string]error{
		"damaged": func() error {
			_, err := receive(len(state), func(r io.Reader) error { _ = whole(r); return damaged })
			return err
		}(),
		"short": func() error { _, err := receive(len(state)+1, whole); return err }(),
		"not read to its end": func() error {
			_, err := receive(len(state), func(r io.Reader) error { _, err := io.CopyN(io.Discard, r, 9); return err })
			return err
		}(),
	} {
		if err == nil || unfinished() != 0 {
			t.Errorf("%s: got %v, and %d are left, want an error and none", name, err, unfinished())
		}
	}
	if err := v.Snapshots.Failure(); err != nil {
		t.Errorf("the disk has failed: %v", err)
	}

	received, err := receive(len(state), whole)
	if err != nil {
		t.Fatal(err)
	}
	other, err := v.Snapshots.Create(1, 31, 2, servers, 1, transport)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Write([]byte("another")); err != nil {
		t.Errorf("a snapshot with other metadata: %v", err)
	}
	if err := errors.Join(other.Cancel(), received.Discard()); err != nil || unfinished() != 0 {
		t.Errorf("discarded: %v, and %d are left", err, unfinished())
	}

	if received, err = receive(len(state), whole); err != nil {
		t.Fatal(err)
	}
	sink, err := v.Snapshots.Create(1, 30, 2, servers, 1, transport)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sink.Write([]byte("x")); err == nil {
		t.Error("the state machine writes to a snapshot that was received")
	}
	n, err := io.Copy(sink, struct{ io.Reader }{strings.NewReader("")}) // as raft does
	if err != nil || n != int64(len(state)) {
		t.Errorf("raft copies %d bytes, %v, want %d", n, err, len(state))
	}
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}
	meta, r, err := v.Snapshots.Open(sink.ID()) // as raft does, to restore it
	if err != nil {
		t.Fatal(err)
	}
	if prepared, ok := r.(*PreparedState); !ok || meta.Index != 30 || meta.Size != int64(len(state)) {
		t.Errorf("got a %T, %+v, want a *PreparedState", r, meta)
	} else if prepared.Restore(); restored != 1 {
		t.Error("it was not restored")
	}
	if err := received.Discard(); err != nil {
		t.Fatal(err)
	}
	if meta, r, err = v.Snapshots.Open(sink.ID()); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil || string(got) != state || meta.Index != 30 || meta.Size != int64(len(state)) {
		t.Errorf("got %d bytes, %v, %+v, want the state", len(got), err, meta)
	}
	_ = r.Close()
	if info, err := os.Stat(filepath.Join(dir, "snapshots", sink.ID())); err != nil || unfinished() != 0 {
		t.Errorf("%v, %v, and %d are left", info, err, unfinished())
	}
	if index, term := v.Snapshots.NewestEntry(); index != 30 || term != 2 {
		t.Errorf("the newest snapshot is of entry %d of term %d, want 30 of 2", index, term)
	}
}

// TestDiscardedState: what was prepared of a snapshot that raft has not restored is not restored when it is opened
// later, with other content in the state machine.
func TestDiscardedState(t *testing.T) {
	dir, _ := testVolume(t, 20)
	v := mustOpen(t, dir)
	t.Cleanup(func() { _ = v.Close() })
	servers := raft.Configuration{Servers: []raft.Server{{ID: "n1", Address: "127.0.0.1:9000"}}}
	_, transport := raft.NewInmemTransport("127.0.0.1:9000")
	received, err := v.Snapshots.Receive(30, 2, servers, 1, transport, 5, strings.NewReader("state"),
		func(r io.Reader) (restore func(), err error) { _, err = io.ReadAll(r); return nil, err })
	if err != nil {
		t.Fatal(err)
	}
	sink, err := v.Snapshots.Create(1, 30, 2, servers, 1, transport)
	if err := errors.Join(err, sink.Close(), received.Discard()); err != nil {
		t.Fatal(err)
	}
	_, r, err := v.Snapshots.Open(sink.ID())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || string(got) != "state" {
		t.Errorf("got %q, %v, want the bytes", got, err)
	}
	_ = r.Close()
}
