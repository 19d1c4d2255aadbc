package mirror

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	proposals            prometheus.Counter
	resends              *prometheus.CounterVec
	rejections           *prometheus.CounterVec
	ticks                prometheus.Counter
	batchCommands        prometheus.Histogram
	commitSeconds        prometheus.Histogram
	readersPerRound      prometheus.Histogram
	checkpoints          *prometheus.CounterVec
	checkpointPinSeconds prometheus.Histogram
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
	if registerer == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{
		m.proposals, m.resends, m.rejections, m.ticks, m.batchCommands, m.commitSeconds, m.readersPerRound,
		m.checkpoints, m.checkpointPinSeconds,
		m.digestIndex, m.digestVerdicts, m.quarantines, m.scrubs, m.scrubSeconds,
	} {
		if err := registerer.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
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
		{"logmirror_mirror_image_abandoned", "1 if the image is no longer written until the next start.", func() float64 {
			if m.image.Abandoned() {
				return 1
			}
			return 0
		}},
		{"logmirror_mirror_checkpoint_building_bytes", "Bytes written of the checkpoint that is being made; 0 while none is.", func() float64 {
			return float64(m.CheckpointBuild().Bytes)
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
	return nil
}
