// Command kvctl talks to a logmirror cluster, starts a playground, and looks at data directories offline.
package main

import (
	"os"

	"github.com/logmirror/logmirror/cmd/kvctl/command"
)

func main() { os.Exit(command.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
