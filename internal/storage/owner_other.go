//go:build !unix

package storage

// checkOwner does nothing: there is no such mistake to make.
func checkOwner(string) error { return nil }
