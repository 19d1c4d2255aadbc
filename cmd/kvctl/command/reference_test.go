package command

import (
	"io"
	"strings"
	"testing"

	"github.com/logmirror/logmirror/internal/flagfile/flagreference"
)

func TestFlagReference(t *testing.T) {
	root := newRoot(strings.NewReader(""), io.Discard, io.Discard)
	flagreference.Check(t, "../../../docs/flags.md", "kvctl", flagreference.Table(root.PersistentFlags()))
	var commands strings.Builder
	for _, c := range allCommands(root) {
		if c.HasSubCommands() {
			continue
		}
		commands.WriteString("\n#### " + c.CommandPath() + "\n\n" + c.Short + ".\n\n`" + c.UseLine() + "`\n")
		if table := flagreference.Table(c.LocalNonPersistentFlags()); table != "" {
			commands.WriteString("\n" + table)
		}
	}
	flagreference.Check(t, "../../../docs/flags.md", "kvctl commands", commands.String())
}
