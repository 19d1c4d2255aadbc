package idgen

import (
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	generated *prometheus.CounterVec
	proposals *prometheus.CounterVec
	// sequences are the commands for numbers of sequences.
	sequences *prometheus.CounterVec
}

func newMetrics(registerer prometheus.Registerer, logger *slog.Logger) *metrics {
	m := &metrics{
		generated: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "logmirror_ids_generated_total", Help: "Ids given out by this frontend.",
		}, []string{"kind"}),
		proposals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "logmirror_ids_proposals_total", Help: "Grants for ids asked of the log, by what became of them.",
		}, []string{"outcome"}),
		sequences: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "logmirror_ids_sequence_commands_total",
			Help: "Commands to the log for numbers of sequences, each for all who asked at the moment, by what became of them.",
		}, []string{"outcome"}),
	}
	if registerer == nil {
		return m
	}
	for _, c := range m.all() {
		if err := registerer.Register(c); err != nil {
			logger.Warn("metrics of ids are not registered", "error", err)
		}
	}
	return m
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.generated, m.proposals, m.sequences}
}

func (m *metrics) proposed(err error) { m.proposals.WithLabelValues(outcome(err)).Inc() }

func (m *metrics) sequenceDecided(count int64, err error) {
	m.sequences.WithLabelValues(outcome(err)).Inc()
	if err == nil {
		m.generated.WithLabelValues("sequence").Add(float64(count))
	}
}

func outcome(err error) string {
	if err != nil {
		return "refused"
	}
	return "granted"
}

func (m *metrics) unregister(registerer prometheus.Registerer) {
	if registerer == nil {
		return
	}
	for _, c := range m.all() {
		registerer.Unregister(c)
	}
}
