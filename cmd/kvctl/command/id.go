package command

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
)

func newID(o *options) *cobra.Command {
	c := &cobra.Command{
		Use:   "id",
		Short: "Get ids that are unique in the cluster, from the nearest frontend",
		Long: `Get ids that are unique in the cluster. All but those of a sequence are made by the frontend that is asked, without a
round trip to the log.`,
	}
	c.AddCommand(
		newIDKind(o, "snowflake", "63 bits, in order of time", kvv1.GenerateRequest_KIND_SNOWFLAKE),
		newIDKind(o, "raindrop", "53 bits, exact in a JavaScript number, in order of time", kvv1.GenerateRequest_KIND_RAINDROP),
		newIDKind(o, "segment NAME", "the next numbers of a range, from a block of this frontend's", kvv1.GenerateRequest_KIND_SEGMENT),
		newIDKind(o, "sequence NAME", "the next numbers of a sequence, in the order of the log", kvv1.GenerateRequest_KIND_SEQUENCE),
	)
	return c
}

func newIDKind(o *options, use, short string, kind kvv1.GenerateRequest_Kind) *cobra.Command {
	request := &kvv1.GenerateRequest{Kind: kind}
	named := kind == kvv1.GenerateRequest_KIND_SEGMENT || kind == kvv1.GenerateRequest_KIND_SEQUENCE
	c := &cobra.Command{
		Use:   use,
		Short: "Print ids: " + short,
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if named {
				request.Name = args[0]
			}
			return o.call(c, func(ctx context.Context, connection *client.Client) error {
				answer, err := connection.Generate(ctx, request)
				if err != nil {
					return err
				}
				for id := range client.IDs(answer) {
					// As text: a program that reads JSON numbers as doubles would round a snowflake.
					err := o.print(map[string]any{"id": strconv.FormatInt(id, 10)}, func() { o.line("%d", id) })
					if err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	if named {
		c.Args = cobra.ExactArgs(1)
	}
	c.Flags().Int64Var(&request.Count, "count", 1, "how many, at most 100,000")
	if kind == kvv1.GenerateRequest_KIND_SEGMENT {
		c.Flags().Int64Var(&request.Max, "max", 0, "highest `number` of the range, such as 2147483647; fixed by its first use")
	}
	return c
}
