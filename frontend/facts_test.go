package frontend

import (
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/frontend/etcd"
)

// Every answer of the native API says which state it is from.
func TestEveryNativeAnswerTellsItsState(t *testing.T) {
	c := newTestCluster(t)
	connection, ctx := c.connection(c.frontend("us-1", "us")), testContext(t)
	kv, lease := kvv1.NewKvServiceClient(connection), kvv1.NewLeaseServiceClient(connection)
	cluster, admin, ids := kvv1.NewClusterServiceClient(connection), kvv1.NewAdminServiceClient(connection), kvv1.NewIdServiceClient(connection)
	key := []byte("k")
	check := func(name string, answer interface{ GetHeader() *kvv1.ResponseHeader }, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		h := answer.GetHeader()
		if h.GetClusterId() == 0 || h.GetEpoch() == 0 || h.GetRegion() != "us" || h.GetFrontend() != "us-1" || h.GetIncarnation() == 0 ||
			h.GetLogIndex() == 0 || h.GetRevision() == 0 || h.GetAgeMicroseconds() < 0 {
			t.Errorf("%s: header %v", name, h)
		}
	}
	put, err := kv.Put(ctx, &kvv1.PutRequest{Key: key, Value: []byte("1"), Options: &kvv1.WriteOptions{WaitForLog: true}})
	check("Put", put, err)
	get, err := kv.Get(ctx, &kvv1.GetRequest{Key: key})
	check("Get", get, err)
	list, err := kv.List(ctx, &kvv1.ListRequest{})
	check("List", list, err)
	swap, err := kv.CompareAndSwap(ctx, &kvv1.CompareAndSwapRequest{Key: key,
		Expect: &kvv1.CompareAndSwapRequest_Value{Value: []byte("1")}, Change: &kvv1.CompareAndSwapRequest_Put{Put: []byte("2")}})
	check("CompareAndSwap", swap, err)
	mutate, err := kv.Mutate(ctx, &kvv1.MutateRequest{Mutation: mutation("n", 5)})
	check("Mutate", mutate, err)
	read := []*kvv1.TxnOperation{{Operation: &kvv1.TxnOperation_Read_{Read: &kvv1.TxnOperation_Read{Key: key}}}}
	write := []*kvv1.TxnOperation{{Operation: &kvv1.TxnOperation_Put_{Put: &kvv1.TxnOperation_Put{Key: key}}}}
	txn, err := kv.Txn(ctx, &kvv1.TxnRequest{Success: read})
	check("Txn that reads", txn, err)
	txn, err = kv.Txn(ctx, &kvv1.TxnRequest{Success: write})
	check("Txn that writes", txn, err)
	deleted, err := kv.Delete(ctx, &kvv1.DeleteRequest{Key: key})
	check("Delete", deleted, err)
	compact, err := kv.Compact(ctx, &kvv1.CompactRequest{Revision: deleted.GetHeader().GetRevision()})
	check("Compact", compact, err)

	granted, err := lease.Grant(ctx, &kvv1.GrantRequest{TtlSeconds: 60})
	check("Grant", granted, err)
	left, err := lease.TimeToLive(ctx, &kvv1.TimeToLiveRequest{Id: granted.GetId()})
	check("TimeToLive", left, err)
	leases, err := lease.ListLeases(ctx, &kvv1.ListLeasesRequest{})
	check("ListLeases", leases, err)
	renewals, err := lease.KeepAlive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := renewals.Send(&kvv1.KeepAliveRequest{Id: granted.GetId()}); err != nil {
			t.Fatal(err)
		}
		renewed, err := renewals.Recv()
		check("KeepAlive", renewed, err)
	}
	revoked, err := lease.Revoke(ctx, &kvv1.RevokeRequest{Id: granted.GetId()})
	check("Revoke", revoked, err)

	watch, err := kvv1.NewWatchServiceClient(connection).Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, request := range []*kvv1.WatchRequest{
		{Request: &kvv1.WatchRequest_Create_{Create: &kvv1.WatchRequest_Create{Key: key, WatchId: 7}}},
		{Request: &kvv1.WatchRequest_Progress_{Progress: &kvv1.WatchRequest_Progress{}}},
		nil, // an event
		{Request: &kvv1.WatchRequest_Cancel_{Cancel: &kvv1.WatchRequest_Cancel{WatchId: 7}}},
	} {
		if request == nil {
			_, err = kv.Put(ctx, &kvv1.PutRequest{Key: key})
		} else {
			err = watch.Send(request)
		}
		if err != nil {
			t.Fatal(err)
		}
		answer, err := watch.Recv()
		check("Watch", answer, err)
	}

	generated, err := ids.Generate(ctx, &kvv1.GenerateRequest{Kind: kvv1.GenerateRequest_KIND_SEQUENCE, Name: "n"})
	check("Generate", generated, err)
	status, err := cluster.Status(ctx, &kvv1.StatusRequest{})
	check("Status", status, err)
	settings, err := admin.GetSettings(ctx, &kvv1.GetSettingsRequest{})
	check("GetSettings", settings, err)
	regions, err := admin.ListRegions(ctx, &kvv1.ListRegionsRequest{})
	check("ListRegions", regions, err)
	state, err := admin.SetRegionState(ctx, &kvv1.SetRegionStateRequest{Region: "eu", State: kvv1.RegionState_REGION_STATE_DRAINED})
	check("SetRegionState", state, err)
}

// Every answer of etcd's API says the same in its metadata, a stream once at its beginning.
func TestEveryEtcdAnswerTellsItsState(t *testing.T) {
	c := newTestCluster(t)
	connection, ctx := c.connection(c.frontend("us-1", "us")), testContext(t)
	kv, lease := pb.NewKVClient(connection), pb.NewLeaseClient(connection)
	maintenance, cluster := pb.NewMaintenanceClient(connection), pb.NewClusterClient(connection)
	key := []byte("k")
	told := func(name string, md metadata.MD, h *pb.ResponseHeader, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		facts := toldFacts(t, md)
		for _, word := range []string{"region", "incarnation", "age-microseconds", "log-index"} {
			if value := facts[word]; value == "" || value == "-1" || value == "0" {
				t.Errorf("%s: %s is %q", name, word, value)
			}
		}
		if h.GetClusterId() == 0 || h.GetMemberId() == 0 || h.GetRevision() == 0 || h.GetRaftTerm() == 0 {
			t.Errorf("%s: header %v", name, h)
		}
	}
	patient := metadata.AppendToOutgoingContext(ctx, etcd.WaitForLogKey, "true")
	var md metadata.MD
	header := func() grpc.CallOption { md = nil; return grpc.Header(&md) }

	put, err := kv.Put(patient, &pb.PutRequest{Key: key}, header())
	told("Put", md, put.GetHeader(), err)
	found, err := kv.Range(ctx, &pb.RangeRequest{Key: key}, header())
	told("Range", md, found.GetHeader(), err)
	txn, err := kv.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{
		{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key}}}}}, header())
	told("Txn that reads", md, txn.GetHeader(), err)
	txn, err = kv.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{
		{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key}}}}}, header())
	told("Txn that writes", md, txn.GetHeader(), err)
	deleted, err := kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: key}, header())
	told("DeleteRange", md, deleted.GetHeader(), err)
	compacted, err := kv.Compact(ctx, &pb.CompactionRequest{Revision: 2}, header())
	told("Compact", md, compacted.GetHeader(), err)

	granted, err := lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 60}, header())
	told("LeaseGrant", md, granted.GetHeader(), err)
	left, err := lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: granted.GetID()}, header())
	told("LeaseTimeToLive", md, left.GetHeader(), err)
	leases, err := lease.LeaseLeases(ctx, &pb.LeaseLeasesRequest{}, header())
	told("LeaseLeases", md, leases.GetHeader(), err)
	renewals, err := lease.LeaseKeepAlive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := renewals.Send(&pb.LeaseKeepAliveRequest{ID: granted.GetID()}); err != nil {
		t.Fatal(err)
	}
	renewed, err := renewals.Recv()
	if err != nil {
		t.Fatal(err)
	}
	md, err = renewals.Header()
	told("LeaseKeepAlive", md, renewed.GetHeader(), err)
	revoked, err := lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: granted.GetID()}, header())
	told("LeaseRevoke", md, revoked.GetHeader(), err)

	watch, err := pb.NewWatchClient(connection).Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := watch.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: key}}}); err != nil {
		t.Fatal(err)
	}
	created, err := watch.Recv()
	if err != nil {
		t.Fatal(err)
	}
	md, err = watch.Header()
	told("Watch", md, created.GetHeader(), err)

	members, err := cluster.MemberList(ctx, &pb.MemberListRequest{}, header())
	told("MemberList", md, members.GetHeader(), err)
	status, err := maintenance.Status(ctx, &pb.StatusRequest{}, header())
	told("Status", md, status.GetHeader(), err)
	hash, err := maintenance.HashKV(ctx, &pb.HashKVRequest{}, header())
	told("HashKV", md, hash.GetHeader(), err)
	alarms, err := maintenance.Alarm(ctx, &pb.AlarmRequest{}, header())
	told("Alarm", md, alarms.GetHeader(), err)
}
