package command

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
)

func newDelete(o *options) *cobra.Command {
	var prefix, previous bool
	var end string
	var write writeFlags
	c := &cobra.Command{
		Use:     "del KEY",
		Aliases: []string{"delete"},
		Short:   "Delete a key, a range or a prefix; exit code 3 if there was nothing to delete",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			request := &kvv1.DeleteRequest{Key: []byte(args[0]), RangeEnd: []byte(end), ReturnPrevious: previous, Options: write.options()}
			if prefix {
				if end != "" {
					return exitError{exitUsage, errors.New("--prefix and --end exclude each other")}
				}
				request.RangeEnd = client.PrefixEnd(request.Key)
				if len(request.Key) == 0 {
					request.Key = []byte{0}
				}
			}
			return o.callWrite(c, func(ctx context.Context, connection *client.Client) error {
				answer, err := connection.Delete(ctx, request)
				if err != nil {
					return err
				}
				var gone []*keyValueJSON
				for _, kv := range answer.GetPrevious() {
					gone = append(gone, toJSON(kv))
				}
				err = o.print(map[string]any{
					"header": headerToJSON(answer.GetHeader()), "revision": answer.GetRevision(),
					"deleted": answer.GetDeleted(), "previous": gone,
				}, func() {
					o.line("%d deleted, revision %d", answer.GetDeleted(), answer.GetRevision())
					for _, kv := range answer.GetPrevious() {
						o.line("%s\t%s", printable(kv.GetKey()), printable(kv.GetValue()))
					}
				})
				if err == nil && answer.GetDeleted() == 0 {
					err = exitError{code: exitNotFound}
				}
				return err
			})
		},
	}
	c.Flags().BoolVar(&prefix, "prefix", false, "delete every key that begins with KEY")
	c.Flags().StringVar(&end, "end", "", "delete every key from KEY on and before this one")
	c.Flags().BoolVar(&previous, "prev", false, "print what was deleted")
	write.add(c)
	return c
}
