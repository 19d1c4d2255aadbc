package logservice

import (
	"errors"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// metrics are a member's. All methods work without a registerer, and on nil.
type metrics struct {
	registerer prometheus.Registerer
	collectors []prometheus.Collector

	groups      prometheus.Histogram
	groupSizes  prometheus.Histogram
	groupBytes  prometheus.Histogram
	rejections  *prometheus.CounterVec
	rounds      prometheus.Histogram
	roundErrors prometheus.Counter
	tailEntries prometheus.Counter
	tailBytes   prometheus.Counter
	slowBatches prometheus.Counter

	snapshotsSent, snapshotsInstalled prometheus.Counter
}

func newMetrics(s *Server) (*metrics, error) {
	const prefix = "logmirror_logservice_"
	labels := prometheus.Labels{"member": s.config.Name}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: prefix + name, Help: help, ConstLabels: labels, Buckets: buckets})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: prefix + name, Help: help, ConstLabels: labels})
	}
	gauge := func(name, help string, value func(MemberState) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: prefix + name, Help: help, ConstLabels: labels}, func() float64 {
			return value(s.state())
		})
	}
	m := &metrics{
		registerer: s.config.Registerer,
		groups: histogram("group_write_seconds", "Time to write and sync one group of entries.",
			prometheus.ExponentialBuckets(0.0001, 2, 16)),
		groupSizes: histogram("group_entries", "Entries in one group that was synced at once.",
			prometheus.ExponentialBuckets(1, 2, 12)),
		groupBytes: histogram("group_bytes", "Bytes of entries in one group that was synced at once.",
			prometheus.ExponentialBuckets(64, 4, 10)),
		rejections: prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "rejections_total",
			Help: "Proposals of streams of this member that were not put into the log.", ConstLabels: labels}, []string{"reason"}),
		rounds: histogram("round_seconds", "Time from a question for a read round to its answer.",
			prometheus.ExponentialBuckets(0.001, 2, 14)),
		roundErrors: counter("round_failures_total", "Questions for a read round that failed."),
		tailEntries: counter("tail_entries_total", "Entries sent to all tails."),
		tailBytes:   counter("tail_bytes_total", "Bytes of envelopes sent to all tails."),
		slowBatches: counter("slow_batches_total", "Batches of streams of this member that took --slow-batch-after or longer to be published."),

		snapshotsSent:      counter("snapshots_sent_total", "Snapshots sent to members that need entries which were trimmed."),
		snapshotsInstalled: counter("snapshots_installed_total", "Snapshots that this member's log was begun anew with."),
	}
	m.collectors = []prometheus.Collector{m.groups, m.groupSizes, m.groupBytes, newPeers(s), m.rejections, m.rounds, m.roundErrors, m.tailEntries, m.tailBytes, m.slowBatches,
		m.snapshotsSent, m.snapshotsInstalled,
		gauge("term", "Raft term.", func(s MemberState) float64 { return float64(s.Term) }),
		gauge("is_leader", "1 while this member leads.", func(s MemberState) float64 {
			return oneIf(s.IsLeader)
		}),
		gauge("has_leader", "1 while this member knows a leader.", func(s MemberState) float64 { return oneIf(s.Leader != 0) }),
		gauge("no_space", "1 while there is no room for the log and appends are refused.", func(s MemberState) float64 { return oneIf(s.NoSpace) }),
		gauge("disk_stalled", "1 while the disk does not take writes.", func(s MemberState) float64 { return oneIf(s.Stalled) }),
		gauge("mirrors_disagree", "1 at the leader while mirrors have reported different digests of the same index.",
			func(s MemberState) float64 { return oneIf(s.Disagreement != "") }),
		gauge("commit_index", "Raft's commit index.", func(s MemberState) float64 { return float64(s.Commit) }),
		gauge("published_index", "Index up to which this member publishes.", func(s MemberState) float64 { return float64(s.Published) }),
		gauge("first_index", "First index of this member's log: what is before it was trimmed.",
			func(s MemberState) float64 { return float64(s.First) }),
		gauge("checkpoint_index", "Index of the newest sealed checkpoint, zero for none.", func(s MemberState) float64 {
			return float64(s.Checkpoints.newest().Name.Index)
		}),
		gauge("checkpoint_bytes", "Size of the newest sealed checkpoint.", func(s MemberState) float64 {
			return float64(s.Checkpoints.newest().Name.SizeBytes)
		}),
		gauge("checkpoint_held", "1 while this member holds the newest sealed checkpoint.", func(s MemberState) float64 {
			return oneIf(s.Checkpoints.newest().Held)
		}),
		gauge("checkpoint_age_seconds", "Log time since the newest sealed checkpoint.", func(s MemberState) float64 {
			return time.Duration(s.Checkpoints.Age).Seconds()
		}),
		gauge("checkpoint_log_bytes", "Log above the newest sealed checkpoint.",
			func(s MemberState) float64 { return float64(s.Checkpoints.LogBytes) }),
		gauge("last_index", "Last index of this member's log.", func(s MemberState) float64 { return float64(s.Last) }),
		gauge("in_flight_bytes", "Proposals of streams of this member whose fate is not known.",
			func(s MemberState) float64 { return float64(s.InFlightBytes) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: prefix + "disk_bytes", Help: "Bytes of the log on disk.", ConstLabels: labels},
			func() float64 { return float64(s.storage.DiskBytes()) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: prefix + "written_bytes_total",
			Help: "Bytes of the disk blocks that writes of this member touched.", ConstLabels: labels},
			func() float64 { return float64(s.disk.WrittenBytes()) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: prefix + "reserved_bytes_total",
			Help: "Bytes of zeros written ahead, to reserve the room of log files.", ConstLabels: labels},
			func() float64 { return float64(s.disk.ReservedBytes()) }),
	}
	for reason := range logv1.AppendRejection_Reason_name {
		m.rejections.WithLabelValues(rejectionLabel(logv1.AppendRejection_Reason(reason)))
	}
	if m.registerer == nil {
		return m, nil
	}
	var err error
	for _, c := range m.collectors {
		err = errors.Join(err, m.registerer.Register(c))
	}
	if err != nil {
		m.close()
	}
	return m, err
}

func (m *metrics) close() {
	if m == nil || m.registerer == nil {
		return
	}
	for _, c := range m.collectors {
		m.registerer.Unregister(c)
	}
}

func (m *metrics) wrote(g *Group, took time.Duration) {
	m.groups.Observe(took.Seconds())
	m.groupSizes.Observe(float64(len(g.Entries)))
	bytes := 0
	for _, e := range g.Entries {
		bytes += len(e.Data)
	}
	m.groupBytes.Observe(float64(bytes))
}

func (m *metrics) slow(batches int) { m.slowBatches.Add(float64(batches)) }

func (m *metrics) rejected(reason logv1.AppendRejection_Reason) {
	m.rejections.WithLabelValues(rejectionLabel(reason)).Inc()
}

// rejectionLabel is a reason as a label. One that this build does not know is "other".
func rejectionLabel(reason logv1.AppendRejection_Reason) string {
	name, known := strings.CutPrefix(reason.String(), "REASON_")
	if !known {
		return "other"
	}
	return strings.ToLower(name)
}

func oneIf(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

func (m *metrics) round(r RoundResult, took time.Duration) {
	if r.Failure != "" {
		m.roundErrors.Inc()
		return
	}
	m.rounds.Observe(took.Seconds())
}

func (m *metrics) tailed(r *logv1.TailResponse) {
	if len(r.GetEntries()) == 0 {
		return
	}
	bytes := 0
	for _, e := range r.GetEntries() {
		bytes += len(e.GetEnvelope())
	}
	m.tailEntries.Add(float64(len(r.GetEntries())))
	m.tailBytes.Add(float64(bytes))
}
