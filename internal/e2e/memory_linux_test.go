package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"raftkv/internal/testkit"
)

// sampler watches the resident anonymous memory of a process: not the pages of raft.db, which the kernel takes back
// when it needs them.
type sampler struct {
	stop chan struct{}
	done sync.WaitGroup
	most int // bytes
}

var rssAnon = regexp.MustCompile(`RssAnon:\s+(\d+) kB`)

// sampleMemory looks at the memory of n until peak is called.
func sampleMemory(t testing.TB, n *testkit.Node) *sampler {
	t.Helper()
	s := &sampler{stop: make(chan struct{})}
	path := fmt.Sprintf("/proc/%d/status", n.Cmd.Process.Pid)
	s.done.Go(func() {
		for {
			text, _ := os.ReadFile(path) // gone when it has ended
			if found := rssAnon.FindSubmatch(text); found != nil {
				kilobytes, _ := strconv.Atoi(string(found[1]))
				s.most = max(s.most, kilobytes<<10)
			}
			select {
			case <-s.stop:
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	})
	return s
}

// peak ends the sampling and returns the most that was seen, in bytes.
func (s *sampler) peak() int {
	close(s.stop)
	s.done.Wait()
	return s.most
}

// TestMemoryOfAStart: a node that starts takes no more memory than 1.3 times what it took when it wrote what is on its
// volume, whether the volume is large for its data or for its history.
func TestMemoryOfAStart(t *testing.T) {
	slow(t)
	for _, test := range []struct {
		name       string
		sets, keys int // of 1 MiB
	}{
		{name: "one key, set again and again", sets: 160, keys: 1},
		{name: "many keys", sets: 160, keys: 120},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := testkit.NewNode(t, binary(t), "n1", "RAFT_ELECTION_TIMEOUT=100ms", "LOG_LEVEL=warn")
			n.Start(t)
			running := sampleMemory(t, n)
			random := rand.NewChaCha8([32]byte{1})
			value := make([]byte, 1<<20)
			for k := range test.sets {
				_, _ = random.Read(value)
				n.Definite(t, http.MethodPut, fmt.Sprint("/set?key=key", k%test.keys), string(value))
			}
			ran := running.peak()
			n.Stop(t, syscall.SIGTERM)
			n.Run(t)
			starting := sampleMemory(t, n)
			n.WaitReady(t)
			testkit.Eventually(t, "all keys", func() error {
				if got := state(t, n).Keys; got != test.keys {
					return fmt.Errorf("got %d keys, want %d", got, test.keys)
				}
				return nil
			})
			started := starting.peak()
			info, err := os.Stat(filepath.Join(n.Volume, "raft.db"))
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("raft.db %d MiB: %d MiB while it ran, %d MiB at most from the start on", info.Size()>>20, ran>>20,
				started>>20)
			if float64(started) > 1.3*float64(ran) {
				t.Errorf("the start took %d MiB, want 1.3 times the %d MiB of before at most", started>>20, ran>>20)
			}
		})
	}
}

// TestCutShortWhileOpen: a node whose raft.db is cut short under it ends with one line, not with a trace of a fault.
func TestCutShortWhileOpen(t *testing.T) {
	n := startOne(t)
	n.Set(t, "key", "value")
	if err := os.Truncate(filepath.Join(n.Volume, "raft.db"), int64(os.Getpagesize())); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "the end of the node", func() error {
		select {
		case <-n.Ended():
			return nil
		default:
			response, err := http.PostForm(n.Base+"/set", map[string][]string{"key": {"k"}, "value": {"v"}})
			if err == nil {
				_ = response.Body.Close()
			}
			return errors.New("it runs")
		}
	})
	wantRefused(t, n.Process, 1, "damaged")
}
