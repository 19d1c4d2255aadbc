package frontend

import (
	"context"
	"time"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/frontend/serving"
	"github.com/logmirror/logmirror/statemachine"
)

// write proposes a command as its caller asks for. The error is for failure, or a status already.
func write(
	ctx context.Context, region *serving.Region, o *kvv1.WriteOptions, command *commandv1.Command,
) (statemachine.Result, error) {
	options := serving.WriteOptions{RequestID: o.GetRequestId(), WaitForLog: o.GetWaitForLog()}
	if len(o.GetSyncRegions()) > 0 || o.GetSyncTimeoutMilliseconds() != 0 {
		if milliseconds := o.GetSyncTimeoutMilliseconds(); milliseconds < 0 || milliseconds > serving.SyncTimeoutMax.Milliseconds() {
			return statemachine.Result{}, invalid("sync_timeout_milliseconds", "must be from 0 to %d", serving.SyncTimeoutMax.Milliseconds())
		}
		sync, err := serving.NewSync(o.GetSyncRegions(), time.Duration(o.GetSyncTimeoutMilliseconds())*time.Millisecond)
		if err != nil {
			return statemachine.Result{}, invalid("sync_regions", "%v", err)
		}
		options.Sync = sync
	}
	return region.Write(ctx, command, options)
}

// answerWrite is write, with the header of the answer, or the error as a status.
func answerWrite(
	ctx context.Context, region *serving.Region, o *kvv1.WriteOptions, command *commandv1.Command,
) (statemachine.Result, *kvv1.ResponseHeader, error) {
	result, err := write(ctx, region, o, command)
	if err != nil {
		return result, nil, failure(err)
	}
	return result, header(region.FactsAt(result.Index, result.Revision)), nil
}
