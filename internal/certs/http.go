package certs

import "crypto/tls"

// HTTP is the certificate of a node's HTTP port: http.crt and http.key. Its methods may be called by several goroutines
// at once.
type HTTP struct{ files files }

// OpenHTTP reads the files in dir; empty: it returns nil. logf and warnf print what happens to them later.
func OpenHTTP(dir string, logf, warnf func(format string, args ...any)) (*HTTP, error) {
	if dir == "" {
		return nil, nil
	}
	h := &HTTP{files: files{dir: dir, name: "http", logf: logf, warnf: warnf}}
	return h, h.files.open()
}

// Warning returns a line about files that can't be used, or about a certificate that ends soon; empty: there is
// nothing. h may be nil.
func (h *HTTP) Warning() string {
	if h == nil {
		return ""
	}
	return h.files.warning()
}

// Protocol is HTTPS, or HTTP if h is nil.
func (h *HTTP) Protocol() string {
	if h == nil {
		return "HTTP"
	}
	return "HTTPS"
}

// Config is for a server, nil if h is. Each handshake gets the certificate that the files hold.
func (h *HTTP) Config() *tls.Config {
	if h == nil {
		return nil
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &h.files.current().certificate, nil
		},
	}
}
