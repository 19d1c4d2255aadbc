package logclient

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	memberChanges  prometheus.Counter
	tailEntries    prometheus.Counter
	tailBytes      prometheus.Counter
	appendBytes    prometheus.Counter
	streamFailures *prometheus.CounterVec
	rounds         *prometheus.CounterVec
}

func newMetrics(registerer prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &metrics{
		memberChanges: counter("logmirror_logclient_member_changes_total", "Changes of the log member in use."),
		tailEntries:   counter("logmirror_logclient_tail_entries_total", "Entries received from the tail."),
		tailBytes:     counter("logmirror_logclient_tail_bytes_total", "Bytes of envelopes received from the tail."),
		appendBytes:   counter("logmirror_logclient_append_bytes_total", "Bytes of proposals sent, copies included."),
		streamFailures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "logmirror_logclient_stream_failures_total", Help: "Streams to log members that broke, by kind.",
		}, []string{"stream"}),
		rounds: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "logmirror_logclient_read_rounds_total", Help: "Questions of read rounds, by outcome.",
		}, []string{"outcome"}),
	}
	if registerer == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.memberChanges, m.tailEntries, m.tailBytes, m.appendBytes, m.streamFailures, m.rounds} {
		if err := registerer.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
