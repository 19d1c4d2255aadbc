package frontend

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/logmirror/logmirror/frontend/etcd"
)

func TestEtcdClientReadsAndWrites(t *testing.T) {
	c := newTestCluster(t)
	client, ctx := c.etcdClient(c.frontend("us-1", "us")), testContext(t)

	first, err := client.Put(ctx, "a", "1")
	if err != nil {
		t.Fatal(err)
	}
	if first.Header.Revision != 2 || first.Header.ClusterId == 0 || first.Header.MemberId == 0 || first.Header.RaftTerm == 0 {
		t.Errorf("header of the first put: %v", first.Header)
	}
	second, err := client.Put(ctx, "a", "2", clientv3.WithPrevKV())
	if err != nil {
		t.Fatal(err)
	}
	if string(second.PrevKv.Value) != "1" || second.PrevKv.Version != 1 {
		t.Errorf("previous: %v", second.PrevKv)
	}
	for i := range 5 {
		if _, err := client.Put(ctx, fmt.Sprintf("k%d", i), strings.Repeat("v", 5-i)); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name    string
		options []clientv3.OpOption
		want    string
		more    bool
		count   int64
	}{
		{"prefix", []clientv3.OpOption{clientv3.WithPrefix()}, "k0=vvvvv k1=vvvv k2=vvv k3=vv k4=v", false, 5},
		{"limit", []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithLimit(2)}, "k0=vvvvv k1=vvvv", true, 5},
		{"keys only", []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithKeysOnly()}, "k0= k1= k2= k3= k4=", false, 5},
		{"count only", []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithCountOnly()}, "", false, 5},
		{"from key", []clientv3.OpOption{clientv3.WithFromKey()}, "k0=vvvvv k1=vvvv k2=vvv k3=vv k4=v", false, 5},
		{"by value", []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByValue, clientv3.SortAscend)},
			"k4=v k3=vv k2=vvv k1=vvvv k0=vvvvv", false, 5},
		{"descending", []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithLimit(1),
			clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend)}, "k4=v", true, 5},
		{"old revision", []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithRev(4)}, "k0=vvvvv", false, 1},
		{"minimum revision", []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithMinModRev(7)}, "k3=vv k4=v", false, 5},
		{"serializable", []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithSerializable()},
			"k0=vvvvv k1=vvvv k2=vvv k3=vv k4=v", false, 5},
	} {
		t.Run(test.name, func(t *testing.T) {
			response, err := client.Get(ctx, "k", test.options...)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, kv := range response.Kvs {
				got = append(got, string(kv.Key)+"="+string(kv.Value))
			}
			if strings.Join(got, " ") != test.want || response.More != test.more || response.Count != test.count {
				t.Errorf("got %q, more %v, count %d", got, response.More, response.Count)
			}
		})
	}
	deleted, err := client.Delete(ctx, "k", clientv3.WithPrefix(), clientv3.WithPrevKV())
	if err != nil {
		t.Fatal(err)
	}
	if deleted.Deleted != 5 || len(deleted.PrevKvs) != 5 || deleted.Header.Revision != 9 {
		t.Errorf("deleted: %v", deleted)
	}
}

func TestEtcdTxn(t *testing.T) {
	c := newTestCluster(t)
	client, ctx := c.etcdClient(c.frontend("us-1", "us")), testContext(t)
	response, err := client.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision("a"), "=", 0)).
		Then(clientv3.OpPut("a", "1"), clientv3.OpGet("a"),
			clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut("b", "2"), clientv3.OpDelete("none")}, nil)).
		Else(clientv3.OpGet("a")).
		Commit()
	if err != nil {
		t.Fatal(err)
	}
	if !response.Succeeded || response.Header.Revision != 2 || len(response.Responses) != 3 {
		t.Fatalf("got %v", response)
	}
	if kvs := response.Responses[1].GetResponseRange().GetKvs(); len(kvs) != 1 || string(kvs[0].GetValue()) != "1" {
		t.Errorf("the get in the transaction: %v", kvs)
	}
	if inner := response.Responses[2].GetResponseTxn(); !inner.GetSucceeded() || len(inner.GetResponses()) != 2 {
		t.Errorf("nested: %v", inner)
	}
	read, err := client.Txn(ctx).Then(clientv3.OpGet("a"), clientv3.OpGet("b")).Commit()
	if err != nil {
		t.Fatal(err)
	}
	if len(read.Responses) != 2 || read.Header.Revision != 2 {
		t.Errorf("read-only transaction: %v", read)
	}
}

func TestEtcdErrors(t *testing.T) {
	c := newTestCluster(t)
	client, ctx := c.etcdClient(c.frontend("us-1", "us")), testContext(t)
	for range 5 {
		if _, err := client.Put(ctx, "k", "v"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.Compact(ctx, 4); err != nil {
		t.Fatal(err)
	}
	many := make([]clientv3.Op, 129)
	for i := range many {
		many[i] = clientv3.OpPut(fmt.Sprint(i), "")
	}
	call := func(op clientv3.Op) func() error {
		return func() error { _, err := client.Do(ctx, op); return err }
	}
	for _, test := range []struct {
		name string
		call func() error
		want error
	}{
		{"empty key on put", call(clientv3.OpPut("", "v")), rpctypes.ErrEmptyKey},
		{"empty key on get", call(clientv3.OpGet("")), rpctypes.ErrEmptyKey},
		{"empty key on delete", call(clientv3.OpDelete("")), rpctypes.ErrEmptyKey},
		{"future revision", call(clientv3.OpGet("k", clientv3.WithRev(100))), rpctypes.ErrFutureRev},
		{"compacted revision", call(clientv3.OpGet("k", clientv3.WithRev(3))), rpctypes.ErrCompacted},
		{"future revision in a txn", call(clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpGet("k", clientv3.WithRev(100))}, nil)),
			rpctypes.ErrFutureRev},
		{"compact a compacted revision", func() error { _, err := client.Compact(ctx, 4); return err }, rpctypes.ErrCompacted},
		{"compact a future revision", func() error { _, err := client.Compact(ctx, 100); return err }, rpctypes.ErrFutureRev},
		{"unknown lease on put", call(clientv3.OpPut("k", "v", clientv3.WithLease(77))), rpctypes.ErrLeaseNotFound},
		{"unknown lease on revoke", func() error { _, err := client.Revoke(ctx, 77); return err }, rpctypes.ErrLeaseNotFound},
		{"lease of a huge TTL", func() error { _, err := client.Grant(ctx, 9_000_000_001); return err },
			rpctypes.ErrLeaseTTLTooLarge},
		{"ignore value of no key", call(clientv3.OpPut("none", "", clientv3.WithIgnoreValue())), rpctypes.ErrKeyNotFound},
		{"ignore lease of no key", call(clientv3.OpPut("none", "", clientv3.WithIgnoreLease())), rpctypes.ErrKeyNotFound},
		{"129 operations", call(clientv3.OpTxn(nil, many, nil)), rpctypes.ErrTooManyOps},
		{"one key twice", call(clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut("x", ""), clientv3.OpPut("x", "")}, nil)),
			rpctypes.ErrDuplicateKey},
		{"a request above the limit", call(clientv3.OpPut("k", strings.Repeat("v", 3<<19))), rpctypes.ErrRequestTooLarge},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := test.call(); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
	t.Run("a message above the limit", func(t *testing.T) {
		_, err := client.Put(ctx, "k", strings.Repeat("v", 2<<20+1))
		if status.Code(err) != codes.ResourceExhausted {
			t.Errorf("got %v", err)
		}
	})
}

func TestEtcdWatch(t *testing.T) {
	c := newTestCluster(t)
	client, ctx := c.etcdClient(c.frontend("us-1", "us")), testContext(t)
	for i := range 3 {
		if _, err := client.Put(ctx, "w", fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	watch := client.Watch(ctx, "w", clientv3.WithRev(2), clientv3.WithPrevKV(), clientv3.WithCreatedNotify())
	if created := <-watch; !created.Created || created.Err() != nil {
		t.Fatalf("created: %+v", created)
	}
	for i := 3; i < 6; i++ {
		if _, err := client.Put(ctx, "w", fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.Delete(ctx, "w"); err != nil {
		t.Fatal(err)
	}
	next := 0
	for next < 7 {
		response := <-watch
		if response.Err() != nil {
			t.Fatal(response.Err())
		}
		for _, event := range response.Events {
			if event.Kv.ModRevision != int64(next+2) {
				t.Fatalf("event %v, want revision %d", event, next+2)
			}
			if next == 6 {
				if event.Type != clientv3.EventTypeDelete || string(event.PrevKv.Value) != "5" {
					t.Errorf("delete: %v", event)
				}
			} else if string(event.Kv.Value) != fmt.Sprint(next) || (next > 0) != (event.PrevKv != nil) {
				t.Errorf("put %d: %v", next, event)
			}
			next++
		}
	}
	if err := client.RequestProgress(ctx); err != nil {
		t.Fatal(err)
	}
	if response := <-watch; !response.IsProgressNotify() || response.Header.Revision != 8 {
		t.Errorf("progress: %+v", response)
	}
	if _, err := client.Compact(ctx, 6); err != nil {
		t.Fatal(err)
	}
	response, ok := <-client.Watch(ctx, "w", clientv3.WithRev(3))
	if !ok || !errors.Is(response.Err(), rpctypes.ErrCompacted) || response.CompactRevision != 6 {
		t.Fatalf("watch of a compacted revision: %+v, %v", response, response.Err())
	}
	again := client.Watch(ctx, "w", clientv3.WithRev(response.CompactRevision))
	if response := <-again; response.Err() != nil || len(response.Events) == 0 || response.Events[0].Kv.ModRevision != 6 {
		t.Errorf("watch from the compact revision: %+v, %v", response, response.Err())
	}
}

func TestEtcdLeases(t *testing.T) {
	c := newTestCluster(t)
	us, eu := c.frontend("us-1", "us"), c.frontend("eu-1", "eu")
	client, other, ctx := c.etcdClient(us), c.etcdClient(eu), testContext(t)
	lease, err := client.Grant(ctx, 60)
	if err != nil {
		t.Fatal(err)
	}
	if lease.TTL != 60 || lease.ID <= 0 {
		t.Errorf("granted %v", lease)
	}
	if _, err := client.Put(ctx, "k", "v", clientv3.WithLease(lease.ID)); err != nil {
		t.Fatal(err)
	}
	if kept, err := client.KeepAliveOnce(ctx, lease.ID); err != nil || kept.TTL != 60 {
		t.Errorf("kept alive: %v, %v", kept, err)
	}
	if _, err := client.KeepAliveOnce(ctx, 99); !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		t.Errorf("keep-alive of no lease: %v", err)
	}
	for name, who := range map[string]*clientv3.Client{"owner": client, "other region": other} {
		left, err := who.TimeToLive(ctx, lease.ID, clientv3.WithAttachedKeys())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if left.TTL > 60 || left.TTL < 30 || left.GrantedTTL != 60 || len(left.Keys) != 1 {
			t.Errorf("%s: time to live %v", name, left)
		}
		if gone, err := who.TimeToLive(ctx, 99); err != nil || gone.TTL != -1 {
			t.Errorf("%s: time to live of no lease: %v, %v", name, gone, err)
		}
	}
	if kept, err := other.KeepAliveOnce(ctx, lease.ID); err != nil || kept.TTL != 60 {
		t.Errorf("kept alive through the other region: %v, %v", kept, err)
	}
	if all, err := client.Leases(ctx); err != nil || len(all.Leases) != 1 || all.Leases[0].ID != lease.ID {
		t.Errorf("leases: %v, %v", all, err)
	}
	if _, err := other.Revoke(ctx, lease.ID); err != nil {
		t.Fatal(err)
	}
	if response, err := client.Get(ctx, "k"); err != nil || len(response.Kvs) != 0 {
		t.Errorf("after the revoke: %v, %v", response, err)
	}
	if _, err := client.Grant(ctx, 60); err != nil {
		t.Fatal(err)
	}
}

// What is wrong with a grant is said as etcd says it: an id that is taken, a TTL that is too large. A TTL at or below zero
// is raised to the least.
func TestEtcdLeaseGrants(t *testing.T) {
	c := newTestCluster(t)
	raw, ctx := pb.NewLeaseClient(c.connection(c.frontend("us-1", "us"))), testContext(t)
	for _, grant := range []struct {
		id, ttl, granted int64
		err              error
	}{
		{0, 60, 60, nil},
		{7, 60, 60, nil},
		{7, 60, 0, rpctypes.ErrGRPCLeaseExist},
		{-7, 60, 60, nil},
		{8, 0, 2, nil},
		{9, -1, 2, nil},
		{10, 1, 2, nil},
		{11, 9_000_000_000, 9_000_000_000, nil},
		{12, 9_000_000_001, 0, rpctypes.ErrGRPCLeaseTTLTooLarge},
	} {
		granted, err := raw.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: grant.id, TTL: grant.ttl})
		switch {
		case status.Convert(err).String() != status.Convert(grant.err).String():
			t.Errorf("grant %d for %d s: %v, want %v", grant.id, grant.ttl, err, grant.err)
		case err == nil && (granted.TTL != grant.granted || (grant.id != 0 && granted.ID != grant.id) || granted.ID == 0):
			t.Errorf("grant %d for %d s: %v", grant.id, grant.ttl, granted)
		}
	}
	for _, revoke := range []struct {
		id  int64
		err error
	}{{0, rpctypes.ErrGRPCLeaseNotFound}, {99, rpctypes.ErrGRPCLeaseNotFound}, {-7, nil}} {
		if _, err := raw.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: revoke.id}); status.Convert(err).String() !=
			status.Convert(revoke.err).String() {
			t.Errorf("revoke %d: %v, want %v", revoke.id, err, revoke.err)
		}
	}
}

func TestEtcdClusterAndMaintenance(t *testing.T) {
	c := newTestCluster(t)
	us, eu := c.frontend("us-1", "us"), c.frontend("eu-1", "eu")
	client, ctx := c.etcdClient(us), testContext(t)
	if _, err := c.etcdClient(eu).Put(ctx, "session", "is open"); err != nil {
		t.Fatal(err)
	}
	members, err := client.MemberList(ctx)
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	for _, member := range members.Members {
		got[member.Name] = strings.Join(member.ClientURLs, " ")
	}
	if len(got) != 2 || got["us-1"] != "http://"+us.config.Advertise || got["eu-1"] != "" {
		t.Errorf("members: %v", got)
	}
	if _, err := client.Put(ctx, "k", "v"); err != nil {
		t.Fatal(err)
	}
	told, err := client.Status(ctx, us.config.Advertise)
	if err != nil {
		t.Fatal(err)
	}
	if told.Version == "" || told.Leader == 0 || told.DbSize == 0 || told.RaftAppliedIndex == 0 || len(told.Errors) != 0 {
		t.Errorf("status: %v", told)
	}
	if _, err := client.MemberAdd(ctx, []string{"http://127.0.0.1:1"}); status.Code(err) != codes.Unimplemented {
		t.Errorf("member add: %v", err)
	}
	if _, err := client.Defragment(ctx, us.config.Advertise); err != nil {
		t.Errorf("defragment: %v", err)
	}
	if alarms, err := client.AlarmList(ctx); err != nil || len(alarms.Alarms) != 0 {
		t.Errorf("alarms: %v, %v", alarms, err)
	}
	a, err := client.HashKV(ctx, us.config.Advertise, 2)
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.etcdClient(eu).HashKV(ctx, eu.config.Advertise, 2)
	if err != nil {
		t.Fatal(err)
	}
	if a.Hash != b.Hash || a.Hash == 0 {
		t.Errorf("hashes of revision 2 differ: %x and %x", a.Hash, b.Hash)
	}
}

func TestEtcdConcurrencyAcrossRegions(t *testing.T) {
	c := newTestCluster(t)
	clients := []*clientv3.Client{c.etcdClient(c.frontend("us-1", "us")), c.etcdClient(c.frontend("eu-1", "eu"))}
	ctx := testContext(t)
	t.Run("mutex", func(t *testing.T) {
		var holders, most, entered int
		var mu sync.Mutex
		var group sync.WaitGroup
		for i := range 4 {
			group.Go(func() {
				session, err := concurrency.NewSession(clients[i%2], concurrency.WithTTL(30))
				if err != nil {
					t.Error(err)
					return
				}
				defer session.Close()
				lock := concurrency.NewMutex(session, "/lock")
				for range 3 {
					if err := lock.Lock(ctx); err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					holders++
					entered++
					most = max(most, holders)
					mu.Unlock()
					mu.Lock()
					holders--
					mu.Unlock()
					if err := lock.Unlock(ctx); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		group.Wait()
		if most != 1 || entered != 12 {
			t.Errorf("%d holders at once, %d of 12 entered", most, entered)
		}
	})
	t.Run("election", func(t *testing.T) {
		session, err := concurrency.NewSession(clients[0])
		if err != nil {
			t.Fatal(err)
		}
		defer session.Close()
		election := concurrency.NewElection(session, "/election")
		if err := election.Campaign(ctx, "us"); err != nil {
			t.Fatal(err)
		}
		second, err := concurrency.NewSession(clients[1])
		if err != nil {
			t.Fatal(err)
		}
		defer second.Close()
		if leader, err := concurrency.NewElection(second, "/election").Leader(ctx); err != nil ||
			string(leader.Kvs[0].Value) != "us" {
			t.Errorf("leader: %v, %v", leader, err)
		}
		if err := election.Resign(ctx); err != nil {
			t.Fatal(err)
		}
		if err := concurrency.NewElection(second, "/election").Campaign(ctx, "eu"); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("software transactional memory", func(t *testing.T) {
		var group sync.WaitGroup
		for i := range 4 {
			group.Go(func() {
				for range 5 {
					_, err := concurrency.NewSTM(clients[i%2], func(s concurrency.STM) error {
						s.Put("counter", s.Get("counter")+"x")
						return nil
					})
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		group.Wait()
		response, err := clients[0].Get(ctx, "counter")
		if err != nil {
			t.Fatal(err)
		}
		if got := len(response.Kvs[0].Value); got != 20 {
			t.Errorf("%d of 20 increments", got)
		}
	})
}

// toldFacts returns what an answer's metadata say, word by word.
func toldFacts(t *testing.T, md metadata.MD) map[string]string {
	t.Helper()
	facts := make(map[string]string)
	if len(md.Get(etcd.AnswerKey)) != 1 || len(md.Get(etcd.TokenKey)) != 1 {
		t.Errorf("not told, or twice: %v", md)
		return facts
	}
	for word := range strings.FieldsSeq(md.Get(etcd.AnswerKey)[0]) {
		name, value, _ := strings.Cut(word, "=")
		facts[name] = value
	}
	token := md.Get(etcd.TokenKey)[0]
	facts["token"], facts["log-index"] = token, token[strings.LastIndexByte(token, '-')+1:]
	return facts
}

func TestEtcdMetadata(t *testing.T) {
	c := newTestCluster(t)
	us, eu := c.frontend("us-1", "us"), c.frontend("eu-1", "eu")
	client, other, ctx := pb.NewKVClient(c.connection(us)), pb.NewKVClient(c.connection(eu)), testContext(t)
	var told metadata.MD
	stored, err := client.Put(ctx, &pb.PutRequest{Key: []byte("k"), Value: []byte("1")}, grpc.Header(&told))
	if err != nil {
		t.Fatal(err)
	}
	facts := toldFacts(t, told)
	if facts["region"] != "us" || facts["incarnation"] != "1" {
		t.Errorf("told %v", told)
	}
	token, index := facts["token"], facts["log-index"]
	get := func(key string, pairs ...string) (*pb.RangeResponse, error) {
		return other.Range(metadata.AppendToOutgoingContext(ctx, pairs...), &pb.RangeRequest{Key: []byte(key)})
	}
	for _, pairs := range [][]string{
		{etcd.TokenKey, token, etcd.ConsistencyKey, "serializable"},
		{etcd.MinRevisionKey, fmt.Sprint(stored.GetHeader().GetRevision()), etcd.ConsistencyKey, "serializable"},
		{etcd.ConsistencyKey, "linearizable"},
		{etcd.MaxStalenessKey, "60000", etcd.ConsistencyKey, "serializable", etcd.TokenKey, token},
	} {
		if found, err := get("k", pairs...); err != nil || len(found.GetKvs()) != 1 {
			t.Errorf("%v: %v, %v", pairs, found, err)
		}
	}
	for _, pairs := range [][]string{
		{etcd.TokenKey, "x"}, {etcd.TokenKey, "1-x-1"}, {etcd.ConsistencyKey, "eventual"}, {etcd.MinRevisionKey, "-1"},
		{etcd.MaxStalenessKey, "soon"},
	} {
		if _, err := get("k", pairs...); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), pairs[0]) {
			t.Errorf("%v: %v", pairs, err)
		}
	}
	if _, err := get("k", etcd.TokenKey, "1-1-1"); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("token of another cluster: %v", err)
	}
	retry := metadata.AppendToOutgoingContext(ctx, etcd.RequestIDKey, index+"-retry", etcd.WaitForLogKey, "true")
	request := &pb.PutRequest{Key: []byte("k"), Value: []byte("2")}
	once, err := client.Put(retry, request)
	if err != nil {
		t.Fatal(err)
	}
	twice, err := other.Put(retry, request)
	if err != nil || twice.GetHeader().GetRevision() != once.GetHeader().GetRevision() {
		t.Errorf("the retry: %v, %v; the first: %v", twice, err, once)
	}
}

func TestEtcdRangeStream(t *testing.T) {
	c := newTestCluster(t)
	server := c.frontend("us-1", "us", func(config *Config) { config.MaxRequestBytes = 4096 })
	kv, ctx := pb.NewKVClient(c.connection(server)), testContext(t)
	for i := range 20 {
		if _, err := kv.Put(ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "k%02d", i), Value: make([]byte, 1000)}); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		limit, keys, count int64
		more               bool
	}{{0, 20, 20, false}, {7, 7, 20, true}, {20, 20, 20, false}} {
		stream, err := kv.RangeStream(ctx, &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l"), Limit: test.limit})
		if err != nil {
			t.Fatal(err)
		}
		var last *pb.RangeResponse
		var keys, messages int64
		for {
			part, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, kv := range part.GetRangeResponse().GetKvs() {
				if want := fmt.Sprintf("k%02d", keys); string(kv.GetKey()) != want {
					t.Errorf("key %s, want %s", kv.GetKey(), want)
				}
				keys++
			}
			last = part.GetRangeResponse()
			messages++
		}
		if keys != test.keys || messages < 2 || last.GetCount() != test.count || last.GetMore() != test.more ||
			last.GetHeader().GetRevision() != 21 {
			t.Errorf("limit %d: %d keys in %d messages, the last with %v", test.limit, keys, messages, last)
		}
	}
}
