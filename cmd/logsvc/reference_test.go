package main

import (
	"testing"

	"github.com/logmirror/logmirror/internal/flagfile/flagreference"
)

func TestFlagReference(t *testing.T) {
	flagreference.Check(t, "../../docs/flags.md", "logsvc", flagreference.Table(newCommand().Flags()))
}
