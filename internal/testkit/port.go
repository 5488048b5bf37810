package testkit

import (
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"testing"
)

// nextPort is where FreePorts goes on; 0: anywhere.
var nextPort struct {
	sync.Mutex
	int
}

// FreePort returns a port of loopback on which nobody listens, each time another.
func FreePort(t testing.TB) string {
	t.Helper()
	return FreePorts(t, 1)
}

// FreePorts returns the first of count ports in a row as FreePort has them. They are below those that systems take for
// outgoing connections, so that nothing takes one while the node that it is for is down, and away from those of the
// scripts.
func FreePorts(t testing.TB, count int) (first string) {
	t.Helper()
	const low, high = 12000, 32000
	nextPort.Lock()
	defer nextPort.Unlock()
	if nextPort.int == 0 {
		nextPort.int = low + rand.IntN(high-low)
	}
	for free, tries := 0, 0; tries < high-low; tries++ {
		if nextPort.int++; nextPort.int >= high {
			nextPort.int, free = low, 0
		}
		if free++; PortFree(strconv.Itoa(nextPort.int)) != nil {
			free = 0
		}
		if free == count {
			return strconv.Itoa(nextPort.int - count + 1)
		}
	}
	t.Fatalf("no %d free ports in a row from %d to %d", count, low, high)
	return ""
}

// PortFree returns an error unless the port of loopback can be listened on.
func PortFree(port string) error {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		return err
	}
	return l.Close()
}
