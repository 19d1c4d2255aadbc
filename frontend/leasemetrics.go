package frontend

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/logmirror/logmirror/statemachine"
)

var leasesDesc = prometheus.NewDesc("logmirror_leases",
	"Leases by the frontend whose session owns them, as applied here; owner and region are empty for those without an owner.",
	[]string{"owner", "region"}, nil)

// leaseCollector tells who owns how many leases.
type leaseCollector struct{ machine *statemachine.Machine }

// Describe sends the one metric.
func (c leaseCollector) Describe(descriptions chan<- *prometheus.Desc) { descriptions <- leasesDesc }

// Collect counts by session, of which each frontend has one.
func (c leaseCollector) Collect(metrics chan<- prometheus.Metric) {
	owned := make(map[[2]string]int)
	orphans := c.machine.LeaseCount()
	for _, s := range c.machine.Sessions() {
		owned[[2]string{s.Name, s.Region}] += s.Leases
		orphans -= s.Leases
	}
	// The two were not read at the same entry.
	owned[[2]string{}] += max(orphans, 0)
	for owner, count := range owned {
		metric, err := prometheus.NewConstMetric(leasesDesc, prometheus.GaugeValue, float64(count), owner[0], owner[1])
		if err != nil {
			metric = prometheus.NewInvalidMetric(leasesDesc, err)
		}
		metrics <- metric
	}
}

// registerLeases makes the leases' metric part of the process's while this life lasts.
func (l *life) registerLeases(machine *statemachine.Machine) {
	r := l.registerer()
	if r == nil {
		return
	}
	if err := r.Register(leaseCollector{machine}); err != nil {
		l.server.logger.Warn("the metric of leases by owner is not registered", "error", err)
	}
}
