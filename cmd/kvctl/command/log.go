package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/client"
	"github.com/logmirror/logmirror/internal/disk"
	"github.com/logmirror/logmirror/logservice/segment"
)

// newLog groups what looks at or steers the log service.
func newLog(o *options) *cobra.Command {
	c := &cobra.Command{Use: "log", Short: "Steer the log service: leadership, members, checkpoints; check, dump and recover stopped members' files"}
	c.AddCommand(newLogTransfer(o), newLogMember(o), newLogStatus(o), newLogCheckpoint(o), newLogVerify(o), newLogDump(o), newLogRecover(o))
	return c
}

func newLogTransfer(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "transfer MEMBER",
		Short: "Move leadership of the log to a member, named as kvctl status does",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return o.call(c, func(ctx context.Context, connection *client.Client) error {
				answer, err := connection.Status(ctx, &kvv1.StatusRequest{})
				if err != nil {
					return err
				}
				member, err := findMember(answer.GetLog().GetMembers(), args[0])
				if err != nil {
					return err
				}
				var moved *logv1.TransferLeadershipResponse
				err = o.callMember(member.GetAddress(), func(log logv1.LogServiceClient) (err error) {
					moved, err = log.TransferLeadership(ctx, &logv1.TransferLeadershipRequest{TargetId: member.GetId()})
					return err
				})
				if err != nil {
					return err
				}
				return o.print(map[string]any{"leader_id": fmt.Sprintf("%016x", moved.GetLeaderId())}, func() {
					o.line("%s leads the log", member.GetName())
				})
			})
		},
	}
}

// callMember calls a log member itself.
func (o *options) callMember(address string, do func(logv1.LogServiceClient) error) error {
	direct, err := o.dialOne(address)
	if err != nil {
		return err
	}
	defer direct.Close()
	return do(logv1.NewLogServiceClient(direct))
}

// dialOne returns a connection to one process, whoever else there is.
func (o *options) dialOne(address string) (*grpc.ClientConn, error) {
	credentials, err := o.tls.Client(nil)
	if err != nil {
		return nil, exitError{exitUsage, err}
	}
	if credentials == nil {
		credentials = insecure.NewCredentials()
	}
	return grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials), grpc.WithContextDialer(o.places.dial))
}

func findMember(members []*kvv1.LogMemberStatus, name string) (*kvv1.LogMemberStatus, error) {
	var names []string
	for _, member := range members {
		if member.GetName() == name {
			return member, nil
		}
		names = append(names, member.GetName())
	}
	return nil, exitError{exitUsage, fmt.Errorf("no log member %q; there are: %s", name, strings.Join(names, ", "))}
}

const logDirHelp = "DIR is the directory \"log\" within a member's data directory. The member must not be running."

func newLogVerify(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "verify DIR",
		Short: "Read and check all of a stopped log member's files; exit code 1 names the first damage",
		Long:  "Read and check all of a stopped log member's files.\n" + logDirHelp,
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			report, err := segment.Verify(disk.OS(), args[0])
			if err != nil {
				return err
			}
			return o.print(report, func() {
				o.line("entries %d to %d, last term %d, digest %016x", report.FirstIndex, report.LastIndex, report.LastTerm, report.Digest)
				o.line("term %d, vote %016x, committed %d", report.HardState.Term, report.HardState.Vote, report.HardState.Commit)
				for _, s := range report.Segments {
					note := ""
					if s.TornTail {
						note = ", a torn write at the end that was never acknowledged"
					}
					o.line("%s: entries %d to %d in %d frames, %s of %s used%s", s.File, s.FirstIndex, s.LastIndex, s.Frames,
						bytesText(s.EndOffset), bytesText(s.Bytes), note)
				}
			})
		},
	}
}

func newLogDump(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "dump DIR",
		Short: "Print every entry of a stopped log member's files",
		Long:  "Print every entry of a stopped log member's files, a line each.\n" + logDirHelp,
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			err := segment.Dump(disk.OS(), args[0], o.printRecord)
			if errors.Is(err, io.ErrClosedPipe) {
				return nil
			}
			return err
		},
	}
}

// printRecord prints the entries of one frame. A later frame may replace them: then an index is printed again.
func (o *options) printRecord(record segment.DumpRecord) error {
	if record.Frame == nil {
		return nil // a segment's header holds no entry
	}
	for _, entry := range record.Frame.Entries {
		var envelope logv1.Envelope
		if entry.Type == 0 && len(entry.Data) > 0 {
			if err := proto.Unmarshal(entry.Data, &envelope); err != nil {
				return fmt.Errorf("entry %d: %w", entry.Index, err)
			}
		}
		kind := strings.TrimPrefix(envelope.GetKind().String(), "ENTRY_KIND_")
		switch {
		case entry.Type != 0:
			kind = "MEMBERSHIP"
		case len(entry.Data) == 0:
			kind = "TERM_BEGINS"
		}
		err := o.print(map[string]any{
			"index": entry.Index, "term": entry.Term, "kind": kind, "log_time_nanoseconds": envelope.GetLogTimeNanoseconds(),
			"session": envelope.GetSession(), "seq": envelope.GetSeq(), "payload": envelope.GetPayload(),
		}, func() {
			o.line("%d\tterm %d\t%s\tsession %d seq %d\t%d bytes", entry.Index, entry.Term, kind, envelope.GetSession(),
				envelope.GetSeq(), len(envelope.GetPayload()))
		})
		if err != nil {
			return err
		}
	}
	return nil
}
