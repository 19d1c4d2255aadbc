package mirror

import (
	"context"
	"log/slog"
	"time"

	"github.com/logmirror/logmirror/internal/observe/slow"
)

// writes tells operators of writes: of each one at level debug, and at level warn of those that took Config.SlowWriteAfter or
// longer, one a second. A line names the call by its request id, and the batch by its session and seq, under which the lines of
// log members know it.
type writes struct {
	mirror *Mirror
	limit  slow.Limit
}

// course is how a proposal came to its end, by the core's clock. What has not come is zero.
type course struct {
	// session and seq name the batch in which it was handed over last.
	session, seq uint64
	// copies of that batch were handed over.
	copies int
	// queuedAt is when it came, handedAt when it was first handed over, seenAt when its entry came to be applied, and endedAt
	// when its outcome was known.
	queuedAt, handedAt, seenAt, endedAt time.Duration
}

// stages are the times that it spent waiting to be handed over, in the log, and in apply.
func (c *course) stages() (queued, inLog, apply time.Duration) {
	switch {
	case c.seq == 0:
		return c.endedAt - c.queuedAt, 0, 0
	case c.seenAt == 0:
		return c.handedAt - c.queuedAt, c.endedAt - c.handedAt, 0
	}
	// An entry of a batch of many waits for those before it in apply.
	return c.handedAt - c.queuedAt, max(c.seenAt-c.handedAt, 0), c.endedAt - max(c.seenAt, c.handedAt)
}

// ended is called with each outcome, in the context of the call.
func (w *writes) ended(ctx context.Context, p *proposal, err error) {
	m := w.mirror
	took := p.course.endedAt - p.course.queuedAt
	level, text, suppressed := slog.LevelDebug, "write", uint64(0)
	if m.config.SlowWriteAfter > 0 && took >= m.config.SlowWriteAfter {
		m.metrics.slowWrites.Inc()
		var ok bool
		if suppressed, ok = w.limit.Allow(time.Now()); ok {
			level, text = slog.LevelWarn, "a write took long"
		}
	}
	if !m.config.Logger.Enabled(ctx, level) {
		return
	}
	queued, inLog, apply := p.course.stages()
	attributes := []slog.Attr{
		slog.Duration("took", took), slog.Duration("queued", queued), slog.Duration("log", inLog), slog.Duration("apply", apply),
		slog.Int("bytes", len(p.encoded)),
	}
	if p.course.seq != 0 {
		attributes = append(attributes, slog.Uint64("session", p.course.session), slog.Uint64("seq", p.course.seq),
			slog.Int("copies", p.course.copies))
	}
	if member, _, ok := m.client.Current(); ok {
		attributes = append(attributes, slog.String("member", member))
	}
	if suppressed > 0 {
		attributes = append(attributes, slog.Uint64("not_logged", suppressed))
	}
	if err != nil {
		attributes = append(attributes, slog.String("error", err.Error()))
	}
	m.config.Logger.LogAttrs(ctx, level, text, attributes...)
}
