package faults

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"raftkv/internal/testkit"
)

// What compose.yaml starts, without a container engine: each service has a network namespace, an address on one
// network, a root directory with what the image has and the user of the image. Its environment is that of the file,
// and other services are known to it by a DNS server alone, which knows, as an engine's does, those that run.

// olderProgram is a commit with compose.yaml as it is, whose program knows cluster format 2 only.
const olderProgram = "1b37e3fe2f57"

// TestCompose starts the services in every order, each time as new; then, under writes, upgrades them one by one from
// an older program, removes the volume of one, and gives each in turn another address. No acknowledged write is lost.
func TestCompose(t *testing.T) {
	switch {
	case testing.Short():
		t.Skip("takes long: not with -short")
	case wires == nil:
		t.Skip("needs a network of its own")
	case os.Getuid() != 0:
		t.Skip("needs root: the services run as another user, in root directories of their own")
	}
	programs := t.TempDir()
	newer, older := filepath.Join(programs, "newer"), filepath.Join(programs, "older")
	buildStatic(t, testkit.SourceOf(t, olderProgram), older)
	buildStatic(t, "../..", newer)

	c := newComposition(t, newer)
	permute([]string{"n1", "n2", "n3"}, func(order []string) {
		c.startInOrder(order)
		c.down()
	})
	for _, s := range c.services {
		s.program = older
	}
	c.startInOrder([]string{"n3", "n1", "n2"})
	load := c.write()
	for _, s := range c.services {
		s.stop()
		s.program = newer
		s.start()
		s.waitReady()
		load.wantProgress(s.ID + " has the newer program")
	}
	c.set("/set", url.Values{"key": {"ends"}, "value": {"1"}, "ttl": {"1h"}}) // which the older program does not know

	wiped := c.services[1]
	wiped.stop()
	wiped.removeVolume()
	wiped.start()
	testkit.Eventually(t, "advice for the service without its volume", func() error {
		_, err := wiped.ask("/readyz", nil)
		want := regexp.MustCompile(`: 503 .*n2 is a member, but the node at n2:9000 has lost its volume; ` +
			`/leave\?nodeId=n2 first`)
		if err == nil || !want.MatchString(err.Error()) {
			return fmt.Errorf("got %v, want 503 that names what to do, %v", err, want)
		}
		return nil
	})
	load.wantProgress("n2 has lost its volume")
	c.set("/leave", url.Values{"nodeId": {"n2"}}) // docs/operations.md: the node then joins by itself
	wiped.waitReady()
	load.wantProgress("n2 is a member again")

	for k, s := range c.services {
		s.stop()
		s.move(40 + k)
		s.start()
		s.waitReady()
		load.wantProgress(s.ID + " has another address")
	}
	load.stop()

	values := testkit.CheckReplicas(t, c.services...)
	lost := 0
	for key := range load.acknowledged {
		if values[key] != "the value of "+key {
			lost++
		}
	}
	t.Logf("%d writes acknowledged, %d without an answer or refused", len(load.acknowledged), load.others.Load())
	if lost > 0 {
		t.Errorf("%d of %d acknowledged writes are lost", lost, len(load.acknowledged))
	}
	if status, err := c.services[0].At().Status(); err != nil || len(status.Members) != 3 || status.Format < 3 {
		t.Errorf("got %+v, %v, want 3 members and format 3 or newer", status, err)
	}
	c.down()
}

// permute calls do with each order of the names.
func permute(names []string, do func(order []string)) {
	var place func(order, rest []string)
	place = func(order, rest []string) {
		if len(rest) == 0 {
			do(order)
		}
		for i := range rest {
			place(append(slices.Clone(order), rest[i]), slices.Delete(slices.Clone(rest), i, i+1))
		}
	}
	place(nil, names)
}

// buildStatic builds the program of a source tree as Containerfile does.
func buildStatic(t *testing.T, tree, path string) {
	t.Helper()
	build := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-ldflags", "-s -w", "-o", path, ".")
	build.Dir, build.Env = tree, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
}

// composition is all services of compose.yaml.
type composition struct {
	t        *testing.T
	dns      *nameServer
	services []*service
}

// service is one of them. It embeds its client, so it is a testkit.Peer.
type service struct {
	testkit.Client
	of          *composition
	environment []string
	program     string // what the image has as /raftkv
	root        string // directory
	address     netip.Addr
	space       *space
	process     *testkit.Process
}

// imageUser is that of Containerfile.
const imageUser = 65532

// newComposition reads compose.yaml and Containerfile. Nothing runs yet.
func newComposition(t *testing.T, program string) *composition {
	t.Helper()
	var file struct {
		Services map[string]struct {
			Environment map[string]string `yaml:"environment"`
			Volumes     []string          `yaml:"volumes"`
		} `yaml:"services"`
	}
	text, err := os.ReadFile("../../compose.yaml")
	if err == nil {
		err = yaml.Unmarshal(text, &file)
	}
	image, errImage := os.ReadFile("../../Containerfile")
	if err = errors.Join(err, errImage); err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(image, fmt.Appendf(nil, "\nUSER %d:%[1]d\n", imageUser)) {
		t.Fatalf("Containerfile has no USER %d", imageUser)
	}
	env := regexp.MustCompile(`(?m)^ENV (.*)$`).FindSubmatch(image)
	if env == nil {
		t.Fatal("Containerfile has no ENV")
	}
	c := &composition{t: t, dns: newNameServer(t)}
	for i, id := range slices.Sorted(maps.Keys(file.Services)) {
		s := &service{of: c, program: program, root: t.TempDir(), environment: strings.Fields(string(env[1]))}
		s.ID = id
		for name, value := range file.Services[id].Environment {
			s.environment = append(s.environment, name+"="+value)
		}
		if want := []string{id + ":/data"}; !slices.Equal(file.Services[id].Volumes, want) {
			t.Fatalf("compose.yaml: the volumes of %s are %q, want %q", id, file.Services[id].Volumes, want)
		}
		s.prepare()
		s.move(30 + i)
		c.services = append(c.services, s)
	}
	if len(c.services) != 3 {
		t.Fatalf("compose.yaml: got %d services, want 3", len(c.services))
	}
	return c
}

// prepare makes the root directory, which nobody but root may write to, and in it the volume.
func (s *service) prepare() {
	s.of.t.Helper()
	for _, dir := range []string{"", "etc", "proc"} {
		path := filepath.Join(s.root, dir)
		if err := errors.Join(os.MkdirAll(path, 0o755), os.Chmod(path, 0o755)); err != nil {
			s.of.t.Fatal(err)
		}
	}
	resolver := fmt.Sprintf("nameserver %v\noptions ndots:0\n", address(self))
	if err := os.WriteFile(filepath.Join(s.root, "etc/resolv.conf"), []byte(resolver), 0o644); err != nil {
		s.of.t.Fatal(err)
	}
	proc := filepath.Join(s.root, "proc")
	if err := unix.Mount("/proc", proc, "", unix.MS_BIND, ""); err != nil {
		s.of.t.Fatalf("%s: %v", proc, err)
	}
	s.of.t.Cleanup(func() {
		if err := unix.Unmount(proc, unix.MNT_DETACH); err != nil {
			s.of.t.Errorf("%s: %v", proc, err)
		}
	})
	s.removeVolume()
}

// removeVolume makes the volume an empty one, which is owned as /data of the image is.
func (s *service) removeVolume() {
	s.of.t.Helper()
	volume := filepath.Join(s.root, "data")
	if err := errors.Join(os.RemoveAll(volume), os.Mkdir(volume, 0o700),
		os.Chown(volume, imageUser, imageUser)); err != nil {
		s.of.t.Fatal(err)
	}
}

// move gives the service the address of a host. It must not run.
func (s *service) move(host int) {
	s.of.t.Helper()
	var err error
	if s.space, err = wires.host(host); err != nil {
		s.of.t.Fatal(err)
	}
	s.address = address(host)
	s.Base = "http://" + net.JoinHostPort(s.address.String(), "8000")
}

// start starts the program of the service, and has its name resolved.
func (s *service) start() {
	t := s.of.t
	t.Helper()
	program := filepath.Join(s.root, "raftkv")
	_ = os.Remove(program)
	if err := os.Link(s.program, program); err != nil {
		t.Fatal(err)
	}
	s.of.dns.set(s.ID, s.address)
	cmd := exec.Command("/raftkv")
	cmd.Dir, cmd.Env = "/", s.environment
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: s.root, Credential: &syscall.Credential{Uid: imageUser, Gid: imageUser}}
	s.process = testkit.StartBy(t, cmd, s.space.start)
}

// stop stops it as an engine does, and has its name resolved no longer.
func (s *service) stop() {
	s.of.t.Helper()
	s.of.dns.set(s.ID, netip.Addr{})
	s.process.Signal(s.of.t, syscall.SIGTERM)
	s.process.WantExit(s.of.t, testkit.StopBound, 0)
}

// down stops all services, and removes their volumes.
func (c *composition) down() {
	c.t.Helper()
	for _, s := range c.services {
		s.stop()
		s.removeVolume()
	}
}

// ask sends a GET. Its error has any answer but 200.
func (s *service) ask(path string, query url.Values) (string, error) {
	r, err := http.NewRequest(http.MethodGet, s.Base+path+"?"+query.Encode(), nil)
	if err != nil {
		return "", err
	}
	client := *asking
	client.Timeout = 5 * time.Second
	a, err := testkit.Send(&client, r)
	if err == nil && a.Status != http.StatusOK {
		err = fmt.Errorf("%s: %d %s", s.ID, a.Status, strings.TrimSpace(a.Body))
	}
	return a.Body, err
}

func (s *service) waitReady() {
	s.of.t.Helper()
	testkit.Eventually(s.of.t, s.ID+" ready", s.Ready)
}

// set asks the services in turn for a change until one has acknowledged it.
func (c *composition) set(path string, query url.Values) {
	c.t.Helper()
	testkit.Eventually(c.t, path, func() (err error) {
		for _, s := range c.services {
			if _, err = s.ask(path, query); err == nil {
				return nil
			}
		}
		return err
	})
}

// startInOrder starts the services, each once the one before waits for those that do not run, and wants one cluster of
// all of them, which none has begun before.
func (c *composition) startInOrder(order []string) {
	c.t.Helper()
	for i, id := range order {
		s := c.services[slices.IndexFunc(c.services, func(s *service) bool { return s.ID == id })]
		s.start()
		if i == len(order)-1 {
			break
		}
		testkit.Eventually(c.t, id+" waits", func() error {
			_, err := s.ask("/readyz", nil)
			if err == nil || !strings.Contains(err.Error(), ": 503 ") ||
				!slices.ContainsFunc(order[i+1:], func(absent string) bool {
					return strings.Contains(err.Error(), "no answer from "+absent+":9000")
				}) {
				return fmt.Errorf("got %v, want 503 and that one of %v does not answer", err, order[i+1:])
			}
			return nil
		})
	}
	for _, s := range c.services {
		s.waitReady()
	}
	testkit.Eventually(c.t, "all are voters of one cluster", func() error {
		all, err := testkit.Statuses(c.services...)
		for _, s := range all {
			voters := 0
			for _, m := range s.Members {
				if m.Suffrage == "Voter" {
					voters++
				}
			}
			if s.ClusterID != all[0].ClusterID || voters != len(order) {
				return fmt.Errorf("started as %v: %s is in %s with %v", order, s.NodeID, s.ClusterID, s.Members)
			}
		}
		return err
	})
}

// writes is a client of each service, all of which set keys, each key once.
type writes struct {
	t       *testing.T
	stopped atomic.Bool
	done    sync.WaitGroup
	others  atomic.Int64 // without an answer, or refused

	mu           sync.Mutex // guards acknowledged
	acknowledged map[string]bool
}

func (c *composition) write() *writes {
	w := &writes{t: c.t, acknowledged: make(map[string]bool)}
	c.t.Cleanup(w.stop)
	for i, s := range c.services {
		base := func() string { // where the service may be by now
			address, _ := c.dns.get(s.ID)
			return "http://" + net.JoinHostPort(address.String(), "8000")
		}
		w.done.Go(func() {
			for k := 0; !w.stopped.Load(); k++ {
				key := fmt.Sprintf("w%d.%d", i, k)
				at := &service{Client: testkit.Client{ID: s.ID, Base: base()}}
				_, err := at.ask("/set", url.Values{"key": {key}, "value": {"the value of " + key}})
				if err != nil {
					w.others.Add(1)
					time.Sleep(10 * time.Millisecond)
					continue
				}
				w.mu.Lock()
				w.acknowledged[key] = true
				w.mu.Unlock()
			}
		})
	}
	return w
}

func (w *writes) stop() {
	w.stopped.Store(true)
	w.done.Wait()
}

func (w *writes) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.acknowledged)
}

// wantProgress waits until more writes were acknowledged.
func (w *writes) wantProgress(when string) {
	w.t.Helper()
	was := w.count()
	testkit.Eventually(w.t, "more writes, when "+when, func() error {
		if n := w.count() - was; n < 50 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
}

// nameServer is a DNS server (RFC 1035) on the address of this process that knows IPv4 addresses of names.
type nameServer struct {
	mu    sync.Mutex // guards names
	names map[string]netip.Addr
}

func newNameServer(t *testing.T) *nameServer {
	t.Helper()
	conn, err := net.ListenPacket("udp", net.JoinHostPort(address(self).String(), "53"))
	if err != nil {
		t.Fatal(err)
	}
	d := &nameServer{names: make(map[string]netip.Addr)}
	var served sync.WaitGroup
	served.Go(func() {
		b := make([]byte, 512)
		for {
			size, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			if answer := d.answer(b[:size]); answer != nil {
				_, _ = conn.WriteTo(answer, from)
			}
		}
	})
	t.Cleanup(func() { _ = conn.Close(); served.Wait() })
	return d
}

// set has a name mean an address, or with an invalid one nothing.
func (d *nameServer) set(name string, a netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.names[name] = a; !a.IsValid() {
		delete(d.names, name)
	}
}

func (d *nameServer) get(name string) (a netip.Addr, known bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	a, known = d.names[name]
	return a, known
}

// answer returns the answer to a query of one question; nil: it is none. Answers may not be kept (TTL 0). A name has no
// other records than A, and one that is not known does not exist (NXDOMAIN).
func (d *nameServer) answer(query []byte) []byte {
	const header = 12
	if len(query) < header || query[4] != 0 || query[5] != 1 {
		return nil
	}
	var labels []string
	at := header
	for at < len(query) && query[at] != 0 {
		end := at + 1 + int(query[at])
		if query[at] > 63 || end > len(query) {
			return nil
		}
		labels = append(labels, string(query[at+1:end]))
		at = end
	}
	if at += 5; at > len(query) { // the empty label, type and class
		return nil
	}
	const typeA, nameError = 1, 3
	a, known := d.get(strings.ToLower(strings.Join(labels, ".")))
	// ID, response with authority and recursion, and without an error, counts, and the question
	answer := append(slices.Clone(query[:2]), 0x85, 0x80, 0, 1, 0, 0, 0, 0, 0, 0)
	answer = append(answer, query[header:at]...)
	switch {
	case !known:
		answer[3] |= nameError
	case query[at-4] == 0 && query[at-3] == typeA:
		answer[7] = 1
		answer = append(answer, 0xc0, header, 0, typeA, 0, 1, 0, 0, 0, 0, 0, 4) // of the name in the question
		answer = append(answer, a.AsSlice()...)
	}
	return answer
}
