package node

import (
	"runtime"
	"testing"

	"github.com/hashicorp/raft"
)

// damagedLog ends the goroutine that reads it, as storage.Log does.
type damagedLog struct{ raft.LogStore }

func (damagedLog) GetLog(uint64, *raft.Log) error {
	runtime.Goexit()
	return nil
}

// TestReadOfADamagedEntry: the goroutine that answers a call survives it; it used to end,
// and the caller's connection with it.
func TestReadOfADamagedEntry(t *testing.T) {
	ended := make(chan bool)
	go func() {
		survived := false
		defer func() { ended <- survived }()
		i := &instance{log: &installed{LogStore: damagedLog{}}}
		if i.readEntry(1, new(raft.Log)) {
			t.Error("it was read")
		}
		survived = true
	}()
	if survived := <-ended; !survived {
		t.Error("the goroutine has ended")
	}
}
