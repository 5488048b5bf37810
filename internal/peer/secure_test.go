package peer

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"raftkv/internal/certs"
	"raftkv/internal/testkit"
)

// openSecurePort is openPort with the certificates in dir; empty: without.
func openSecurePort(t testing.TB, dir string) *testPort {
	t.Helper()
	p := &testPort{}
	logf := p.log
	port, err := Listen("127.0.0.1:0", logf)
	if err != nil {
		t.Fatal(err)
	}
	p.Port = port
	p.NodeID = "n1"
	p.SetClusterID(ClusterID{1})
	if dir != "" {
		c, err := certs.OpenNode(dir, logf, logf)
		if err != nil {
			t.Fatal(err)
		}
		p.Secure(c)
	}
	p.Serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, Caller(r).String())
	}), func(string) uint64 { return 7 })
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// allKinds returns an error unless a stream, a call and a question for the term get from one port to another.
func allKinds(t testing.TB, from, to *testPort) error {
	t.Helper()
	dialing, accepting := from.Stream(), to.Stream()
	defer func() { _ = dialing.Close(); _ = accepting.Close() }()
	stream := exchange(t, dialing, accepting)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, term := from.DialTerm(ctx, to.Address())
	if term == nil {
		_, term = AskTerm(ctx, c, "n1")
		_ = c.Close()
	}
	from.Client().CloseIdleConnections()
	response, call := from.Client().Get("http://" + to.Address() + "/caller")
	if call == nil {
		_ = response.Body.Close()
	}
	return errors.Join(stream, term, call)
}

func TestSecureConnections(t *testing.T) {
	authority := testkit.NewAuthority(t)
	a, b := openSecurePort(t, authority.NodeFiles(t)), openSecurePort(t, authority.NodeFiles(t))
	if err := allKinds(t, a, b); err != nil {
		t.Error(err)
	}
}

// teed keeps what is read.
type teed struct {
	net.Conn
	read *bytes.Buffer
}

func (c teed) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.read.Write(b[:n])
	return n, err
}

// TestHandshakes: only a node's certificate of the authority is accepted, at both ends, and whatever came before, the
// port goes on.
func TestHandshakes(t *testing.T) {
	authority, other := testkit.NewAuthority(t), testkit.NewAuthority(t)
	at := func(from, to time.Duration) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = time.Now().Add(from), time.Now().Add(to) }
	}
	usages := func(usages ...x509.ExtKeyUsage) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.ExtKeyUsage = usages }
	}
	names := func(names ...string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.DNSNames = names }
	}
	issue := func(a *testkit.Authority, changes ...func(*x509.Certificate)) []tls.Certificate {
		pair, err := tls.X509KeyPair(a.Issue(t, changes...))
		if err != nil {
			t.Fatal(err)
		}
		return []tls.Certificate{pair}
	}
	for _, test := range []struct {
		name        string
		plain       bool
		version     uint16 // at most; 0: any
		certificate []tls.Certificate
		refused     bool
		line        string // in what the port logs
	}{
		{name: "a node", certificate: issue(authority)},
		{name: "a node with more names", certificate: issue(authority, names("n1", "node.raftkv"))},
		{name: "plain TCP", plain: true, refused: true, line: "does not speak TLS"},
		{name: "no certificate", refused: true, line: "didn't provide a certificate"},
		{name: "another authority", certificate: issue(other), refused: true, line: "unknown authority"},
		{name: "without the name", certificate: issue(authority, names("web.example")), refused: true,
			line: "lacks the DNS name node.raftkv"},
		{name: "a wildcard", certificate: issue(authority, names("*.raftkv")), refused: true,
			line: "lacks the DNS name node.raftkv"},
		{name: "server usage only", certificate: issue(authority, usages(x509.ExtKeyUsageServerAuth)), refused: true,
			line: "incompatible key usage"},
		{name: "client usage only", certificate: issue(authority, usages(x509.ExtKeyUsageClientAuth)), refused: true,
			line: "lacks one of the usages"},
		{name: "any usage", certificate: issue(authority, usages(x509.ExtKeyUsageAny)), refused: true,
			line: "lacks one of the usages"},
		{name: "no usage", certificate: issue(authority, usages()), refused: true, line: "lacks one of the usages"},
		{name: "TLS 1.2", certificate: issue(authority), version: tls.VersionTLS12, refused: true,
			line: "unsupported versions"},
		{name: "expired", certificate: issue(authority, at(-2*time.Hour, -time.Hour)), refused: true, line: "expired"},
		{name: "not yet valid", certificate: issue(authority, at(time.Hour, 2*time.Hour)), refused: true,
			line: "not yet valid"},
	} {
		config := &tls.Config{InsecureSkipVerify: true, Certificates: test.certificate, MaxVersion: test.version,
			ClientAuth: tls.RequestClientCert,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				if len(test.certificate) == 0 {
					return new(tls.Certificate), nil
				}
				return &test.certificate[0], nil
			}}
		t.Run(test.name+" dials", func(t *testing.T) {
			dir := authority.NodeFiles(t)
			p := openSecurePort(t, dir)
			p.Stream()
			c := dialPort(t, p.Port)
			if !test.plain {
				c = tls.Client(c, config)
			}
			err := greet(c, time.Now().Add(30*time.Second), preface{magic: magicTerm, cluster: ClusterID{1}})
			if got := err != nil; got != test.refused {
				t.Errorf("got %v, want that it is refused: %v", err, test.refused)
			}
			if test.refused {
				_ = c.Close()
				testkit.Eventually(t, "a line", func() error {
					if lines := strings.Join(p.logged(), "\n"); !strings.Contains(lines, test.line) {
						return errors.New(lines)
					}
					return nil
				})
			}
			if err := allKinds(t, openSecurePort(t, authority.NodeFiles(t)), p); err != nil {
				t.Errorf("another node afterwards: %v", err)
			}
		})
		if len(test.certificate) == 0 && !test.plain {
			continue // no server can be without
		}
		t.Run(test.name+" listens", func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			var read bytes.Buffer // beyond the handshake
			go func() {
				defer close(done)
				c, err := l.Accept()
				if err != nil {
					return
				}
				if !test.plain {
					c = tls.Server(c, config)
				}
				defer func() { _ = c.Close() }()
				_ = c.SetDeadline(time.Now().Add(30 * time.Second))
				p, err := readPreface(teed{c, &read})
				if err == nil {
					_, _ = c.Write(p.appendAnswer(nil, accepted, "n2"))
				}
			}()
			p := openSecurePort(t, authority.NodeFiles(t))
			c, err := p.Stream().Dial(Target("n2", raft.ServerAddress(l.Addr().String())), 10*time.Second)
			if got := err != nil; got != test.refused {
				t.Errorf("got %v, want that it is refused: %v", err, test.refused)
			}
			if err == nil {
				_ = c.Close()
			}
			_ = l.Close()
			<-done
			if test.refused && !test.plain && read.Len() > 0 {
				t.Errorf("the other end has got %x", read.Bytes())
			}
		})
	}
}

// TestAuthorityChanges: with a new authority, streams end, on both sides, and whoever has only a certificate of the
// former one gets in no more, not even over a connection for calls that it has already.
func TestAuthorityChanges(t *testing.T) {
	old, next := testkit.NewAuthority(t), testkit.NewAuthority(t)
	dirs := [2]string{old.NodeFiles(t), old.NodeFiles(t)}
	a, b := openSecurePort(t, dirs[0]), openSecurePort(t, dirs[1])
	from, to := a.Stream(), b.Stream()
	open := func() (dialed, accepted net.Conn) {
		t.Helper()
		done := make(chan net.Conn, 1)
		go func() { c, _ := to.Accept(); done <- c }()
		dialed, err := from.Dial(targetOf(b.Port), 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		return dialed, <-done
	}
	call := func() error {
		response, err := a.Client().Get("http://" + b.Address() + "/caller")
		if err == nil {
			_, _ = io.Copy(io.Discard, response.Body)
			_ = response.Body.Close()
		}
		return err
	}
	isClosed := func(c net.Conn) bool {
		_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
		_, err := c.Read(make([]byte, 1))
		late, ok := errors.AsType[net.Error](err)
		return err != nil && !(ok && late.Timeout())
	}
	dialed, accepted := open()
	if err := call(); err != nil {
		t.Fatal(err)
	}

	// The accepting side alone takes both authorities: its streams are made anew, and calls go on.
	testkit.ReplaceFile(t, dirs[1], "ca.crt", append(next.PEM, old.PEM...))
	b.CheckCertificates()
	if !isClosed(dialed) || !isClosed(accepted) {
		t.Error("a stream of before the change is open")
	}
	accepts := b.Counts().Accepted
	if err := call(); err != nil {
		t.Errorf("a call of a node of one of two authorities: %v", err)
	}
	if got := b.Counts().Accepted; got != accepts {
		t.Errorf("connections: got %d, want %d: the one that was there", got, accepts)
	}
	if dialed, accepted = open(); dialed == nil || accepted == nil {
		t.Fatal("no stream with the new authorities")
	}

	// The dialing side shows the certificate that it has by now: the other may soon trust no former one.
	testkit.ReplaceFile(t, dirs[0], "ca.crt", append(next.PEM, old.PEM...))
	a.CheckCertificates()
	if err := call(); err != nil {
		t.Error(err)
	}
	accepts = b.Counts().Accepted
	certificate, key := old.Issue(t)
	testkit.ReplaceFile(t, dirs[0], "node.key", key)
	testkit.ReplaceFile(t, dirs[0], "node.crt", certificate)
	a.CheckCertificates()
	if err := call(); err != nil {
		t.Error(err)
	}
	if got, want := b.Counts().Accepted, accepts+1; got != want {
		t.Errorf("connections after another certificate: got %d, want %d", got, want)
	}
	dialed, accepted = open()

	// The accepting side gives up the former authority.
	certificate, key = next.Issue(t)
	testkit.ReplaceFile(t, dirs[1], "node.key", key)
	testkit.ReplaceFile(t, dirs[1], "node.crt", certificate)
	testkit.ReplaceFile(t, dirs[1], "ca.crt", next.PEM)
	if err := call(); err == nil {
		t.Error("a call over a connection of before the change was answered")
	}
	if !isClosed(dialed) || !isClosed(accepted) {
		t.Error("a stream of before the change is open")
	}
	if c, err := from.Dial(targetOf(b.Port), 10*time.Second); err == nil {
		_ = c.Close()
		t.Error("a stream of a node of the former authority")
	}

	// The dialing side follows, while its port is open.
	certificate, key = next.Issue(t)
	testkit.ReplaceFile(t, dirs[0], "node.key", key)
	testkit.ReplaceFile(t, dirs[0], "node.crt", certificate)
	testkit.ReplaceFile(t, dirs[0], "ca.crt", next.PEM)
	if err := call(); err != nil {
		t.Errorf("with the new authority alone: %v", err)
	}
	open()
}

// TestHandshakeIsBounded: a connection on which no handshake comes is closed, and others get in meanwhile.
func TestHandshakeIsBounded(t *testing.T) {
	authority := testkit.NewAuthority(t)
	p, from := openSecurePort(t, authority.NodeFiles(t)), openSecurePort(t, authority.NodeFiles(t))
	var silent []net.Conn
	for range maxPending + 10 {
		silent = append(silent, dialPort(t, p.Port))
	}
	if err := allKinds(t, from, p); err != nil {
		t.Error(err)
	}
	for k, c := range silent {
		_, err := c.Read(make([]byte, 1))
		if late, ok := errors.AsType[net.Error](err); err == nil || ok && late.Timeout() {
			t.Fatalf("connection %d: got %v, want that it is closed", k, err)
		}
	}
}
