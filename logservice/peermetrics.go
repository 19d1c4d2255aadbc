package logservice

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// peers tells what this member knows of each other one. Its labels are the members of the log.
type peers struct {
	server                                 *Server
	roundTrip, lastHeard, queuedBytes, lag *prometheus.Desc
}

func newPeers(s *Server) *peers {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("logmirror_logservice_peer_"+name, help, []string{"peer", "region"},
			prometheus.Labels{"member": s.config.Name})
	}
	return &peers{server: s,
		roundTrip:   desc("round_trip_seconds", "Smoothed round trip to another member; absent while unknown."),
		lastHeard:   desc("last_heard_seconds", "Time since something came from another member; absent for never."),
		queuedBytes: desc("queued_bytes", "Bytes that wait to be sent to another member."),
		lag:         desc("lag_entries", "Entries that another member does not hold durably yet, as the leader knows; only at the leader."),
	}
}

// Describe implements prometheus.Collector.
func (p *peers) Describe(to chan<- *prometheus.Desc) {
	to <- p.roundTrip
	to <- p.lastHeard
	to <- p.queuedBytes
	to <- p.lag
}

// Collect implements prometheus.Collector.
func (p *peers) Collect(to chan<- prometheus.Metric) {
	state := p.server.state()
	for _, m := range p.server.published.view().membership.GetMembers() {
		if m.GetId() != p.server.id {
			p.collect(m, &state, to)
		}
	}
}

func (p *peers) collect(m *logv1.Member, state *MemberState, to chan<- prometheus.Metric) {
	tell := func(desc *prometheus.Desc, value float64) {
		to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, m.GetName(), m.GetRegion())
	}
	health := p.server.transport.Health(m.GetId())
	if health.RoundTrip >= 0 {
		tell(p.roundTrip, health.RoundTrip.Seconds())
	}
	if !health.LastHeard.IsZero() {
		tell(p.lastHeard, time.Since(health.LastHeard).Seconds())
	}
	tell(p.queuedBytes, float64(health.QueuedBytes))
	if state.IsLeader {
		match := state.Matches[m.GetId()]
		tell(p.lag, float64(state.Last-min(match, state.Last)))
	}
}
