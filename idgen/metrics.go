package idgen

import (
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	generated *prometheus.CounterVec
	proposals *prometheus.CounterVec
	// sequences are the commands for numbers of sequences.
	sequences *prometheus.CounterVec
	// nodes tell of the node numbers held.
	nodes []prometheus.Collector
}

func newMetrics() *metrics {
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
	for _, kind := range []string{"snowflake", "raindrop", "segment", "sequence"} {
		m.generated.WithLabelValues(kind)
	}
	for _, outcome := range []string{"granted", "refused"} {
		m.proposals.WithLabelValues(outcome)
		m.sequences.WithLabelValues(outcome)
	}
	return m
}

// observeNode adds what is known of a node number: look returns it and the time for which it may be used without the log, or
// false where none is held.
func (m *metrics) observeNode(kind string, look func() (number int64, left time.Duration, held bool)) {
	labels := prometheus.Labels{"kind": kind}
	m.nodes = append(m.nodes,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "logmirror_ids_node_number", Help: "Node number that this frontend holds; -1 for none.", ConstLabels: labels,
		}, func() float64 {
			number, _, held := look()
			if !held {
				return -1
			}
			return float64(number)
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "logmirror_ids_granted_seconds", ConstLabels: labels,
			Help: "For how long this frontend can go on giving ids of the kind without the log, by its clock.",
		}, func() float64 {
			_, left, held := look()
			if !held {
				return 0
			}
			return left.Seconds()
		}))
}

func (m *metrics) register(registerer prometheus.Registerer, logger *slog.Logger) {
	if registerer == nil {
		return
	}
	for _, c := range m.all() {
		if err := registerer.Register(c); err != nil {
			logger.Warn("metrics of ids are not registered", "error", err)
		}
	}
}

func (m *metrics) all() []prometheus.Collector {
	return append([]prometheus.Collector{m.generated, m.proposals, m.sequences}, m.nodes...)
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
