// Package e2e tests what users get: the built binary as processes, over HTTP and by its console and exit code, and the
// scripts and documentation of this repository. It is tests only. All of them take free ports and temporary
// directories: a cluster that runs on the ports of the scripts is left alone.
package e2e
