package logservice

import (
	"context"
	"fmt"
	"log/slog"
)

// raftLogger writes what raft has to say where the member logs. Raft calls Panicf where it can't go on.
type raftLogger struct{ logger *slog.Logger }

func (l raftLogger) log(level slog.Level, text func() string) {
	if l.logger.Enabled(context.Background(), level) {
		l.logger.Log(context.Background(), level, "raft: "+text())
	}
}

func (l raftLogger) print(level slog.Level, v []any) {
	l.log(level, func() string { return fmt.Sprint(v...) })
}

func (l raftLogger) printf(level slog.Level, format string, v []any) {
	l.log(level, func() string { return fmt.Sprintf(format, v...) })
}

// What raft calls information is detail here: the member itself tells of terms and leaders.

func (l raftLogger) Debug(v ...any)                   { l.print(slog.LevelDebug, v) }
func (l raftLogger) Debugf(format string, v ...any)   { l.printf(slog.LevelDebug, format, v) }
func (l raftLogger) Info(v ...any)                    { l.print(slog.LevelDebug, v) }
func (l raftLogger) Infof(format string, v ...any)    { l.printf(slog.LevelDebug, format, v) }
func (l raftLogger) Warning(v ...any)                 { l.print(slog.LevelWarn, v) }
func (l raftLogger) Warningf(format string, v ...any) { l.printf(slog.LevelWarn, format, v) }
func (l raftLogger) Error(v ...any)                   { l.print(slog.LevelError, v) }
func (l raftLogger) Errorf(format string, v ...any)   { l.printf(slog.LevelError, format, v) }
func (l raftLogger) Fatal(v ...any)                   { l.Panicf("%s", fmt.Sprint(v...)) }
func (l raftLogger) Fatalf(format string, v ...any)   { l.Panicf(format, v...) }
func (l raftLogger) Panic(v ...any)                   { l.Panicf("%s", fmt.Sprint(v...)) }

func (l raftLogger) Panicf(format string, v ...any) {
	l.printf(slog.LevelError, format, v)
	panic("raft: " + fmt.Sprintf(format, v...))
}
