package storage

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// TestChangedWhileOpen: a raft.db that somebody cuts short or overwrites under a running node ends it with one line
// about damage, by whatever call that meets it: never with a fault of the memory map, which would end this process.
func TestChangedWhileOpen(t *testing.T) {
	for _, change := range []struct {
		name string
		do   func(path string) error
	}{
		{name: "cut short", do: func(path string) error { return os.Truncate(path, int64(os.Getpagesize())) }},
		{name: "emptied", do: func(path string) error { return os.Truncate(path, 0) }},
		{name: "overwritten", do: func(path string) error {
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			file, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = file.Write(bytes.Repeat([]byte{0xff}, int(info.Size())))
			return errors.Join(err, file.Close())
		}},
	} {
		for _, call := range []struct {
			name string
			do   func(l *Log)
		}{
			{name: "GetLog", do: func(l *Log) { _ = l.GetLog(50, new(raft.Log)) }},
			{name: "FirstIndex", do: func(l *Log) { _, _ = l.FirstIndex() }},
			{name: "Get", do: func(l *Log) { _, _ = l.Get(keyCurrentTerm) }},
			{name: "Set", do: func(l *Log) { _ = l.SetUint64(keyCurrentTerm, 3) }},
			{name: "StoreLogs", do: func(l *Log) { _ = l.StoreLog(&raft.Log{Index: 1002, Term: 2}) }},
			{name: "DeleteRange", do: func(l *Log) { _ = l.DeleteRange(900, 1001) }},
		} {
			if !t.Run(change.name+"/"+call.name, func(t *testing.T) {
				dir, _ := testVolume(t, 1000)
				var failures []error
				o := testOptions(t)
				o.Fatal = func(err error) { failures = append(failures, err) }
				v, err := Open(dir, o)
				if err != nil {
					t.Fatal(err)
				}
				defer func() {
					closed := make(chan struct{})
					go func() { _ = v.Close(); close(closed) }()
					select {
					case <-closed:
					case <-time.After(20 * time.Second):
						t.Error("Close waits, as for a lock of bbolt that the fault has left")
					}
				}()
				if err := change.do(boltPath(dir)); err != nil {
					t.Fatal(err)
				}
				done := make(chan struct{})
				go func() { // which the log ends
					defer close(done)
					call.do(v.Log)
				}()
				<-done
				if len(failures) != 1 || !errors.Is(failures[0], ErrCorrupt) ||
					strings.Contains(failures[0].Error(), "\n") {
					t.Errorf("got %q, want one error in one line that wraps ErrCorrupt", failures)
				}
			}) {
				return
			}
		}
	}
}
