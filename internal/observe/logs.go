package observe

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/spf13/pflag"

	"github.com/logmirror/logmirror/internal/observe/calls"
)

// Logging says what is logged and how.
type Logging struct{ level, format string }

// AddFlags adds --log-level and --log-format.
func (l *Logging) AddFlags(flags *pflag.FlagSet) {
	flags.StringVar(&l.level, "log-level", "info", "least `level` that is logged: debug (each call, too), info, warn or error")
	flags.StringVar(&l.format, "log-format", "text", "`format` of the log: text (key=value) or json")
}

// New returns the logger that the flags ask for. A record that is logged in the context of a call has its request id.
func (l Logging) New(to io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l.level)); err != nil {
		return nil, fmt.Errorf("--log-level: %w", err)
	}
	options := &slog.HandlerOptions{Level: level}
	switch l.format {
	case "text":
		return slog.New(callHandler{slog.NewTextHandler(to, options)}), nil
	case "json":
		return slog.New(callHandler{slog.NewJSONHandler(to, options)}), nil
	}
	return nil, fmt.Errorf("--log-format %q: want text or json", l.format)
}

// callHandler adds what the context of a call tells.
type callHandler struct{ slog.Handler }

// Handle implements slog.Handler.
func (h callHandler) Handle(ctx context.Context, record slog.Record) error {
	if id := calls.RequestID(ctx); id != "" {
		record.AddAttrs(slog.String("request_id", id))
	}
	return h.Handler.Handle(ctx, record)
}

// WithAttrs implements slog.Handler.
func (h callHandler) WithAttrs(attributes []slog.Attr) slog.Handler {
	return callHandler{h.Handler.WithAttrs(attributes)}
}

// WithGroup implements slog.Handler.
func (h callHandler) WithGroup(name string) slog.Handler {
	return callHandler{h.Handler.WithGroup(name)}
}
