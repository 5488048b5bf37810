//go:build !unix

package storage

// PrivateFiles does nothing: the modes of files do not decide who may read them.
func PrivateFiles() {}

// protect does nothing: see PrivateFiles.
func protect(string) error { return nil }
