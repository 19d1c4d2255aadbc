package frontend

import (
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/frontend/serving"
)

// refusal returns the detail of a status error that says why a region takes no writes.
func refusal(err error) *kvv1.RegionRefusal {
	for _, detail := range status.Convert(err).Details() {
		if refused, ok := detail.(*kvv1.RegionRefusal); ok {
			return refused
		}
	}
	return nil
}

// checkRefused checks that a write was refused as not applied, and where clients are sent to.
func checkRefused(t *testing.T, what string, err error, state kvv1.RegionState, elsewhere ...string) {
	t.Helper()
	refused := refusal(err)
	if status.Code(err) != codes.Unavailable || reason(err) != serving.ReasonNotApplied || refused.GetState() != state {
		t.Errorf("%s: %v with reason %q and %v", what, err, reason(err), refused)
	}
	var told []string
	for _, f := range refused.GetElsewhere() {
		told = append(told, f.GetName())
		if len(f.GetClientUrls()) == 0 || !strings.Contains(err.Error(), f.GetClientUrls()[0]) {
			t.Errorf("%s: the text does not name %v: %v", what, f, err)
		}
	}
	if strings.Join(told, " ") != strings.Join(elsewhere, " ") {
		t.Errorf("%s: sent to %q, want %q", what, told, elsewhere)
	}
}

func TestDrainRefusesClientsAndSendsThemElsewhere(t *testing.T) {
	c := newTestCluster(t)
	eu := c.frontend("eu-1", "eu")
	c.frontend("us-2", "us")
	c.frontend("us-1", "us")
	c.frontend("ap-1", "ap")
	connection, ctx := c.connection(eu), testContext(t)
	kv, lease, admin := kvv1.NewKvServiceClient(connection), kvv1.NewLeaseServiceClient(connection), kvv1.NewAdminServiceClient(connection)
	etcd := c.etcdClient(eu)
	granted, err := lease.Grant(ctx, &kvv1.GrantRequest{TtlSeconds: 60})
	if err != nil {
		t.Fatal(err)
	}
	set := func(region string, state kvv1.RegionState, known bool) {
		t.Helper()
		answer, err := admin.SetRegionState(ctx, &kvv1.SetRegionStateRequest{Region: region, State: state})
		if err != nil {
			t.Fatal(err)
		}
		if answer.GetRegion().GetState() != state || answer.GetRegion().GetName() != region || answer.GetKnown() != known {
			t.Errorf("%s to %v: %v", region, state, answer)
		}
	}
	awaitFrontends(t, admin, 4)
	set("ap", kvv1.RegionState_REGION_STATE_DRAINED, true)
	set("eu", kvv1.RegionState_REGION_STATE_DRAINED, true)
	set("misspelt", kvv1.RegionState_REGION_STATE_DRAINED, false)
	regions, err := admin.ListRegions(ctx, &kvv1.ListRegionsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, region := range regions.GetRegions() {
		words := []string{region.GetName(), region.GetState().String()}
		for _, f := range region.GetFrontends() {
			words = append(words, f.GetName())
		}
		got = append(got, strings.Join(words, " "))
	}
	want := []string{
		"ap REGION_STATE_DRAINED ap-1", "eu REGION_STATE_DRAINED eu-1", "misspelt REGION_STATE_DRAINED", "us REGION_STATE_OPEN us-1 us-2",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("regions:\n%s", strings.Join(got, "\n"))
	}

	drained := kvv1.RegionState_REGION_STATE_DRAINED
	_, err = kv.Put(ctx, &kvv1.PutRequest{Key: []byte("k")})
	checkRefused(t, "put", err, drained, "us-1", "us-2")
	_, err = kv.Compact(ctx, &kvv1.CompactRequest{Revision: 1})
	checkRefused(t, "compact", err, drained, "us-1", "us-2")
	_, err = lease.Grant(ctx, &kvv1.GrantRequest{TtlSeconds: 60})
	checkRefused(t, "grant", err, drained, "us-1", "us-2")
	_, err = pb.NewKVClient(connection).Put(ctx, &pb.PutRequest{Key: []byte("k")})
	checkRefused(t, "etcd's put", err, drained, "us-1", "us-2")
	if _, err := etcd.Put(ctx, "k", "v"); err == nil || !strings.Contains(err.Error(), "go to us-1 in us") {
		t.Errorf("put of etcd's client: %v", err)
	}
	if _, err := kv.Get(ctx, &kvv1.GetRequest{Key: []byte("k")}); err != nil {
		t.Errorf("linearizable read: %v", err)
	}
	if answer, err := etcd.KeepAliveOnce(ctx, clientv3.LeaseID(granted.GetId())); err != nil || answer.TTL != 60 {
		t.Errorf("renewal: %v, %v", answer, err)
	}
	if _, err := etcd.AlarmList(ctx); err != nil {
		t.Errorf("alarms: %v", err)
	}
	if degraded := strings.Join(eu.Degraded(), "\n"); !strings.Contains(degraded, "drained") || eu.NotReady() != nil {
		t.Errorf("degraded: %q, not ready: %q", degraded, eu.NotReady())
	}

	set("eu", kvv1.RegionState_REGION_STATE_OPEN, true)
	if _, err := kv.Put(ctx, &kvv1.PutRequest{Key: []byte("k")}); err != nil {
		t.Errorf("put after opening: %v", err)
	}
}

func TestFencedFrontendSaysSoAndReads(t *testing.T) {
	c := newTestCluster(t)
	eu, us := c.frontend("eu-1", "eu"), c.frontend("us-1", "us")
	connection, ctx := c.connection(eu), testContext(t)
	kv, euAdmin := kvv1.NewKvServiceClient(connection), kvv1.NewAdminServiceClient(connection)
	admin := kvv1.NewAdminServiceClient(c.connection(us))
	awaitFrontends(t, euAdmin, 2)
	if _, err := kv.Put(ctx, &kvv1.PutRequest{Key: []byte("k"), Value: []byte("v")}); err != nil {
		t.Fatal(err)
	}
	fence := &kvv1.SetRegionStateRequest{Region: "eu", State: kvv1.RegionState_REGION_STATE_FENCED}
	if _, err := euAdmin.SetRegionState(ctx, fence); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a region fenced itself: %v", err)
	}
	fenced, err := admin.SetRegionState(ctx, fence)
	if err != nil {
		t.Fatal(err)
	}
	h := fenced.GetHeader()
	read := &kvv1.Consistency{Level: kvv1.Consistency_LEVEL_SERIALIZABLE, AtLeast: &kvv1.Token{
		ClusterId: h.GetClusterId(), Epoch: h.GetEpoch(), LogIndex: h.GetLogIndex(),
	}}
	found, err := kv.Get(ctx, &kvv1.GetRequest{Key: []byte("k"), Consistency: read})
	if err != nil || string(found.GetKeyValue().GetValue()) != "v" || found.GetHeader().GetAgeMicroseconds() < 0 {
		t.Errorf("read in a fenced region: %v, %v", found, err)
	}
	_, err = kv.Put(ctx, &kvv1.PutRequest{Key: []byte("k"), Options: &kvv1.WriteOptions{WaitForLog: true}})
	checkRefused(t, "put", err, kvv1.RegionState_REGION_STATE_FENCED, "us-1")
	_, err = euAdmin.SetRegionState(ctx, &kvv1.SetRegionStateRequest{Region: "eu", State: kvv1.RegionState_REGION_STATE_OPEN})
	checkRefused(t, "opening itself", err, kvv1.RegionState_REGION_STATE_FENCED, "us-1")
	if not := strings.Join(eu.NotReady(), "\n"); !strings.Contains(not, "region eu is fenced") {
		t.Errorf("not ready: %q", not)
	}
	answer, err := kvv1.NewClusterServiceClient(connection).Status(ctx, &kvv1.StatusRequest{})
	if err != nil || !strings.Contains(strings.Join(answer.GetDegraded(), "\n"), "region eu is fenced") {
		t.Errorf("status: %v, %v", answer.GetDegraded(), err)
	}
	etcdStatus, err := c.etcdClient(eu).Status(ctx, eu.config.Advertise)
	if err != nil || !strings.Contains(strings.Join(etcdStatus.Errors, "\n"), "region eu is fenced") {
		t.Errorf("status of the etcd API: %v, %v", etcdStatus, err)
	}
}

func TestSettingsNameFieldAndLimit(t *testing.T) {
	c := newTestCluster(t)
	admin, ctx := kvv1.NewAdminServiceClient(c.connection(c.frontend("us-1", "us"))), testContext(t)
	number := func(n int64) *int64 { return &n }
	before, err := admin.GetSettings(ctx, &kvv1.GetSettingsRequest{})
	if err != nil || before.GetSettings().GetSessionTimeMilliseconds() != 10_000 || before.GetSettings().GetQuotaBytes() != 2<<30 {
		t.Fatalf("settings: %v, %v", before, err)
	}
	_, err = admin.ChangeSettings(ctx, &kvv1.ChangeSettingsRequest{Changes: &kvv1.Settings{
		QuotaBytes: number(1 << 20), SessionTimeMilliseconds: number(9_999),
	}})
	if status.Code(err) != codes.InvalidArgument || violation(err) != "change_settings.session_time_milliseconds" ||
		!strings.Contains(err.Error(), "9999") || !strings.Contains(err.Error(), "limit 10000") {
		t.Errorf("a session time that is too short: %v, field %q", err, violation(err))
	}
	if _, err := admin.ChangeSettings(ctx, &kvv1.ChangeSettingsRequest{}); violation(err) != "changes" {
		t.Errorf("no changes: %v", err)
	}
	changed, err := admin.ChangeSettings(ctx, &kvv1.ChangeSettingsRequest{Changes: &kvv1.Settings{
		SessionTimeMilliseconds: number(11_000), QuotaBytes: number(1 << 20), AutoCompactionRetentionMilliseconds: number(0),
		AutoCompactionRevisions: number(7), LeaseMinimumTtlSeconds: number(5), RequestIdsMax: number(8), RequestIdAgeMilliseconds: number(9),
	}})
	if err != nil {
		t.Fatal(err)
	}
	after, err := admin.GetSettings(ctx, &kvv1.GetSettingsRequest{})
	if err != nil || after.GetSettings().String() != changed.GetSettings().String() {
		t.Errorf("settings: %v, %v; the change answered %v", after, err, changed)
	}
	s := after.GetSettings()
	got := []int64{
		s.GetSessionTimeMilliseconds(), s.GetQuotaBytes(), s.GetAutoCompactionRetentionMilliseconds(), s.GetAutoCompactionRevisions(),
		s.GetLeaseMinimumTtlSeconds(), s.GetRequestIdsMax(), s.GetRequestIdAgeMilliseconds(),
	}
	for i, want := range []int64{11_000, 1 << 20, 0, 7, 5, 8, 9} {
		if got[i] != want {
			t.Errorf("setting %d is %d, want %d", i, got[i], want)
		}
	}
}

// awaitFrontends waits until so many frontends are in session, as the asked one sees it: each makes itself known a moment
// after it is ready.
func awaitFrontends(t *testing.T, admin kvv1.AdminServiceClient, n int) {
	t.Helper()
	ctx := testContext(t)
	for {
		answer, err := admin.ListRegions(ctx, &kvv1.ListRegionsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		known := 0
		for _, region := range answer.GetRegions() {
			known += len(region.GetFrontends())
		}
		if known >= n {
			return
		}
	}
}
