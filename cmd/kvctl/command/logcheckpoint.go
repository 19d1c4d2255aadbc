package command

import (
	"context"
	"errors"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/client"
)

func newLogCheckpoint(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "checkpoint",
		Short: "Ask for a checkpoint of the log now, and wait until it is sealed",
		Long: "Ask for a checkpoint of the log now, whatever its size, and wait until it is sealed: until then --timeout must last.\n" +
			"Frontends with a session build it. The log is trimmed below sealed checkpoints by itself.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return o.call(c, func(ctx context.Context, connection *client.Client) error {
				answer, err := connection.Status(ctx, &kvv1.StatusRequest{})
				if err != nil {
					return err
				}
				address := memberToAsk(answer.GetLog())
				if address == "" {
					return errors.New("no log member is in reach")
				}
				var sealed *logv1.RequestCheckpointResponse
				err = o.callMember(address, func(log logv1.LogServiceClient) (err error) {
					sealed, err = log.RequestCheckpoint(ctx, &logv1.RequestCheckpointRequest{})
					return err
				})
				if err != nil {
					return err
				}
				name := sealed.GetCheckpoint()
				return o.print(map[string]any{"index": name.GetIndex(), "sha256": fmt.Sprintf("%x", name.GetSha256()),
					"size_bytes": name.GetSizeBytes(), "format_version": name.GetFormatVersion()}, func() {
					o.line("checkpoint %d is sealed: %s, sha256 %x", name.GetIndex(), bytesText(int64(name.GetSizeBytes())), name.GetSha256())
				})
			})
		},
	}
}

// memberToAsk is the leader's address, or that of any member in reach.
func memberToAsk(log *kvv1.LogStatus) (address string) {
	for _, m := range log.GetMembers() {
		if m.GetReachable() && (m.GetLeader() || address == "") {
			address = m.GetAddress()
		}
	}
	return address
}

// memberLog is what a member says of its own log.
type memberLog struct {
	Name        string             `json:"name"`
	FirstIndex  uint64             `json:"first_index"`
	LastIndex   uint64             `json:"last_index"`
	DiskBytes   uint64             `json:"disk_bytes"`
	Checkpoints []memberCheckpoint `json:"checkpoints"`
	// Making is the index of the checkpoint that is being made, zero for none.
	Making uint64   `json:"making"`
	Alarms []string `json:"alarms"`
	Error  string   `json:"error,omitempty"`
}

type memberCheckpoint struct {
	Index     uint64 `json:"index"`
	SHA256    string `json:"sha256"`
	SizeBytes uint64 `json:"size_bytes"`
	Held      bool   `json:"held"`
}

func newLogStatus(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Ask each log member for its log and checkpoints: where it begins, what it takes up, what is held",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return o.call(c, func(ctx context.Context, connection *client.Client) error {
				answer, err := connection.Status(ctx, &kvv1.StatusRequest{})
				if err != nil {
					return err
				}
				var logs []memberLog
				for _, m := range answer.GetLog().GetMembers() {
					logs = append(logs, o.askMember(ctx, m))
				}
				return o.print(logs, func() { o.printLogs(logs) })
			})
		},
	}
}

func (o *options) askMember(ctx context.Context, member *kvv1.LogMemberStatus) memberLog {
	log := memberLog{Name: member.GetName(), Checkpoints: []memberCheckpoint{}, Alarms: []string{}}
	err := o.callMember(member.GetAddress(), func(service logv1.LogServiceClient) error {
		status, err := service.Status(ctx, &logv1.StatusRequest{})
		if err != nil {
			return err
		}
		log.FirstIndex, log.LastIndex, log.DiskBytes = status.GetFirstIndex(), status.GetLastIndex(), status.GetDiskUsedBytes()
		log.Making = status.GetCheckpointProgress().GetIndex()
		log.Alarms = append(log.Alarms, status.GetAlarms()...)
		for _, checkpoint := range status.GetCheckpoints() {
			log.Checkpoints = append(log.Checkpoints, memberCheckpoint{Index: checkpoint.GetName().GetIndex(),
				SHA256: fmt.Sprintf("%x", checkpoint.GetName().GetSha256()), SizeBytes: checkpoint.GetName().GetSizeBytes(),
				Held: checkpoint.GetHeld()})
		}
		return nil
	})
	if err != nil {
		log.Error = err.Error()
	}
	return log
}

func (o *options) printLogs(logs []memberLog) {
	table := tabwriter.NewWriter(o.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "MEMBER\tENTRIES\tON DISK\tCHECKPOINTS (+ held there)\tBEING MADE")
	for _, log := range logs {
		if log.Error != "" {
			fmt.Fprintf(table, "%s\t%s\n", log.Name, log.Error)
			continue
		}
		checkpoints := ""
		for _, checkpoint := range log.Checkpoints {
			mark := ""
			if checkpoint.Held {
				mark = "+"
			}
			checkpoints += fmt.Sprintf("%d%s (%s) ", checkpoint.Index, mark, bytesText(int64(checkpoint.SizeBytes)))
		}
		making := "-"
		if log.Making != 0 {
			making = fmt.Sprint(log.Making)
		}
		fmt.Fprintf(table, "%s\t%d to %d\t%s\t%s\t%s\n", log.Name, log.FirstIndex, log.LastIndex, bytesText(int64(log.DiskBytes)),
			orNone(checkpoints), making)
	}
	if err := table.Flush(); err != nil {
		fmt.Fprintln(o.err, err)
	}
	for _, log := range logs {
		for _, alarm := range log.Alarms {
			o.line("ALARM  %s: %s", log.Name, alarm)
		}
	}
}
