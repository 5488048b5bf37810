//go:build !linux

package faults

import (
	"errors"
	"os/exec"
)

// Elsewhere than on Linux, all nodes are on loopback, without faults of the network.

type (
	network struct{}
	space   struct{}
	disk    struct{}
)

var errLinux = errors.New("not on Linux")

func reexec() (int, error)                { return 0, errLinux }
func newNetwork() (*network, error)       { return nil, errLinux }
func mountMemory(string, int64) error     { return errLinux }
func resize(string, int64, int64) error   { return errLinux }
func mountDisk(string) error              { return errLinux }
func cut(string) error                    { return errLinux }
func unmount(string) error                { return errLinux }
func openDisk(string) (*disk, error)      { return nil, errLinux }
func (*disk) freeze() error               { return errLinux }
func (*disk) thaw() error                 { return errLinux }
func (*disk) close()                      {}
func (*node) waits() bool                 { return false }
func (*network) host(int) (*space, error) { return nil, errLinux }
func (*network) set(int, int, link)       {}
func (*network) heal()                    {}
func (*network) harm() int                { return 0 }
func (*network) String() string           { return "no network of its own" }
func (*space) start(cmd *exec.Cmd) error  { return errLinux }
