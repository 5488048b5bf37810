package api

import (
	"bytes"
	"crypto/tls"
	"log"
	"net"
	"net/http"
	"time"

	"raftkv/internal/connlimit"
)

// Limits of the server over all its connections (docs/design.md, "Bounds").
const (
	MaxConnections = 8192
	MaxHeaderBytes = 256 << 20 // of headers that are not complete yet
)

// bodyTimeout is how long a request may take to arrive, and a read of one that lifts that
// limit. See ioTimeout, too.
const bodyTimeout = 30 * time.Second

// NewServer returns a server for h that bounds each of its connections, in time and in
// bytes. What net/http itself has to report goes to warnf. A stream lifts the time limits
// as it goes on: see DeadlineWriter.
func NewServer(h http.Handler, warnf func(format string, args ...any)) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       bodyTimeout,
		WriteTimeout:      60 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    2 * MaxQuery, // a query that is larger than MaxQuery gets the 413 of Parse
		ConnState:         connlimit.StateChanged,
		ErrorLog:          log.New(reports(warnf), "", 0),
	}
}

// connections returns how many connections the server has at most: MaxConnections, or half the files that this process
// may have open if those are fewer. The raft port and the volume take some too.
func connections() int { return connlimit.OfFiles(MaxConnections, 1, 2) }

// maxStreams bounds the requests under way over one connection of HTTP/2.
const maxStreams = 100

// Serve serves as many connections of l at once, until the server is closed: by HTTPS with secure, HTTP/2 included, and
// by HTTP if that is nil.
func Serve(server *http.Server, l net.Listener, secure *tls.Config) error {
	l = connlimit.Listen(l, connections(), MaxHeaderBytes).Counted()
	if secure == nil {
		return server.Serve(l)
	}
	server.TLSConfig = secure
	server.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: maxStreams}
	return server.ServeTLS(l, "", "")
}

// reports logs each report of net/http as one entry. (logrus's WriterLevel would make an
// entry of every line of a panic's trace, and needs a goroutine for it.)
type reports func(format string, args ...any)

func (warnf reports) Write(report []byte) (int, error) {
	warnf("%s", bytes.TrimSpace(report))
	return len(report), nil
}
