package idgen

import (
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	generated *prometheus.CounterVec
	proposals *prometheus.CounterVec
}

func newMetrics(registerer prometheus.Registerer, logger *slog.Logger) *metrics {
	m := &metrics{
		generated: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "logmirror_ids_generated_total", Help: "Ids given out by this frontend without an entry each.",
		}, []string{"kind"}),
		proposals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "logmirror_ids_proposals_total", Help: "Grants for ids asked of the log, by what became of them.",
		}, []string{"outcome"}),
	}
	if registerer == nil {
		return m
	}
	for _, c := range []prometheus.Collector{m.generated, m.proposals} {
		if err := registerer.Register(c); err != nil {
			logger.Warn("metrics of ids are not registered", "error", err)
		}
	}
	return m
}

func (m *metrics) proposed(err error) {
	outcome := "granted"
	if err != nil {
		outcome = "refused"
	}
	m.proposals.WithLabelValues(outcome).Inc()
}

func (m *metrics) unregister(registerer prometheus.Registerer) {
	if registerer == nil {
		return
	}
	registerer.Unregister(m.generated)
	registerer.Unregister(m.proposals)
}
