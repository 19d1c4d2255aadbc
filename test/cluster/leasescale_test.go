package cluster

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/lease"
	"github.com/logmirror/logmirror/playground"
)

var leaseCount = flag.Int("leases", 6000, "how many leases TestRenewalsCostTheLogNothing renews; make lease-scale takes 100,000")

const leasesPerStream = 1000

// steady renews leases, each once in a third of its TTL, over one stream for so many of them.
type steady struct {
	cancel              context.CancelFunc
	renewing            sync.WaitGroup
	confirmed, refusals atomic.Int64
	// last is when the last renewal was confirmed, in nanoseconds since the epoch.
	last atomic.Int64
}

func (s *steady) renew(t *testing.T, connection *grpc.ClientConn, ids []int64, ttl time.Duration) {
	ctx, cancel := context.WithCancel(t.Context())
	stop := s.cancel
	s.cancel = func() { stop(); cancel() }
	for number := 0; len(ids) > 0; number++ {
		some := ids[:min(leasesPerStream, len(ids))]
		ids = ids[len(some):]
		stream, err := kvv1.NewLeaseServiceClient(connection).KeepAlive(ctx)
		if err != nil {
			t.Fatal(err)
		}
		s.renewing.Go(func() {
			defer stream.CloseSend()
			time.Sleep(time.Duration(number) * 10 * ms) // not all at once
			for {
				for _, id := range some {
					if stream.Send(&kvv1.KeepAliveRequest{Id: id}) != nil {
						return
					}
				}
				select {
				case <-time.After(ttl / 3):
				case <-ctx.Done():
					return
				}
			}
		})
		s.renewing.Go(func() {
			for {
				answer, err := stream.Recv()
				switch {
				case errors.Is(err, io.EOF), ctx.Err() != nil:
					return
				case err != nil || answer.GetTtlSeconds() == 0:
					s.refusals.Add(1)
					return
				}
				s.confirmed.Add(1)
				s.last.Store(time.Now().UnixNano())
			}
		})
	}
}

// cost is what a while cost the log and the links between regions.
type cost struct {
	entries uint64
	bytes   map[string]uint64
}

// during lets time pass and counts.
func (l *leaseTest) during(long time.Duration) cost {
	l.t.Helper()
	count := func() cost {
		status, err := l.MemberStatus("log-us")
		if err != nil {
			l.t.Fatal(err)
		}
		c := cost{entries: status.GetPublishedIndex(), bytes: make(map[string]uint64)}
		for _, from := range playground.DefaultRegions() {
			for _, to := range playground.DefaultRegions() {
				if from != to {
					c.bytes[from+" to "+to] = l.Network().Traffic(from, to)
				}
			}
		}
		return c
	}
	before := count()
	time.Sleep(long)
	after := count()
	after.entries -= before.entries
	for link := range after.bytes {
		after.bytes[link] -= before.bytes[link]
	}
	return after
}

// Renewals end at the frontend that owns the lease: with many leases that are renewed steadily the log has no more entries,
// and no more bytes pass between regions, than with no leases at all. When all their clients go silent at once, and one of
// the owners dies, they still end in time.
func TestRenewalsCostTheLogNothing(t *testing.T) {
	leaseBubble(t, nil, func(t *testing.T, l *leaseTest) {
		const ttl, window = 10 * time.Second, 30 * time.Second
		s := &steady{cancel: func() {}}
		began := time.Now()
		granted := 0
		first := l.referee.index()
		for _, region := range playground.DefaultRegions() {
			ids := l.grantMany(region, ttl, *leaseCount/3)
			granted += len(ids)
			s.renew(t, l.connections[region], ids, ttl)
		}
		t.Logf("%d leases granted through three regions in %v, in %d entries", granted, time.Since(began), l.referee.index()-first)
		time.Sleep(ttl)
		renewals := s.confirmed.Load()
		with := l.during(window)
		renewals = s.confirmed.Load() - renewals
		if least := int64(granted) * 8; renewals < least {
			t.Errorf("%d renewals in %v, want at least %d", renewals, window, least)
		}
		s.cancel()
		s.renewing.Wait()
		if n := s.refusals.Load(); n > 0 {
			t.Errorf("%d streams ended", n)
		}
		if err := l.KillFrontend("eu"); err != nil {
			t.Fatal(err)
		}
		l.allEnd(ttl, first, time.Unix(0, s.last.Load()))
		if err := l.RestartFrontend("eu"); err != nil {
			t.Fatal(err)
		}

		time.Sleep(30 * time.Second) // until it reads from the nearest member again
		without := l.during(window)
		t.Logf("%v with %d renewals: %d entries, bytes %v", window, renewals, with.entries, with.bytes)
		t.Logf("%v without leases: %d entries, bytes %v", window, without.entries, without.bytes)
		// The window begins anywhere between two entries of three sessions; each renews three times in its session time.
		if with.entries > without.entries+3 {
			t.Errorf("%d entries with leases, %d without", with.entries, without.entries)
		}
		for link, bytes := range with.bytes {
			if most := without.bytes[link] + without.bytes[link]/20; bytes > most {
				t.Errorf("%s: %d bytes with leases, %d without", link, bytes, without.bytes[link])
			}
		}
	})
}

// allEnd waits for the end of all leases, of which those of one frontend have lost their owner, and holds them against
// their promise.
func (l *leaseTest) allEnd(ttl time.Duration, first uint64, renewed time.Time) {
	l.t.Helper()
	l.eventually("all leases have ended", func() error {
		if left := l.referee.leases(); left > 0 {
			return fmt.Errorf("%d are left", left)
		}
		return nil
	})
	var owned, orphaned int
	var ownedLast, orphanedLast time.Duration
	l.referee.find(first, func(d *decided) bool {
		for _, c := range d.LeaseChanges {
			late := d.first().Sub(renewed)
			switch {
			case c.Kind != lease.Expired:
			case c.Owner != 0:
				owned, ownedLast = owned+1, late
			default:
				orphaned, orphanedLast = orphaned+1, late
			}
		}
		return false
	})
	l.t.Logf("of leases that went silent at once, the last of %d ended %v after the last renewal; the last of %d whose owner died, %v",
		owned, ownedLast, orphaned, orphanedLast)
	if owned == 0 || ownedLast > ttl+sessionTime {
		l.t.Errorf("the last of %d leases ended %v after the last renewal", owned, ownedLast)
	}
	if orphaned == 0 || orphanedLast > 2*ttl+3*sessionTime {
		l.t.Errorf("the last of %d leases whose owner died ended %v after the last renewal", orphaned, orphanedLast)
	}
}
