package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// load is one way of driving a system.
type load struct {
	name      string
	writes    int  // percent of the operations that are writes; the others are reads
	followers bool // it goes to the followers, half of the clients at each, else to the leader
	stale     bool // reads are stale (etcd: serializable), else linearizable
	bare      bool // for the empty handler alone
}

var (
	writes       = load{name: "writes", writes: 100}
	forwarded    = load{name: "writes, followers", writes: 100, followers: true}
	linearizable = load{name: "linearizable reads, leader"}
	onFollowers  = load{name: "linearizable reads, followers", followers: true}
	staleReads   = load{name: "stale reads, leader", stale: true}
	mix          = load{name: "90/10 reads/writes", writes: 10}
	bare         = load{name: "empty net/http handler", bare: true}

	loads = []load{writes, forwarded, linearizable, onFollowers, staleReads, mix, bare}
)

const (
	keyDigits = 7
	keyBytes  = len("key-") + keyDigits
)

func key(n int) string { return fmt.Sprintf("key-%0*d", keyDigits, n) }

// valueBytes is the size of every value: -value.
var valueBytes = 110

// value is what every key is set to. setValueBytes makes it.
var value = bytes.Repeat([]byte{'0'}, valueBytes)

func setValueBytes(n int) {
	valueBytes, value = n, make([]byte, n)
	for i := range value {
		value[i] = '0' + byte(i%10)
	}
}

// client does one operation at a time, and belongs to one goroutine.
type client interface {
	write(key int) error
	read(key int) error
}

// sample is what one measurement saw.
type sample struct {
	began   time.Time
	took    []time.Duration // of each operation that ended in the measured time
	ended   []time.Duration // of the same operations: when, since began
	length  time.Duration   // of the measured time
	server  time.Duration   // CPU time of the system's processes
	own     time.Duration   // CPU time of this process
	others  float64         // part of the machine's CPU that all other processes took, 0 to 1
	errors  int             // operations that failed, warm-up and end included
	failure error           // the first of them
}

func (s sample) perSecond() float64 { return float64(len(s.took)) / s.length.Seconds() }

// perThousand is a CPU time in seconds per 1,000 operations.
func (s sample) perThousand(cpu time.Duration) float64 {
	if len(s.took) == 0 {
		return 0
	}
	return cpu.Seconds() / float64(len(s.took)) * 1000
}

// stopLimit is how long operations under way may take once a measurement is over.
const stopLimit = 10 * time.Second

// measure drives a system with n clients on keys random keys: for warm unmeasured,
// then for length. It returns an error when the system can't be driven at all; single
// operations that fail are counted in the sample.
func measure(ctx context.Context, s system, l load, n, keys int, warm, length time.Duration) (sample, error) {
	clients, disconnect, err := s.connect(ctx, l, n)
	if err != nil {
		return sample{}, fmt.Errorf("%s: %w", s.name(), err)
	}
	closed := sync.OnceFunc(disconnect)
	defer closed()

	const (
		warming int32 = iota
		measuring
		over
	)
	var (
		phase   atomic.Int32
		began   time.Time // written before phase is measuring, read after
		workers sync.WaitGroup
		parts   = make([]sample, n)
	)
	for i, c := range clients {
		workers.Go(func() {
			part := &parts[i]
			random := rand.New(rand.NewPCG(uint64(i), uint64(time.Now().UnixNano())))
			for phase.Load() != over {
				k, do := random.IntN(keys), c.read
				if l.writes > 0 && random.IntN(100) < l.writes {
					do = c.write
				}
				start := time.Now()
				err := do(k)
				end := time.Now()
				if err != nil {
					if phase.Load() == over && ctx.Err() != nil {
						return
					}
					if part.errors++; part.failure == nil {
						part.failure = err
					}
					time.Sleep(10 * time.Millisecond) // no storm while there is no leader
					continue
				}
				if phase.Load() == measuring {
					part.took = append(part.took, end.Sub(start))
					part.ended = append(part.ended, end.Sub(began))
				}
			}
		})
	}

	wait(ctx, warm)
	server, errServer := s.cpu()
	own, all := ownCPU(), machineCPU()
	began = time.Now()
	phase.Store(measuring)
	wait(ctx, length)
	phase.Store(over)
	total := sample{began: began, length: time.Since(began), own: ownCPU() - own}
	after, errAfter := s.cpu()
	total.server = after - server
	others := machineCPU() - all - total.server - total.own
	total.others = others.Seconds() / total.length.Seconds() / float64(runtime.NumCPU())

	// Whoever hangs is cut off: closing its connection ends its operation.
	if ctx.Err() != nil {
		closed()
	}
	timer := time.AfterFunc(stopLimit, closed)
	workers.Wait()
	timer.Stop()
	if err := errors.Join(ctx.Err(), errServer, errAfter, s.check()); err != nil {
		return sample{}, err
	}
	for _, part := range parts {
		total.took = append(total.took, part.took...)
		total.ended = append(total.ended, part.ended...)
		total.errors += part.errors
		if total.failure == nil {
			total.failure = part.failure
		}
	}
	if len(total.took) == 0 {
		return sample{}, fmt.Errorf("%s: no operation of %q with %d clients ended within %v: %w", s.name(), l.name, n, length,
			cmp.Or(total.failure, errors.New("each takes longer than that")))
	}
	return total, nil
}

// wait returns after d, or when ctx ends.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// ownCPU is the CPU time that this process has used, user and system.
func ownCPU() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// machineCPU is the CPU time that all processes of this machine have used; 0 when the
// kernel does not tell.
func machineCPU() time.Duration {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	return busyOf(text)
}

// busyOf takes out of a /proc/stat the time in which a core did anything, or
// was not this machine's.
func busyOf(stat []byte) (busy time.Duration) {
	first, _, _ := bytes.Cut(stat, []byte("\n"))
	for i, text := range bytes.Fields(first) {
		n, err := strconv.ParseInt(string(text), 10, 64)
		if err == nil && i != 4 && i != 5 && i <= 8 { // not idle and iowait, nor the guests, which are counted before
			busy += time.Duration(n) * 10 * time.Millisecond
		}
	}
	return busy
}

// percentile returns the smallest element that p percent of all do not exceed
// (nearest rank); 0 for none. It sorts d.
func percentile(d []time.Duration, p float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	rank := int(p/100*float64(len(d))+0.999999) - 1
	return d[min(max(rank, 0), len(d)-1)]
}

// median returns the middle of f, of an even number the mean of the middle two; 0 for
// none. It leaves f as it is.
func median(f []float64) float64 { return quantile(f, 0.5) }

// quantile returns what the part q of f, 0 to 1, does not exceed, between two elements
// in proportion; 0 for none. It leaves f as it is.
func quantile(f []float64, q float64) float64 {
	if len(f) == 0 {
		return 0
	}
	f = slices.Sorted(slices.Values(f))
	at := q * float64(len(f)-1)
	below := int(at)
	above := min(below+1, len(f)-1)
	return f[below] + (at-float64(below))*(f[above]-f[below])
}

// httpClient is a cheap HTTP client with one keep-alive connection: the bytes of its
// two requests are made once, and only the digits of the key are changed in them.
type httpClient struct {
	address  string
	conn     net.Conn // nil: dial first
	in       *bufio.Reader
	set, get []byte // requests; nil: there is none
	want     int    // bytes of a read's answer; -1: any

	mu     sync.Mutex // guards what follows, for close
	closed bool
}

// setHead is the start of a set of key; n is the length of the body.
func setHead(address, key string, n int) string {
	return "PUT /set?key=" + key + " HTTP/1.1\r\nHost: " + address + "\r\nContent-Length: " + strconv.Itoa(n) + "\r\n\r\n"
}

// newHTTPClient is a client of a raftkv node.
func newHTTPClient(address string, stale bool) *httpClient {
	query := key(0)
	if stale {
		query += "&consistency=stale"
	}
	return &httpClient{
		address: address,
		set:     append([]byte(setHead(address, key(0), len(value))), value...),
		get:     []byte("GET /get?key=" + query + " HTTP/1.1\r\nHost: " + address + "\r\n\r\n"),
		want:    valueBytes,
	}
}

func (c *httpClient) write(key int) error { return c.do(c.set, key, -1) }

func (c *httpClient) read(key int) error { return c.do(c.get, key, c.want) }

// do sends a request and reads the answer. Its error is for any answer but a 200 of
// want bytes; it follows no redirect.
func (c *httpClient) do(request []byte, key, want int) error {
	if c.conn == nil {
		if err := c.dial(); err != nil {
			return err
		}
	}
	putKey(request, key)
	if _, err := c.conn.Write(request); err != nil {
		c.drop()
		return err
	}
	a, err := readAnswer(c.in)
	if err != nil {
		c.drop()
		return err
	}
	if a.last {
		c.drop()
	}
	if a.status != 200 {
		return fmt.Errorf("%s answered %d: %s", c.address, a.status, bytes.TrimSpace(a.text))
	}
	if want >= 0 && a.length != want {
		return fmt.Errorf("%s answered %d bytes, want %d", c.address, a.length, want)
	}
	return nil
}

func (c *httpClient) dial() error {
	conn, err := net.DialTimeout("tcp", c.address, 5*time.Second)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return errors.Join(net.ErrClosed, conn.Close())
	}
	c.conn = conn
	if c.in == nil {
		c.in = bufio.NewReaderSize(conn, 2048)
	} else {
		c.in.Reset(conn)
	}
	return nil
}

// drop makes the next do dial again.
func (c *httpClient) drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		_ = c.conn.Close()
	}
	c.conn = nil
}

// close ends the client, and a do under way with an error. Any goroutine may call it.
func (c *httpClient) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.conn != nil {
		_ = c.conn.Close()
	}
}

// putKey writes the digits of key n over those of the key in request, whichever it is.
func putKey(request []byte, n int) {
	at := bytes.Index(request, []byte("key-"))
	if at < 0 {
		return
	}
	for i := at + keyBytes - 1; i >= at+keyBytes-keyDigits; i-- {
		request[i] = byte('0' + n%10)
		n /= 10
	}
}

// answer is what matters of an HTTP answer.
type answer struct {
	status int
	length int    // of the body
	last   bool   // the server closes the connection after it
	text   []byte // the body, of any status but 200
}

// errAnswer is wrapped by the error for an answer that readAnswer can't follow.
var errAnswer = errors.New("not an answer that this client can read")

// readAnswer reads one answer, body included, without allocating for a 200. It needs a
// Content-Length (as net/http sends it with every short answer) and lines that fit into
// the buffer of r.
func readAnswer(r *bufio.Reader) (a answer, err error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return a, err
	}
	if len(line) < len("HTTP/1.1 200") || !bytes.HasPrefix(line, []byte("HTTP/1.")) {
		return a, fmt.Errorf("%w: it begins with %.40q", errAnswer, line)
	}
	if a.status, err = number(line[9:12]); err != nil {
		return a, err
	}
	a.length = -1
	for {
		if line, err = r.ReadSlice('\n'); err != nil {
			return a, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		if value, ok := header(line, "content-length"); ok {
			if a.length, err = number(value); err != nil {
				return a, err
			}
		} else if value, ok := header(line, "connection"); ok {
			a.last = bytes.EqualFold(value, []byte("close"))
		}
	}
	if a.length < 0 {
		return a, fmt.Errorf("%w: it has no Content-Length", errAnswer)
	}
	if a.status != 200 {
		a.text = make([]byte, a.length)
		_, err = io.ReadFull(r, a.text)
		return a, err
	}
	_, err = r.Discard(a.length)
	return a, err
}

// header returns the value of a header line if it is that of name, in lower case.
func header(line []byte, name string) (value []byte, ok bool) {
	if len(line) <= len(name) || line[len(name)] != ':' {
		return nil, false
	}
	for i := range len(name) {
		if line[i]|0x20 != name[i] { // leaves a dash as it is
			return nil, false
		}
	}
	return bytes.TrimSpace(line[len(name)+1:]), true
}

// number reads decimal digits, nine at most.
func number(digits []byte) (n int, err error) {
	if len(digits) == 0 || len(digits) > 9 {
		return 0, fmt.Errorf("%w: %.40q is no number", errAnswer, digits)
	}
	for _, d := range digits {
		if d < '0' || d > '9' {
			return 0, fmt.Errorf("%w: %.40q is no number", errAnswer, digits)
		}
		n = n*10 + int(d-'0')
	}
	return n, nil
}
