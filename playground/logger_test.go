package playground

import (
	"log/slog"
	"testing"
)

// testLogger shows what the parts say when a test fails.
func testLogger(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}
