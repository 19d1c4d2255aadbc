package command

import (
	"time"

	"github.com/spf13/cobra"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
)

// writeFlags are those of the commands that write keys.
type writeFlags struct {
	requestID   string
	sync        []string
	syncTimeout time.Duration
}

func (w *writeFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&w.requestID, "request-id", "", "makes a retry safe: `index-unique`")
	c.Flags().StringSliceVar(&w.sync, "sync", nil,
		"wait until every live frontend of these `regions` has applied it; * for all")
	c.Flags().DurationVar(&w.syncTimeout, "sync-timeout", 0, "longest wait for them (10s, and less than --timeout)")
}

func (w *writeFlags) options() *kvv1.WriteOptions {
	return &kvv1.WriteOptions{RequestId: w.requestID, SyncRegions: w.sync, SyncTimeoutMilliseconds: w.syncTimeout.Milliseconds()}
}
