package faults

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	long     = flag.Bool("faults", false, "the long version, of -duration")
	duration = flag.Duration("duration", 10*time.Minute, "with -faults: about how long")
	seed     = flag.Uint64("seed", 0, "of the schedule; 0: another each time")
	only     = flag.String("only", "", "only faults whose names match this regular expression")
	useBin   = flag.String("binary", "", "a raftkv to test instead of the one that is built here; without clocks "+
		"that jump")
)

const (
	// inside is set in the environment of the process that has namespaces of its own.
	inside              = "RAFTKV_FAULTS_INSIDE"
	binaryVariable      = "RAFTKV_FAULTS_BINARY"
	clockBinaryVariable = "RAFTKV_FAULTS_CLOCK_BINARY"
)

var (
	binary      string   // of the node
	clockBinary string   // of the node, with a clock that may jump; empty: there is none
	wires       *network // nil: all nodes are on loopback
	why         error    // of that
)

// TestMain builds the node, and runs the tests in namespaces of their own if it can.
func TestMain(m *testing.M) {
	flag.Parse()
	if flag.Lookup("test.list").Value.String() != "" || testing.Short() {
		os.Exit(m.Run())
	}
	if *mutate { // which runs the suite, and that has namespaces of its own
		_ = flag.Set("test.run", cmp.Or(flag.Lookup("test.run").Value.String(), "^TestMutants"))
		os.Exit(m.Run())
	}
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	binary = cmp.Or(*useBin, os.Getenv(binaryVariable))
	if binary == "" {
		dir, err := os.MkdirTemp("", "raftkv-faults-")
		if err != nil {
			fmt.Println(err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		binary = filepath.Join(dir, "raftkv")
		if out, err := exec.Command("go", "build", "-o", binary, "raftkv").CombinedOutput(); err != nil {
			fmt.Printf("go build: %v\n%s", err, out)
			return 1
		}
		_ = os.Setenv(binaryVariable, binary)
		if *long {
			if clockBinary, err = buildClock(dir); err != nil {
				fmt.Printf("NO CLOCK THAT JUMPS: %v\n", err)
			}
			_ = os.Setenv(clockBinaryVariable, clockBinary)
		}
	}
	clockBinary = os.Getenv(clockBinaryVariable)
	if os.Getenv(inside) == "" {
		code, err := reexec()
		if err == nil {
			return code
		}
		why = err
	} else if wires, why = newNetwork(); why == nil {
		fmt.Println("Each node has a network namespace of its own.")
	}
	if why != nil {
		fmt.Printf("All nodes are on loopback, WITHOUT FAULTS OF THE NETWORK: %v\n", why)
	}
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano()) % 1e6
	}
	fmt.Printf("Seed %d: repeat with -seed %d\n", *seed, *seed)
	code := m.Run()
	if testing.Verbose() || code != 0 {
		fmt.Print(tried.String())
	}
	return code
}

// TestSources looks at what the binary is built from: go test, which sees what a test
// looks at, would otherwise take a result from its cache when the node has changed.
func TestSources(t *testing.T) {
	for _, pattern := range []string{"../../*.go", "../../go.*", "../../*/*/*.go", "../../*/*/*/*.go"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			if _, err := os.Stat(path); err != nil {
				t.Error(err)
			}
		}
	}
}

// table is what was tried, by cluster and fault.
type table struct {
	mu   sync.Mutex // guards rows
	rows map[string]*row
}

type row struct {
	times, missed int // missed: it could not be done
	found         int
	writes        time.Duration // longest until a write was taken after the fault had healed
}

var tried = table{rows: make(map[string]*row)}

// note adds what was tried.
func (t *table) note(name string, add func(*row)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rows[name] == nil {
		t.rows[name] = &row{}
	}
	add(t.rows[name])
}

// String is the table in markdown.
func (t *table) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var b strings.Builder
	b.WriteString("\n| fault | times | could not be done | failures found | writes again after, at most |\n| --- | " +
		"--- | --- | --- | --- |\n")
	var names []string
	for name := range t.rows {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		r := t.rows[name]
		again := "-"
		if r.writes > 0 {
			again = r.writes.Round(time.Millisecond).String()
		}
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %s |\n", name, r.times, r.missed, r.found, again)
	}
	return b.String()
}
