package playground

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/logservice"
)

// AddMember adds a log member to the running cluster as a learner and starts it. Its name is new.
func (c *Cluster) AddMember(ctx context.Context, name, region string) error {
	if _, err := find(c.memberParts(), name); err == nil {
		return fmt.Errorf("there is a %q in this cluster already", name)
	}
	m := layoutMember{Name: name, Region: region}
	listener, err := c.listenMember(m)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	first := &reserved{listener: listener}
	defer first.release()
	m.Address = listener.Addr().String()
	if err := c.askMember(ctx, "", func(ctx context.Context, log logv1.LogServiceClient) error {
		_, err := log.AddMember(ctx, &logv1.AddMemberRequest{Name: name, Address: m.Address, Region: region})
		return err
	}); err != nil {
		return err
	}
	if err := c.changeLayout(func(l *layout) { l.Log = append(l.Log, m) }); err != nil {
		return err
	}
	var others []string
	for _, p := range c.memberParts() {
		others = append(others, p.address)
	}
	p := c.addPart(m, first, func(config *logservice.Config) (err error) {
		*config, err = logservice.Join(c.stopping, *config, others)
		return err
	})
	return p.begin()
}

// PromoteMember lets a log member vote that was added. It asks until the member has caught up.
func (c *Cluster) PromoteMember(ctx context.Context, name string) error {
	id, err := c.memberID(name)
	if err != nil {
		return err
	}
	again := time.NewTicker(tickInterval)
	defer again.Stop()
	for {
		err = c.askMember(ctx, "", func(ctx context.Context, log logv1.LogServiceClient) error {
			_, err := log.PromoteMember(ctx, &logv1.PromoteMemberRequest{MemberId: id})
			return err
		})
		if status.Code(err) != codes.FailedPrecondition {
			return err
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return err
		}
	}
}

// RemoveMember removes a log member, whose process ends.
func (c *Cluster) RemoveMember(ctx context.Context, name string) error {
	id, err := c.memberID(name)
	if err != nil {
		return err
	}
	if err := c.askMember(ctx, name, func(ctx context.Context, log logv1.LogServiceClient) error {
		_, err := log.RemoveMember(ctx, &logv1.RemoveMemberRequest{MemberId: id})
		return err
	}); err != nil {
		return err
	}
	return c.changeLayout(func(l *layout) {
		l.Log = slices.DeleteFunc(l.Log, func(m layoutMember) bool { return m.Name == name })
	})
}

func (c *Cluster) memberID(name string) (uint64, error) {
	answer, err := c.MemberStatus(name)
	return answer.GetHandshake().GetId(), err
}

// askMember asks log members in turn, but not the one that it is about, until one answers.
func (c *Cluster) askMember(ctx context.Context, about string, ask func(context.Context, logv1.LogServiceClient) error) error {
	err := errors.New("no other log member runs")
	for _, p := range c.memberParts() {
		if _, running := p.current(); p.name == about || !running {
			continue
		}
		var conn *grpc.ClientConn
		conn, err = grpc.NewClient("passthrough:///"+p.address, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
				return c.network.Region(p.region).Dial(ctx, address)
			}))
		if err != nil {
			return err
		}
		err = ask(ctx, logv1.NewLogServiceClient(conn))
		_ = conn.Close() // nothing is under way any more
		if status.Code(err) != codes.Unavailable {
			return err
		}
	}
	return err
}

// changeLayout remembers what the log's members are.
func (c *Cluster) changeLayout(change func(*layout)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.dir.layout)
	c.dir.layout.Changed = true
	return c.dir.save()
}

// memberEnded takes a member that was removed out of the cluster; any other end is a failure.
func (c *Cluster) memberEnded(name string, err error) {
	if !errors.Is(err, logservice.ErrRemoved) {
		c.fail(name, err)
		return
	}
	c.config.Logger.Info("a log member was removed", "process", name)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.members = slices.DeleteFunc(c.members, func(p *part[*logservice.Server]) bool { return p.name == name })
}
