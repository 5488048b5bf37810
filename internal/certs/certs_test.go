package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"raftkv/internal/testkit"
)

// lines are what is logged.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) logf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, fmt.Sprintf(format, args...))
}

// take returns what has come since it was last called.
func (l *lines) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := l.all
	l.all = nil
	return all
}

// shake has a client and a server shake hands, and returns the certificate that the client was shown.
func shake(t testing.TB, client, server *Node) (shown *x509.Certificate, err error) {
	t.Helper()
	a, b := net.Pipe()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	served := make(chan error, 1)
	go func() {
		c, err := server.Server(ctx, b)
		if err == nil {
			_, err = c.Write([]byte("x")) // what the end that dials needs to know of its own certificate
			_ = c.Close()
		}
		served <- err
	}()
	c, err := client.Client(ctx, a)
	if err == nil {
		_, err = c.Read(make([]byte, 1))
		shown = c.ConnectionState().PeerCertificates[0]
		_ = c.Close()
	}
	if serverErr := <-served; err == nil {
		err = serverErr
	}
	return shown, err
}

// TestReload: a certificate is in use from the next handshake on; what can't be used leaves the former in force, is
// logged once, and is in the warning until it is mended.
func TestReload(t *testing.T) {
	authority := testkit.NewAuthority(t)
	dir := authority.NodeFiles(t)
	var log, warn lines
	server, err := OpenNode(dir, log.logf, warn.logf)
	if err != nil {
		t.Fatal(err)
	}
	client, err := OpenNode(authority.NodeFiles(t), log.logf, warn.logf)
	if err != nil {
		t.Fatal(err)
	}
	first, err := shake(t, client, server)
	if err != nil {
		t.Fatal(err)
	}
	wantFormer := func(what, line string) {
		t.Helper()
		for range 3 {
			shown, err := shake(t, client, server)
			if err != nil || !shown.Equal(first) {
				t.Fatalf("%s: got %v, want the former certificate", what, err)
			}
		}
		if got := warn.take(); len(got) != 1 || !strings.Contains(got[0], line) {
			t.Errorf("%s: warned %q, want one line with %q", what, got, line)
		}
		if got := server.Warning(); !strings.Contains(got, line) {
			t.Errorf("%s: the warning is %q, want %q in it", what, got, line)
		}
	}
	certificate, key := authority.Issue(t)
	other, _ := testkit.NewAuthority(t).Issue(t)
	wrong, wrongKey := authority.Issue(t, testkit.ForHTTP)

	testkit.ReplaceFile(t, dir, "node.crt", certificate)
	wantFormer("a certificate without its key", "private key does not match")
	testkit.ReplaceFile(t, dir, "node.crt", []byte("nothing"))
	wantFormer("no certificate", "node.crt")
	testkit.ReplaceFile(t, dir, "node.crt", append(other, make([]byte, maxFile)...))
	wantFormer("a large file", "more than")
	testkit.ReplaceFile(t, dir, "node.crt", wrong)
	testkit.ReplaceFile(t, dir, "node.key", wrongKey)
	wantFormer("that of a web server", "lacks the DNS name")
	if err := os.Remove(filepath.Join(dir, "node.crt")); err != nil {
		t.Fatal(err)
	}
	wantFormer("no file", "node.crt")
	if got := log.take(); len(got) != 0 {
		t.Errorf("logged %q, want nothing", got)
	}

	testkit.ReplaceFile(t, dir, "node.key", key)
	testkit.ReplaceFile(t, dir, "node.crt", certificate)
	shown, err := shake(t, client, server)
	if err != nil || shown.Equal(first) {
		t.Errorf("got the former certificate, %v, want the new one", err)
	}
	if got := log.take(); len(got) != 1 {
		t.Errorf("logged %q, want one line", got)
	}
	if got := server.Warning(); got != "" {
		t.Errorf("warning: got %q, want none", got)
	}
	_ = warn.take()
}

// TestOpenRefuses: what can't be used stops the start, with a line that names the file.
func TestOpenRefuses(t *testing.T) {
	authority := testkit.NewAuthority(t)
	replace := func(name string, text []byte) func(dir string) {
		return func(dir string) { testkit.ReplaceFile(t, dir, name, text) }
	}
	issue := func(change func(*x509.Certificate)) func(dir string) {
		return func(dir string) {
			certificate, key := authority.Issue(t, change)
			testkit.ReplaceFile(t, dir, "node.crt", certificate)
			testkit.ReplaceFile(t, dir, "node.key", key)
		}
	}
	leaf, _ := authority.Issue(t)
	mode := func(mode os.FileMode) func(dir string) {
		return func(dir string) {
			if err := os.Chmod(filepath.Join(dir, "node.key"), mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, test := range []struct {
		name string
		do   func(dir string)
		want []string
		unix bool
	}{
		{name: "another authority", do: replace("ca.crt", testkit.NewAuthority(t).PEM),
			want: []string{"node.crt", "authority"}},
		{name: "no authority", do: replace("ca.crt", leaf), want: []string{"ca.crt", "not the certificate of an authority"}},
		{name: "empty", do: replace("ca.crt", nil), want: []string{"ca.crt", "want certificates"}},
		{name: "more behind it", do: replace("ca.crt", append(authority.PEM, "junk"...)), want: []string{"nothing behind"}},
		{name: "expired", do: issue(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }),
			want: []string{"node.crt", "expired"}},
		{name: "not yet", do: issue(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }),
			want: []string{"node.crt", "valid only from", "clock"}},
		{name: "no key", do: func(dir string) { _ = os.Remove(filepath.Join(dir, "node.key")) },
			want: []string{"node.key", "cert.sh"}},
		{name: "all may read", do: mode(0o604), want: []string{"node.key", "0604", "chmod 600"}, unix: true},
		{name: "a group may write", do: mode(0o620), want: []string{"node.key", "0620", "chmod 600"}, unix: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.unix && runtime.GOOS == "windows" {
				t.Skip("no modes")
			}
			dir := authority.NodeFiles(t)
			test.do(dir)
			_, err := OpenNode(dir, t.Logf, t.Logf)
			if err == nil {
				t.Fatal("it was opened")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %q, want %q in it", err, want)
				}
			}
		})
	}
}

// TestNodesAlone: of the certificates of an authority, only those of nodes get through a handshake.
func TestNodesAlone(t *testing.T) {
	authority := testkit.NewAuthority(t)
	server, err := OpenNode(authority.NodeFiles(t), t.Logf, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	usages := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	for _, test := range []struct {
		name   string
		names  []string
		usages []x509.ExtKeyUsage
		want   bool
	}{
		{name: "a node", names: []string{"n1", NodeName}, usages: usages, want: true},
		{name: "no name", usages: usages},
		{name: "another name", names: []string{"web.example"}, usages: usages},
		{name: "a wildcard", names: []string{"*.raftkv"}, usages: usages},
		{name: "client", names: []string{NodeName}, usages: usages[1:]},
		{name: "server", names: []string{NodeName}, usages: usages[:1]},
		{name: "any usage", names: []string{NodeName}, usages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}},
		{name: "no usage", names: []string{NodeName}},
	} {
		t.Run(test.name, func(t *testing.T) {
			pair, err := tls.X509KeyPair(authority.Issue(t, func(c *x509.Certificate) {
				c.DNSNames, c.ExtKeyUsage = test.names, test.usages
			}))
			if err != nil {
				t.Fatal(err)
			}
			a, b := net.Pipe()
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			go func() {
				config := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}}
				_ = tls.Client(a, config).HandshakeContext(ctx)
				_, _ = io.Copy(io.Discard, a)
			}()
			c, err := server.Server(ctx, b)
			if got := err == nil; got != test.want {
				t.Errorf("got %v, want that it is let in: %v", err, test.want)
			}
			if err == nil {
				_ = c.Close()
			}
			_ = a.Close()
		})
	}
}

// TestExpiryIsAnnounced: there is a warning when a tenth of the time is left.
func TestExpiryIsAnnounced(t *testing.T) {
	authority := testkit.NewAuthority(t)
	for _, test := range []struct {
		left time.Duration // of 100 hours
		want bool
	}{{11 * time.Hour, false}, {9 * time.Hour, true}} {
		dir := authority.NodeFiles(t, func(c *x509.Certificate) {
			c.NotAfter = time.Now().Add(test.left)
			c.NotBefore = c.NotAfter.Add(-100 * time.Hour)
		})
		n, err := OpenNode(dir, t.Logf, t.Logf)
		if err != nil {
			t.Fatal(err)
		}
		if got := n.Warning(); (got != "") != test.want || test.want && !strings.Contains(got, "expires at") {
			t.Errorf("%v left: got %q, want a warning: %v", test.left, got, test.want)
		}
	}
}

// TestHTTPReload: a server shows the certificate that the files hold.
func TestHTTPReload(t *testing.T) {
	authority := testkit.NewAuthority(t)
	dir := authority.NodeFiles(t)
	h, err := OpenHTTP(dir, t.Logf, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority.PEM)
	shown := func() *x509.Certificate {
		t.Helper()
		a, b := net.Pipe()
		defer func() { _ = a.Close(); _ = b.Close() }()
		go func() { _ = tls.Server(b, h.Config()).Handshake() }()
		c := tls.Client(a, &tls.Config{RootCAs: pool, ServerName: "localhost"})
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		return c.ConnectionState().PeerCertificates[0]
	}
	first := shown()
	certificate, key := authority.Issue(t, testkit.ForHTTP)
	testkit.ReplaceFile(t, dir, "http.key", key)
	testkit.ReplaceFile(t, dir, "http.crt", certificate)
	if shown().Equal(first) {
		t.Error("got the former certificate, want the new one")
	}
}
