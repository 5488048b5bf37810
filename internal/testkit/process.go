package testkit

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Build builds the node into a directory and returns the path of the binary, which has the race detector if this test
// has it.
func Build(dir string) (binary string, err error) {
	race := debug.BuildSetting{Key: "-race", Value: "true"}
	if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, race) {
		return goBuild(filepath.Join(dir, "raftkv"), "-race")
	}
	return BuildPlain(dir)
}

// BuildPlain is Build without the race detector, whose own memory is several times that of the node.
func BuildPlain(dir string) (binary string, err error) {
	return goBuild(filepath.Join(dir, "raftkv-plain"))
}

func goBuild(binary string, flags ...string) (string, error) {
	args := append([]string{"build", "-o", binary}, flags...)
	if out, err := exec.Command("go", append(args, "raftkv")...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return binary, nil
}

// SourceOf returns the directory with the project as it was at a commit, and skips the test if that is not in the
// checkout.
func SourceOf(t testing.TB, commit string) (dir string) {
	t.Helper()
	if err := exec.Command("git", "cat-file", "-e", commit+"^{commit}").Run(); err != nil {
		t.Skipf("commit %s, the program to upgrade from, is not in this checkout: %v", commit, err)
	}
	dir = t.TempDir()
	archive := fmt.Sprintf("git -C \"$(git rev-parse --show-toplevel)\" archive %s | tar -x -C '%s'", commit, dir)
	if out, err := exec.Command("bash", "-o", "pipefail", "-c", archive).CombinedOutput(); err != nil {
		t.Fatalf("git archive: %v\n%s", err, out)
	}
	return dir
}

// Environ is the environment without what configures a node.
func Environ() []string {
	return slices.DeleteFunc(os.Environ(), func(entry string) bool {
		return slices.ContainsFunc([]string{"STORE_", "RAFT_", "HTTP_", "LOG_", "ETCD_", "INFLIGHT_"}, func(prefix string) bool {
			return strings.HasPrefix(entry, prefix)
		})
	})
}

// Process is a process that a test has started, and its output. Its methods may be called concurrently.
type Process struct {
	Cmd            *exec.Cmd
	Stdout, Stderr Buffer

	ended chan struct{} // closed when it has ended and its output is complete
	err   error         // of Wait, once ended is closed
}

// Start starts cmd. When the test ends, the process is ended too, with the process group if it
// was given one; its output is printed if the test has failed. A stderr that cmd has already
// is not in Stderr.
func Start(t testing.TB, cmd *exec.Cmd) *Process {
	t.Helper()
	return StartBy(t, cmd, (*exec.Cmd).Start)
}

// StartBy is Start by other means than cmd.Start, which start calls at last.
func StartBy(t testing.TB, cmd *exec.Cmd, start func(*exec.Cmd) error) *Process {
	t.Helper()
	p := &Process{Cmd: cmd, ended: make(chan struct{})}
	cmd.Stdout = &p.Stdout
	if cmd.Stderr == nil {
		cmd.Stderr = &p.Stderr
	}
	cmd.WaitDelay = 5 * time.Second
	if err := start(cmd); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		p.err = cmd.Wait()
	}()
	t.Cleanup(func() {
		p.end()
		if errors.Is(p.err, exec.ErrWaitDelay) {
			t.Errorf("%v has left a process behind that holds its output", cmd.Args)
		}
		if strings.Contains(p.Stderr.String(), "DATA RACE") {
			t.Errorf("%v has a data race", cmd.Args)
		}
		if t.Failed() {
			t.Logf("%v, %v\nstdout:\n%s\nstderr:\n%s", cmd.Args, cmd.ProcessState, tail(&p.Stdout), tail(&p.Stderr))
		}
	})
	return p
}

// end ends the process. A process group is a script with all it has started: it gets the time to end that in order.
func (p *Process) end() {
	if !p.Running() {
		return
	}
	if inGroup(p.Cmd) {
		_ = p.Cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.ended:
		case <-time.After(20 * time.Second): // its nodes are in groups of their own
			children, _ := exec.Command("pgrep", "-P", strconv.Itoa(p.Cmd.Process.Pid)).Output()
			for _, child := range strings.Fields(string(children)) {
				if id, err := strconv.Atoi(child); err == nil {
					kill(id)
				}
			}
			kill(-p.Cmd.Process.Pid)
		}
	} else {
		_ = p.Cmd.Process.Kill()
	}
	<-p.ended
}

// Ended is closed when the process has ended and its output is complete.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Running reports whether the process has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// Signal sends a signal to the process, which must run.
func (p *Process) Signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	if err := p.Cmd.Process.Signal(s); err != nil {
		t.Fatalf("%v to %v: %v", s, p.Cmd.Args, err)
	}
}

// Kill ends the process by SIGKILL, and waits until it has ended.
func (p *Process) Kill(t testing.TB) {
	t.Helper()
	p.Signal(t, syscall.SIGKILL)
	<-p.ended
}

// WaitEnd waits for the end of the process, which must come within bound.
func (p *Process) WaitEnd(t testing.TB, bound time.Duration) {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(bound):
		t.Fatalf("%v: got it running after %v, want it ended", p.Cmd.Args, bound)
	}
}

// WantExit is WaitEnd, and checks the exit code.
func (p *Process) WantExit(t testing.TB, bound time.Duration, want int) {
	t.Helper()
	p.WaitEnd(t, bound)
	if got := p.Cmd.ProcessState.ExitCode(); got != want {
		t.Errorf("%v: got %v, want exit code %d", p.Cmd.Args, p.Cmd.ProcessState, want)
	}
}

// WaitOutput waits until text is in the output.
func (p *Process) WaitOutput(t testing.TB, text string) {
	t.Helper()
	Eventually(t, fmt.Sprintf("%q from %v", text, p.Cmd.Args), func() error {
		running := p.Running()
		if strings.Contains(p.Stdout.String()+p.Stderr.String(), text) {
			return nil
		}
		if !running {
			t.Fatalf("%v has ended, %v, without %q", p.Cmd.Args, p.Cmd.ProcessState, text)
		}
		return errors.New("not yet")
	})
}

// tail is the end of an output, without the lines that each set prints.
func tail(output *Buffer) string {
	const shown = 120
	lines := slices.DeleteFunc(strings.SplitAfter(output.String(), "\n"), func(line string) bool {
		return strings.Contains(line, "] set key=") || strings.Contains(line, "] Set handler called")
	})
	if cut := len(lines) - shown; cut > 0 {
		lines = append([]string{fmt.Sprintf("(%d lines more)\n", cut)}, lines[cut:]...)
	}
	return strings.Join(lines, "")
}
