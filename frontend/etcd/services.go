package etcd

import (
	"context"
	"log/slog"
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	"github.com/logmirror/logmirror/frontend/delivery"
	"github.com/logmirror/logmirror/frontend/serving"
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/watch"
)

// Leases is what the lease service needs of the keeper and of the frontends that own leases.
type Leases interface {
	serving.Renewer
	// TimeToLive returns the whole seconds left and the granted TTL.
	TimeToLive(ctx context.Context, id int64) (remainingSeconds, grantedSeconds int64, err error)
}

// LogStatus is what Maintenance.Status says of the log.
type LogStatus struct {
	// Leader is the Raft id of the log's leader; zero for none known.
	Leader      uint64
	Term        uint64
	CommitIndex uint64
}

// Config says what the services stand on. All fields but Logger are needed.
type Config struct {
	Region *serving.Region
	Hub    *watch.Hub
	Sender *delivery.Sender
	Leases Leases
	// LogStatus asks the log how it is, within a bounded time.
	LogStatus func(ctx context.Context) LogStatus
	// LogReachable tells whether the log answered lately: calls that ask for a leader (as clientv3.WithRequireLeader
	// does) are refused while it did not.
	LogReachable func() bool
	// LogLost returns a channel that is closed when the log has not answered for longer: watch streams that asked for a
	// leader end then.
	LogLost func() <-chan struct{}
	Logger  *slog.Logger
}

// services is what all services share.
type services struct {
	region       *serving.Region
	hub          *watch.Hub
	sender       *delivery.Sender
	leases       Leases
	logStatus    func(ctx context.Context) LogStatus
	logReachable func() bool
	logLost      func() <-chan struct{}
	logger       *slog.Logger

	// lastTold is what an answer before told.
	lastTold atomic.Pointer[told]
}

// Register adds etcd's services to a server, whose codec must be a wire.Codec.
func Register(server grpc.ServiceRegistrar, c Config) {
	s := &services{
		region: c.Region, hub: c.Hub, sender: c.Sender, leases: c.Leases, logStatus: c.LogStatus, logReachable: c.LogReachable, logLost: c.LogLost,
		logger: c.Logger,
	}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	server.RegisterService(kvServiceDesc(), &kvServer{services: s})
	pb.RegisterWatchServer(server, &watchServer{services: s})
	pb.RegisterLeaseServer(server, &leaseServer{services: s})
	pb.RegisterClusterServer(server, &clusterServer{services: s})
	pb.RegisterAuthServer(server, &authServer{services: s})
	pb.RegisterMaintenanceServer(server, &maintenanceServer{services: s})
}

// requireLeader refuses a call that asks for a leader while the log is out of reach.
func (s *services) requireLeader(md metadata.MD) error {
	if wantsLeader(md) && !s.logReachable() {
		return rpctypes.ErrGRPCNoLeader
	}
	return nil
}

// wantsLeader tells whether a call asks for a leader.
func wantsLeader(md metadata.MD) bool {
	return asked(md, rpctypes.MetadataRequireLeaderKey) == rpctypes.MetadataHasLeader
}

// write proposes a command with what the metadata ask for. The error is a status.
func (s *services) write(ctx context.Context, command *commandv1.Command) (statemachine.Result, error) {
	md := sent(ctx)
	if err := s.requireLeader(md); err != nil {
		return statemachine.Result{}, err
	}
	options, err := writeOptions(md)
	if err != nil {
		return statemachine.Result{}, err
	}
	result, err := s.region.Write(ctx, command, options)
	if err != nil {
		return statemachine.Result{}, failure(err)
	}
	return result, nil
}

// read pins a state as fresh as the request and its metadata ask for. The error is a status.
func (s *services) read(ctx context.Context, serializable bool) (serving.View, error) {
	md := sent(ctx)
	if err := s.requireLeader(md); err != nil {
		return serving.View{}, err
	}
	consistency, err := readConsistency(md, serializable)
	if err != nil {
		return serving.View{}, err
	}
	view, err := s.region.Read(ctx, consistency)
	if err != nil {
		return serving.View{}, failure(err)
	}
	return view, nil
}
