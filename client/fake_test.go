package client_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
	"github.com/logmirror/logmirror/internal/wan"
)

// fake is a frontend that answers as a test says, in virtual time.
type fake struct {
	kvv1.UnimplementedKvServiceServer
	kvv1.UnimplementedWatchServiceServer
	kvv1.UnimplementedLeaseServiceServer
	kvv1.UnimplementedIdServiceServer
	kvv1.UnimplementedClusterServiceServer

	status   func() (*kvv1.StatusResponse, error)
	get      func() (*kvv1.GetResponse, error)
	list     func(r *kvv1.ListRequest) (*kvv1.ListResponse, error)
	mutate   func(r *kvv1.MutateRequest) (*kvv1.MutateResponse, error)
	watch    func(create *kvv1.WatchRequest_Create, stream kvv1.WatchService_WatchServer) error
	renew    func(id int64) (ttlSeconds int64, err error)
	generate func(r *kvv1.GenerateRequest) (*kvv1.GenerateResponse, error)
}

func (f *fake) Status(context.Context, *kvv1.StatusRequest) (*kvv1.StatusResponse, error) {
	return f.status()
}

func (f *fake) Get(context.Context, *kvv1.GetRequest) (*kvv1.GetResponse, error) { return f.get() }

func (f *fake) List(_ context.Context, r *kvv1.ListRequest) (*kvv1.ListResponse, error) {
	return f.list(r)
}

func (f *fake) Mutate(_ context.Context, r *kvv1.MutateRequest) (*kvv1.MutateResponse, error) {
	return f.mutate(r)
}

func (f *fake) Watch(stream kvv1.WatchService_WatchServer) error {
	request, err := stream.Recv()
	if err != nil {
		return err
	}
	return f.watch(request.GetCreate(), stream)
}

func (f *fake) KeepAlive(stream kvv1.LeaseService_KeepAliveServer) error {
	for {
		request, err := stream.Recv()
		if err != nil {
			return err
		}
		seconds, err := f.renew(request.GetId())
		if err != nil {
			return err
		}
		if err := stream.Send(&kvv1.KeepAliveResponse{Id: request.GetId(), TtlSeconds: seconds}); err != nil {
			return err
		}
	}
}

func (f *fake) GenerateStream(stream kvv1.IdService_GenerateStreamServer) error {
	for {
		request, err := stream.Recv()
		if err != nil {
			return err
		}
		answer, err := f.generate(request.GetRequest())
		if err != nil {
			return err
		}
		if err := stream.Send(&kvv1.GenerateStreamResponse{Response: answer}); err != nil {
			return err
		}
	}
}

// with runs a test in virtual time with a client of one fake, the last of two endpoints of which the first is dead.
func with(t *testing.T, f *fake, test func(t *testing.T, c *client.Client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		network := wan.New(wan.Options{InMemory: true})
		defer network.Close()
		listener, err := network.Region("us").Listen("us:2")
		if err != nil {
			t.Fatal(err)
		}
		server := grpc.NewServer()
		kvv1.RegisterKvServiceServer(server, f)
		kvv1.RegisterWatchServiceServer(server, f)
		kvv1.RegisterLeaseServiceServer(server, f)
		kvv1.RegisterIdServiceServer(server, f)
		kvv1.RegisterClusterServiceServer(server, f)
		var serving sync.WaitGroup
		serving.Go(func() {
			if err := server.Serve(listener); err != nil {
				t.Error(err)
			}
		})
		c, err := client.New(client.Config{Endpoints: []string{"us:1", "us:2"}, Dial: network.Region("us").Dial})
		if err != nil {
			t.Fatal(err)
		}
		test(t, c)
		c.Close()
		server.Stop()
		serving.Wait()
	})
}

// failed makes a status error with a reason, if there is one, and more details.
func failed(t *testing.T, code codes.Code, reason string, details ...protoadapt.MessageV1) error {
	t.Helper()
	if reason != "" {
		details = append(details, &errdetails.ErrorInfo{Reason: reason, Domain: "logmirror"})
	}
	s, err := status.New(code, "as the test says").WithDetails(details...)
	if err != nil {
		t.Fatal(err)
	}
	return s.Err()
}

func header(index uint64, revision int64) *kvv1.ResponseHeader {
	return &kvv1.ResponseHeader{LogIndex: index, Revision: revision}
}
