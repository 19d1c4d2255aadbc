package logservice

import (
	"context"
	"log/slog"
	"time"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// SlowBatch is a batch that this member took from a frontend, and that took long to be published here.
type SlowBatch struct {
	Session, Seq, Index uint64
	// Took is the time from its arrival to its publication; Queued the part of it before this member put it into the log as
	// leader, zero where another one leads.
	Took, Queued time.Duration
	Leader       uint64
}

// noteSlow looks at what was published of this member's own streams.
func (m *Member) noteSlow(index uint64, p *pendingProposal) {
	if p == nil || p.key.kind != logv1.EntryKind_ENTRY_KIND_BATCH || m.config.SlowBatchAfter <= 0 || len(m.effects.Slow) == maxSlow {
		return
	}
	took := m.now.Sub(p.came)
	if took < m.config.SlowBatchAfter {
		return
	}
	batch := SlowBatch{Session: p.key.session, Seq: p.key.seq, Index: index, Took: took, Leader: m.raft.BasicStatus().Lead}
	if !p.appended.IsZero() {
		batch.Queued = p.appended.Sub(p.came)
	}
	m.effects.Slow = append(m.effects.Slow, batch)
}

// maxSlow bounds the slow batches of one step: one is logged, the others are counted.
const maxSlow = 1024

// slow tells operators of slow batches, of one a second.
func (s *Server) tellSlow(batches []SlowBatch) {
	s.metrics.slow(len(batches))
	for _, b := range batches {
		suppressed, ok := s.slowLimit.Allow(time.Now())
		if !ok {
			continue
		}
		attributes := []slog.Attr{
			slog.Uint64("session", b.Session), slog.Uint64("seq", b.Seq), slog.Uint64("index", b.Index), slog.Duration("took", b.Took),
		}
		if b.Leader == s.member.config.ID {
			attributes = append(attributes, slog.Duration("queued", b.Queued), slog.Duration("replicated", b.Took-b.Queued))
		} else {
			attributes = append(attributes, slog.Uint64("leader", b.Leader))
		}
		if suppressed > 0 {
			attributes = append(attributes, slog.Uint64("not_logged", suppressed))
		}
		s.logger.LogAttrs(context.Background(), slog.LevelWarn, "a batch took long to be published", attributes...)
	}
}

// tellBatches logs at level debug what frontends hand over, under the names by which their own lines know it.
func (s *Server) tellBatches(ctx context.Context, proposals []*logv1.Proposal) {
	if !s.logger.Enabled(ctx, slog.LevelDebug) {
		return
	}
	for _, p := range proposals {
		s.logger.LogAttrs(ctx, slog.LevelDebug, "a proposal came", slog.String("kind", p.GetKind().String()),
			slog.Uint64("session", p.GetSession()), slog.Uint64("seq", p.GetSeq()), slog.Int("bytes", len(p.GetPayload())))
	}
}

// tellRejection logs at level debug why a proposal was not put into the log.
func (s *Server) tellRejection(r *logv1.AppendRejection) {
	s.logger.LogAttrs(context.Background(), slog.LevelDebug, "a proposal was rejected", slog.String("kind", r.GetKind().String()),
		slog.Uint64("session", r.GetSession()), slog.Uint64("seq", r.GetSeq()), slog.String("reason", rejectionLabel(r.GetReason())))
}
