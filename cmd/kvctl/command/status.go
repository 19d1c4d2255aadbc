package command

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
)

func newStatus(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Tell how the cluster is: frontends, log members, leader, lag, alarms",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return o.call(c, func(ctx context.Context, connection *client.Client) error {
				answer, err := connection.Status(ctx, &kvv1.StatusRequest{})
				if err != nil {
					return err
				}
				if o.output == "json" {
					data, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(answer)
					if err != nil {
						return err
					}
					o.line("%s", data)
					return nil
				}
				o.printStatus(answer)
				return nil
			})
		},
	}
}

func (o *options) printStatus(s *kvv1.StatusResponse) {
	header := s.GetHeader()
	o.line("cluster    %016x, epoch %d", header.GetClusterId(), header.GetEpoch())
	o.line("answered   %s in %s (incarnation %d, version %s)", header.GetFrontend(), header.GetRegion(), header.GetIncarnation(), s.GetVersion())
	o.line("state      log index %d, revision %d (compacted to %d), %s", header.GetLogIndex(), header.GetRevision(), s.GetCompactRevision(), ageText(header))
	o.line("holds      %d keys, %d leases, %d watchers, %s of %s", s.GetKeys(), s.GetLeases(), s.GetWatchers(), bytesText(s.GetSizeBytes()), bytesText(s.GetQuotaBytes()))
	for _, reason := range s.GetDegraded() {
		o.line("DEGRADED   %s", reason)
	}
	for _, alarm := range s.GetAlarms() {
		o.line("ALARM      %s", alarm)
	}
	log := s.GetLog()
	o.line("\nlog        leader %s, term %d, committed %d, published %d, first index %d; this frontend tails %s",
		orNone(log.GetLeader()), log.GetTerm(), log.GetCommitIndex(), log.GetPublishedIndex(), log.GetFirstIndex(), orNone(log.GetTailing()))
	table := tabwriter.NewWriter(o.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "\nMEMBER\tREGION\tADDRESS\tROLE\tTERM\tLAST INDEX\tLAG\tPUBLISHED\tROUND TRIP\tSTATE")
	for _, m := range log.GetMembers() {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%d\t%d\t%s\t%d\t%s\t%s\n", m.GetName(), m.GetRegion(), m.GetAddress(), roleText(m), m.GetTerm(),
			m.GetLastIndex(), lagText(log, m), m.GetPublishedIndex(), roundTripText(m), memberStateText(m))
	}
	fmt.Fprintln(table, "\nFRONTEND\tREGION\tINCARNATION\tSESSION\tCLIENTS")
	for _, f := range s.GetFrontends() {
		name := f.GetName()
		if f.GetSelf() {
			name += " (this one)"
		}
		fmt.Fprintf(table, "%s\t%s\t%d\t%d\t%s\n", name, f.GetRegion(), f.GetIncarnation(), f.GetSession(), strings.Join(f.GetClientUrls(), ","))
	}
	if err := table.Flush(); err != nil {
		fmt.Fprintln(o.err, err)
	}
}

// ageText says how old the state is that an answer is from.
func ageText(header *kvv1.ResponseHeader) string {
	if header.GetAgeMicroseconds() < 0 {
		return "of unknown age"
	}
	age := time.Duration(header.GetAgeMicroseconds()) * time.Microsecond
	return fmt.Sprintf("at most %v old", age.Round(time.Millisecond))
}

func roleText(m *kvv1.LogMemberStatus) string {
	if m.GetLeader() {
		return "leader"
	}
	return m.GetRole()
}

// lagText is how many entries of the leader's log a member lacks, as far as both answered.
func lagText(log *kvv1.LogStatus, m *kvv1.LogMemberStatus) string {
	for _, leader := range log.GetMembers() {
		if leader.GetLeader() && leader.GetReachable() && m.GetReachable() {
			return fmt.Sprint(max(leader.GetLastIndex(), m.GetLastIndex()) - m.GetLastIndex())
		}
	}
	return "-"
}

func roundTripText(m *kvv1.LogMemberStatus) string {
	if m.GetRoundTripMicroseconds() < 0 {
		return "-"
	}
	return (time.Duration(m.GetRoundTripMicroseconds()) * time.Microsecond).Round(100 * time.Microsecond).String()
}

func memberStateText(m *kvv1.LogMemberStatus) string {
	state := "ok"
	if !m.GetReachable() {
		state = "unreachable"
	}
	if len(m.GetAlarms()) > 0 {
		state += ": " + strings.Join(m.GetAlarms(), "; ")
	}
	return state
}

func orNone(name string) string {
	if name == "" {
		return "none"
	}
	return name
}

func bytesText(n int64) string {
	const units = "KMGT"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/1024, 0
	for value >= 1024 && unit < len(units)-1 {
		value, unit = value/1024, unit+1
	}
	return fmt.Sprintf("%.1f %ciB", value, units[unit])
}
