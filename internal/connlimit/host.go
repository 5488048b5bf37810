package connlimit

import (
	"net"
	"net/netip"
)

// Host returns what a bound for each remote host counts by, of a remote address host:port: the IPv4 address, or the
// /64 of an IPv6 address, all of which one machine may have. It is empty for a client that has no such bound: one of a
// loopback address, behind which are all programs of this machine, a proxy among them, and one that is not known.
func Host(remote string) string {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return ""
	}
	ip, err := netip.ParseAddr(host)
	if err != nil || ip.Unmap().IsLoopback() {
		return ""
	}
	if ip = ip.Unmap().WithZone(""); ip.Is4() {
		return ip.String()
	}
	prefix, _ := ip.Prefix(64) // an IPv6 address has one
	return prefix.String()
}

// PerHost returns the bound for each remote host that belongs to a bound of n for all: a quarter, and at least 1.
func PerHost(n int) int { return max(1, n/4) }

// OfFiles returns n, or that part of the file descriptors which this process may have if it is less. Several bounds,
// whose parts are less than the whole together, leave some for the files of the volume and for connections to others.
func OfFiles(n, part, whole int) int { return max(1, min(n, maxFiles()*part/whole)) }
