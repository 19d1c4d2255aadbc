package logservice

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// joinMember starts a member that was not there at the beginning, or starts it again on what it left on its disk. It knows the
// addresses of others that are given.
func (c *testCluster) joinMember(ctx context.Context, name, region string, addresses ...string) (*Server, error) {
	config := c.memberConfig(name, region)
	if c.config != nil {
		c.config(region, &config)
	}
	config, err := Join(ctx, config, addresses)
	if err != nil {
		return nil, err
	}
	if config.Listener, err = c.net.Region(region).Listen(name + ":1"); err != nil {
		return nil, err
	}
	s, err := Start(config)
	if err == nil {
		c.servers[name] = s
	}
	return s, err
}

// through calls the service of a member, as a client in its region does.
func through[Request, Response any](c *testCluster, name string, call func(*service, context.Context, Request) (Response, error),
	request Request) (Response, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	defer cancel()
	return call(&service{server: c.servers[name]}, ctx, request)
}

func (c *testCluster) add(asked, name, region string) *logv1.Member {
	c.t.Helper()
	answer, err := through(c, asked, (*service).AddMember, &logv1.AddMemberRequest{Name: name, Region: region, Address: name + ":1"})
	if err != nil {
		c.t.Fatal(err)
	}
	return answer.GetMember()
}

// promote asks until the new member has caught up.
func (c *testCluster) promote(asked string, id uint64) {
	c.t.Helper()
	c.until(20*time.Second, "promotion", func() bool {
		_, err := through(c, asked, (*service).PromoteMember, &logv1.PromoteMemberRequest{MemberId: id})
		if err != nil && status.Code(err) != codes.FailedPrecondition {
			c.t.Fatal(err)
		}
		return err == nil
	})
}

// remove removes a member and waits until its process has ended for that reason.
func (c *testCluster) remove(asked, name string) {
	c.t.Helper()
	s := c.servers[name]
	if _, err := through(c, asked, (*service).RemoveMember, &logv1.RemoveMemberRequest{MemberId: s.id}); err != nil {
		c.t.Fatal(err)
	}
	c.ended(name)
}

// ended waits until a member has noticed that it was removed.
func (c *testCluster) ended(name string) {
	c.t.Helper()
	s := c.servers[name]
	select {
	case <-s.Done():
		if !errors.Is(s.Err(), ErrRemoved) || !strings.Contains(s.Err().Error(), name) {
			c.t.Errorf("%s ended with %v", name, s.Err())
		}
	case <-time.After(20 * time.Second):
		c.t.Fatalf("%s was removed and goes on", name)
	}
	delete(c.servers, name)
}

// top is the highest index that any tail has seen.
func (c *testCluster) top() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.highest
}

func (c *testCluster) names(asked string) string {
	var names []string
	for _, m := range c.servers[asked].Status().GetMembership().GetMembers() {
		names = append(names, m.Name)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// All first members are replaced while entries are written; then the new ones restart, and know only what they have learned.
func TestRollingReplacement(t *testing.T) {
	bubble(t, nil, func(t *testing.T, c *testCluster) {
		c.lead("us")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		first := c.writer(ctx, "eu", 100)
		for i, region := range []string{"us", "eu", "ap"} {
			name := region + "2"
			asked := []string{"ap", "us2", "eu2"}[i]
			member := c.add(asked, name, region)
			if i == 1 {
				cancel() // its member goes now
			}
			if _, err := c.joinMember(t.Context(), name, region, asked+":1"); err != nil {
				t.Fatal(err)
			}
			c.promote(asked, member.GetId())
			c.remove(asked, region)
		}
		for _, name := range []string{"us2", "eu2", "ap2"} {
			// Who was removed may be told so before the last of the others has published it.
			c.until(time.Second, name+" knows the new members", func() bool { return c.names(name) == "ap2 eu2 us2" })
		}
		done := first.done.Load()
		if done < 10 {
			t.Errorf("%d batches while members were replaced", done)
		}
		restarted := c.top()
		for _, region := range []string{"us", "eu", "ap"} {
			c.kill(region + "2")
		}
		for _, region := range []string{"us", "eu", "ap"} {
			if _, err := c.joinMember(t.Context(), region+"2", region); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel = context.WithCancel(t.Context())
		defer cancel()
		again := c.writer(ctx, "us2", 200)
		c.until(20*time.Second, "writes go on", func() bool { return again.done.Load() > 20 })
		if c.top() <= restarted {
			t.Errorf("the log ended at %d, and at %d after the restart", restarted, c.top())
		}
	})
}

// A member that was away while the others were replaced knows none of those that are there now; they know it.
func TestMemberThatWasAway(t *testing.T) {
	bubble(t, nil, func(t *testing.T, c *testCluster) {
		c.lead("us")
		c.kill("ap")
		for _, region := range []string{"us", "eu"} {
			member := c.add("eu", region+"2", region)
			if _, err := c.joinMember(t.Context(), region+"2", region, "eu:1"); err != nil {
				t.Fatal(err)
			}
			c.promote("us2", member.GetId())
			c.remove("us2", region)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		w := c.writer(ctx, "us2", 100)
		c.until(10*time.Second, "writes", func() bool { return w.done.Load() > 20 })
		c.start("ap")
		c.until(10*time.Second, "ap to follow", func() bool {
			return c.servers["ap"].Status().GetPublishedIndex() >= c.top() && c.names("ap") == "ap eu2 us2"
		})
		// With one of the two others away, it is needed.
		c.kill("eu2")
		before := w.done.Load()
		c.until(20*time.Second, "writes go on", func() bool { return w.done.Load() > before+20 })
	})
}

// A member that was removed while it was away is told so when it comes back, ends, and does not start again.
func TestMemberRemovedWhileAway(t *testing.T) {
	bubble(t, nil, func(t *testing.T, c *testCluster) {
		c.lead("us")
		id := c.servers["ap"].id
		c.kill("ap")
		c.until(10*time.Second, "removal", func() bool {
			_, err := through(c, "eu", (*service).RemoveMember, &logv1.RemoveMemberRequest{MemberId: id})
			return err == nil
		})
		c.start("ap")
		c.ended("ap")
		if s, err := c.tryStart("ap"); !errors.Is(err, ErrRemoved) || !strings.Contains(err.Error(), "empty directory") {
			t.Errorf("started again: %v %v", s, err)
		}
		// Its name is free again, for an empty directory.
		c.disks["ap"] = nil
		member := c.add("us", "ap", "ap")
		if member.GetId() == id {
			t.Errorf("id %016x again", id)
		}
		if _, err := c.joinMember(t.Context(), "ap", "ap", "eu:1"); err != nil {
			t.Fatal(err)
		}
		c.promote("us", member.GetId())
		// And its first directory is of no use to the new one.
		c.kill("ap")
		c.disks["ap"] = nil
		s, err := c.joinMember(t.Context(), "ap", "ap", "us:1")
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-s.Done():
			if !errors.Is(s.Err(), ErrLostData) {
				t.Errorf("ended with %v", s.Err())
			}
		case <-time.After(10 * time.Second):
			t.Error("an empty directory under an old id goes on")
		}
		delete(c.servers, "ap")
	})
}

// A member waits until it is added, says what it waits for, and ends when waiting can't help.
func TestJoinWaits(t *testing.T) {
	bubble(t, nil, func(t *testing.T, c *testCluster) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err := c.joinMember(ctx, "sa", "sa", "us:1"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("joined without having been added: %v", err)
		}
		joined := make(chan error, 1)
		go func() {
			_, err := c.joinMember(t.Context(), "sa", "sa", "nowhere:1", "us:1")
			joined <- err
		}()
		time.Sleep(3 * time.Second)
		c.until(10*time.Second, "a leader", func() bool { return c.leader() != "" })
		c.add("eu", "sa", "sa")
		if err := <-joined; err != nil {
			t.Fatal(err)
		}
		c.until(10*time.Second, "sa to follow", func() bool { return c.servers["sa"].Status().GetPublishedIndex() > 0 })

		c.config = func(_ string, config *Config) { config.Publication = PublicationLeader }
		c.add("eu", "af", "af")
		if _, err := c.joinMember(t.Context(), "af", "af", "us:1"); err == nil || !strings.Contains(err.Error(), "publishes by quorum") {
			t.Errorf("joined with another publication: %v", err)
		}
		c.config = nil
		if _, err := c.joinMember(t.Context(), "xx", "af"); err == nil || !strings.Contains(err.Error(), "no address") {
			t.Errorf("joined nobody: %v", err)
		}
		_, err := through(c, "us", (*service).AddMember, &logv1.AddMemberRequest{Name: "sa", Address: "sa:9"})
		if status.Code(err) != codes.AlreadyExists {
			t.Errorf("the same name again: %v", err)
		}
		_, err = through(c, "us", (*service).RemoveMember, &logv1.RemoveMemberRequest{MemberId: 5})
		if status.Code(err) != codes.NotFound {
			t.Errorf("an unknown id: %v", err)
		}
		_, err = through(c, "us", (*service).AddMember, &logv1.AddMemberRequest{Name: "x", Address: "here"})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("a bad address: %v", err)
		}
	})
}

// A first start without knowing what to begin with says so.
func TestStartWithoutBeginning(t *testing.T) {
	bubble(t, nil, func(t *testing.T, c *testCluster) {
		config := c.memberConfig("sa", "sa")
		var err error
		if config.Listener, err = c.net.Region("sa").Listen("sa:1"); err != nil {
			t.Fatal(err)
		}
		if s, err := Start(config); err == nil || !strings.Contains(err.Error(), "initial cluster, or to join") {
			t.Errorf("%v %v", s, err)
		}
		// A member of the first ones needs it only once.
		c.kill("ap")
		config = c.memberConfig("ap", "ap")
		if config.Listener, err = c.net.Region("ap").Listen("ap:1"); err != nil {
			t.Fatal(err)
		}
		s, err := Start(config)
		if err != nil {
			t.Fatal(err)
		}
		c.servers["ap"] = s
		c.lead("ap")
	})
}
