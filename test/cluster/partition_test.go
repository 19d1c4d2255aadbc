package cluster

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/logmirror/logmirror/logservice"
)

// A region that is cut off serves what needs no other region and refuses the rest; healed, it has everything.
func TestRegionCutOff(t *testing.T) {
	bubble(t, logservice.PublicationQuorum, func(t *testing.T, c *virtual) {
		eu, us := c.regions["eu"], c.regions["us"]
		eu.put(t, "key", "before")
		c.Network().Isolate("eu")
		time.Sleep(10 * time.Second)

		if got := eu.get(t, "key", serializable); got != "before" {
			t.Errorf("serializable read of a cut-off region: %q", got)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		asked := time.Now()
		if got, err := eu.tryGet(ctx, "key", linearizable); err == nil {
			t.Errorf("linearizable read of a cut-off region: %q", got)
		} else if took := time.Since(asked); code(err) != codes.Unavailable || took > time.Second {
			t.Errorf("linearizable read of a region that has been cut off for long: %v after %v", err, took)
		}
		us.put(t, "key", "meanwhile")
		if got := c.regions["ap"].get(t, "key", linearizable); got != "meanwhile" {
			t.Errorf("ap reads %q", got)
		}

		c.Network().HealAll()
		healed := time.Now()
		c.eventually("eu is back", func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			got, err := eu.tryGet(ctx, "key", linearizable)
			if err == nil && got != "meanwhile" {
				t.Fatalf("linearizable read in eu: %q, after a newer value was acknowledged", got)
			}
			return err
		})
		c.eventually("eu writes again", func() error { // its session ended meanwhile: it opens another
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			_, err := eu.etcd.Put(ctx, "key", "after")
			return err
		})
		took := time.Since(healed)
		t.Logf("eu read and wrote %v after it was healed", took)
		if took > 10*time.Second {
			t.Errorf("a region that was healed was away for another %v", took)
		}
	})
}

// Losing the leader's whole region costs the others a bounded time, and no write that was acknowledged.
func TestLeadersRegionLost(t *testing.T) {
	bubble(t, logservice.PublicationQuorum, func(t *testing.T, c *virtual) {
		eu := c.regions["eu"]
		eu.put(t, "acknowledged", "yes")
		if err := c.KillRegion("us"); err != nil {
			t.Fatal(err)
		}
		lost := time.Now()
		c.eventually("eu writes again", func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			_, err := eu.etcd.Put(ctx, "after", "yes")
			return err
		})
		took := time.Since(lost)
		t.Logf("the first put after the loss of the leader's region: %v", took)
		if took > 10*time.Second {
			t.Errorf("writes were away for %v", took)
		}
		for _, name := range []string{"eu", "ap"} {
			if got := c.regions[name].get(t, "acknowledged", linearizable); got != "yes" {
				t.Errorf("%s reads %q", name, got)
			}
		}
		if err := c.StartRegion("us"); err != nil {
			t.Fatal(err)
		}
		c.eventually("us leads and serves again", func() error {
			if leader, _ := c.Leader(); leader != "log-us" {
				return fmt.Errorf("%q leads", leader)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			got, err := c.regions["us"].tryGet(ctx, "after", linearizable)
			if err == nil && got != "yes" {
				err = errors.New("us lacks what was written while it was away")
			}
			return err
		})
	})
}
