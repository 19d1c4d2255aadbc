package mirror

import (
	"fmt"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

type metrics struct {
	proposals            prometheus.Counter
	resends              *prometheus.CounterVec
	rejections           *prometheus.CounterVec
	ticks                prometheus.Counter
	batchCommands        prometheus.Histogram
	batchBytes           prometheus.Histogram
	commitSeconds        prometheus.Histogram
	entries              prometheus.Counter
	applySeconds         prometheus.Histogram
	convergenceSeconds   prometheus.Histogram
	roundSeconds         prometheus.Histogram
	readersPerRound      prometheus.Histogram
	checkpoints          *prometheus.CounterVec
	checkpointPinSeconds prometheus.Histogram
	checkpointSeconds    prometheus.Histogram
	checkpointBytes      prometheus.Gauge
	slowWrites           prometheus.Counter
	digestIndex          prometheus.Gauge
	digestVerdicts       *prometheus.CounterVec
	quarantines          prometheus.Counter
	scrubs               prometheus.Counter
	scrubSeconds         prometheus.Gauge
}

func newMetrics(registerer prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		proposals: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "logmirror_mirror_proposals_total", Help: "Proposals handed to the log, copies included.",
		}),
		resends: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "logmirror_mirror_resends_total", Help: "Times that what was in flight was handed over again, by reason.",
		}, []string{"reason"}),
		rejections: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "logmirror_mirror_rejections_total", Help: "Proposals that a log member rejected, by reason.",
		}, []string{"reason"}),
		ticks: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "logmirror_mirror_ticks_total", Help: "Entries proposed only to carry log time.",
		}),
		batchCommands: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "logmirror_mirror_batch_commands", Help: "Commands in one applied batch of this frontend.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 12),
		}),
		commitSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "logmirror_mirror_commit_seconds", Help: "Time from the hand-over of a batch to its apply here.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16),
		}),
		batchBytes: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "logmirror_mirror_batch_bytes", Help: "Bytes of commands in one applied batch of this frontend.",
			Buckets: prometheus.ExponentialBuckets(64, 4, 9),
		}),
		entries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "logmirror_mirror_applied_entries_total", Help: "Entries of the log that were applied.",
		}),
		applySeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "logmirror_mirror_apply_seconds", Help: "Time to apply the entries of one message of the tail.",
			Buckets: prometheus.ExponentialBuckets(0.00001, 4, 10),
		}),
		convergenceSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "logmirror_mirror_convergence_seconds",
			Help:    "Time from the first read round that is answered after a cut of 3 s or more until all is applied that it stands for.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 10),
		}),
		roundSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "logmirror_mirror_read_round_seconds", Help: "Time of read rounds that were answered.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}),
		readersPerRound: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "logmirror_mirror_read_round_readers", Help: "Readers that shared one read round.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 12),
		}),
		digestIndex: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "logmirror_mirror_digest_index", Help: "Index of the last digest of the state that was reported.",
		}),
		digestVerdicts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "logmirror_mirror_digest_verdicts_total", Help: "Times that other mirrors had another state, by verdict.",
		}, []string{"verdict"}),
		quarantines: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "logmirror_mirror_quarantines_total", Help: "Times that this mirror stopped because its state is damaged or differs.",
		}),
		scrubs: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "logmirror_mirror_scrubs_total", Help: "Checks of memory and image that found nothing.",
		}),
		scrubSeconds: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "logmirror_mirror_scrub_seconds", Help: "How long the last check of memory and image took, pauses included.",
		}),
	}
	m.checkpoints = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "logmirror_mirror_checkpoints_total", Help: "Checkpoints that the log asked this frontend for, by outcome.",
	}, []string{"outcome"})
	m.checkpointPinSeconds = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "logmirror_mirror_checkpoint_pin_seconds", Help: "Time for which pinning the state for a checkpoint held up apply.",
		Buckets: prometheus.ExponentialBuckets(0.00001, 4, 10),
	})
	m.checkpointSeconds = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "logmirror_mirror_checkpoint_seconds", Help: "Time to make a checkpoint and to give it to the log, of those that were reported.",
		Buckets: prometheus.ExponentialBuckets(0.05, 2, 16),
	})
	m.checkpointBytes = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "logmirror_mirror_checkpoint_bytes", Help: "Size of the last checkpoint that this frontend made; 0 for none.",
	})
	m.slowWrites = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "logmirror_mirror_slow_writes_total", Help: "Writes whose outcome took --slow-write-after or longer.",
	})
	for _, reason := range resendReasons {
		m.resends.WithLabelValues(reason)
	}
	for reason := range logv1.AppendRejection_Reason_name {
		m.rejections.WithLabelValues(labelOf("REASON_", logv1.AppendRejection_Reason(reason)))
	}
	for verdict := range logv1.DigestVerdict_Verdict_name {
		m.digestVerdicts.WithLabelValues(labelOf("VERDICT_", logv1.DigestVerdict_Verdict(verdict)))
	}
	for _, outcome := range []string{"reported", "failed"} {
		m.checkpoints.WithLabelValues(outcome)
	}
	if registerer == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{
		m.batchBytes, m.entries, m.applySeconds, m.convergenceSeconds, m.roundSeconds,
		m.proposals, m.resends, m.rejections, m.ticks, m.batchCommands, m.commitSeconds, m.readersPerRound,
		m.checkpoints, m.checkpointPinSeconds, m.checkpointSeconds, m.checkpointBytes, m.slowWrites,
		m.digestIndex, m.digestVerdicts, m.quarantines, m.scrubs, m.scrubSeconds,
	} {
		if err := registerer.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// resendReasons are those that the session core gives.
var resendReasons = []string{"stream", "term", "timeout", "rejection", "gap"}

// labelOf is the name of a value of an enumeration as a label. One that this build does not know is "other": a label is not
// for others to choose.
func labelOf(prefix string, value fmt.Stringer) string {
	name, known := strings.CutPrefix(value.String(), prefix)
	if !known {
		return "other"
	}
	return strings.ToLower(name)
}

// observe registers what is read from the mirror itself.
func (*metrics) observe(m *Mirror, registerer prometheus.Registerer) error {
	if registerer == nil {
		return nil
	}
	gauges := []struct {
		name, help string
		value      func() float64
	}{
		{"logmirror_mirror_applied_index", "Index of the last applied entry.", func() float64 { return float64(m.AppliedIndex()) }},
		{"logmirror_mirror_published_index", "Highest published index that a log member told.", func() float64 { return float64(m.published.Load()) }},
		{"logmirror_mirror_image_index", "Index that the image on disk is the state after.", func() float64 { return float64(m.image.CommittedIndex()) }},
		{"logmirror_mirror_image_abandoned", "1 while the image is not written, until a new one has taken its place.", func() float64 {
			if m.image.Abandoned() {
				return 1
			}
			return 0
		}},
		{"logmirror_mirror_image_rebuild_bytes", "Bytes written of the image that is made in place of an abandoned one; 0 while none is.", func() float64 {
			return float64(m.image.Rebuilds().Bytes)
		}},
		{"logmirror_mirror_checkpoint_building_bytes", "Bytes written of the checkpoint that is being made; 0 while none is.", func() float64 {
			return float64(m.CheckpointBuild().Bytes)
		}},
		{"logmirror_mirror_term", "Raft term of the last applied entry.", func() float64 { return float64(m.machine.Term()) }},
		{"logmirror_mirror_session_open", "1 while this frontend has an open session.", func() float64 {
			if m.Identity().Session != 0 {
				return 1
			}
			return 0
		}},
		{"logmirror_mirror_sessions", "Frontends with an open session, in all regions.", func() float64 { return float64(m.machine.SessionCount()) }},
		{"logmirror_mirror_keys", "Live keys.", func() float64 { return float64(m.machine.Space().Stats().Keys) }},
		{"logmirror_mirror_versions", "Versions of keys in memory, history included.", func() float64 { return float64(m.machine.Space().Stats().Versions) }},
		{"logmirror_mirror_size_bytes", "Logical size of the key space with history and leases, which the quota bounds.",
			func() float64 { return float64(m.machine.SizeBytes()) }},
		{"logmirror_mirror_quota_bytes", "Quota in force.", func() float64 { return float64(m.machine.Settings().QuotaBytes) }},
		{"logmirror_mirror_slab_bytes", "Memory that holds versions of keys.", func() float64 { return float64(m.machine.Space().Stats().SlabBytes) }},
		{"logmirror_mirror_compact_revision", "Revision up to which history is compacted.",
			func() float64 { return float64(m.machine.Space().Stats().CompactRevision) }},
		{"logmirror_mirror_no_space", "1 while the quota is used up and writes that take up room are refused.", func() float64 {
			return float64(len(m.machine.Alarms()))
		}},
		{"logmirror_mirror_revision", "Revision of the key space.", func() float64 { return float64(m.revisions.reached.Load()) }},
		{"logmirror_mirror_age_seconds", "Bound on how old the state is; -1 while unknown.", func() float64 {
			age, ok := m.Age()
			if !ok {
				return -1
			}
			return age.Seconds()
		}},
		{"logmirror_mirror_queue_commands", "Commands that wait to be handed over.", func() float64 {
			commands, _ := m.session.waiting()
			return float64(commands)
		}},
	}
	for _, g := range gauges {
		if err := registerer.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: g.name, Help: g.help}, g.value)); err != nil {
			return err
		}
	}
	for outcome, count := range map[string]func() uint64{
		"done": func() uint64 { return m.image.Rebuilds().Done }, "failed": func() uint64 { return m.image.Rebuilds().Failed },
	} {
		if err := registerer.Register(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "logmirror_mirror_image_rebuilds_total", Help: "Images made in place of an abandoned one, by outcome.",
			ConstLabels: prometheus.Labels{"outcome": outcome},
		}, func() float64 { return float64(count()) })); err != nil {
			return err
		}
	}
	return nil
}
