package keeper

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestLeaseOutlivesItsConfirmedRenewals looks for a run in which a lease ends before its TTL after its last
// confirmed renewal, or is confirmed after its end: clocks drift by 1 % and are set differently, frontends are
// cut off from the log in either direction, frozen, killed and restarted, and renewals come to any of them. The
// check is in world.append and simFrontend.heard.
func TestLeaseOutlivesItsConfirmedRenewals(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := func(label string) float64 { return 1 + float64(rapid.IntRange(-10, 10).Draw(t, label))/1000 }
		w := newWorld(t.Fatalf)
		w.logRate = rate("log rate")
		for _, name := range []string{"us", "eu", "ap"} {
			w.frontend(name, rate("rate"), time.Duration(rapid.IntRange(0, 1000).Draw(t, "offset"))*time.Second)
		}
		w.run(time.Second)
		for id := int64(1); id <= 3; id++ {
			w.frontends[id-1].grant(id, rapid.Int64Range(1, 12).Draw(t, "ttl"))
		}
		w.run(time.Second)
		frontend := func() *simFrontend { return rapid.SampledFrom(w.frontends).Draw(t, "frontend") }
		pass := func(*rapid.T) { w.run(time.Duration(rapid.IntRange(1, 60).Draw(t, "pass")) * 100 * time.Millisecond) }
		renew := func(*rapid.T) {
			f, id := frontend(), rapid.Int64Range(1, 3).Draw(t, "lease")
			w.tracef("%s: renewal of %d: %s", f.name, id, f.renew(id))
		}
		t.Repeat(map[string]func(*rapid.T){
			"pass": pass, "pass2": pass, "pass3": pass, "renew": renew, "renew2": renew, "renew3": renew,
			"cut out": func(*rapid.T) { f := frontend(); f.cutOut = !f.cutOut; w.tracef("%s: cut out %v", f.name, f.cutOut) },
			"cut in":  func(*rapid.T) { f := frontend(); f.cutIn = !f.cutIn; w.tracef("%s: cut in %v", f.name, f.cutIn) },
			"freeze":  func(*rapid.T) { f := frontend(); f.frozen = !f.frozen; w.tracef("%s: frozen %v", f.name, f.frozen) },
			"restart": func(*rapid.T) {
				f := frontend()
				if rapid.IntRange(0, 3).Draw(t, "restart") == 0 {
					w.tracef("%s: restarts", f.name)
					f.start()
				}
			},
		})
		// Everything heals, nobody renews: every lease ends.
		for _, f := range w.frontends {
			f.cutOut, f.cutIn, f.frozen = false, false, false
		}
		w.run(2*simSessionTime + 3*12*time.Second)
		if leases := w.reference.Leases(); len(leases) != 0 {
			t.Fatalf("leases that nobody renews: %+v\n%s", leases, w.trace.String())
		}
	})
}
