package command

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/client"
)

// newLogMember groups what changes the log service's membership.
func newLogMember(o *options) *cobra.Command {
	c := &cobra.Command{
		Use:   "member",
		Short: "Add, promote, remove and list the members of the log service",
		Long: `Change the members of the log service, one at a time. A new member is added, started, and promoted once it has caught up:
until then it is a learner, which gets every entry and serves frontends and has no vote. What would leave the log without a
majority in reach is refused.`,
	}
	c.AddCommand(newLogMemberAdd(o), newLogMemberPromote(o), newLogMemberRemove(o), newLogMemberList(o))
	return c
}

func newLogMemberAdd(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "add NAME ADDRESS REGION",
		Short: "Add a learner that others will reach at ADDRESS; it is started afterwards",
		Args:  cobra.ExactArgs(3),
		RunE: func(c *cobra.Command, args []string) error {
			return o.changeMembers(c, "", func(ctx context.Context, log logv1.LogServiceClient, via string, _ *kvv1.LogMemberStatus) error {
				answer, err := log.AddMember(ctx, &logv1.AddMemberRequest{Name: args[0], Address: args[1], Region: args[2]})
				if err != nil {
					return err
				}
				return o.print(membershipToJSON(answer.GetMember(), answer.GetMembership()), func() {
					o.line("%s is a learner of the log, id %016x", args[0], answer.GetMember().GetId())
					o.line("Start it with an empty data directory:")
					o.line("  logsvc --name %s --region %s --listen %s --data-dir DIR --join %s", args[0], args[2], args[1], via)
					o.line("Once kvctl status shows that it has caught up: kvctl log member promote %s", args[0])
				})
			})
		},
	}
}

func newLogMemberPromote(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "promote NAME",
		Short: "Let a learner that has caught up vote",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return o.changeMembers(c, args[0], func(ctx context.Context, log logv1.LogServiceClient, _ string, m *kvv1.LogMemberStatus) error {
				answer, err := log.PromoteMember(ctx, &logv1.PromoteMemberRequest{MemberId: m.GetId()})
				if err != nil {
					return err
				}
				return o.printChange("votes", m, answer.GetMembership())
			})
		},
	}
}

func newLogMemberRemove(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME",
		Short: "Remove a member for good; its process ends",
		Long: `Remove a member for good: its process ends, and its data directory is of no use any more. A leader hands leadership over
first. To bring a member back, add it again and start it with an empty directory.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return o.changeMembers(c, args[0], func(ctx context.Context, log logv1.LogServiceClient, _ string, m *kvv1.LogMemberStatus) error {
				answer, err := log.RemoveMember(ctx, &logv1.RemoveMemberRequest{MemberId: m.GetId()})
				if err != nil {
					return err
				}
				return o.printChange("is removed", m, answer.GetMembership())
			})
		},
	}
}

func (o *options) printChange(what string, m *kvv1.LogMemberStatus, membership *logv1.Membership) error {
	changed := &logv1.Member{Id: m.GetId(), Name: m.GetName(), Address: m.GetAddress(), Region: m.GetRegion()}
	return o.print(membershipToJSON(changed, membership), func() {
		var voters []string
		for _, member := range membership.GetMembers() {
			if member.GetRole() == logv1.Member_ROLE_VOTER {
				voters = append(voters, member.GetName())
			}
		}
		slices.Sort(voters)
		o.line("%s %s; voters: %s", m.GetName(), what, strings.Join(voters, ", "))
	})
}

func newLogMemberList(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the members of the log service, their roles and lag",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return o.call(c, func(ctx context.Context, connection *client.Client) error {
				answer, err := connection.Status(ctx, &kvv1.StatusRequest{})
				if err != nil {
					return err
				}
				log := answer.GetLog()
				if o.output == "json" {
					for _, m := range log.GetMembers() {
						if err := o.print(memberStatusJSON{memberJSON{fmt.Sprintf("%016x", m.GetId()), m.GetName(), m.GetRegion(), m.GetAddress(),
							m.GetRole()}, m.GetLeader(), m.GetReachable(), m.GetLastIndex(), m.GetPublishedIndex(), m.GetAlarms()}, nil); err != nil {
							return err
						}
					}
					return nil
				}
				table := tabwriter.NewWriter(o.out, 0, 0, 2, ' ', 0)
				fmt.Fprintln(table, "MEMBER\tID\tREGION\tADDRESS\tROLE\tLAST INDEX\tLAG\tSTATE")
				for _, m := range log.GetMembers() {
					fmt.Fprintf(table, "%s\t%016x\t%s\t%s\t%s\t%d\t%s\t%s\n", m.GetName(), m.GetId(), m.GetRegion(), m.GetAddress(), roleText(m),
						m.GetLastIndex(), lagText(log, m), memberStateText(m))
				}
				return table.Flush()
			})
		},
	}
}

// changeMembers finds a member by its name, if one is given, and asks a log member for a change: the leader if it can be
// reached, else another one, but not the one that is named.
func (o *options) changeMembers(c *cobra.Command, name string, do func(ctx context.Context, log logv1.LogServiceClient, via string,
	named *kvv1.LogMemberStatus) error) error {
	return o.call(c, func(ctx context.Context, connection *client.Client) error {
		answer, err := connection.Status(ctx, &kvv1.StatusRequest{})
		if err != nil {
			return err
		}
		members := answer.GetLog().GetMembers()
		var named *kvv1.LogMemberStatus
		if name != "" {
			if named, err = findMember(members, name); err != nil {
				return err
			}
		}
		asked := slices.DeleteFunc(slices.Clone(members), func(m *kvv1.LogMemberStatus) bool {
			return !m.GetReachable() || m.GetId() == named.GetId() && len(members) > 1
		})
		slices.SortStableFunc(asked, func(a, b *kvv1.LogMemberStatus) int { return preference(a) - preference(b) })
		err = exitError{exitUnavailable, errors.New("no other member of the log can be reached")}
		for _, m := range asked {
			err = o.callMember(m.GetAddress(), func(log logv1.LogServiceClient) error { return do(ctx, log, m.GetAddress(), named) })
			if status.Code(err) != codes.Unavailable || !client.NotApplied(err) {
				break
			}
		}
		if status.Code(err) == codes.Unavailable && !client.NotApplied(err) {
			return exitError{exitUnknown, fmt.Errorf("the connection broke before the answer: whether the change was made is not known; see "+
				"kvctl log member list (%w)", err)}
		}
		return err
	})
}

// preference puts the leader first, then voters.
func preference(m *kvv1.LogMemberStatus) int {
	switch {
	case m.GetLeader():
		return 0
	case m.GetRole() == "voter":
		return 1
	default:
		return 2
	}
}

type memberJSON struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Region  string `json:"region"`
	Address string `json:"address"`
	Role    string `json:"role,omitempty"`
}

type memberStatusJSON struct {
	memberJSON
	Leader         bool     `json:"leader"`
	Reachable      bool     `json:"reachable"`
	LastIndex      uint64   `json:"last_index"`
	PublishedIndex uint64   `json:"published_index"`
	Alarms         []string `json:"alarms"`
}

type membershipJSON struct {
	memberJSON
	Members []memberJSON `json:"members"`
	Index   uint64       `json:"index"`
}

func membershipToJSON(changed *logv1.Member, membership *logv1.Membership) membershipJSON {
	toJSON := func(m *logv1.Member) memberJSON {
		role := strings.ToLower(strings.TrimPrefix(m.GetRole().String(), "ROLE_"))
		if m.GetRole() == logv1.Member_ROLE_UNSPECIFIED {
			role = ""
		}
		return memberJSON{fmt.Sprintf("%016x", m.GetId()), m.GetName(), m.GetRegion(), m.GetAddress(), role}
	}
	j := membershipJSON{memberJSON: toJSON(changed), Members: []memberJSON{}, Index: membership.GetIndex()}
	for _, m := range membership.GetMembers() {
		j.Members = append(j.Members, toJSON(m))
	}
	return j
}
