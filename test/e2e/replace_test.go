package e2e

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/test/processes"
)

// The leader is replaced under load, by the commands that operators use: nothing that was acknowledged is lost, and the
// process that is removed says so by its exit code.
func TestLeaderIsReplacedUnderLoad(t *testing.T) {
	c := newProcessCluster(t, "us", "eu", "ap")
	c.startAll(t)
	var clients []*clientv3.Client
	for _, p := range c.frontends {
		clients = append(clients, newClient(t, p.Address))
	}
	l := startLoad(t, c)
	l.awaitProgress(t, 50)
	var leader *process
	eventually(t, "a leader", func(ctx context.Context) (err error) {
		leader, err = c.leader(ctx)
		return err
	})
	began := time.Now()
	c.replace(t, slices.Index(c.members, leader), leader.Name+"-new", func(address string) string { return address })
	t.Logf("replaced %s within %v", leader.Name, time.Since(began))
	l.awaitProgress(t, 50)
	l.end()
	l.check(t, clients)
	for _, p := range c.all() {
		p.stop(t)
	}
	compareLogs(t, c.members)
}

// replace lets a process with a new name take the place of the i-th member: add, start, promote, remove, until the removed
// process has ended. Others reach the new one at the address that reached makes of its own.
func (c *processCluster) replace(t *testing.T, i int, name string, reached func(address string) string) {
	t.Helper()
	old, region := c.members[i], c.regions[i]
	var join []string
	for _, p := range c.members {
		join = append(join, p.Address)
	}
	p := c.newProcess(name, freePorts(t, 1)[0], "logsvc", "--region", region, "--join", strings.Join(join, ","))
	p.Arguments = append(p.Arguments, c.memberFlags...)
	c.change(t, func(m *logv1.Membership) bool { return memberNamed(m, name) != nil },
		"add", name, reached(p.Address), region)
	c.members[i] = p
	c.removed = []*process{old}
	p.start(t)
	c.change(t, func(m *logv1.Membership) bool { return memberNamed(m, name).GetRole() == logv1.Member_ROLE_VOTER },
		"promote", name)
	c.change(t, func(m *logv1.Membership) bool { return memberNamed(m, old.Name) == nil }, "remove", old.Name)
	old.awaitExit(t, exitRemoved)
	c.removed = nil
}

// exitRemoved is what logsvc ends with where its member was removed.
const exitRemoved = 3

// change asks for a change of the log's members until it is made; the log may refuse it at first, or an answer may be lost.
func (c *processCluster) change(t *testing.T, done func(*logv1.Membership) bool, arguments ...string) {
	t.Helper()
	var endpoints []string
	for _, p := range c.frontends {
		endpoints = append(endpoints, p.Address)
	}
	eventually(t, strings.Join(arguments, " "), func(ctx context.Context) error {
		leader, err := c.leader(ctx)
		if err != nil {
			return err
		}
		status, err := processes.MemberStatus(ctx, leader.Address)
		if err != nil || done(status.GetMembership()) {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		command := exec.CommandContext(ctx, filepath.Join(c.Binaries, "kvctl"),
			append([]string{"--endpoints", strings.Join(endpoints, ","), "log", "member"}, arguments...)...)
		if output, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("kvctl: %w: %s", err, output)
		}
		return nil
	})
}

func memberNamed(membership *logv1.Membership, name string) *logv1.Member {
	for _, m := range membership.GetMembers() {
		if m.GetName() == name {
			return m
		}
	}
	return nil
}

// awaitExit waits until a process has ended by itself.
func (p *process) awaitExit(t *testing.T, code int) {
	t.Helper()
	err := p.Wait(patience)
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != code {
		t.Errorf("%s ended with %v, want exit code %d", p.Name, err, code)
	}
}

// said counts how often a process's output holds a text.
func (p *process) said(t *testing.T, text string) int {
	t.Helper()
	count, err := p.Said(text)
	if err != nil {
		t.Fatal(err)
	}
	return count
}
