package frontend

import (
	"io"
	"math"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
)

// A stream gives what each request asks for, of any kind, in order; the first that fails ends it, and so does the stop of
// the frontend.
func TestGenerateStream(t *testing.T) {
	c := newTestCluster(t)
	server := c.frontend("us-1", "us")
	ids, ctx := kvv1.NewIdServiceClient(c.connection(server)), testContext(t)
	stream, err := ids.GenerateStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	requests := []*kvv1.GenerateRequest{
		{Kind: kvv1.GenerateRequest_KIND_SEGMENT, Name: "orders", Max: math.MaxInt32, Count: 3},
		{Kind: kvv1.GenerateRequest_KIND_SEQUENCE, Name: "invoices", Count: 2},
		{Kind: kvv1.GenerateRequest_KIND_SEGMENT, Name: "other", Count: 2500},
		{Kind: kvv1.GenerateRequest_KIND_SEGMENT, Name: "orders"},
		{Kind: kvv1.GenerateRequest_KIND_SEQUENCE, Name: "invoices"},
	}
	for _, r := range requests { // all at once: the answers keep their order
		if err := stream.Send(&kvv1.GenerateStreamRequest{Request: r}); err != nil {
			t.Fatal(err)
		}
	}
	for i, first := range []int64{1, 1, 1, 4, 3} {
		answer, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		count := int64(0)
		for _, block := range answer.GetResponse().GetBlocks() {
			count += block.GetCount()
		}
		got := answer.GetResponse().GetBlocks()[0].GetFirst()
		if count != max(requests[i].GetCount(), 1) || got != first || answer.GetResponse().GetHeader().GetLogIndex() == 0 {
			t.Errorf("answer %d: %v", i, answer)
		}
	}
	if err := stream.Send(&kvv1.GenerateStreamRequest{Request: &kvv1.GenerateRequest{}}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.InvalidArgument || violation(err) != "kind" {
		t.Errorf("%v", err)
	}

	if stream, err = ids.GenerateStream(ctx); err != nil {
		t.Fatal(err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != io.EOF { //nolint:errorlint // gRPC returns it as it is
		t.Errorf("after the last request: %v", err)
	}

	if stream, err = ids.GenerateStream(ctx); err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&kvv1.GenerateStreamRequest{Request: requests[0]}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := stream.Recv()
		ended <- err
	}()
	server.Stop()
	select {
	case err := <-ended:
		if status.Code(err) != codes.Unavailable {
			t.Errorf("when the frontend stops: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the stream outlives the frontend")
	}
}
