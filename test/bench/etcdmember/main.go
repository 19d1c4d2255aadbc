// Command etcdmember is etcd's own server, built from its released module, so that the benchmark runs the
// same code as a release does.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
