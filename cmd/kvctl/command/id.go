package command

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
)

const (
	// idsPerCall is how many ids one call gives at most.
	idsPerCall = 100_000
	// idsPerBlock is how many a stream asks for at once, unless --block says otherwise.
	idsPerBlock = 1000
)

func newID(o *options) *cobra.Command {
	c := &cobra.Command{
		Use:   "id",
		Short: "Get ids that are unique in the cluster, from the nearest frontend",
		Long: `Get ids that are unique in the cluster. All but those of a sequence are made by the frontend that is asked, without a
round trip to the log. With --stream ids are printed for as long as somebody reads them, or until there were --count.`,
		Example: "  kvctl id snowflake --count 3\n  kvctl id sequence invoices\n  kvctl id snowflake --stream | head -1000000",
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
	var count, block int64
	var stream bool
	c := &cobra.Command{
		Use:   use,
		Short: "Print ids: " + short,
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if named {
				request.Name = args[0]
			}
			if stream {
				if block < 1 || block > idsPerCall {
					return exitError{exitUsage, fmt.Errorf("--block %d: want 1 to %d", block, idsPerCall)}
				}
				if !c.Flags().Changed("count") {
					count = 0
				}
				if request.Count = block; count > 0 {
					request.Count = min(block, count)
				}
				return o.streamIDs(c, request, count)
			}
			if c.Flags().Changed("block") {
				return exitError{exitUsage, errors.New("--block goes with --stream")}
			}
			request.Count = count
			return o.call(c, func(ctx context.Context, connection *client.Client) error {
				answer, err := connection.Generate(ctx, request)
				if err != nil {
					return err
				}
				for id := range client.IDs(answer) {
					if err := o.printID(id); err != nil {
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
	c.Flags().Int64Var(&count, "count", 1, "how many, at most 100,000; with --stream any `number`, and without it no end")
	c.Flags().BoolVar(&stream, "stream", false, "print ids as they are read, block after block")
	c.Flags().Int64Var(&block, "block", idsPerBlock, "with --stream: ask for so `many` at once")
	if kind == kvv1.GenerateRequest_KIND_SEGMENT {
		c.Flags().Int64Var(&request.Max, "max", 0, "highest `number` of the range, such as 2147483647; fixed by its first use")
	}
	return c
}

// printID prints one id: as text also for programs, since one that reads JSON numbers as doubles would round a snowflake.
func (o *options) printID(id int64) error {
	return o.print(map[string]any{"id": strconv.FormatInt(id, 10)}, func() { o.line("%d", id) })
}

// streamIDs prints ids until there were count, zero for no end, or nobody reads them any more.
func (o *options) streamIDs(c *cobra.Command, request *kvv1.GenerateRequest, count int64) error {
	connection, err := o.connect(c.Context())
	if err != nil {
		return err
	}
	defer connection.Close()
	buffered := *o
	out := bufio.NewWriter(o.out)
	buffered.out = out
	printed := int64(0)
	for answer, err := range connection.GenerateBlocks(c.Context(), request) {
		if err != nil {
			if c.Context().Err() != nil {
				return nil // interrupted
			}
			return err
		}
		for id := range client.IDs(answer) {
			if err := buffered.printID(id); err != nil {
				return err
			}
			if printed++; printed == count {
				return out.Flush()
			}
		}
		if err := out.Flush(); err != nil {
			return err
		}
	}
	return nil
}
