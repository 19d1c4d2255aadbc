package command

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
)

// listPage is the number of keys asked for at a time.
const listPage = 1000

func newList(o *options) *cobra.Command {
	var revision int64
	var limit int
	var keysOnly bool
	var end string
	c := &cobra.Command{
		Use:   "list [PREFIX]",
		Short: "Print the keys that begin with PREFIX, or all, in order",
		Long: "Print the keys that begin with PREFIX, or all, in order, each with its value.\n" +
			"With --end, print the keys from PREFIX on and before the end.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			request := &kvv1.ListRequest{
				Revision: revision, KeysOnly: keysOnly, PageSize: listPage, Consistency: o.readConsistency(),
			}
			if len(args) == 1 {
				request.Key = []byte(args[0])
				request.RangeEnd = client.PrefixEnd(request.Key)
			}
			if end != "" {
				request.RangeEnd = []byte(end)
			}
			if limit < 0 {
				return exitError{exitUsage, fmt.Errorf("--limit %d: want zero or more", limit)}
			}
			connection, err := o.connect(c.Context())
			if err != nil {
				return err
			}
			defer connection.Close()
			for listed := 0; ; {
				if limit > 0 {
					request.PageSize = int32(min(listPage, limit-listed))
				}
				page, err := o.listPage(c.Context(), connection, request)
				if err != nil {
					return err
				}
				listed += len(page.GetKeyValues())
				request.PageToken = page.GetNextPageToken()
				if request.PageToken == "" || limit > 0 && listed >= limit {
					return nil
				}
			}
		},
	}
	c.Flags().Int64Var(&revision, "rev", 0, "as of this `revision`")
	c.Flags().IntVar(&limit, "limit", 0, "at most this many keys; 0 for all")
	c.Flags().BoolVar(&keysOnly, "keys-only", false, "no values")
	c.Flags().StringVar(&end, "end", "", "where the range ends, exclusive")
	return c
}

func (o *options) listPage(ctx context.Context, connection *client.Client, request *kvv1.ListRequest) (*kvv1.ListResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	page, err := connection.List(ctx, request)
	if err != nil {
		return nil, err
	}
	for _, kv := range page.GetKeyValues() {
		err := o.print(toJSON(kv), func() {
			if request.GetKeysOnly() {
				o.line("%s", printable(kv.GetKey()))
			} else {
				o.line("%s\t%s", printable(kv.GetKey()), printable(kv.GetValue()))
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return page, nil
}
