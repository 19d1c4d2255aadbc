package version

import (
	"runtime"
	"strings"
	"testing"
)

func TestLongNamesVersionCommitAndGo(t *testing.T) {
	version, commit = "v1.2.3", "0123456789ab"
	defer func() { version, commit = "", "" }()
	if got, want := Long(), "v1.2.3 (commit 0123456789ab, "+runtime.Version()+", "+runtime.GOOS+"/"+runtime.GOARCH+")"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	version, commit = "", ""
	if got := Long(); !strings.Contains(got, runtime.Version()) || String() == "" {
		t.Errorf("without a release: %q, %q", got, String())
	}
}
