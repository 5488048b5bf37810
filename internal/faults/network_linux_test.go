package faults

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The network of a cluster: each node in a network namespace of its own, and a switch
// in this process between them, which reads the packets of each node from a TUN device
// and writes them to another. So a link can be cut one way, lose, delay, double and
// reorder packets with nothing but the kernel's namespaces and TUN; and nothing of the
// machine's own network is touched, or left behind, however this process ends.

// reexec runs this test again in network and mount namespaces of its own, and returns
// its exit code. It returns an error when the machine does not allow that.
func reexec() (int, error) {
	runtime.LockOSThread() // Pdeathsig is sent when the thread ends
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	if err := cmd.Wait(); cmd.ProcessState == nil {
		return 0, err
	}
	if code := cmd.ProcessState.ExitCode(); code >= 0 {
		return code, nil
	}
	return 1, nil // by a signal
}

// enter makes the namespaces of this process ready: mounts stay in it.
func enter() error {
	if os.Getenv(inside) == "" {
		return errors.New("not in a namespace of its own")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	return up("lo", netip.Addr{})
}

// up gives an interface of the calling thread's namespace an address of a network of
// 256, if it is valid, and brings it up.
func up(name string, addr netip.Addr) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(s) }()
	r, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if addr.IsValid() {
		a := addr.As4()
		if err := r.SetInet4Addr(a[:]); err != nil {
			return err
		}
		if err := unix.IoctlIfreq(s, unix.SIOCSIFADDR, r); err != nil {
			return fmt.Errorf("%s: address: %w", name, err)
		}
		if err := r.SetInet4Addr([]byte{255, 255, 255, 0}); err != nil {
			return err
		}
		if err := unix.IoctlIfreq(s, unix.SIOCSIFNETMASK, r); err != nil {
			return fmt.Errorf("%s: netmask: %w", name, err)
		}
		r.SetUint32(mtu)
		if err := unix.IoctlIfreq(s, unix.SIOCSIFMTU, r); err != nil {
			return fmt.Errorf("%s: MTU: %w", name, err)
		}
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, r); err != nil {
		return fmt.Errorf("%s: up: %w", name, err)
	}
	return nil
}

const mtu = 32 << 10 // fewer packets for the switch, which the nodes share the processor with

// tun makes a TUN device in the calling thread's namespace.
func tun(addr netip.Addr) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w", err)
	}
	r, err := unix.NewIfreq("raftkv0")
	if err == nil {
		r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, r)
	}
	if err == nil {
		err = up("raftkv0", addr)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "/dev/net/tun"), nil
}

// network is a switch and what is plugged into it: hosts 1, 2, … and this process,
// whose links no fault touches.
type network struct {
	mu     sync.Mutex // guards what follows
	random *rand.Rand
	ports  map[netip.Addr]*os.File
	spaces map[int]*space
	links  map[way]link
	rules  map[way]func(segment) bool
	kept   map[way][][]byte // packets that a rule holds, in their order
	counts struct{ passed, cut, lost, late, doubled, held int }
}

// way is one direction of a link.
type way struct{ from, to netip.Addr }

const self = 250 // the host that this process is

// segment is what a packet of TCP carries, and between which ports.
type segment struct {
	from, to uint16
	data     []byte // not empty
}

// segmentOf returns false when an IPv4 packet is no such packet.
func segmentOf(packet []byte) (s segment, ok bool) {
	const tcp = 6
	head := int(packet[0]&15) * 4
	if packet[9] != tcp || len(packet) < head+20 {
		return s, false
	}
	body := packet[head:]
	s.from, s.to = uint16(body[0])<<8|uint16(body[1]), uint16(body[2])<<8|uint16(body[3])
	s.data = body[min(len(body), int(body[12]>>4)*4):]
	return s, len(s.data) > 0
}

// raftPort is that of every host.
const raftPort = 9000

// Raft writes each of its requests at once, and each of its answers: a segment has all of
// one, if it is no longer than a packet. A request begins with its kind, from
// AppendEntries, 0, to RequestPreVote, 4; an answer with the text of its error, in msgpack:
// none, mostly. Of what else is on the raft port only a question for a term begins so, with
// the length of an ID as short as n1: it is held with the requests.

func (s segment) request() bool    { return s.to == raftPort && s.data[0] <= 4 }
func (s segment) timeoutNow() bool { return s.to == raftPort && s.data[0] == 3 }
func (s segment) answer() bool     { return s.from == raftPort && s.data[0] == 0xa0 }

// heartbeat reports whether it is an AppendEntries without a place in the log.
func (s segment) heartbeat() bool {
	return s.to == raftPort && s.data[0] == 0 && bytes.Contains(s.data, []byte("PrevLogEntry\x00")) &&
		bytes.Contains(s.data, []byte("LeaderCommitIndex\x00"))
}

// newNetwork returns the network of this process. There is one.
func newNetwork() (*network, error) {
	if err := enter(); err != nil {
		return nil, err
	}
	n := &network{random: rand.New(rand.NewPCG(1, 1)), ports: make(map[netip.Addr]*os.File),
		spaces: make(map[int]*space), links: make(map[way]link),
		rules: make(map[way]func(segment) bool), kept: make(map[way][][]byte)}
	file, err := tun(address(self))
	if err != nil {
		return nil, err
	}
	n.plug(address(self), file)
	return n, nil
}

// space is a network namespace: a thread that never leaves it.
type space struct{ work chan func() }

// host returns the namespace of a host, made at first use.
func (n *network) host(number int) (*space, error) {
	n.mu.Lock()
	s := n.spaces[number]
	n.mu.Unlock()
	if s != nil {
		return s, nil
	}
	s = &space{work: make(chan func())}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: also, what it starts dies with it
		file, err := (*os.File)(nil), unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = up("lo", netip.Addr{})
		}
		if err == nil {
			file, err = tun(address(number))
		}
		if err == nil {
			n.plug(address(number), file)
		}
		made <- err
		for do := range s.work {
			do()
		}
	}()
	if err := <-made; err != nil {
		close(s.work)
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	n.mu.Lock()
	n.spaces[number] = s
	n.mu.Unlock()
	return s, nil
}

// start starts cmd in the namespace. It ends with this process.
func (s *space) start(cmd *exec.Cmd) error {
	done := make(chan error)
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	s.work <- func() { done <- cmd.Start() }
	return <-done
}

func (n *network) plug(addr netip.Addr, file *os.File) {
	n.mu.Lock()
	n.ports[addr] = file
	n.mu.Unlock()
	go func() {
		buffer := make([]byte, mtu+100)
		for {
			size, err := file.Read(buffer)
			if err != nil {
				return
			}
			n.forward(buffer[:size])
		}
	}()
}

// forward does with a packet what its way says. What is not IPv4 between hosts of
// this network is dropped.
func (n *network) forward(packet []byte) {
	if len(packet) < 20 || packet[0]>>4 != 4 {
		return
	}
	w := way{netip.AddrFrom4([4]byte(packet[12:16])), netip.AddrFrom4([4]byte(packet[16:20]))}
	n.mu.Lock()
	to := n.ports[w.to]
	l, rule := n.links[w], n.rules[w]
	sent, carries := segmentOf(packet)
	copies, wait := 1, l.delay
	switch {
	case to == nil:
		copies = 0
	case l.cut:
		n.counts.cut++
		copies = 0
	case l.loss > 0 && n.random.Float64() < l.loss:
		n.counts.lost++
		copies = 0
	case rule != nil && carries && rule(sent):
		n.counts.held++
		n.kept[w] = append(n.kept[w], slices.Clone(packet))
		copies = 0
	default:
		n.counts.passed++
		if l.double > 0 && n.random.Float64() < l.double {
			n.counts.doubled++
			copies = 2
		}
		if l.jitter > 0 {
			wait += time.Duration(n.random.Int64N(int64(l.jitter)))
		}
		if wait > 0 {
			n.counts.late++
		}
	}
	n.mu.Unlock()
	for range copies {
		if wait == 0 {
			_, _ = to.Write(packet)
			continue
		}
		packet := append([]byte(nil), packet...)
		time.AfterFunc(wait, func() { _, _ = to.Write(packet) })
	}
}

// set makes the way from one host to another such a link.
func (n *network) set(from, to int, l link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.links[way{address(from), address(to)}] = l
}

// watch has rule look at all segments on the way from one host to another, one at a
// time: what it returns true for is held until it is released. It must not use the
// network.
func (n *network) watch(from, to *node, rule func(segment) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rules[way{address(from.number), address(to.number)}] = rule
}

// held reports whether such a segment is held on the way from one host to another.
func (n *network) held(from, to *node, such func(segment) bool) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.ContainsFunc(n.kept[way{address(from.number), address(to.number)}], func(packet []byte) bool {
		sent, _ := segmentOf(packet)
		return such(sent)
	})
}

// release lets go, in their order, of such segments as are held on the way from one host
// to another.
func (n *network) release(from, to *node, such func(segment) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	w := way{address(from.number), address(to.number)}
	n.kept[w] = slices.DeleteFunc(n.kept[w], func(packet []byte) bool {
		sent, _ := segmentOf(packet)
		if !such(sent) {
			return false
		}
		_, _ = n.ports[w.to].Write(packet)
		return true
	})
}

// heal makes all links good, and lets go of all that is held.
func (n *network) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.links)
	clear(n.rules)
	for w, packets := range n.kept {
		for _, packet := range packets {
			_, _ = n.ports[w.to].Write(packet)
		}
	}
	clear(n.kept)
}

// harm is how many packets were harmed so far.
func (n *network) harm() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.counts.cut + n.counts.lost + n.counts.late + n.counts.doubled
}

func (n *network) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return fmt.Sprintf("packets %+v", n.counts)
}
