package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// serveGRPC answers calls over unencrypted HTTP/2 by answer, whose error becomes the status.
func serveGRPC(t *testing.T, answer func(method string, message []byte) ([]byte, error)) (
	endpoint string, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Protocols: new(http.Protocols)}
	s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		message, err := io.ReadAll(r.Body)
		if err != nil || r.Header.Get("Content-Type") != "application/grpc" || len(message) < 5 {
			t.Errorf("got %v, %v and %d bytes", err, r.Header, len(message))
			return
		}
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status, Grpc-Message")
		got, err := answer(r.URL.Path, message[5:])
		if err != nil {
			w.Header().Set("Grpc-Status", "14")
			w.Header().Set("Grpc-Message", err.Error())
			return
		}
		_, _ = w.Write(grpcMessage(got))
		w.Header().Set("Grpc-Status", "0")
	})
	s.Protocols.SetUnencryptedHTTP2(true)
	go func() { _ = s.Serve(l) }()
	stop = sync.OnceFunc(func() { _ = s.Close() })
	t.Cleanup(stop)
	return "http://" + l.Addr().String(), stop
}

// TestGRPC has several calls at once over one connection, small ones and such that need the server's leave to go on.
func TestGRPC(t *testing.T) {
	endpoint, _ := serveGRPC(t, func(method string, message []byte) ([]byte, error) {
		if method != "/a.B/C" {
			return nil, fmt.Errorf("no method %s", method)
		}
		return bytes.ToUpper(message), nil
	})
	c, err := dialGRPC(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	var calls sync.WaitGroup
	for i := range 8 {
		calls.Go(func() {
			for _, size := range []int{0, 1, 100, 100_000, 1 << 20} {
				text := bytes.Repeat([]byte{byte('a' + i)}, size)
				got, err := c.call(grpcHeader(endpoint, "/a.B/C"), grpcMessage(text))
				if err != nil || !bytes.Equal(got, bytes.ToUpper(text)) {
					t.Errorf("%d bytes: got %d bytes, %v", size, len(got), err)
				}
			}
		})
	}
	calls.Wait()
	_, err = c.call(grpcHeader(endpoint, "/a.B/other"), grpcMessage(nil))
	if err == nil || !strings.Contains(err.Error(), `"14": no method /a.B/other`) {
		t.Errorf("a call that fails: got %v", err)
	}
}

// TestGRPCEnds: when the server or this side ends the connection, calls under way end too, and later ones do nothing.
func TestGRPCEnds(t *testing.T) {
	began, never := make(chan struct{}), make(chan struct{})
	endpoint, stop := serveGRPC(t, func(string, []byte) ([]byte, error) {
		began <- struct{}{}
		<-never
		return nil, errors.New("too late")
	})
	defer close(never)
	for _, end := range []func(*grpcConn){func(c *grpcConn) { c.close() }, func(*grpcConn) { stop() }} {
		c, err := dialGRPC(endpoint)
		if err != nil {
			t.Fatal(err)
		}
		defer c.close()
		failed := make(chan error, 1)
		go func() {
			_, err := c.call(grpcHeader(endpoint, "/a.B/C"), grpcMessage(nil))
			failed <- err
		}()
		<-began
		end(c)
		select {
		case err := <-failed:
			if err == nil {
				t.Error("a call under way: got an answer, want an error")
			}
		case <-time.After(30 * time.Second):
			t.Fatal("a call under way did not end")
		}
		if _, err := c.call(grpcHeader(endpoint, "/a.B/C"), grpcMessage(nil)); err == nil {
			t.Error("a later call: got an answer, want an error")
		}
	}
}
