package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"raftkv/internal/testkit"
)

// patroniTTL is the time of the lease of Patroni's leader, the least that its documentation has.
const patroniTTL = 20 * time.Second

// relay carries the connections to a node, until it is cut: then it takes them, and nothing comes through.
type relay struct {
	net.Listener
	target string

	mu    sync.Mutex // guards what follows
	lost  bool       // the bytes that come
	conns []net.Conn
}

// newRelay returns a relay to a port of loopback.
func newRelay(t *testing.T, port string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{Listener: l, target: "127.0.0.1:" + port}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("tcp", r.target)
			if err != nil { // the node is down
				_ = from.Close()
				continue
			}
			r.mu.Lock()
			r.conns = append(r.conns, from, to)
			r.mu.Unlock()
			for _, way := range [][2]net.Conn{{from, to}, {to, from}} {
				running.Go(func() { r.carry(way[0], way[1]) })
			}
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		r.set(false)
		running.Wait()
	})
	return r
}

// carry sends what comes from one connection to the other, and closes both at its end.
func (r *relay) carry(from, to net.Conn) {
	defer func() { _, _ = from.Close(), to.Close() }()
	chunk := make([]byte, 32<<10)
	for {
		n, err := from.Read(chunk)
		r.mu.Lock()
		lost := r.lost
		r.mu.Unlock()
		if !lost && n > 0 {
			if _, err := to.Write(chunk[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// set cuts the relay, or heals it: the connections so far are then closed.
func (r *relay) set(lost bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lost = lost
	if !lost {
		for _, c := range r.conns {
			_ = c.Close()
		}
		r.conns = nil
	}
}

// patroni is a PostgreSQL under Patroni, with a directory and ports of its own.
type patroni struct {
	t                        *testing.T
	name, dir, bin           string
	restPort, pgPort, config string
	credential               *syscall.Credential
	run                      *exec.Cmd // the last one
	ended                    chan struct{}
}

// newPatroni returns one that was never started. etcd3 is what its configuration has of the nodes. Where Patroni or
// PostgreSQL is missing, or this is not root, which alone can become the user postgres, it skips the test.
func newPatroni(t *testing.T, name, etcd3 string) *patroni {
	t.Helper()
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	owner, err := user.Lookup("postgres")
	_, found := exec.LookPath("patroni")
	if len(bins) == 0 || err != nil || found != nil || os.Getuid() != 0 {
		t.Skipf("want root, PostgreSQL and Patroni: got user %d, %v, %v, %v", os.Getuid(), bins, err, found)
	}
	uid, _ := strconv.ParseUint(owner.Uid, 10, 32)
	gid, _ := strconv.ParseUint(owner.Gid, 10, 32)
	dir, err := os.MkdirTemp("", "raftkv-"+name+"-") // not that of t, which postgres may not enter
	if err == nil {
		err = os.Chown(dir, int(uid), int(gid))
	}
	if err != nil {
		t.Fatal(err)
	}
	p := &patroni{t: t, name: name, dir: dir, bin: filepath.Dir(bins[len(bins)-1]), restPort: testkit.FreePort(t),
		pgPort: testkit.FreePort(t), credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	p.config = filepath.Join(dir, "patroni.yml")
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			out, _ := exec.Command("tail", "-n", "120", filepath.Join(dir, "log")).Output()
			t.Logf("%s:\n%s", name, out)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	// The primary confirms what its standby has, as without that a failover may lose what was confirmed.
	text := fmt.Sprintf(`scope: raftkv
name: %s
restapi: {listen: 127.0.0.1:%[2]s, connect_address: 127.0.0.1:%[2]s}
etcd3: %[5]s
bootstrap:
  dcs:
    ttl: %[6]d
    loop_wait: 2
    retry_timeout: 9
    synchronous_mode: true
    postgresql: {use_pg_rewind: true}
  initdb: [encoding: UTF8, no-locale, auth: trust]
  pg_hba: [host all all 127.0.0.1/32 trust, host replication all 127.0.0.1/32 trust, local all all trust]
postgresql:
  listen: 127.0.0.1:%[3]s
  connect_address: 127.0.0.1:%[3]s
  data_dir: %[4]s/data
  bin_dir: %[7]s
  pgpass: %[4]s/pgpass
  authentication: {superuser: {username: postgres}, replication: {username: replicator}}
  parameters: {unix_socket_directories: %[4]s, shared_buffers: 16MB}
`, name, p.restPort, p.pgPort, dir, etcd3, int(patroniTTL/time.Second), p.bin)
	if err := os.WriteFile(p.config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *patroni) start() {
	p.t.Helper()
	log, err := os.OpenFile(filepath.Join(p.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	p.run = exec.Command("patroni", p.config)
	p.run.Dir, p.run.Env = p.dir, []string{"PATH=/usr/bin:/bin", "HOME=" + p.dir, "LC_ALL=C.UTF-8"}
	p.run.Stdout, p.run.Stderr = log, log
	p.run.SysProcAttr = &syscall.SysProcAttr{Credential: p.credential}
	if err := p.run.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.ended = make(chan struct{})
	go func() {
		defer close(p.ended)
		_ = p.run.Wait()
	}()
}

// kill ends Patroni and its PostgreSQL at once, as the end of a machine does.
func (p *patroni) kill() {
	if p.run == nil {
		return
	}
	_ = p.run.Process.Kill() // an error: it has ended
	<-p.ended
	text, err := os.ReadFile(filepath.Join(p.dir, "data", "postmaster.pid"))
	if err != nil {
		return // PostgreSQL has ended in order
	}
	first, _, _ := strings.Cut(string(text), "\n")
	if pid, err := strconv.Atoi(first); err == nil && pid > 1 {
		if at, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err == nil && at == filepath.Join(p.dir, "data") {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	if err := testkit.Poll(testkit.Bound, func() error { return testkit.PortFree(p.pgPort) }); err != nil {
		p.t.Error(err)
	}
}

// patroniState is what Patroni reports of itself.
type patroniState struct {
	State, Role string
	Timeline    int
	Seen        int64 `json:"dcs_last_seen"` // when it last had all that it needs of the store, in seconds
}

func (s patroniState) primary() bool { return s.Role == "master" || s.Role == "primary" }

func (p *patroni) ask(path string, into any) error {
	response, err := http.Get("http://127.0.0.1:" + p.restPort + path)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	return json.NewDecoder(response.Body).Decode(into)
}

func (p *patroni) state() (s patroniState, err error) {
	err = p.ask("/patroni", &s)
	return s, err
}

// waitPrimary waits until this is the primary, in this timeline of PostgreSQL, which has one more after each failover.
func (p *patroni) waitPrimary(timeline int, bound time.Duration) {
	p.t.Helper()
	err := testkit.Poll(bound, func() error {
		s, err := p.state()
		if err == nil && (!s.primary() || s.State != "running" || s.Timeline != timeline) {
			err = fmt.Errorf("got %+v", s)
		}
		return err
	})
	if err != nil {
		p.t.Fatalf("%s is the primary in timeline %d: %v", p.name, timeline, err)
	}
}

// waitStandby waits until p has another one as the standby that it waits for.
func (p *patroni) waitStandby(other *patroni) {
	p.t.Helper()
	testkit.Eventually(p.t, other.name+" is the standby of "+p.name, func() error {
		var cluster struct {
			Members []struct{ Name, Role, State string }
		}
		if err := p.ask("/cluster", &cluster); err != nil {
			return err
		}
		for _, m := range cluster.Members {
			if m.Name == other.name && m.Role == "sync_standby" {
				return nil
			}
		}
		return fmt.Errorf("got %+v", cluster.Members)
	})
}

// sql carries out a statement at servers, the first of them that takes writes if there are several.
func sql(ctx context.Context, statement string, servers ...*patroni) (string, error) {
	var hosts, ports []string
	for _, p := range servers {
		hosts, ports = append(hosts, "127.0.0.1"), append(ports, p.pgPort)
	}
	to := fmt.Sprintf("host=%s port=%s user=postgres dbname=postgres connect_timeout=5", strings.Join(hosts, ","),
		strings.Join(ports, ","))
	if len(servers) > 1 {
		to += " target_session_attrs=read-write"
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(servers[0].bin, "psql"), "-XAtqc", statement, to)
	cmd.Env = []string{"LC_ALL=C.UTF-8"}
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", statement, err, &stderr)
	}
	return strings.TrimSpace(stdout.String()), nil
}

// rows writes rows, one after another, to the one of two servers that takes them.
type rows struct {
	mu        sync.Mutex // guards what follows
	confirmed []int
}

func (r *rows) write(ctx context.Context, servers ...*patroni) {
	for n := 1; ctx.Err() == nil; n++ {
		if _, err := sql(ctx, fmt.Sprintf("INSERT INTO t VALUES (%d)", n), servers...); err == nil {
			r.mu.Lock()
			r.confirmed = append(r.confirmed, n)
			r.mu.Unlock()
		}
	}
}

func (r *rows) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.confirmed)
}

// TestPatroni has Debian's Patroni keep two PostgreSQL, a primary and a standby, by a raftkv of three. The death of
// raftkv's leader fails nothing over, that of the primary does, and a primary that no longer reaches raftkv is demoted,
// all of it without two primaries at a time and without the loss of a row.
func TestPatroni(t *testing.T) {
	slow(t)
	t.Parallel()
	nodes := testkit.StartCluster(t, binary(t), 3, "ETCD_API=on")
	var direct, relayed []string
	var relays []*relay
	for _, n := range nodes {
		r := newRelay(t, n.HTTPPort)
		relays = append(relays, r)
		direct, relayed = append(direct, "127.0.0.1:"+n.HTTPPort), append(relayed, r.Addr().String())
	}
	// One finds the nodes by the list of members; the other, which is cut off later, keeps to the relays.
	one := newPatroni(t, "pg1", fmt.Sprintf("{hosts: %q}", strings.Join(direct, ",")))
	two := newPatroni(t, "pg2", fmt.Sprintf("{hosts: %q, use_proxies: true}", strings.Join(relayed, ",")))
	begin := time.Now()
	one.start()
	one.waitPrimary(1, testkit.Bound)
	two.start()
	one.waitStandby(two)
	t.Logf("formed after %v", time.Since(begin).Round(time.Second))

	if _, err := sql(t.Context(), "CREATE TABLE t (n int PRIMARY KEY)", one); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var written rows
	var writing sync.WaitGroup
	writing.Go(func() { written.write(ctx, one, two) })
	defer writing.Wait()
	defer stop()
	more := func(what string) {
		t.Helper()
		before := written.count()
		testkit.Eventually(t, "rows are written "+what, func() error {
			if written.count() < before+2 {
				return errors.New("none yet")
			}
			return nil
		})
	}
	more("at first")

	leader, others := testkit.Leader(t, nodes...)
	leader.Kill(t)
	testkit.Leader(t, others...)
	elected := time.Now().Unix()
	for _, p := range []*patroni{one, two} {
		testkit.Eventually(t, p.name+" goes on with the new leader", func() error {
			s, err := p.state()
			if err == nil && (s.Seen <= elected+3 || s.State != "running") { // a loop has 2 s
				err = fmt.Errorf("got %+v", s)
			}
			return err
		})
	}
	one.waitPrimary(1, testkit.Bound)
	more("with another leader of raftkv")
	leader.Start(t)

	killed := time.Now()
	one.kill()
	two.waitPrimary(2, patroniTTL+10*time.Second)
	t.Logf("failed over %v after the death of the primary", time.Since(killed).Round(time.Second))
	more("after the death of the primary")
	one.start()
	two.waitStandby(one)

	cut := time.Now()
	for _, r := range relays {
		r.set(true)
	}
	err := testkit.Poll(patroniTTL+10*time.Second, func() error {
		recovers, err := sql(t.Context(), "SELECT pg_is_in_recovery()", one)
		if err != nil || recovers != "f" {
			return fmt.Errorf("pg1: got %q, %v, want it the primary", recovers, err)
		}
		if recovers, err := sql(t.Context(), "SELECT pg_is_in_recovery()", two); err == nil && recovers == "f" {
			t.Errorf("pg2 is the primary still, %v after it was cut off, and pg1 too", time.Since(cut))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("failed over %v after the primary was cut off", time.Since(cut).Round(time.Second))
	one.waitPrimary(3, testkit.Bound)
	more("after the primary was cut off")
	if s, err := two.state(); err != nil || s.primary() {
		t.Errorf("pg2, cut off: got %+v, %v, want no primary", s, err)
	}
	for _, r := range relays {
		r.set(false)
	}
	one.waitStandby(two)
	more("at the end")
	stop()
	writing.Wait()

	var acknowledged []string
	for _, n := range written.confirmed {
		acknowledged = append(acknowledged, strconv.Itoa(n))
	}
	lost := fmt.Sprintf("SELECT count(*) FROM unnest('{%s}'::int[]) AS confirmed(n) WHERE n NOT IN (SELECT n FROM t)",
		strings.Join(acknowledged, ","))
	for _, p := range []*patroni{one, two} {
		testkit.Eventually(t, p.name+" has all rows", func() error {
			got, err := sql(t.Context(), lost, p)
			if err == nil && got != "0" {
				err = fmt.Errorf("got %s of %d missing", got, len(acknowledged))
			}
			return err
		})
	}
	t.Logf("%d rows were confirmed, none is lost", len(acknowledged))
	testkit.CheckReplicas(t, nodes...)
}
