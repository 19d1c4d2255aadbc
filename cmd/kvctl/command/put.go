package command

import (
	"context"

	"github.com/spf13/cobra"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
)

// valueBytesMax bounds a value read from standard input; the cluster's own limit is lower by default.
const valueBytesMax = 64 << 20

func newPut(o *options) *cobra.Command {
	var lease string
	var previous bool
	var write writeFlags
	c := &cobra.Command{
		Use:     "put KEY [VALUE]",
		Short:   "Write a key; without VALUE, or with -, the value is read from standard input",
		Example: "  kvctl put greeting hello\n  kvctl put config/app - < app.yaml",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			request := &kvv1.PutRequest{
				Key: []byte(args[0]), ReturnPrevious: previous, Options: write.options(),
			}
			if lease != "" {
				id, err := parseLease(lease)
				if err != nil {
					return err
				}
				request.Lease = id
			}
			if len(args) == 2 && args[1] != "-" {
				request.Value = []byte(args[1])
			} else {
				value, err := o.readValue()
				if err != nil {
					return err
				}
				request.Value = value
			}
			return o.callWrite(c, func(ctx context.Context, connection *client.Client) error {
				answer, err := connection.Put(ctx, request)
				if err != nil {
					return err
				}
				return o.print(map[string]any{
					"header": headerToJSON(answer.GetHeader()), "revision": answer.GetRevision(), "previous": toJSON(answer.GetPrevious()),
				}, func() {
					o.line("OK, revision %d", answer.GetRevision())
					if kv := answer.GetPrevious(); kv != nil {
						o.line("was: %s", printable(kv.GetValue()))
					}
				})
			})
		},
	}
	c.Flags().StringVar(&lease, "lease", "", "attach the key to this lease `id`")
	c.Flags().BoolVar(&previous, "prev", false, "print the value that was replaced")
	write.add(c)
	return c
}
