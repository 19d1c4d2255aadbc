package command

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
)

func newCompareAndSwap(o *options) *cobra.Command {
	var expectValue, put, lease string
	var expectRevision int64
	var expectAbsent, remove bool
	var write writeFlags
	c := &cobra.Command{
		Use:   "cas KEY",
		Short: "Change a key if it is as expected; exit code 4 and the present state if it is not",
		Example: "  kvctl cas lock --expect-absent --put me\n  kvctl cas counter --expect-value 1 --put 2\n" +
			"  kvctl cas job --expect-revision 17 --delete",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			request := &kvv1.CompareAndSwapRequest{Key: []byte(args[0]), Options: write.options()}
			given := 0
			if c.Flags().Changed("expect-value") {
				given++
				request.Expect = &kvv1.CompareAndSwapRequest_Value{Value: []byte(expectValue)}
			}
			if c.Flags().Changed("expect-revision") {
				given++
				request.Expect = &kvv1.CompareAndSwapRequest_ModRevision{ModRevision: expectRevision}
			}
			if expectAbsent {
				given++
				request.Expect = &kvv1.CompareAndSwapRequest_Absent{Absent: true}
			}
			if given != 1 {
				return exitError{exitUsage, errors.New("say what is expected: one of --expect-value, --expect-revision, --expect-absent")}
			}
			if c.Flags().Changed("put") == remove {
				return exitError{exitUsage, errors.New("say what to change it to: one of --put, --delete")}
			}
			if remove {
				request.Change = &kvv1.CompareAndSwapRequest_Delete{Delete: true}
			} else {
				request.Change = &kvv1.CompareAndSwapRequest_Put{Put: []byte(put)}
			}
			if lease != "" {
				id, err := parseLease(lease)
				if err != nil {
					return err
				}
				request.Lease = id
			}
			return o.callWrite(c, func(ctx context.Context, connection *client.Client) error {
				answer, err := connection.CompareAndSwap(ctx, request)
				if err != nil {
					return err
				}
				err = o.print(map[string]any{
					"header": headerToJSON(answer.GetHeader()), "succeeded": answer.GetSucceeded(),
					"revision": answer.GetRevision(), "current": toJSON(answer.GetCurrent()),
				}, func() {
					current := answer.GetCurrent()
					switch {
					case answer.GetSucceeded():
						o.line("swapped, revision %d", answer.GetRevision())
					case current == nil:
						o.line("not swapped: there is no such key")
					default:
						o.line("not swapped: it is %s, revision %d", printable(current.GetValue()), current.GetModRevision())
					}
				})
				if err == nil && !answer.GetSucceeded() {
					err = exitError{code: exitNotHeld}
				}
				return err
			})
		},
	}
	flags := c.Flags()
	flags.StringVar(&expectValue, "expect-value", "", "the key exists and has this `value`")
	flags.Int64Var(&expectRevision, "expect-revision", 0, "the key exists and was last written at this `revision`")
	flags.BoolVar(&expectAbsent, "expect-absent", false, "the key does not exist")
	flags.StringVar(&put, "put", "", "write this `value`")
	flags.BoolVar(&remove, "delete", false, "delete the key")
	flags.StringVar(&lease, "lease", "", "with --put: attach the key to this lease `id`")
	write.add(c)
	return c
}
