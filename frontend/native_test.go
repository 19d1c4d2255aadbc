package frontend

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/frontend/serving"
	"github.com/logmirror/logmirror/lease"
	"github.com/logmirror/logmirror/statemachine"
)

// reason returns the reason of the ErrorInfo of a status error.
func reason(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}

// violation returns the field that a status error names.
func violation(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if bad, ok := detail.(*errdetails.BadRequest); ok {
			return bad.GetFieldViolations()[0].GetField()
		}
	}
	return ""
}

func TestNativeReadsAndWrites(t *testing.T) {
	c := newTestCluster(t)
	kv, ctx := kvv1.NewKvServiceClient(c.connection(c.frontend("us-1", "us"))), testContext(t)
	stored, err := kv.Put(ctx, &kvv1.PutRequest{Key: []byte("a"), Value: []byte("1")})
	if err != nil {
		t.Fatal(err)
	}
	h := stored.GetHeader()
	if stored.GetRevision() != 2 || h.GetClusterId() != fakeClusterID || h.GetEpoch() != 1 || h.GetRegion() != "us" ||
		h.GetFrontend() != "us-1" || h.GetIncarnation() != 1 || h.GetLogIndex() == 0 || h.GetRevision() != 2 ||
		h.GetAgeMicroseconds() < 0 {
		t.Errorf("put answered %v", stored)
	}
	found, err := kv.Get(ctx, &kvv1.GetRequest{Key: []byte("a")})
	if err != nil {
		t.Fatal(err)
	}
	if string(found.GetKeyValue().GetValue()) != "1" || found.GetHeader().GetRegion() != "us" {
		t.Errorf("get answered %v", found)
	}
	if none, err := kv.Get(ctx, &kvv1.GetRequest{Key: []byte("none")}); err != nil || none.GetKeyValue() != nil {
		t.Errorf("get of no key: %v, %v", none, err)
	}
	again, err := kv.Put(ctx, &kvv1.PutRequest{Key: []byte("a"), Value: []byte("2"), ReturnPrevious: true})
	if err != nil || string(again.GetPrevious().GetValue()) != "1" {
		t.Errorf("put with previous: %v, %v", again, err)
	}
	old, err := kv.Get(ctx, &kvv1.GetRequest{Key: []byte("a"), Revision: 2})
	if err != nil || string(old.GetKeyValue().GetValue()) != "1" {
		t.Errorf("get at revision 2: %v, %v", old, err)
	}
	gone, err := kv.Delete(ctx, &kvv1.DeleteRequest{Key: []byte("a"), ReturnPrevious: true})
	if err != nil || gone.GetDeleted() != 1 || len(gone.GetPrevious()) != 1 || gone.GetRevision() != 4 {
		t.Errorf("delete: %v, %v", gone, err)
	}
}

func TestListPagesAreOfOneRevision(t *testing.T) {
	c := newTestCluster(t)
	kv, ctx := kvv1.NewKvServiceClient(c.connection(c.frontend("us-1", "us"))), testContext(t)
	for i := range 25 {
		if _, err := kv.Put(ctx, &kvv1.PutRequest{Key: fmt.Appendf(nil, "k%02d", i), Value: []byte("old")}); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	request := &kvv1.ListRequest{PageSize: 10}
	for pages := 1; ; pages++ {
		page, err := kv.List(ctx, request)
		if err != nil {
			t.Fatal(err)
		}
		if page.GetRevision() != 26 {
			t.Errorf("page %d is of revision %d", pages, page.GetRevision())
		}
		for _, found := range page.GetKeyValues() {
			got = append(got, string(found.GetKey())+string(found.GetValue()))
		}
		if page.GetNextPageToken() == "" {
			if pages != 3 {
				t.Errorf("%d pages", pages)
			}
			break
		}
		request.PageToken = page.GetNextPageToken()
		// What comes between two pages must not show.
		for _, key := range []string{"k05", "k15", "k24", "k99"} {
			if _, err := kv.Put(ctx, &kvv1.PutRequest{Key: []byte(key), Value: []byte("new")}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(got) != 25 || got[0] != "k00old" || got[24] != "k24old" || strings.Contains(strings.Join(got, " "), "new") {
		t.Errorf("listed %v", got)
	}
	keys, err := kv.List(ctx, &kvv1.ListRequest{Key: []byte("k1"), RangeEnd: []byte("k2"), KeysOnly: true})
	if err != nil || len(keys.GetKeyValues()) != 10 || keys.GetKeyValues()[0].GetValue() != nil {
		t.Errorf("keys: %v, %v", keys, err)
	}
}

func TestCompareAndSwap(t *testing.T) {
	c := newTestCluster(t)
	kv, ctx := kvv1.NewKvServiceClient(c.connection(c.frontend("us-1", "us"))), testContext(t)
	value := func(v string) *kvv1.CompareAndSwapRequest {
		return &kvv1.CompareAndSwapRequest{Expect: &kvv1.CompareAndSwapRequest_Value{Value: []byte(v)}}
	}
	revision := func(r int64) *kvv1.CompareAndSwapRequest {
		return &kvv1.CompareAndSwapRequest{Expect: &kvv1.CompareAndSwapRequest_ModRevision{ModRevision: r}}
	}
	absent := func() *kvv1.CompareAndSwapRequest {
		return &kvv1.CompareAndSwapRequest{Expect: &kvv1.CompareAndSwapRequest_Absent{Absent: true}}
	}
	for i, step := range []struct {
		expect  *kvv1.CompareAndSwapRequest
		put     string // empty: delete
		won     bool
		current string
	}{
		{value("1"), "x", false, ""},
		{absent(), "1", true, "1"},
		{absent(), "x", false, "1"},
		{value("2"), "x", false, "1"},
		{value("1"), "2", true, "2"},
		{revision(2), "x", false, "2"},
		{revision(3), "3", true, "3"},
		{value("x"), "", false, "3"},
		{value("3"), "", true, ""},
		{revision(4), "x", false, ""},
	} {
		request := step.expect
		request.Key = []byte("k")
		if step.put == "" {
			request.Change = &kvv1.CompareAndSwapRequest_Delete{Delete: true}
		} else {
			request.Change = &kvv1.CompareAndSwapRequest_Put{Put: []byte(step.put)}
		}
		got, err := kv.CompareAndSwap(ctx, request)
		if err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		if got.GetSucceeded() != step.won || string(got.GetCurrent().GetValue()) != step.current ||
			(step.current == "") != (got.GetCurrent() == nil) {
			t.Errorf("step %d: got %v", i, got)
		}
	}
}

func TestNativeTxn(t *testing.T) {
	c := newTestCluster(t)
	kv, ctx := kvv1.NewKvServiceClient(c.connection(c.frontend("us-1", "us"))), testContext(t)
	read := &kvv1.TxnOperation{Operation: &kvv1.TxnOperation_Read_{Read: &kvv1.TxnOperation_Read{Key: []byte("a")}}}
	write := &kvv1.TxnOperation{Operation: &kvv1.TxnOperation_Put_{
		Put: &kvv1.TxnOperation_Put{Key: []byte("a"), Value: []byte("1")},
	}}
	nested := &kvv1.TxnOperation{Operation: &kvv1.TxnOperation_Nested_{Nested: &kvv1.TxnOperation_Nested{
		Success: []*kvv1.TxnOperation{read},
	}}}
	got, err := kv.Txn(ctx, &kvv1.TxnRequest{
		Compares: []*kvv1.Compare{{
			Key: []byte("a"), Relation: kvv1.Compare_RELATION_EQUAL, Target: &kvv1.Compare_Version{Version: 0},
		}},
		Success: []*kvv1.TxnOperation{write, read, nested},
	})
	if err != nil {
		t.Fatal(err)
	}
	if !got.GetSucceeded() || got.GetRevision() != 2 || len(got.GetResults()) != 3 {
		t.Fatalf("got %v", got)
	}
	for i, values := range [][]*kvv1.KeyValue{
		got.GetResults()[1].GetRead().GetKeyValues(),
		got.GetResults()[2].GetNested().GetResults()[0].GetRead().GetKeyValues(),
	} {
		if len(values) != 1 || string(values[0].GetValue()) != "1" {
			t.Errorf("read %d: %v", i, values)
		}
	}
	index := got.GetHeader().GetLogIndex()
	only, err := kv.Txn(ctx, &kvv1.TxnRequest{Success: []*kvv1.TxnOperation{read, nested}})
	if err != nil || len(only.GetResults()) != 2 {
		t.Fatalf("read-only: %v, %v", only, err)
	}
	if l := c.log; uint64(len(l.entries)) > index+5 {
		t.Errorf("reads made entries: %d entries", len(l.entries))
	}
}

func TestNativeErrorsNameFieldAndLimit(t *testing.T) {
	c := newTestCluster(t)
	server := c.frontend("us-1", "us", func(config *Config) { config.MaxRequestBytes = 4096 })
	connection, ctx := c.connection(server), testContext(t)
	kv, lease := kvv1.NewKvServiceClient(connection), kvv1.NewLeaseServiceClient(connection)
	if _, err := kv.Put(ctx, &kvv1.PutRequest{Key: []byte("k")}); err != nil {
		t.Fatal(err)
	}
	many := make([]*kvv1.TxnOperation, 129)
	for i := range many {
		many[i] = &kvv1.TxnOperation{Operation: &kvv1.TxnOperation_Read_{Read: &kvv1.TxnOperation_Read{Key: []byte("k")}}}
	}
	put := func(key string) *kvv1.TxnOperation {
		return &kvv1.TxnOperation{Operation: &kvv1.TxnOperation_Put_{Put: &kvv1.TxnOperation_Put{Key: []byte(key)}}}
	}
	txn := func(r *kvv1.TxnRequest) func() error {
		return func() error { _, err := kv.Txn(ctx, r); return err }
	}
	for _, test := range []struct {
		name  string
		call  func() error
		code  codes.Code
		field string
		text  string
	}{
		{"empty key", func() error { _, err := kv.Put(ctx, &kvv1.PutRequest{}); return err },
			codes.InvalidArgument, "key", "key"},
		{"empty key on get", func() error { _, err := kv.Get(ctx, &kvv1.GetRequest{}); return err },
			codes.InvalidArgument, "key", "key"},
		{"future revision", func() error {
			_, err := kv.Get(ctx, &kvv1.GetRequest{Key: []byte("k"), Revision: 99})
			return err
		}, codes.OutOfRange, "", "99"},
		{"page too large", func() error { _, err := kv.List(ctx, &kvv1.ListRequest{PageSize: 10_001}); return err },
			codes.InvalidArgument, "page_size", "10000"},
		{"page of leases too large", func() error {
			_, err := kvv1.NewLeaseServiceClient(connection).ListLeases(ctx, &kvv1.ListLeasesRequest{PageSize: 10_001})
			return err
		}, codes.InvalidArgument, "page_size", "10000"},
		{"page token of keys for leases", func() error {
			token := pageToken{revision: 1, next: []byte("12345678")}.String()
			_, err := kvv1.NewLeaseServiceClient(connection).ListLeases(ctx, &kvv1.ListLeasesRequest{PageToken: token})
			return err
		}, codes.InvalidArgument, "page_token", ""},
		{"foreign page token", func() error { _, err := kv.List(ctx, &kvv1.ListRequest{PageToken: "x!"}); return err },
			codes.InvalidArgument, "page_token", ""},
		{"too many operations", txn(&kvv1.TxnRequest{Success: many}), codes.InvalidArgument, "success", "128"},
		{"one key twice", txn(&kvv1.TxnRequest{Failure: []*kvv1.TxnOperation{put("x"), put("x")}}),
			codes.InvalidArgument, "failure[1]", "x"},
		{"empty operation", txn(&kvv1.TxnRequest{Success: []*kvv1.TxnOperation{{}}}),
			codes.InvalidArgument, "success[0]", ""},
		{"relation left out", txn(&kvv1.TxnRequest{Compares: []*kvv1.Compare{{Key: []byte("k")}}}),
			codes.InvalidArgument, "compares[0].relation", ""},
		{"nothing expected", func() error {
			_, err := kv.CompareAndSwap(ctx, &kvv1.CompareAndSwapRequest{Key: []byte("k")})
			return err
		}, codes.InvalidArgument, "expect", ""},
		{"too large", func() error {
			_, err := kv.Put(ctx, &kvv1.PutRequest{Key: []byte("k"), Value: make([]byte, 5000)})
			return err
		}, codes.InvalidArgument, "command", "4096"},
		{"unknown lease", func() error {
			_, err := kv.Put(ctx, &kvv1.PutRequest{Key: []byte("k"), Lease: 9})
			return err
		}, codes.NotFound, "", "lease"},
		{"malformed request id", func() error {
			_, err := kv.Put(ctx, &kvv1.PutRequest{Key: []byte("k"), Options: &kvv1.WriteOptions{RequestId: "x"}})
			return err
		}, codes.InvalidArgument, "", "request id"},
		{"request id of the future", func() error {
			_, err := kv.Put(ctx, &kvv1.PutRequest{Key: []byte("k"), Options: &kvv1.WriteOptions{RequestId: "999999-x"}})
			return err
		}, codes.InvalidArgument, "", "request id"},
		{"no TTL", func() error { _, err := lease.Grant(ctx, &kvv1.GrantRequest{}); return err },
			codes.InvalidArgument, "ttl_seconds", ""},
		{"token of another cluster", func() error {
			_, err := kv.Get(ctx, &kvv1.GetRequest{Key: []byte("k"), Consistency: &kvv1.Consistency{
				AtLeast: &kvv1.Token{ClusterId: 1, Epoch: 1, LogIndex: 1},
			}})
			return err
		}, codes.FailedPrecondition, "", "token"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := test.call()
			if status.Code(err) != test.code || !strings.Contains(status.Convert(err).Message(), test.text) {
				t.Errorf("got %v", err)
			}
			if test.field != "" && violation(err) != test.field {
				t.Errorf("names field %q, want %q", violation(err), test.field)
			}
		})
	}
}

func TestRequestIDsMakeARetrySafeThroughAnyRegion(t *testing.T) {
	c := newTestCluster(t)
	us := kvv1.NewKvServiceClient(c.connection(c.frontend("us-1", "us")))
	eu := kvv1.NewKvServiceClient(c.connection(c.frontend("eu-1", "eu")))
	ctx := testContext(t)
	first, err := us.Put(ctx, &kvv1.PutRequest{Key: []byte("k"), Value: []byte("0")})
	if err != nil {
		t.Fatal(err)
	}
	request := &kvv1.PutRequest{Key: []byte("k"), Value: []byte("1"), Options: &kvv1.WriteOptions{
		RequestId: fmt.Sprintf("%d-abc", first.GetHeader().GetLogIndex()),
	}}
	once, err := us.Put(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	twice, err := eu.Put(ctx, request)
	if err != nil || twice.GetRevision() != once.GetRevision() {
		t.Errorf("the retry: %v, %v; the first: %v", twice, err, once)
	}
	request.Value = []byte("2")
	if _, err := eu.Put(ctx, request); status.Code(err) != codes.InvalidArgument {
		t.Errorf("another request under the same id: %v", err)
	}
}

func TestConsistencyAcrossRegions(t *testing.T) {
	c := newTestCluster(t)
	us := kvv1.NewKvServiceClient(c.connection(c.frontend("us-1", "us")))
	eu := kvv1.NewKvServiceClient(c.connection(c.frontend("eu-1", "eu")))
	ctx := testContext(t)
	for i := range 20 {
		want := fmt.Sprint(i)
		stored, err := us.Put(ctx, &kvv1.PutRequest{Key: []byte("k"), Value: []byte(want)})
		if err != nil {
			t.Fatal(err)
		}
		h := stored.GetHeader()
		for name, asked := range map[string]*kvv1.Consistency{
			"linearizable": nil,
			"token": {Level: kvv1.Consistency_LEVEL_SERIALIZABLE, AtLeast: &kvv1.Token{
				ClusterId: h.GetClusterId(), Epoch: h.GetEpoch(), LogIndex: h.GetLogIndex(),
			}},
			"revision": {Level: kvv1.Consistency_LEVEL_SERIALIZABLE, MinRevision: stored.GetRevision()},
		} {
			found, err := eu.Get(ctx, &kvv1.GetRequest{Key: []byte("k"), Consistency: asked})
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if got := string(found.GetKeyValue().GetValue()); got != want {
				t.Errorf("%s: read %s, want %s", name, got, want)
			}
		}
	}
}

func TestWhileTheLogIsAway(t *testing.T) {
	c := newTestCluster(t)
	server := c.frontend("us-1", "us", func(config *Config) {
		config.Mirror.FailFastAfter, config.Mirror.ReadRoundTimeout = 100*time.Millisecond, 100*time.Millisecond
		config.Mirror.UnknownAfter = 200 * time.Millisecond
	})
	connection, ctx := c.connection(server), testContext(t)
	kv := kvv1.NewKvServiceClient(connection)
	patient := &kvv1.WriteOptions{WaitForLog: true} // the session may not be open yet
	if _, err := kv.Put(ctx, &kvv1.PutRequest{Key: []byte("k"), Value: []byte("v"), Options: patient}); err != nil {
		t.Fatal(err)
	}
	c.log.setAway(true)
	failed := func(name string, err error, code codes.Code, why string) {
		t.Helper()
		if status.Code(err) != code || reason(err) != why {
			t.Errorf("%s: %v (%q)", name, err, reason(err))
		}
	}
	// The mirror needs a moment to find out, and the outcome of a put handed over before is not known; from then on
	// writes fail at once and for certain.
	var err error
	var lost []byte
	for i := 0; reason(err) != serving.ReasonNotApplied && ctx.Err() == nil; i++ {
		lost = fmt.Appendf(nil, "lost-%d", i)
		_, err = kv.Put(ctx, &kvv1.PutRequest{Key: lost})
	}
	failed("put", err, codes.Unavailable, serving.ReasonNotApplied)
	_, err = kv.Get(ctx, &kvv1.GetRequest{Key: []byte("k")})
	failed("linearizable get", err, codes.Unavailable, "")

	local := &kvv1.Consistency{Level: kvv1.Consistency_LEVEL_SERIALIZABLE}
	found, err := kv.Get(ctx, &kvv1.GetRequest{Key: []byte("k"), Consistency: local})
	if err != nil || string(found.GetKeyValue().GetValue()) != "v" || found.GetHeader().GetAgeMicroseconds() <= 0 {
		t.Errorf("serializable get: %v, %v", found, err)
	}
	_, err = kv.Get(ctx, &kvv1.GetRequest{Key: []byte("k"), Consistency: &kvv1.Consistency{
		Level: kvv1.Consistency_LEVEL_SERIALIZABLE, MaxStalenessMilliseconds: 1,
	}})
	failed("get of a fresh state", err, codes.Unavailable, "")

	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	_, err = kv.Put(short, &kvv1.PutRequest{Key: []byte("late"), Options: &kvv1.WriteOptions{WaitForLog: true}})
	cancel()
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("put that waits for the log: %v", err)
	}
	told, err := kvv1.NewClusterServiceClient(connection).Status(ctx, &kvv1.StatusRequest{})
	if err != nil || len(told.GetDegraded()) == 0 {
		t.Errorf("status: %v, %v", told, err)
	}

	waits := make(chan error, 1)
	go func() {
		_, err := kv.Put(ctx, &kvv1.PutRequest{
			Key: []byte("waited"), Options: &kvv1.WriteOptions{WaitForLog: true},
		})
		waits <- err
	}()
	c.log.setAway(false)
	if err := <-waits; err != nil {
		t.Errorf("put that waited: %v", err)
	}
	if found, err := kv.Get(ctx, &kvv1.GetRequest{Key: lost}); err != nil || found.GetKeyValue() != nil {
		t.Errorf("what was not applied: %v, %v", found, err)
	}
}

func TestAnUnknownOutcomeIsNeverCalledNotApplied(t *testing.T) {
	c := newTestCluster(t)
	server := c.frontend("us-1", "us", func(config *Config) { config.Mirror.UnknownAfter = 200 * time.Millisecond })
	kv, ctx := kvv1.NewKvServiceClient(c.connection(server)), testContext(t)
	patient := &kvv1.WriteOptions{WaitForLog: true} // the session may not be open yet
	if _, err := kv.Put(ctx, &kvv1.PutRequest{Key: []byte("k"), Options: patient}); err != nil {
		t.Fatal(err)
	}
	c.log.setSwallow(true)
	_, err := kv.Put(ctx, &kvv1.PutRequest{Key: []byte("k")})
	if reason(err) != serving.ReasonOutcomeUnknown || status.Code(err) != codes.Unknown {
		t.Errorf("a put that was swallowed: %v (%q)", err, reason(err))
	}
}

func TestNativeWatch(t *testing.T) {
	c := newTestCluster(t)
	connection, ctx := c.connection(c.frontend("us-1", "us")), testContext(t)
	kv := kvv1.NewKvServiceClient(connection)
	put := func(key, value string) {
		t.Helper()
		if _, err := kv.Put(ctx, &kvv1.PutRequest{Key: []byte(key), Value: []byte(value)}); err != nil {
			t.Fatal(err)
		}
	}
	put("k", "1")
	stream, err := kvv1.NewWatchServiceClient(connection).Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	send := func(r *kvv1.WatchRequest) {
		t.Helper()
		if err := stream.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	create := func(w *kvv1.WatchRequest_Create) {
		t.Helper()
		send(&kvv1.WatchRequest{Request: &kvv1.WatchRequest_Create_{Create: w}})
	}
	next := func() *kvv1.WatchResponse {
		t.Helper()
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	create(&kvv1.WatchRequest_Create{Key: []byte("k"), WatchId: 7, StartRevision: 2, ReturnPrevious: true})
	if r := next(); !r.GetCreated() || r.GetWatchId() != 7 || r.GetHeader().GetRegion() != "us" {
		t.Errorf("created: %v", r)
	}
	if r := next(); len(r.GetEvents()) != 1 || r.GetEvents()[0].GetKv().GetModRevision() != 2 {
		t.Errorf("history: %v", r)
	}
	put("k", "2")
	if r := next(); len(r.GetEvents()) != 1 || string(r.GetEvents()[0].GetPrevKv().GetValue()) != "1" ||
		r.GetHeader().GetRevision() != 3 {
		t.Errorf("live: %v", r)
	}
	create(&kvv1.WatchRequest_Create{Key: []byte("k"), WatchId: 7})
	if r := next(); !r.GetCreated() || !r.GetCanceled() || r.GetCancelReason() == "" {
		t.Errorf("an id twice: %v", r)
	}
	create(&kvv1.WatchRequest_Create{})
	if r := next(); !r.GetCreated() || !r.GetCanceled() || !strings.Contains(r.GetCancelReason(), "create.key") {
		t.Errorf("no key: %v", r)
	}
	send(&kvv1.WatchRequest{Request: &kvv1.WatchRequest_Progress_{Progress: &kvv1.WatchRequest_Progress{}}})
	if r := next(); !r.GetProgress() || r.GetWatchId() != -1 || r.GetHeader().GetRevision() != 3 {
		t.Errorf("progress: %v", r)
	}
	send(&kvv1.WatchRequest{Request: &kvv1.WatchRequest_Cancel_{Cancel: &kvv1.WatchRequest_Cancel{WatchId: 7}}})
	if r := next(); !r.GetCanceled() || r.GetWatchId() != 7 || r.GetCancelReason() != "" {
		t.Errorf("canceled: %v", r)
	}
	// The end of requests does not end the stream.
	create(&kvv1.WatchRequest_Create{Key: []byte("k"), RangeEnd: []byte("z"), NoPuts: true})
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	next()
	put("l", "1")
	if _, err := kv.Delete(ctx, &kvv1.DeleteRequest{Key: []byte("l")}); err != nil {
		t.Fatal(err)
	}
	if r := next(); len(r.GetEvents()) != 1 || r.GetEvents()[0].GetType() != kvv1.Event_EVENT_TYPE_DELETE {
		t.Errorf("without puts: %v", r)
	}
}

func TestNativeLeases(t *testing.T) {
	c := newTestCluster(t)
	us, eu := c.frontend("us-1", "us"), c.frontend("eu-1", "eu")
	connection, ctx := c.connection(us), testContext(t)
	lease, other := kvv1.NewLeaseServiceClient(connection), kvv1.NewLeaseServiceClient(c.connection(eu))
	granted, err := lease.Grant(ctx, &kvv1.GrantRequest{TtlSeconds: 60, Id: 42})
	if err != nil || granted.GetId() != 42 || granted.GetTtlSeconds() != 60 {
		t.Fatalf("granted: %v, %v", granted, err)
	}
	if _, err := lease.Grant(ctx, &kvv1.GrantRequest{TtlSeconds: 60, Id: 42}); status.Code(err) != codes.AlreadyExists {
		t.Errorf("granted twice: %v", err)
	}
	if _, err := kvv1.NewKvServiceClient(connection).Put(ctx, &kvv1.PutRequest{Key: []byte("k"), Lease: 42}); err != nil {
		t.Fatal(err)
	}
	left, err := other.TimeToLive(ctx, &kvv1.TimeToLiveRequest{Id: 42, Keys: true})
	if err != nil || left.GetTtlSeconds() < 30 || left.GetTtlSeconds() > 60 || len(left.GetKeys()) != 1 {
		t.Errorf("time to live, asked elsewhere: %v, %v", left, err)
	}
	us.Kill()
	// Its owner cannot be asked any more: that is no expiry.
	if _, err := other.TimeToLive(ctx, &kvv1.TimeToLiveRequest{Id: 42}); status.Code(err) != codes.Unavailable {
		t.Errorf("time to live without its owner: %v", err)
	}
	listed, err := other.ListLeases(ctx, &kvv1.ListLeasesRequest{})
	if err != nil || len(listed.GetLeases()) != 1 || listed.GetLeases()[0].GetOwner() != "us-1" ||
		listed.GetLeases()[0].GetOwnerRegion() != "us" || listed.GetLeases()[0].GetKeys() != 1 {
		t.Errorf("listed: %v, %v", listed, err)
	}
	if _, err := other.Revoke(ctx, &kvv1.RevokeRequest{Id: 42}); err != nil {
		t.Fatal(err)
	}
	if gone, err := other.TimeToLive(ctx, &kvv1.TimeToLiveRequest{Id: 42}); err != nil || gone.GetTtlSeconds() != -1 {
		t.Errorf("time to live of no lease: %v, %v", gone, err)
	}
}

// Leases are listed by id, each once, in pages of the size that is asked for.
func TestLeasesAreListedInPages(t *testing.T) {
	c := newTestCluster(t)
	lease, ctx := kvv1.NewLeaseServiceClient(c.connection(c.frontend("us-1", "us"))), testContext(t)
	want := []int64{-7, 1, 2, 3, 4, 5, 6, math.MaxInt64}
	for _, id := range slices.Backward(want) {
		if _, err := lease.Grant(ctx, &kvv1.GrantRequest{TtlSeconds: 60, Id: id}); err != nil {
			t.Fatal(err)
		}
	}
	for _, size := range []int{0, 1, 3, len(want) - 1, len(want)} {
		var sizes []int
		var got []int64
		request := &kvv1.ListLeasesRequest{PageSize: int32(size)}
		for more := true; more; more = request.PageToken != "" {
			page, err := lease.ListLeases(ctx, request)
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range page.GetLeases() {
				got = append(got, l.GetId())
			}
			sizes = append(sizes, len(page.GetLeases()))
			request.PageToken = page.GetNextPageToken()
		}
		full := size
		if size == 0 {
			full = len(want)
		}
		if !slices.Equal(got, want) || sizes[0] != full || len(sizes) != (len(want)+full-1)/full {
			t.Errorf("in pages of %d: %v by %v", size, got, sizes)
		}
	}
}

// A page of leases whose owners have long names stays far below what a client takes in one message.
func TestPageOfLeasesIsBoundedInBytes(t *testing.T) {
	owner := statemachine.SessionInfo{ID: 1, Name: strings.Repeat("n", 1000), Region: strings.Repeat("r", 1000)}
	found := make([]lease.Info, pageSizeMax)
	for i := range found {
		found[i] = lease.Info{ID: int64(i), Owner: owner.ID}
	}
	page := listedLeases(nil, found, pageSizeMax, []statemachine.SessionInfo{owner})
	next, err := parseLeasePageToken(page.GetNextPageToken())
	if size := proto.Size(page); err != nil || size < pageBytes || size > pageBytes+4096 || next != int64(len(page.GetLeases())) {
		t.Errorf("%d leases in %d bytes, then %d, %v", len(page.GetLeases()), size, next, err)
	}
}
