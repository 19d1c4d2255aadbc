package playground

import (
	"context"
	"testing"
	"time"
)

// The member of a region is replaced by another one, and the cluster that is stopped then starts again as it was.
func TestReplacedMemberIsRemembered(t *testing.T) {
	config := Config{Regions: []string{"us", "eu", "ap"}, DataDir: t.TempDir()}
	c := startCluster(t, config)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	put(t, c.Info().Regions[0].Frontend, "k", "v")
	if err := c.AddMember(ctx, "log-eu", "eu"); err == nil {
		t.Error("a name was taken twice")
	}
	if err := c.AddMember(ctx, "log-eu2", "eu"); err != nil {
		t.Fatal(err)
	}
	if err := c.PromoteMember(ctx, "log-eu2"); err != nil {
		t.Fatal(err)
	}
	if err := c.RemoveMember(ctx, "log-eu"); err != nil {
		t.Fatal(err)
	}
	for gone := false; !gone; {
		if _, err := c.MemberStatus("log-eu"); err != nil {
			gone = true
		}
		select {
		case <-ctx.Done():
			t.Fatal("log-eu goes on after it was removed")
		case <-time.After(10 * time.Millisecond):
		}
	}
	if err := c.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	c = startCluster(t, config)
	defer c.Kill()
	if log := c.Info().Log; len(log) != 3 || log[2].Name != "log-eu2" {
		t.Errorf("members %v", log)
	}
	if got := get(t, c.Info().Regions[1].Frontend, "k"); got != "v" {
		t.Errorf("read %q after the restart", got)
	}
	put(t, c.Info().Regions[1].Frontend, "k", "w")
}
