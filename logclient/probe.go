package logclient

import (
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// probeLoop asks members for their status whenever the tracker says that one is due.
func (c *Client) probeLoop() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-timer.C:
		case <-c.probeNow:
		}
		c.mu.Lock()
		now := time.Now()
		due, next := c.tracker.probes(now)
		c.mu.Unlock()
		for _, address := range due {
			c.goroutines.Go(func() { c.probe(address) })
		}
		timer.Reset(next.Sub(now))
	}
}

// probe asks one member once.
func (c *Client) probe(address string) {
	connection, err := c.connect(address)
	if err != nil {
		c.update(func(t *tracker, now time.Time) { t.unanswered(address, now) })
		return
	}
	ctx, cancel := context.WithTimeout(c.ctx, c.config.ProbeTimeout)
	defer cancel()
	asked := time.Now()
	answer, err := connection.service.Status(ctx, &logv1.StatusRequest{})
	took := time.Since(asked)
	if err == nil {
		err = c.checkHandshake(answer.GetHandshake())
	}
	switch {
	case c.ctx.Err() != nil:
		return
	case err == nil:
		c.config.Logger.Debug("log member answers", "address", address, "round_trip", took)
		c.learn(answer.GetMembership())
		c.update(func(t *tracker, now time.Time) {
			t.answered(address, took, answer.GetPublishedIndex(), answer.GetLeaderId(), now)
		})
	case isOtherLog(err):
		_ = c.refuse(address, err)
	default:
		c.config.Logger.Debug("log member does not answer", "address", address, "error", err)
		if status.Code(err) == codes.DeadlineExceeded {
			c.dropUnlessHeard(connection)
		}
		c.update(func(t *tracker, now time.Time) { t.unanswered(address, now) })
	}
}

// dropUnlessHeard gives up a connection whose probe timed out, unless the member in use is on it: whether that one
// lives is for its tail to say.
func (c *Client) dropUnlessHeard(connection *connection) {
	c.mu.Lock()
	inUse := c.tracker.current == connection.address
	c.mu.Unlock()
	if !inUse {
		c.disconnect(connection)
	}
}

// learn takes a membership told by a member.
func (c *Client) learn(membership *logv1.Membership) {
	if len(membership.GetMembers()) == 0 {
		return
	}
	changed := false
	c.update(func(t *tracker, now time.Time) {
		changed = t.learn(membership, now)
		if changed {
			c.membership = membership
		}
	})
	if changed {
		c.saveSoon()
	}
}

// saveLoop writes the members file when the list changed. A failure is told and otherwise without consequence: the list
// is learned again at the next start.
func (c *Client) saveLoop() {
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-c.membersChanged:
		}
		c.mu.Lock()
		membership := c.membership
		c.mu.Unlock()
		clusterID, epoch := c.Identity()
		if c.config.MembersFile == "" || clusterID == 0 || membership == nil {
			continue
		}
		if err := writeMembers(c.config.MembersFile, clusterID, epoch, membership); err != nil {
			c.config.Logger.Warn("the list of log members cannot be saved", "file", c.config.MembersFile, "error", err)
		}
	}
}

// MemberStatus is what is known of one member of the log.
type MemberStatus struct {
	// Address at which it was asked.
	Address string
	// Info is its place in the membership; nil if it is in none that is known.
	Info *logv1.Member
	// InUse marks the member that serves this client.
	InUse bool
	// Status is its answer; nil if there was none, and then Err says why.
	Status *logv1.StatusResponse
	Err    error
	// RoundTrip is measured over many questions; negative while unknown.
	RoundTrip time.Duration
}

// Status asks every known member at once and returns when all have answered or ctx, or the bound on one question, has
// ended. The order is that in which members became known.
func (c *Client) Status(ctx context.Context) []MemberStatus {
	c.mu.Lock()
	statuses := make([]MemberStatus, 0, len(c.tracker.members))
	for _, m := range c.tracker.members {
		if !m.listed && c.tracker.learned {
			continue
		}
		s := MemberStatus{Address: m.address, Info: m.info, InUse: m.address == c.tracker.current, RoundTrip: m.roundTrip, Err: m.refused}
		if !m.measured {
			s.RoundTrip = -1
		}
		statuses = append(statuses, s)
	}
	c.mu.Unlock()

	ctx, cancel := context.WithTimeout(ctx, c.config.ProbeTimeout)
	defer cancel()
	var asked sync.WaitGroup
	for i := range statuses {
		s := &statuses[i]
		if s.Err != nil {
			continue
		}
		asked.Go(func() {
			connection, err := c.connect(s.Address)
			if err != nil {
				s.Err = err
				return
			}
			s.Status, s.Err = connection.service.Status(ctx, &logv1.StatusRequest{})
			if errors.Is(ctx.Err(), context.DeadlineExceeded) && s.Err != nil {
				s.Err = ErrUnreachable
			}
		})
	}
	asked.Wait()
	return statuses
}
