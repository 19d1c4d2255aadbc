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
	for _, stream := range []string{"append", "report", "read_round", "upload", "download", "tail"} {
		m.streamFailures.WithLabelValues(stream)
	}
	for _, outcome := range []string{"answered", "failed"} {
		m.rounds.WithLabelValues(outcome)
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

// memberMetrics tells of each log member that is known.
type memberMetrics struct{ client *Client }

var (
	roundTripDesc = prometheus.NewDesc("logmirror_logclient_round_trip_seconds",
		"Round trip to a log member, the fastest of late; absent while it has not been measured.", []string{"member", "region"}, nil)
	reachableDesc = prometheus.NewDesc("logmirror_logclient_reachable",
		"1 while a log member answers.", []string{"member", "region"}, nil)
	inUseDesc = prometheus.NewDesc("logmirror_logclient_in_use",
		"1 for the log member that this frontend tails and appends through.", []string{"member", "region"}, nil)
)

// Describe implements prometheus.Collector.
func (memberMetrics) Describe(to chan<- *prometheus.Desc) {
	to <- roundTripDesc
	to <- reachableDesc
	to <- inUseDesc
}

// Collect implements prometheus.Collector. Addresses that no membership names are left out, so that the labels are those of
// members of the log.
func (m memberMetrics) Collect(to chan<- prometheus.Metric) {
	c := m.client
	c.mu.Lock()
	defer c.mu.Unlock()
	told := make(map[string]bool)
	for _, one := range c.tracker.members {
		if one.info == nil || told[one.info.GetName()] {
			continue
		}
		told[one.info.GetName()] = true
		tell := func(desc *prometheus.Desc, value float64) {
			to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, one.info.GetName(), one.info.GetRegion())
		}
		if one.measured {
			tell(roundTripDesc, one.roundTrip.Seconds())
		}
		tell(reachableDesc, oneIf(one.reachable()))
		tell(inUseDesc, oneIf(one.address == c.tracker.current))
	}
}

func oneIf(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
