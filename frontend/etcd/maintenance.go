package etcd

import (
	"context"
	"hash/crc32"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/api/v3/version"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/keyspace"
)

type maintenanceServer struct {
	pb.UnimplementedMaintenanceServer
	*services
}

// Status tells of this frontend and of what it knows of the log. The version is that of the etcd API that is served:
// clients decide by it what they may ask for.
func (s *maintenanceServer) Status(ctx context.Context, _ *pb.StatusRequest) (*pb.StatusResponse, error) {
	machine, log, facts := s.region.Machine(), s.logStatus(ctx), s.region.Facts()
	size := machine.SizeBytes()
	response := &pb.StatusResponse{
		Header:           s.tell(ctx, facts),
		Version:          version.Version,
		StorageVersion:   version.Version[:3],
		DbSize:           size,
		DbSizeInUse:      size,
		DbSizeQuota:      machine.Settings().QuotaBytes,
		Leader:           log.Leader,
		RaftIndex:        max(log.CommitIndex, facts.LogIndex),
		RaftTerm:         max(log.Term, facts.Term),
		RaftAppliedIndex: facts.LogIndex,
		DowngradeInfo:    &pb.DowngradeInfo{},
	}
	if log.Leader == 0 {
		response.Errors = append(response.Errors, rpctypes.ErrNoLeader.Error())
	}
	if err := s.region.CheckReady(); err != nil {
		response.Errors = append(response.Errors, err.Error())
	}
	if reason := s.region.StateReason(); reason != "" {
		response.Errors = append(response.Errors, textPrefix+reason)
	}
	for _, alarm := range s.alarms() {
		response.Errors = append(response.Errors, alarm.String())
	}
	return response, nil
}

// Version is that of the etcd API that is served.
func Version() string { return version.Version }

// AlarmName is what etcd calls an alarm.
func AlarmName(alarm statemachine.Alarm) string {
	if alarm == statemachine.AlarmNoSpace {
		return pb.AlarmType_NOSPACE.String()
	}
	return alarm.String()
}

// alarms returns the alarms of the cluster. They concern no single member; the answering frontend stands for all.
func (s *maintenanceServer) alarms() []*pb.AlarmMember {
	var members []*pb.AlarmMember
	for _, alarm := range s.region.Machine().Alarms() {
		if alarm == statemachine.AlarmNoSpace {
			members = append(members, &pb.AlarmMember{
				MemberID: s.region.Identity().FrontendID, Alarm: pb.AlarmType_NOSPACE,
			})
		}
	}
	return members
}

// Alarm lists, raises or clears the alarm of a full key space, for the whole cluster.
func (s *maintenanceServer) Alarm(ctx context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	if r.GetAction() == pb.AlarmRequest_GET {
		response := &pb.AlarmResponse{Header: s.tell(ctx, s.region.Facts())}
		for _, alarm := range s.alarms() {
			if r.GetAlarm() == pb.AlarmType_NONE || r.GetAlarm() == alarm.GetAlarm() {
				response.Alarms = append(response.Alarms, alarm)
			}
		}
		return response, nil
	}
	active := r.GetAction() == pb.AlarmRequest_ACTIVATE
	if r.GetAlarm() == pb.AlarmType_CORRUPT {
		return nil, unimplemented("the CORRUPT alarm", "frontends raise none")
	}
	before := s.alarms()
	result, err := s.write(ctx, &commandv1.Command{Operation: &commandv1.Command_SetAlarm{
		SetAlarm: &commandv1.SetAlarm{Alarm: commandv1.SetAlarm_ALARM_NO_SPACE, Active: active},
	}})
	if err != nil {
		return nil, err
	}
	response := &pb.AlarmResponse{Header: s.tell(ctx, s.region.FactsAt(result.Index, result.Revision)), Alarms: before}
	if active {
		response.Alarms = s.alarms()
	}
	return response, nil
}

// Defragment succeeds at once: the state is in memory and has no holes that anyone would need to close.
func (s *maintenanceServer) Defragment(ctx context.Context, _ *pb.DefragmentRequest) (*pb.DefragmentResponse, error) {
	return &pb.DefragmentResponse{Header: s.tell(ctx, s.region.Facts())}, nil
}

// Hash is HashKV at the present revision.
func (s *maintenanceServer) Hash(ctx context.Context, _ *pb.HashRequest) (*pb.HashResponse, error) {
	response, err := s.HashKV(ctx, &pb.HashKVRequest{})
	if err != nil {
		return nil, err
	}
	return &pb.HashResponse{Header: response.GetHeader(), Hash: response.GetHash()}, nil
}

// HashKV hashes the keys that live at a revision. Compaction does not change it, and every region has the same.
func (s *maintenanceServer) HashKV(ctx context.Context, r *pb.HashKVRequest) (*pb.HashKVResponse, error) {
	view, err := s.read(ctx, true)
	if err != nil {
		return nil, err
	}
	defer view.Release()
	revision := r.GetRevision()
	if revision == 0 {
		revision = view.Revision()
	}
	table := crc32.MakeTable(crc32.Castagnoli)
	var sum uint32
	err = view.Range([]byte{0}, nil, revision, func(v keyspace.Version) bool {
		sum = crc32.Update(sum, table, v.Encoded)
		return ctx.Err() == nil
	})
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, failure(err)
	}
	return &pb.HashKVResponse{
		Header:          s.tell(ctx, view.Facts()),
		Hash:            sum,
		HashRevision:    revision,
		CompactRevision: view.CompactRevision(),
	}, nil
}

// Snapshot of etcd is a bbolt file that only an etcd server could read.
func (s *maintenanceServer) Snapshot(*pb.SnapshotRequest, pb.Maintenance_SnapshotServer) error {
	return unimplemented("Snapshot", "its format is etcd's own")
}

// MoveLeader does not know the members of the log.
func (s *maintenanceServer) MoveLeader(context.Context, *pb.MoveLeaderRequest) (*pb.MoveLeaderResponse, error) {
	return nil, unimplemented("MoveLeader", "move the log's leadership with kvctl log transfer")
}

// Downgrade concerns etcd's storage.
func (s *maintenanceServer) Downgrade(context.Context, *pb.DowngradeRequest) (*pb.DowngradeResponse, error) {
	return nil, unimplemented("Downgrade", "there is no etcd storage to downgrade")
}
