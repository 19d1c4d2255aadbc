// Package version tells which build this is.
package version

import "runtime/debug"

// version is set by the linker.
var version string

// String returns the version the binary was released as, or the commit it was built from, or "development".
func String() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, setting := range info.Settings {
			if setting.Key == "vcs.revision" {
				return setting.Value
			}
		}
	}
	return "development"
}
