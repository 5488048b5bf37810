package faults

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"raftkv/internal/testkit"
	"strings"
	"syscall"
	"time"
)

// Clocks that jump: the Go runtime asks the kernel itself for the time, so libfaketime
// does nothing to it. Instead the node is built once more with a time.Now that adds to
// the time of day what clockVariable says. Durations are not touched: the kernel's
// monotonic clock does not jump either.

// clockVariable is by how many seconds, at most, the node's time of day is wrong, each
// two seconds by another number of them, forth or back.
const clockVariable = "RAFTKV_FAULT_CLOCK"

const clockSource = `package time

import "syscall"

var faultClock = func() (seconds int64) {
	text, _ := syscall.Getenv("` + clockVariable + `")
	for _, digit := range text {
		seconds = seconds*10 + int64(digit-'0')
	}
	return seconds
}()

func faultShift(mono int64) int64 {
	if faultClock == 0 {
		return 0
	}
	return int64(uint64(mono/2e9)*0x9e3779b97f4a7c15>>20)%(2*faultClock) - faultClock
}
`

// buildClock builds a node whose clock may jump.
func buildClock(dir string) (string, error) {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", err
	}
	source := filepath.Join(strings.TrimSpace(string(root)), "src", "time")
	text, err := os.ReadFile(filepath.Join(source, "time.go"))
	if err != nil {
		return "", err
	}
	const now = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	if strings.Count(string(text), now) != 1 {
		return "", errors.New("time.Now is another than was expected")
	}
	changed := strings.Replace(string(text), now, now+"\tsec += faultShift(mono)\n", 1)
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{
		filepath.Join(source, "time.go"):        filepath.Join(dir, "time.go"),
		filepath.Join(source, "fault_clock.go"): filepath.Join(dir, "fault_clock.go"),
	}})
	if err != nil {
		return "", err
	}
	for name, content := range map[string]string{"time.go": changed, "fault_clock.go": clockSource,
		"overlay.json": string(overlay)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			return "", err
		}
	}
	path := filepath.Join(dir, "raftkv-clock")
	out, err := exec.Command("go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", path,
		"raftkv").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
}

// clockJumps gives some nodes clocks that jump by up to a month, for a while.
func clockJumps(w *hand) error {
	if clockBinary == "" {
		return fmt.Errorf("%w: it was not built", errNothing)
	}
	jumping := w.shuffled()[:1+w.random.IntN(len(w.nodes))]
	for _, n := range jumping {
		if err := w.stopped(n); err != nil {
			return err
		}
		n.binary = clockBinary
		n.start(clockVariable + "=2592000")
		n.binary = ""
		if err := testkit.Poll(bound, func() error {
			_, err := n.ask(3*time.Second, "/readyz",
				nil)
			return err
		}); err != nil {
			return err
		}
	}
	time.Sleep(w.between(5*time.Second, 8*time.Second))
	for _, n := range jumping {
		days := make(map[string]bool)
		for line := range strings.Lines(n.console()) {
			if rest, ok := strings.CutPrefix(line, "INFO["); ok && len(rest) > 10 {
				days[rest[:10]] = true
			}
		}
		if len(days) < 3 {
			w.fail("the clock of %s has not jumped: its lines are of %d days", n.id, len(days))
		}
		n.signal(syscall.SIGTERM) // heal starts it with a clock that is right
		if _, err := n.ends(10 * time.Second); err != nil {
			return err
		}
	}
	return nil
}
