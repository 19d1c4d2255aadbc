package command

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
)

func newGet(o *options) *cobra.Command {
	var revision int64
	var details bool
	c := &cobra.Command{
		Use:   "get KEY",
		Short: "Print the value of a key; exit code 3 if there is none",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return o.call(c, func(ctx context.Context, connection *client.Client) error {
				answer, err := connection.Get(ctx, &kvv1.GetRequest{
					Key: []byte(args[0]), Revision: revision, Consistency: o.readConsistency(),
				})
				if err != nil {
					return err
				}
				kv := answer.GetKeyValue()
				err = o.print(map[string]any{"header": headerToJSON(answer.GetHeader()), "key_value": toJSON(kv)}, func() {
					switch {
					case kv == nil:
						fmt.Fprintf(o.err, "kvctl: no key %s\n", printable([]byte(args[0])))
					case details:
						o.line("key              %s", printable(kv.GetKey()))
						o.line("value            %s", printable(kv.GetValue()))
						o.line("create revision  %d", kv.GetCreateRevision())
						o.line("mod revision     %d", kv.GetModRevision())
						o.line("version          %d", kv.GetVersion())
						o.line("lease            %s", leaseHex(kv.GetLease()))
						o.line("answered by      %s in %s at log index %d", answer.GetHeader().GetFrontend(),
							answer.GetHeader().GetRegion(), answer.GetHeader().GetLogIndex())
						o.line("age              %s", ageText(answer.GetHeader()))
					default:
						o.line("%s", kv.GetValue())
					}
				})
				if err == nil && kv == nil {
					err = exitError{code: exitNotFound}
				}
				return err
			})
		},
	}
	c.Flags().Int64Var(&revision, "rev", 0, "as of this `revision`")
	c.Flags().BoolVar(&details, "details", false, "print revisions, version, lease, who answered, and how old the state may be that the answer is from")
	return c
}
