package watch

import "github.com/prometheus/client_golang/prometheus"

// metrics of a hub.
type metrics struct {
	events, historyEvents, fallbacks, compacted, progress prometheus.Counter

	collectors []prometheus.Collector
}

func newMetrics(h *Hub) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "logmirror_watch_" + name, Help: help})
	}
	gauge := func(name, help string, value func(Stats) int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "logmirror_watch_" + name, Help: help},
			func() float64 { return float64(value(h.Stats())) })
	}
	m := &metrics{
		events:        counter("events_total", "Events queued for clients."),
		historyEvents: counter("history_events_total", "Events read from history for lagging watches."),
		fallbacks:     counter("fallbacks_total", "Responses that found a stream's buffer full, so that the watch went to history."),
		compacted:     counter("compacted_total", "Watches canceled because their revision was compacted."),
		progress:      counter("progress_total", "Progress notifications."),
	}
	m.collectors = []prometheus.Collector{
		m.events, m.historyEvents, m.fallbacks, m.compacted, m.progress,
		gauge("streams", "Open watch streams.", func(s Stats) int { return s.Streams }),
		gauge("watches", "Open watches.", func(s Stats) int { return s.Watches }),
		gauge("lagging_watches", "Watches that read history.", func(s Stats) int { return s.Lagging }),
		gauge("slow_watches", "Lagging watches that wait for their stream's reader.", func(s Stats) int { return s.Slow }),
	}
	if r := h.config.Registerer; r != nil {
		for _, c := range m.collectors {
			if err := r.Register(c); err != nil {
				h.config.Logger.Warn("watch metrics are not registered", "error", err)
			}
		}
	}
	return m
}

func (m *metrics) unregister(r prometheus.Registerer) {
	if r == nil {
		return
	}
	for _, c := range m.collectors {
		r.Unregister(c)
	}
}
