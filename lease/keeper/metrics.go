package keeper

import "github.com/prometheus/client_golang/prometheus"

// Stats counts what the keeper holds and has decided since it was made.
type Stats struct {
	// Leases that this session owns; Undecided are those of them whose end is proposed.
	Leases, Undecided int
	// Renewals confirmed, renewals refused because the keeper could not vouch, adoptions begun, ends proposed.
	Renewals, Refusals, Adoptions, Expirations uint64
}

// Stats may be called by anyone.
func (k *Keeper) Stats() Stats {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := k.core.counts
	return Stats{
		Leases: len(k.core.records), Undecided: k.core.expiring,
		Renewals: n.renewals, Refusals: n.refusals, Adoptions: n.adoptions, Expirations: n.expirations,
	}
}

type metrics struct{ collectors []prometheus.Collector }

func newMetrics(k *Keeper) *metrics {
	counter := func(name, help string, value func(Stats) uint64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "logmirror_lease_" + name, Help: help},
			func() float64 { return float64(value(k.Stats())) })
	}
	gauge := func(name, help string, value func(Stats) int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "logmirror_lease_" + name, Help: help},
			func() float64 { return float64(value(k.Stats())) })
	}
	m := &metrics{collectors: []prometheus.Collector{
		gauge("owned_leases", "Leases that this frontend's session owns.", func(s Stats) int { return s.Leases }),
		gauge("undecided_expirations", "Leases whose end is proposed and undecided.", func(s Stats) int { return s.Undecided }),
		counter("renewals_total", "Renewals confirmed.", func(s Stats) uint64 { return s.Renewals }),
		counter("refused_renewals_total", "Renewals that the keeper could not vouch for.", func(s Stats) uint64 { return s.Refusals }),
		counter("adoptions_total", "Adoptions begun.", func(s Stats) uint64 { return s.Adoptions }),
		counter("expirations_total", "Ends of leases proposed.", func(s Stats) uint64 { return s.Expirations }),
	}}
	if r := k.config.Registerer; r != nil {
		for _, c := range m.collectors {
			if err := r.Register(c); err != nil {
				k.config.Logger.Warn("lease metrics are not registered", "error", err)
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
