package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// system is what is measured: a running cluster.
type system interface {
	name() string
	// connect returns n clients, each with its connection made, and what closes them
	// and ends what they do.
	connect(ctx context.Context, l load, n int) ([]client, func(), error)
	// fill sets keys from to to-1, several in one request.
	fill(ctx context.Context, from, to int) error
	// cpu is the CPU time that its processes have used so far.
	cpu() (time.Duration, error)
	// check returns an error if one of its processes has ended.
	check() error
	// stop ends its processes. It may be called more than once.
	stop()
}

// process is a child process whose console goes to a file. If this process is killed,
// the kernel ends it too.
type process struct {
	*exec.Cmd
	log   string
	ended chan struct{}
	err   error // how it ended; read once ended is closed
}

// launch starts a process in its own process group: a Ctrl-C reaches this process
// alone, which then ends it.
func launch(log string, env []string, path string, args ...string) (*process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p := &process{Cmd: exec.Command(path, args...), log: log, ended: make(chan struct{})}
	p.Env, p.Stdout, p.Stderr = env, out, out
	p.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.Wait()
		close(p.ended)
	}()
	return p, nil
}

// check returns an error if the process has ended, with the last line of its console.
func (p *process) check() error {
	select {
	case <-p.ended:
		return fmt.Errorf("%s has ended (%w); its last line: %s", filepath.Base(p.Path),
			cmp.Or(p.err, errors.New("exit code 0")), lastLine(p.log))
	default:
		return nil
	}
}

// stop ends the process: by SIGTERM, and if that takes more than 8 s by SIGKILL.
func (p *process) stop() {
	_ = p.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(8 * time.Second):
		_ = p.Process.Kill()
		<-p.ended
	}
}

// forget empties the console's file, which would else grow to gigabytes.
func (p *process) forget() { _ = os.Truncate(p.log, 0) }

func lastLine(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > 4096 {
		_, _ = f.Seek(-4096, io.SeekEnd)
	}
	text, _ := io.ReadAll(f)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return lines[len(lines)-1]
}

// group is the processes of one system.
type group struct {
	label     string
	processes []*process
}

func (g *group) name() string { return g.label }

func (g *group) cpu() (sum time.Duration, err error) {
	for _, p := range g.processes {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Process.Pid))
		if err != nil {
			return 0, errors.Join(p.check(), err)
		}
		used, err := cpuOf(stat)
		if err != nil {
			return 0, err
		}
		sum += used
	}
	return sum, nil
}

// cpuOf takes user and system time out of a /proc/PID/stat. The kernel counts them for
// user space in hundredths of a second.
func cpuOf(stat []byte) (time.Duration, error) {
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:]) // the name before may hold anything
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/PID/stat: %q is too short", stat)
	}
	user, err1 := strconv.ParseInt(string(fields[11]), 10, 64)
	system, err2 := strconv.ParseInt(string(fields[12]), 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(err1, err2)
}

func (g *group) check() error {
	for _, p := range g.processes {
		if err := p.check(); err != nil {
			return fmt.Errorf("%s: %w", g.label, err)
		}
	}
	return nil
}

// stop kills all and waits for them: what they have stored is removed anyway, and an
// etcd that is asked to end first looks for another leader for 7 s.
func (g *group) stop() {
	for _, p := range g.processes {
		_ = p.Process.Kill()
	}
	for _, p := range g.processes {
		<-p.ended
	}
}

func (g *group) forget() {
	for _, p := range g.processes {
		p.forget()
	}
}

// freePorts returns ports of 127.0.0.1 that nobody listens on, outside of the range
// out of which the kernel takes those of outgoing connections: they are still free when
// a node takes them, and when it comes back after a restart.
func freePorts(n int) ([]string, error) {
	low := 32768
	if text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		_, _ = fmt.Sscan(string(text), &low)
	}
	var ports []string
	var held []net.Listener
	for tries := 0; len(ports) < n; tries++ {
		if tries == 1000 || low <= 10001 {
			return nil, errors.New("no free ports from 10000 on below those of outgoing connections " +
				"(/proc/sys/net/ipv4/ip_local_port_range)")
		}
		l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(10000+rand.IntN(low-10000)))
		if err != nil {
			continue
		}
		held = append(held, l)
		_, port, _ := net.SplitHostPort(l.Addr().String())
		ports = append(ports, port)
	}
	for _, l := range held {
		_ = l.Close()
	}
	return ports, nil
}

// environment is this process's without the variables that configure a system.
func environment(more ...string) []string {
	var env []string
	for _, v := range os.Environ() {
		configures := false
		for _, prefix := range []string{"HTTP_", "RAFT_", "LOG_LEVEL=", "ETCD_"} {
			configures = configures || strings.HasPrefix(v, prefix)
		}
		if !configures {
			env = append(env, v)
		}
	}
	return append(env, more...)
}

// raftkv is a cluster of three nodes of this repository.
type raftkv struct {
	group
	binary string
	dir    string
	nodes  [3]node
}

type node struct {
	id, http, raft, volume string // addresses as host:port
}

// startRaftkv starts and joins three nodes with volumes in dir; env is added to the
// environment of each.
func startRaftkv(ctx context.Context, label, binary, dir string, env ...string) (*raftkv, error) {
	c := &raftkv{group: group{label: label}, binary: binary, dir: dir}
	err := c.start(ctx, env)
	if err != nil {
		c.stop()
		return nil, fmt.Errorf("%s: %w", label, err)
	}
	return c, nil
}

func (c *raftkv) start(ctx context.Context, env []string) error {
	ports, err := freePorts(6)
	if err != nil {
		return err
	}
	for i := range c.nodes {
		id := fmt.Sprintf("n%d", i+1)
		c.nodes[i] = node{id, "127.0.0.1:" + ports[2*i], "127.0.0.1:" + ports[2*i+1], filepath.Join(c.dir, id)}
		p, err := c.launch(i, env)
		if err != nil {
			return err
		}
		c.processes = append(c.processes, p)
	}
	for i := range c.nodes {
		if err := c.ready(ctx, i, time.Minute); err != nil {
			return err
		}
	}
	for _, n := range c.nodes[1:] {
		_, port, _ := net.SplitHostPort(n.raft)
		if _, err := fetch(ctx, "http://"+c.nodes[0].http+"/join?nodeId="+n.id+"&raftPort="+port, nil); err != nil {
			return err
		}
	}
	return nil
}

func (c *raftkv) launch(i int, env []string) (*process, error) {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return nil, err
	}
	n := c.nodes[i]
	_, httpPort, _ := net.SplitHostPort(n.http)
	_, raftPort, _ := net.SplitHostPort(n.raft)
	env = append(environment("HTTP_SERVER_PORT="+httpPort, "RAFT_SERVER_PORT="+raftPort,
		"RAFT_NODE_ID="+n.id, "RAFT_VOLUME_DIR="+n.volume, "HTTP_FOLLOWERS=forward"), env...)
	return launch(n.volume+".log", env, c.binary)
}

// restart stops node i and starts it again, with env added to its environment. It
// returns how long the node took from its start until /readyz said so.
func (c *raftkv) restart(ctx context.Context, i int, env ...string) (time.Duration, error) {
	c.processes[i].stop()
	began := time.Now()
	p, err := c.launch(i, env)
	if err != nil {
		return 0, err
	}
	c.processes[i] = p
	err = c.ready(ctx, i, 5*time.Minute)
	return time.Since(began), err
}

// ready returns once node i says that it answers with the newest state.
func (c *raftkv) ready(ctx context.Context, i int, limit time.Duration) error {
	return poll(ctx, limit, func() error {
		if err := c.processes[i].check(); err != nil {
			return fatal{err}
		}
		_, err := get(ctx, "http://"+c.nodes[i].http+"/readyz")
		return err
	})
}

// fatal is an error that poll does not wait out.
type fatal struct{ error }

// poll tries f every 5 ms until it succeeds; its error is that of f after limit, or a
// fatal one at once.
func poll(ctx context.Context, limit time.Duration, f func() error) error {
	for deadline := time.Now().Add(limit); ; wait(ctx, 5*time.Millisecond) {
		err := f()
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		if stop := (fatal{}); errors.As(err, &stop) {
			return stop.error
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("after %v still: %w", limit, err)
		}
	}
}

// leader is the number of the node that leads.
func (c *raftkv) leader(ctx context.Context) (leader int, err error) {
	err = poll(ctx, 30*time.Second, func() error {
		for i, n := range c.nodes {
			text, err := get(ctx, "http://"+n.http+"/status")
			var status struct{ State string }
			if err == nil {
				err = json.Unmarshal(text, &status)
			}
			if err != nil {
				return err
			}
			if status.State == "Leader" {
				leader = i
				return nil
			}
		}
		return errors.New("no node leads")
	})
	return leader, err
}

// level returns once all nodes have applied what the leader has.
func (c *raftkv) level(ctx context.Context) error {
	return poll(ctx, time.Minute, func() error {
		var first uint64
		for i, n := range c.nodes {
			text, err := get(ctx, "http://"+n.http+"/status")
			var status struct{ AppliedIndex uint64 }
			if err == nil {
				err = json.Unmarshal(text, &status)
			}
			if err != nil {
				return err
			}
			if i > 0 && status.AppliedIndex != first {
				return fmt.Errorf("%s has applied entry %d, %s entry %d", c.nodes[0].id, first, n.id, status.AppliedIndex)
			}
			first = status.AppliedIndex
		}
		return nil
	})
}

func (c *raftkv) connect(ctx context.Context, l load, n int) ([]client, func(), error) {
	c.forget()
	leader, err := c.leader(ctx)
	if err != nil {
		return nil, nil, err
	}
	targets := []string{c.nodes[leader].http}
	if l.followers {
		targets = []string{c.nodes[(leader+1)%3].http, c.nodes[(leader+2)%3].http}
	}
	return dialAll(n, func(i int) *httpClient { return newHTTPClient(targets[i%len(targets)], l.stale) })
}

// dialAll connects n HTTP clients.
func dialAll(n int, newClient func(i int) *httpClient) ([]client, func(), error) {
	var clients []client
	var https []*httpClient
	closeAll := func() {
		for _, h := range https {
			h.close()
		}
	}
	for i := range n {
		h := newClient(i)
		if err := h.dial(); err != nil {
			closeAll()
			if errors.Is(err, syscall.EMFILE) {
				err = fmt.Errorf("%w: raise the limit of open files (ulimit -n 8192) and start again", err)
			}
			return nil, nil, err
		}
		clients, https = append(clients, h), append(https, h)
	}
	return clients, closeAll, nil
}

// How many keys fill sets in one request. Etcd takes up to 128; few entries of the log
// keep raftkv from taking a snapshot while it is filled.
const (
	fillBatch     = 1000
	fillBatchEtcd = 100
)

func (c *raftkv) fill(ctx context.Context, from, to int) error {
	leader, err := c.leader(ctx)
	if err != nil {
		return err
	}
	for ; from < to; from += fillBatch {
		var form bytes.Buffer
		for k := from; k < min(from+fillBatch, to); k++ {
			fmt.Fprintf(&form, "&key=%s&value=%s", key(k), value)
		}
		if _, err := fetch(ctx, "http://"+c.nodes[leader].http+"/set", form.Bytes()[1:]); err != nil {
			return err
		}
	}
	c.forget()
	return c.level(ctx)
}

// control is the HTTP client for all but the load.
var control = &http.Client{Timeout: 90 * time.Second, Transport: &http.Transport{}}

// fetch does one request, a POST if there is a form. A 503 says that nothing was done,
// as there is no leader yet: it is tried again for 30 s.
func fetch(ctx context.Context, url string, form []byte) (text []byte, err error) {
	err = poll(ctx, 30*time.Second, func() error {
		if form == nil {
			text, err = get(ctx, url)
		} else {
			text, err = do(ctx, http.MethodPost, url, bytes.NewReader(form))
		}
		if bad := (badStatus{}); err != nil && !(errors.As(err, &bad) && bad.status == http.StatusServiceUnavailable) {
			return fatal{err}
		}
		return err
	})
	return text, err
}

type badStatus struct {
	url, text string
	status    int
}

func (b badStatus) Error() string { return fmt.Sprintf("%s: status %d: %s", b.url, b.status, b.text) }

func get(ctx context.Context, url string) ([]byte, error) {
	return do(ctx, http.MethodGet, url, nil)
}

// do returns the body of the answer; its error is a badStatus unless that is 200.
func do(ctx context.Context, method, url string, body io.Reader) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	response, err := control.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = badStatus{url, string(bytes.TrimSpace(text)), response.StatusCode}
	}
	return text, err
}

// Labels of one cluster of etcd, by the client that drives it.
const (
	etcdLabel   = "etcd"
	etcdGoLabel = "etcd, its Go client"
)

// etcd is a cluster of three etcd members with their defaults, fsync on, driven by a cheap client.
type etcd struct {
	group
	endpoints []string
	control   *clientv3.Client
}

// startEtcd starts three members with their data in dir.
func startEtcd(ctx context.Context, binary, dir string) (*etcd, error) {
	e := &etcd{group: group{label: etcdLabel}}
	if err := e.start(ctx, binary, dir); err != nil {
		e.stop()
		return nil, fmt.Errorf("etcd: %w", err)
	}
	return e, nil
}

func (e *etcd) start(ctx context.Context, binary, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	ports, err := freePorts(6)
	if err != nil {
		return err
	}
	var members []string
	for i := range 3 {
		e.endpoints = append(e.endpoints, "http://127.0.0.1:"+ports[2*i])
		members = append(members, fmt.Sprintf("e%d=http://127.0.0.1:%s", i+1, ports[2*i+1]))
	}
	env := environment()
	if runtime.GOARCH != "amd64" {
		env = append(env, "ETCD_UNSUPPORTED_ARCH="+runtime.GOARCH) // etcd 3.4 wants to be told
	}
	for i, client := range e.endpoints {
		name, peer, _ := strings.Cut(members[i], "=")
		p, err := launch(filepath.Join(dir, name+".log"), env, binary,
			"--name", name, "--data-dir", filepath.Join(dir, name),
			"--listen-client-urls", client, "--advertise-client-urls", client,
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
			"--initial-cluster", strings.Join(members, ","), "--initial-cluster-state", "new",
			"--quota-backend-bytes", strconv.Itoa(8<<30)) // it keeps every version: a long run would fill the default of 2 GiB
		if err != nil {
			return err
		}
		e.processes = append(e.processes, p)
	}
	if e.control, err = newEtcdClient(e.endpoints...); err != nil {
		return err
	}
	return poll(ctx, time.Minute, func() error {
		if err := e.check(); err != nil {
			return fatal{err}
		}
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := e.control.Put(ctx, "up", "")
		return err
	})
}

func newEtcdClient(endpoints ...string) (*clientv3.Client, error) {
	logs := zap.NewProductionConfig()
	logs.Level.SetLevel(zap.ErrorLevel) // no lower lines of the client's over the progress line
	log, err := logs.Build()
	if err != nil {
		return nil, err
	}
	return clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 5 * time.Second, Logger: log})
}

func (e *etcd) stop() {
	if e.control != nil {
		_ = e.control.Close()
	}
	e.group.stop()
}

// leader returns the endpoint of the member that leads, and those of the others.
func (e *etcd) leader(ctx context.Context) (leader string, followers []string, err error) {
	err = poll(ctx, 30*time.Second, func() error {
		leader, followers = "", nil
		for _, endpoint := range e.endpoints {
			status, err := e.control.Status(ctx, endpoint)
			if err != nil {
				return err
			}
			if status.Leader == status.Header.MemberId {
				leader = endpoint
			} else {
				followers = append(followers, endpoint)
			}
		}
		if leader == "" {
			return errors.New("no member leads")
		}
		return nil
	})
	return leader, followers, err
}

// etcdByGo is the same cluster, driven by etcd's own Go client.
type etcdByGo struct{ *etcd }

func (e etcdByGo) name() string { return etcdGoLabel }

// etcdConnections is how many gRPC connections n clients share: etcd's own guide to
// measuring it has 100 for 1,000 clients. (64 clients were slower with fewer and with more.)
func etcdConnections(n int) int { return min(n, 100, 1+n/10) }

// targets are the members that a load goes to.
func (e *etcd) targets(ctx context.Context, l load) ([]string, error) {
	e.forget()
	leader, followers, err := e.leader(ctx)
	if l.followers {
		return followers, err
	}
	return []string{leader}, err
}

func (e *etcd) connect(ctx context.Context, l load, n int) ([]client, func(), error) {
	targets, err := e.targets(ctx, l)
	if err != nil {
		return nil, nil, err
	}
	var connections []*grpcConn
	closeAll := func() {
		for _, c := range connections {
			c.close()
		}
	}
	for i := range max(etcdConnections(n), min(n, len(targets))) {
		c, err := dialGRPC(targets[i%len(targets)])
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		connections = append(connections, c)
	}
	clients := make([]client, n)
	for i := range clients {
		at := i % len(connections)
		clients[i] = newEtcdGRPC(connections[at], targets[at%len(targets)], l.stale)
	}
	return clients, closeAll, nil
}

func (e etcdByGo) connect(ctx context.Context, l load, n int) ([]client, func(), error) {
	targets, err := e.targets(ctx, l)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var connections []*clientv3.Client
	closeAll := func() {
		cancel()
		for _, c := range connections {
			_ = c.Close()
		}
	}
	for i := range max(etcdConnections(n), min(n, len(targets))) {
		c, err := newEtcdClient(targets[i%len(targets)])
		if err == nil {
			connections = append(connections, c)
			_, err = c.Get(ctx, "up", clientv3.WithSerializable())
		}
		if err != nil {
			closeAll()
			return nil, nil, err
		}
	}
	var options []clientv3.OpOption
	if l.stale {
		options = append(options, clientv3.WithSerializable())
	}
	clients := make([]client, n)
	for i := range clients {
		clients[i] = &etcdGoClient{ctx, connections[i%len(connections)], options}
	}
	return clients, closeAll, nil
}

func (e *etcd) fill(ctx context.Context, from, to int) error {
	for ; from < to; from += fillBatchEtcd {
		var puts []clientv3.Op
		for k := from; k < min(from+fillBatchEtcd, to); k++ {
			puts = append(puts, clientv3.OpPut(key(k), string(value)))
		}
		if _, err := e.control.Txn(ctx).Then(puts...).Commit(); err != nil {
			return err
		}
	}
	return nil
}

type etcdGoClient struct {
	ctx        context.Context // of all clients of one measurement
	connection *clientv3.Client
	options    []clientv3.OpOption
}

func (c *etcdGoClient) write(k int) error {
	_, err := c.connection.Put(c.ctx, key(k), string(value))
	return err
}

func (c *etcdGoClient) read(k int) error {
	answer, err := c.connection.Get(c.ctx, key(k), c.options...)
	if err == nil && (len(answer.Kvs) != 1 || len(answer.Kvs[0].Value) != valueBytes) {
		err = fmt.Errorf("etcd has not the value of %s", key(k))
	}
	return err
}

// hraftdLabel is the name of that system, and of its binary.
const hraftdLabel = "hraftd"

// certsLabel is raftkv whose nodes show certificates to each other.
const certsLabel = "raftkv, mTLS"

// hraftd is a cluster of three nodes of hraftd, the reference example of hashicorp/raft,
// with its defaults: the log is a bbolt file, synced at each commit.
type hraftd struct {
	group
	addresses []string // of the nodes started so far, for HTTP
	marks     int      // how often mark has been called
}

// startHraftd starts and joins three nodes with their volumes in dir.
func startHraftd(ctx context.Context, binary, dir string) (*hraftd, error) {
	h := &hraftd{group: group{label: hraftdLabel}}
	if err := h.start(ctx, binary, dir); err != nil {
		h.stop()
		return nil, fmt.Errorf("hraftd: %w", err)
	}
	return h, nil
}

func (h *hraftd) start(ctx context.Context, binary, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	ports, err := freePorts(6)
	if err != nil {
		return err
	}
	for i := range 3 {
		id, address := fmt.Sprintf("h%d", i+1), "127.0.0.1:"+ports[2*i]
		args := []string{"-id", id, "-haddr", address, "-raddr", "127.0.0.1:" + ports[2*i+1]}
		if i > 0 {
			args = append(args, "-join", h.addresses[0])
		}
		volume := filepath.Join(dir, id)
		p, err := launch(volume+".log", environment(), binary, append(args, volume)...)
		if err != nil {
			return err
		}
		h.processes, h.addresses = append(h.processes, p), append(h.addresses, address)
		if err := h.level(ctx); err != nil { // it says nothing when nobody lets it join
			return err
		}
	}
	return nil
}

// mark writes a key beside those of the load, with another value each time, and returns
// that JSON and the address of the node that took it. That is the leader: the others
// refuse, and hraftd does not say in another way which leads.
func (h *hraftd) mark(ctx context.Context) (pair, leader string, err error) {
	h.marks++
	pair = fmt.Sprintf(`{"mark":"%d"}`, h.marks)
	err = poll(ctx, 30*time.Second, func() (refused error) {
		if err := h.check(); err != nil {
			return fatal{err}
		}
		for _, leader = range h.addresses {
			if _, refused = do(ctx, http.MethodPost, "http://"+leader+"/key", strings.NewReader(pair)); refused == nil {
				return nil
			}
		}
		return refused
	})
	return pair, leader, err
}

// level returns once all nodes have applied what the leader has.
func (h *hraftd) level(ctx context.Context) error {
	want, _, err := h.mark(ctx)
	if err != nil {
		return err
	}
	return poll(ctx, time.Minute, func() error {
		if err := h.check(); err != nil {
			return fatal{err}
		}
		for _, address := range h.addresses {
			got, err := get(ctx, "http://"+address+"/key/mark")
			if err == nil && string(got) != want {
				err = fmt.Errorf("%s has %s, the leader %s", address, got, want)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// connect is for writes alone: all reads of hraftd's are stale, and not measured.
func (h *hraftd) connect(ctx context.Context, _ load, n int) ([]client, func(), error) {
	h.forget()
	_, leader, err := h.mark(ctx)
	if err != nil {
		return nil, nil, err
	}
	return dialAll(n, func(int) *httpClient { return newHraftdClient(leader) })
}

// newHraftdClient is a client of an hraftd node that only writes.
func newHraftdClient(address string) *httpClient {
	body := fmt.Sprintf(`{"%s":"%s"}`, key(0), value)
	return &httpClient{
		address: address,
		set:     fmt.Appendf(nil, "POST /key HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n%s", address, len(body), body),
	}
}

// fillClients is how many clients fill hraftd: it makes an entry of each key, even of
// those of one request.
const fillClients = 64

func (h *hraftd) fill(ctx context.Context, from, to int) error {
	clients, disconnect, err := h.connect(ctx, writes, fillClients)
	if err != nil {
		return err
	}
	defer disconnect()
	defer context.AfterFunc(ctx, disconnect)()
	errs := make([]error, len(clients))
	var filling sync.WaitGroup
	for i, c := range clients {
		filling.Go(func() {
			for k := from + i; k < to && errs[i] == nil; k += len(clients) {
				errs[i] = c.write(k)
			}
		})
	}
	filling.Wait()
	if err := cmp.Or(append([]error{ctx.Err()}, errs...)...); err != nil {
		return err
	}
	return h.level(ctx)
}

// empty is one process with an empty net/http handler: what the HTTP client, net/http
// and the loopback leave to any system.
type empty struct {
	group
	address string
}

// emptyLabel is the name of that system.
const emptyLabel = "empty handler"

// serveEmptyArgument makes this binary that process.
const serveEmptyArgument = "serve-empty-handler"

// serveEmpty serves until it is killed; it prints its address on a line.
func serveEmpty() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	return http.Serve(l, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
}

// startEmpty starts it with its console in dir.
func startEmpty(ctx context.Context, dir string) (*empty, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p, err := launch(filepath.Join(dir, "empty.log"), os.Environ(), self, serveEmptyArgument)
	if err != nil {
		return nil, err
	}
	e := &empty{group: group{label: emptyLabel, processes: []*process{p}}}
	err = poll(ctx, 10*time.Second, func() error {
		text, err := os.ReadFile(p.log)
		if err == nil && !bytes.HasSuffix(text, []byte("\n")) {
			err = errors.New("the empty handler has not said its address")
		}
		e.address = strings.TrimSpace(string(text))
		return errors.Join(err, fatalOrNil(p.check()))
	})
	if err != nil {
		e.stop()
		return nil, err
	}
	return e, nil
}

func fatalOrNil(err error) error {
	if err == nil {
		return nil
	}
	return fatal{err}
}

func (e *empty) connect(_ context.Context, _ load, n int) ([]client, func(), error) {
	return dialAll(n, func(int) *httpClient {
		h := newHTTPClient(e.address, false)
		h.want = 0
		return h
	})
}

func (e *empty) fill(context.Context, int, int) error { return nil }

// memory is the memory of process p that is backed by no file, in bytes: its heap and
// stacks, without the pages of raft.db that bbolt maps.
func (p *process) memory() (uint64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", p.Process.Pid))
	if err != nil {
		return 0, errors.Join(p.check(), err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "RssAnon:"); ok {
			var kib uint64
			_, err := fmt.Sscan(rest, &kib)
			return kib << 10, err
		}
	}
	return 0, errors.New("/proc/PID/status: no RssAnon (Linux 4.5 or newer has it)")
}
