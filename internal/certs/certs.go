// Package certs holds the certificates of a node's two ports, and reads them again when they have changed.
//
// The raft port is for nodes alone (mutual TLS 1.3): both ends show a certificate of the same authority with the DNS
// name [NodeName] and both extended key usages, so a web server's certificate of that authority is no node's
// (CVE-2021-41805 and CVE-2021-37219 of Consul and Nomad came of accepting such). The HTTP port shows a certificate to
// clients and asks for none.
package certs

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// NodeName is the DNS name in the certificate of every node.
const NodeName = "node.raftkv"

// maxFile bounds a file of a certificate, in bytes.
const maxFile = 1 << 20

// files are those of one port, in a directory. Its methods may be called by several goroutines at once.
type files struct {
	dir         string
	name        string // of NAME.crt and NAME.key
	authority   bool   // there is a ca.crt too, of which NAME.crt must be
	logf, warnf func(format string, args ...any)
	changed     func(authority bool) // of Node.OnChange; nil: nothing is called

	mu      sync.Mutex // guards what follows
	seen    []fs.FileInfo
	loaded  *loaded // the last that could be used
	problem string  // why what is there now can't be used; empty: it is in use
}

// loaded is what was read from the files at one time. It does not change.
type loaded struct {
	certificate tls.Certificate
	pool        *x509.CertPool // nil: no authority
	sum         [sha256.Size]byte
	generation  uint64 // counts the authorities
}

// open reads the files. An error names the file and what to do.
func (f *files) open() error {
	seen, err := f.stat()
	if err != nil {
		return err
	}
	loaded, err := f.read(seen)
	if err != nil {
		return err
	}
	f.seen, f.loaded = seen, loaded
	return nil
}

// current returns what the files hold. They are read again if they have changed; what can't be used leaves the former
// in force, and is logged once.
func (f *files) current() *loaded {
	f.mu.Lock()
	former := f.loaded
	now := f.refresh()
	f.mu.Unlock()
	if now != former && f.changed != nil {
		f.changed(now.generation != former.generation)
	}
	return now
}

// refresh is current without the call of changed. f.mu is held.
func (f *files) refresh() *loaded {
	seen, err := f.stat()
	if err == nil && slices.EqualFunc(seen, f.seen, sameFile) {
		return f.loaded
	}
	var next *loaded
	if err == nil {
		f.seen = seen
		next, err = f.read(seen)
	}
	if err != nil {
		if problem := err.Error(); problem != f.problem {
			f.problem = problem
			f.warnf("%s: the former certificate stays in use", problem)
		}
		return f.loaded
	}
	next.generation = f.loaded.generation
	if next.sum != f.loaded.sum {
		next.generation++
	}
	f.loaded, f.problem = next, ""
	f.logf("Certificate %s was read again: it is valid until %s", filepath.Join(f.dir, f.name+".crt"),
		next.certificate.Leaf.NotAfter.UTC().Format(time.RFC3339))
	return next
}

// warning returns a line about files that can't be used, or about a certificate that ends soon; empty: there is
// nothing.
func (f *files) warning() string {
	leaf := f.current().certificate.Leaf
	f.mu.Lock()
	problem := f.problem
	f.mu.Unlock()
	path := filepath.Join(f.dir, f.name+".crt")
	switch left := time.Until(leaf.NotAfter); {
	case problem != "":
		return problem + ": the former certificate stays in use"
	case left <= 0:
		return fmt.Sprintf("%s has expired at %s: put another in its place", path, leaf.NotAfter.UTC().Format(time.RFC3339))
	case left < leaf.NotAfter.Sub(leaf.NotBefore)/10:
		return fmt.Sprintf("%s expires at %s: put another in its place", path, leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return ""
}

// Warnings is one line of all that are not empty.
func Warnings(lines ...string) string {
	return strings.Join(slices.DeleteFunc(lines, func(line string) bool { return line == "" }), "; ")
}

func (f *files) paths() []string {
	paths := []string{filepath.Join(f.dir, f.name+".crt"), filepath.Join(f.dir, f.name+".key")}
	if f.authority {
		paths = append(paths, filepath.Join(f.dir, "ca.crt"))
	}
	return paths
}

func (f *files) stat() (seen []fs.FileInfo, err error) {
	for _, path := range f.paths() {
		info, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("%w: make it with cert.sh", err)
		}
		seen = append(seen, info)
	}
	return seen, nil
}

func sameFile(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size() && a.Mode() == b.Mode()
}

// read reads the files, which seen describes.
func (f *files) read(seen []fs.FileInfo) (*loaded, error) {
	paths := f.paths()
	if err := checkKeyMode(paths[1], seen[1]); err != nil {
		return nil, err
	}
	var text [3][]byte
	for k, path := range paths {
		var err error
		if text[k], err = readFile(path); err != nil {
			return nil, err
		}
	}
	certificate, err := tls.X509KeyPair(text[0], text[1])
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %w", paths[0], paths[1], err)
	}
	l := &loaded{certificate: certificate}
	now := time.Now()
	switch leaf := certificate.Leaf; {
	case now.After(leaf.NotAfter):
		return nil, fmt.Errorf("%s: it has expired at %s", paths[0], leaf.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		return nil, fmt.Errorf("%s: it is valid only from %s: see to the clock", paths[0],
			leaf.NotBefore.UTC().Format(time.RFC3339))
	case !f.authority:
		return l, nil
	}
	if l.pool, l.sum, err = readAuthority(text[2]); err != nil {
		return nil, fmt.Errorf("%s: %w", paths[2], err)
	}
	chain := []*x509.Certificate{certificate.Leaf}
	for _, der := range certificate.Certificate[1:] {
		more, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", paths[0], err)
		}
		chain = append(chain, more)
	}
	if err := checkNode(chain, l.pool); err != nil {
		return nil, fmt.Errorf("%s: %w", paths[0], err)
	}
	return l, nil
}

func readFile(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	text, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = fmt.Errorf("%s: more than %d bytes are no certificate", path, maxFile)
	}
	return text, err
}

// readAuthority returns the certificates in text, one at least, and a hash over them.
func readAuthority(text []byte) (*x509.CertPool, [sha256.Size]byte, error) {
	pool, sum := x509.NewCertPool(), sha256.New()
	found := 0
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		authority, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, [sha256.Size]byte{}, err
		}
		if !authority.IsCA {
			return nil, [sha256.Size]byte{}, fmt.Errorf("%s is not the certificate of an authority", authority.Subject)
		}
		pool.AddCert(authority)
		_, _ = sum.Write(block.Bytes)
		found++
	}
	if found == 0 || len(bytes.TrimSpace(text)) > 0 {
		return nil, [sha256.Size]byte{}, errors.New("want certificates in PEM and nothing behind them")
	}
	return pool, [sha256.Size]byte(sum.Sum(nil)), nil
}

// checkNode returns an error unless chain begins with the certificate of a node, of an authority in pool. Crypto/tls
// itself demands one of the two usages alone, and of a client no name.
func checkNode(chain []*x509.Certificate, pool *x509.CertPool) error {
	if len(chain) == 0 {
		return errors.New("there is no certificate")
	}
	leaf, intermediates := chain[0], x509.NewCertPool()
	for _, more := range chain[1:] {
		intermediates.AddCert(more)
	}
	// The very name, and in no wildcard: *.raftkv is not what a node is given.
	if !slices.Contains(leaf.DNSNames, NodeName) {
		return fmt.Errorf("it is not the certificate of a node: it lacks the DNS name %s", NodeName)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if !slices.Contains(leaf.ExtKeyUsage, usage) {
			return errors.New("it is not the certificate of a node: it lacks one of the usages serverAuth and clientAuth")
		}
		_, err := leaf.Verify(x509.VerifyOptions{Roots: pool, Intermediates: intermediates,
			KeyUsages: []x509.ExtKeyUsage{usage}})
		if err != nil {
			return err
		}
	}
	return nil
}
