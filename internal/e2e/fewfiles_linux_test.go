package e2e

import (
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"raftkv/internal/testkit"
)

// TestFewFiles: with 1,024 file descriptors, neither raft streams of a stranger that knows the cluster ID nor bodies
// that do not come keep out a client, or a node that joins.
func TestFewFiles(t *testing.T) {
	t.Parallel()
	if limit := testkit.MaxFiles(t); limit < 8000 {
		t.Skipf("ulimit -n is %d, want 8000 for the strangers", limit)
	}
	script := filepath.Join(t.TempDir(), "few-files")
	text := fmt.Sprintf("#!/bin/sh\nulimit -n 1024\nexec '%s' \"$@\"\n", binary(t))
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	n1, n2 := testkit.NewNode(t, script, "n1"), testkit.NewNode(t, binary(t), "n2")
	n1.Start(t)
	n2.Start(t)
	cluster, err := hex.DecodeString(state(t, n1).ClusterID)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	var strangers []net.Conn
	t.Cleanup(func() {
		for _, c := range strangers {
			_ = c.Close()
		}
	})
	flood := func(port, text string, answered bool) {
		for range 1100 {
			c, err := net.DialTimeout("tcp", "127.0.0.1:"+port, 10*time.Second)
			if err != nil {
				t.Fatalf("after %d connections: %v", len(strangers), err)
			}
			strangers = append(strangers, c)
			_ = c.SetDeadline(time.Now().Add(testkit.Bound))
			_, err = io.WriteString(c, text)
			if err == nil && answered {
				_, err = io.ReadFull(c, make([]byte, 4)) // so that no queue of the kernel is full
			}
			if err != nil {
				t.Fatalf("after %d connections: %v", len(strangers), err)
			}
		}
	}
	flood(n1.RaftPort, "\xb4"+string(cluster)+"\x02n1\x02n9", true)
	flood(n1.HTTPPort, "PUT /set?key=x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n", false)
	t.Logf("%d connections took %v", len(strangers), time.Since(began))
	client := &http.Client{Timeout: testkit.Bound, Transport: &http.Transport{DisableKeepAlives: true}}
	for _, target := range []string{"/set?key=k&value=v", "/get?key=k", "/healthz", "/readyz", "/status", "/list"} {
		a, err := testkit.Send(client, n1.Request(t, http.MethodGet, target, ""))
		if err != nil || a.Status != http.StatusOK {
			t.Errorf("%s: got %d %q, %v, want 200", target, a.Status, a.Body, err)
		}
	}
	testkit.Join(t, n1.Client, n2.Client, n2.RaftPort)
	n1.Set(t, "k", "after")
	testkit.CheckReplicas(t, n1, n2)
}
