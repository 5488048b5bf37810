package testkit

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Authority makes certificates, as cert.sh does.
type Authority struct {
	PEM         []byte // its own certificate
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// NewAuthority returns a new one.
func NewAuthority(t testing.TB) *Authority {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:   pkix.Name{CommonName: "raftkv test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &Authority{PEM: toPEM("CERTIFICATE", der), certificate: certificate, key: key}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func toPEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// Issue returns a certificate and its key in PEM: that of a node, with what the changes make of it.
func (a *Authority) Issue(t testing.TB, changes ...func(*x509.Certificate)) (certificate, key []byte) {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()),
		DNSNames:  []string{"node.raftkv"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	for _, change := range changes {
		change(template)
	}
	own := newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, own.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(own)
	if err != nil {
		t.Fatal(err)
	}
	return toPEM("CERTIFICATE", der), toPEM("PRIVATE KEY", keyDER)
}

// NodeFiles returns a directory for RAFT_CERT_DIR, with a certificate as Issue makes it, and for HTTP_CERT_DIR, with
// one for localhost and the loopback addresses.
func (a *Authority) NodeFiles(t testing.TB, changes ...func(*x509.Certificate)) (dir string) {
	t.Helper()
	dir = t.TempDir()
	certificate, key := a.Issue(t, changes...)
	ReplaceFile(t, dir, "ca.crt", a.PEM)
	ReplaceFile(t, dir, "node.crt", certificate)
	ReplaceFile(t, dir, "node.key", key)
	certificate, key = a.Issue(t, ForHTTP)
	ReplaceFile(t, dir, "http.crt", certificate)
	ReplaceFile(t, dir, "http.key", key)
	return dir
}

// ForHTTP is for Issue: a certificate of a web server on this machine.
func ForHTTP(c *x509.Certificate) {
	c.DNSNames, c.ExtKeyUsage = []string{"localhost"}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
}

// ReplaceFile puts a file that its user alone may read into dir, in one step.
func ReplaceFile(t testing.TB, dir, name string, text []byte) {
	t.Helper()
	next := filepath.Join(dir, name+".next")
	if err := os.WriteFile(next, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}
