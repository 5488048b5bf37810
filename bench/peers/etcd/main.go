// Command etcd is etcd of the version in go.mod, built from its own module: Debian's is years older.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
