package frontend

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
)

// The metrics tell who owns how many leases, and what a keeper did with its own.
func TestLeaseMetrics(t *testing.T) {
	c := newTestCluster(t)
	registry := prometheus.NewRegistry()
	us := c.frontend("us-1", "us", func(config *Config) { config.Registerer = registry })
	leases, ctx := kvv1.NewLeaseServiceClient(c.connection(us)), testContext(t)
	for range 3 {
		granted, err := leases.Grant(ctx, &kvv1.GrantRequest{TtlSeconds: 60})
		if err != nil {
			t.Fatal(err)
		}
		stream, err := leases.KeepAlive(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&kvv1.KeepAliveRequest{Id: granted.GetId()}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	got := make(map[string]float64)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			name := family.GetName()
			for _, label := range metric.GetLabel() {
				name += " " + label.GetName() + "=" + label.GetValue()
			}
			got[name] = metric.GetGauge().GetValue() + metric.GetCounter().GetValue()
		}
	}
	for name, want := range map[string]float64{
		"logmirror_leases owner=us-1 region=us": 3, "logmirror_leases owner= region=": 0,
		"logmirror_lease_owned_leases": 3, "logmirror_lease_renewals_total": 3,
		"logmirror_lease_adoptions_total": 0, "logmirror_lease_expirations_total": 0,
	} {
		if value, ok := got[name]; !ok || value != want {
			t.Errorf("%s is %v (%v), want %v", name, value, ok, want)
		}
	}
}

// The time that a lease has left is told in whole seconds that are there.
func TestWholeSecondsAreThere(t *testing.T) {
	for left, want := range map[time.Duration]int64{-time.Second: 0, 999 * time.Millisecond: 0, time.Second: 1, 1999 * time.Millisecond: 1} {
		if got := wholeSeconds(left); got != want {
			t.Errorf("%v is told as %d s, want %d", left, got, want)
		}
	}
}
