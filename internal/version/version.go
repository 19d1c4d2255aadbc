// Package version tells which build this is.
package version

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// version and commit are set by the linker.
var version, commit string

// String returns the version the binary was released as, or the commit it was built from, or "development".
func String() string {
	if version != "" {
		return version
	}
	if c := builtFrom(); c != "" {
		return c
	}
	return "development"
}

// Long is String with the commit and the version of Go, for people: "v1.2.0 (commit 0123abc…, go1.26.8, linux/amd64)".
func Long() string {
	from := builtFrom()
	if from == "" {
		from = "unknown"
	}
	return fmt.Sprintf("%s (commit %s, %s, %s/%s)", String(), from, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

func builtFrom() string {
	if commit != "" {
		return commit
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, setting := range info.Settings {
			if setting.Key == "vcs.revision" {
				return setting.Value
			}
		}
	}
	return ""
}
