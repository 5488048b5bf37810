package faults

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"raftkv/internal/testkit"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// node is a process of the binary, with its volume.
type node struct {
	t      testing.TB
	id     string
	number int // of its host
	space  *space
	host   string
	http   string // port
	raft   string // port
	volume string
	log    string // path of its console
	env    []string
	binary string // empty: as all
	token  string // of the right admin; empty: the node asks for none

	// Clients read it while they use the node; whoever makes the node one of another
	// cluster writes it first.
	open sync.RWMutex
	shut atomic.Bool // it is no member: clients leave it alone

	mu    sync.Mutex // guards what follows
	cmd   *exec.Cmd
	ended chan struct{} // closed when the process has ended
	still bool          // stopped by SIGSTOP
}

// newNode returns a node that was never started; its volume does not exist.
func newNode(t testing.TB, number int, dir string, env ...string) *node {
	t.Helper()
	id := "n" + strconv.Itoa(number)
	n := &node{t: t, id: id, number: number, host: "127.0.0.1", http: "8000", raft: "9000", env: env,
		volume: filepath.Join(t.TempDir(), id), log: filepath.Join(dir, id+".log"), ended: make(chan struct{})}
	close(n.ended)
	if wires != nil {
		var err error
		if n.space, err = wires.host(number); err != nil {
			t.Fatal(err)
		}
		n.host = address(number).String()
	} else {
		n.http, n.raft = testkit.FreePort(t), testkit.FreePort(t)
	}
	t.Cleanup(n.kill)
	return n
}

// address is that of a host of the nodes' own network.
func address(host int) netip.Addr { return netip.AddrFrom4([4]byte{10, 77, 0, byte(host)}) }

// start starts the process, unless it runs.
func (n *node) start(more ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case <-n.ended:
	default:
		return
	}
	console, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		n.t.Error(err)
		return
	}
	defer func() { _ = console.Close() }()
	cmd := exec.Command(cmp.Or(n.binary, binary))
	cmd.Stdout, cmd.Stderr = console, console
	cmd.Env = append(testkit.Environ(), "RAFT_NODE_ID="+n.id, "RAFT_VOLUME_DIR="+n.volume, "HTTP_SERVER_PORT="+n.http,
		"RAFT_SERVER_PORT="+n.raft,
		"HTTP_SERVER_HOST="+n.host, "RAFT_SERVER_HOST="+n.host, "INSECURE=yes", "GOTRACEBACK=all")
	cmd.Env = append(append(cmd.Env, n.env...), more...)
	if n.space != nil {
		err = n.space.start(cmd)
	} else {
		err = cmd.Start()
	}
	if err != nil {
		n.t.Error(err)
		return
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	n.cmd, n.ended, n.still = cmd, ended, false
}

func (n *node) process() (cmd *exec.Cmd, ended chan struct{}, still bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cmd, n.ended, n.still
}

func (n *node) running() bool {
	_, ended, _ := n.process()
	select {
	case <-ended:
		return false
	default:
		return true
	}
}

// active reports whether the process runs and is not stopped.
func (n *node) active() bool {
	_, _, still := n.process()
	return n.running() && !still
}

// state is how the process has ended.
func (n *node) state() *os.ProcessState {
	cmd, _, _ := n.process()
	return cmd.ProcessState
}

// signal sends a signal, if the process runs.
func (n *node) signal(s syscall.Signal) {
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case <-n.ended:
		return
	default:
	}
	n.still = s == syscall.SIGSTOP || n.still && s != syscall.SIGCONT
	_ = n.cmd.Process.Signal(s)
}

// kill ends the process by SIGKILL.
func (n *node) kill() {
	n.signal(syscall.SIGKILL)
	_, ended, _ := n.process()
	<-ended
}

// ends waits for the end of the process and returns its exit code.
func (n *node) ends(limit time.Duration) (code int, err error) {
	cmd, ended, _ := n.process()
	select {
	case <-ended:
		return cmd.ProcessState.ExitCode(), nil
	case <-time.After(limit):
		return 0, fmt.Errorf("%s still runs after %v", n.id, limit)
	}
}

// lastLine is the last line of the console.
func (n *node) lastLine() string {
	lines := strings.Split(strings.TrimSpace(n.console()), "\n")
	return lines[len(lines)-1]
}

func (n *node) console() string {
	b, _ := os.ReadFile(n.log)
	return string(b)
}

func (n *node) base() string { return "http://" + net.JoinHostPort(n.host, n.http) }

// asking is for what tests ask for themselves.
var asking = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 4,
	DialContext: (&net.Dialer{Timeout: time.Second}).DialContext}}

// ask sends a GET and follows it to the leader. Its error has any answer but 200.
func (n *node) ask(limit time.Duration, path string, query url.Values) (string, error) {
	a, err := n.with(limit, n.token, path, query)
	if err == nil && a.Status != http.StatusOK {
		err = fmt.Errorf("%s: %d %s", n.id, a.Status, strings.TrimSpace(a.Body))
	}
	return a.Body, err
}

// with sends a GET with a token, if it is not empty, also where the request is redirected to: another node has another
// host, and http.Client would drop it.
func (n *node) with(limit time.Duration, token, path string, query url.Values) (a testkit.Answer, err error) {
	r, err := http.NewRequest(http.MethodGet, n.base()+path+"?"+query.Encode(), nil)
	if err != nil {
		return a, err
	}
	c := *asking
	c.Timeout = limit
	if token != "" {
		const header = "Authorization"
		r.Header.Set(header, "Bearer "+token)
		c.CheckRedirect = func(to *http.Request, via []*http.Request) error {
			if to.Header.Set(header, r.Header.Get(header)); len(via) > 10 {
				return errors.New("more than 10 redirects")
			}
			return nil
		}
	}
	return testkit.Send(&c, r)
}

// At makes a node a testkit.Peer.
func (n *node) At() testkit.Client { return testkit.Client{ID: n.id, Base: n.base(), Token: n.token} }

func (n *node) status() (s testkit.Status, err error) {
	body, err := n.ask(1500*time.Millisecond, "/status", nil)
	if err == nil {
		err = json.Unmarshal([]byte(body), &s)
	}
	return s, err
}

// leads reports whether the node takes itself for the leader. It answers at once, as
// status does not while a member is away.
func (n *node) leads() bool {
	c := *asking
	c.Timeout = time.Second
	response, err := c.Get(n.base() + "/get?key=probe&consistency=stale")
	if err != nil {
		return false
	}
	_ = response.Body.Close()
	return response.Header.Get("Raftkv-Leader") == n.id
}

// descriptors is how many the process has open; 0 where that can't be told.
func (n *node) descriptors() int {
	cmd, _, _ := n.process()
	entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", cmd.Process.Pid))
	return len(entries)
}
