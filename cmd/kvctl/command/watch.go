package command

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
)

func newWatch(o *options) *cobra.Command {
	var prefix, previous bool
	var end string
	var revision int64
	var count int
	c := &cobra.Command{
		Use:   "watch KEY",
		Short: "Print every change of a key, a range or a prefix, in order, until interrupted",
		Long: "Print every change of a key, a range or a prefix, in order, until interrupted.\n" +
			"A lost connection is resumed without missing or repeating a change.",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			create := &kvv1.WatchRequest_Create{
				Key: []byte(args[0]), RangeEnd: []byte(end), StartRevision: revision, ReturnPrevious: previous,
			}
			if prefix {
				if end != "" {
					return exitError{exitUsage, errors.New("--prefix and --end exclude each other")}
				}
				create.RangeEnd = client.PrefixEnd(create.Key)
				if len(create.Key) == 0 {
					create.Key = []byte{0}
				}
			}
			connection, err := o.connect(c.Context())
			if err != nil {
				return err
			}
			defer connection.Close()
			seen := 0
			for answer, err := range connection.Watch(c.Context(), create) {
				if err != nil {
					if c.Context().Err() != nil {
						return nil // interrupted
					}
					return err
				}
				if answer.GetCompactRevision() > 0 {
					return exitError{exitUsage, fmt.Errorf("--rev %d: history before revision %d is compacted",
						revision, answer.GetCompactRevision())}
				}
				for _, event := range answer.GetEvents() {
					if err := o.printEvent(event); err != nil {
						return err
					}
					if seen++; seen == count {
						return nil
					}
				}
			}
			return nil
		},
	}
	flags := c.Flags()
	flags.BoolVar(&prefix, "prefix", false, "watch every key that begins with KEY")
	flags.StringVar(&end, "end", "", "watch every key from KEY on and before this one")
	flags.Int64Var(&revision, "rev", 0, "begin with this `revision`; 0 for what comes from now on")
	flags.BoolVar(&previous, "prev", false, "print the value before each change")
	flags.IntVar(&count, "count", 0, "end after this many changes; 0 for never")
	return c
}

func (o *options) printEvent(event *kvv1.Event) error {
	kind := "put"
	if event.GetType() == kvv1.Event_EVENT_TYPE_DELETE {
		kind = "delete"
	}
	return o.print(map[string]any{
		"type": kind, "key_value": toJSON(event.GetKv()), "previous": toJSON(event.GetPrevKv()),
	}, func() {
		line := fmt.Sprintf("%d\t%s\t%s", event.GetKv().GetModRevision(), kind, printable(event.GetKv().GetKey()))
		if kind == "put" {
			line += "\t" + printable(event.GetKv().GetValue())
		}
		if event.GetPrevKv() != nil {
			line += "\t(was " + printable(event.GetPrevKv().GetValue()) + ")"
		}
		o.line("%s", line)
	})
}
