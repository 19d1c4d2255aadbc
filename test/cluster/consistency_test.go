package cluster

import (
	"context"
	"fmt"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/frontend/etcd"
	"github.com/logmirror/logmirror/frontend/serving"
	"github.com/logmirror/logmirror/logservice"
)

// told is what an answer says of the state that gave it.
type told struct {
	logIndex, incarnation uint64
	revision              int64
	age                   time.Duration
}

// reader reads a key of one region through one API, and holds what every answer must keep to: it says which state it is
// from, and never goes backwards.
type reader struct {
	t    *testing.T
	name string
	get  func(ctx context.Context, key string, c *kvv1.Consistency) (string, told, error)
	last told
}

func (r *reader) read(key string, c *kvv1.Consistency, timeout time.Duration) (string, told, time.Duration, error) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), timeout)
	defer cancel()
	start := time.Now()
	value, facts, err := r.get(ctx, key, c)
	took := time.Since(start)
	if err == nil {
		if facts.logIndex == 0 || facts.revision == 0 || facts.incarnation == 0 || facts.age < 0 {
			r.t.Errorf("%s: the answer says %+v", r.name, facts)
		}
		if facts.incarnation < r.last.incarnation ||
			facts.incarnation == r.last.incarnation && (facts.logIndex < r.last.logIndex || facts.revision < r.last.revision) {
			r.t.Errorf("%s: %+v after %+v", r.name, facts, r.last)
		}
		r.last = facts
	}
	return value, facts, took, err
}

func nativeReader(t *testing.T, region *region) *reader {
	return &reader{t: t, name: region.name + " native", get: func(ctx context.Context, key string, c *kvv1.Consistency) (string, told, error) {
		answer, err := region.kv.Get(ctx, &kvv1.GetRequest{Key: []byte(key), Consistency: c})
		h := answer.GetHeader()
		return string(answer.GetKeyValue().GetValue()), told{h.GetLogIndex(), h.GetIncarnation(), h.GetRevision(),
			time.Duration(h.GetAgeMicroseconds()) * time.Microsecond}, err
	}}
}

func etcdReader(t *testing.T, name string, connection *grpc.ClientConn) *reader {
	kv := pb.NewKVClient(connection)
	return &reader{t: t, name: name + " etcd", get: func(ctx context.Context, key string, c *kvv1.Consistency) (string, told, error) {
		ask := func(key, value string) { ctx = metadata.AppendToOutgoingContext(ctx, key, value) }
		if c.GetMinRevision() > 0 {
			ask(etcd.MinRevisionKey, fmt.Sprint(c.GetMinRevision()))
		}
		if c.GetMaxStalenessMilliseconds() > 0 {
			ask(etcd.MaxStalenessKey, fmt.Sprint(c.GetMaxStalenessMilliseconds()))
		}
		if token := c.GetAtLeast(); token != nil {
			ask(etcd.TokenKey, serving.Token{ClusterID: token.GetClusterId(), Epoch: token.GetEpoch(), LogIndex: token.GetLogIndex()}.String())
		}
		var header metadata.MD
		answer, err := kv.Range(ctx, &pb.RangeRequest{
			Key: []byte(key), Serializable: c.GetLevel() == kvv1.Consistency_LEVEL_SERIALIZABLE,
		}, grpc.Header(&header))
		if err != nil {
			return "", told{}, err
		}
		facts := told{revision: answer.GetHeader().GetRevision()}
		var region string
		var cluster uint64
		var epoch, microseconds int64
		said, token := fmt.Sprint(header.Get(etcd.AnswerKey)), fmt.Sprint(header.Get(etcd.TokenKey))
		if _, err := fmt.Sscanf(said, "[incarnation=%d age-microseconds=%d region=%s", &facts.incarnation, &microseconds, &region); err != nil {
			return "", told{}, fmt.Errorf("told %s: %w", said, err)
		}
		if _, err := fmt.Sscanf(token, "[%x-%d-%d]", &cluster, &epoch, &facts.logIndex); err != nil {
			return "", told{}, fmt.Errorf("told the token %s: %w", token, err)
		}
		facts.age = time.Duration(microseconds) * time.Microsecond
		value := ""
		if len(answer.GetKvs()) > 0 {
			value = string(answer.GetKvs()[0].GetValue())
		}
		return value, facts, nil
	}}
}

// Each read gets the consistency that it asks for, through both APIs, from a mirror that lags, one that is cut off and one
// that was healed.
func TestConsistencyPerRequest(t *testing.T) {
	bubble(t, logservice.PublicationQuorum, func(t *testing.T, c *virtual) {
		us, ap := c.regions["us"], c.regions["ap"]
		readers := []*reader{nativeReader(t, ap), etcdReader(t, "ap", c.dial("ap"))}
		token := func(h *kvv1.ResponseHeader) *kvv1.Consistency {
			return &kvv1.Consistency{Level: kvv1.Consistency_LEVEL_SERIALIZABLE,
				AtLeast: &kvv1.Token{ClusterId: h.GetClusterId(), Epoch: h.GetEpoch(), LogIndex: h.GetLogIndex()}}
		}
		reached := func(revision int64) *kvv1.Consistency {
			return &kvv1.Consistency{Level: kvv1.Consistency_LEVEL_SERIALIZABLE, MinRevision: revision}
		}
		fresh := func(d time.Duration) *kvv1.Consistency {
			return &kvv1.Consistency{Level: kvv1.Consistency_LEVEL_SERIALIZABLE, MaxStalenessMilliseconds: d.Milliseconds()}
		}
		us.put(t, "k", "0")

		// What us says reaches ap 300 ms later.
		const way = 300 * time.Millisecond
		c.Network().SetRoundTrip("us", "ap", 2*way)
		c.Network().SetRoundTrip("eu", "ap", 2*way)
		time.Sleep(30 * time.Second)
		n := 0
		for _, r := range readers {
			write := func() (before, value string, h *kvv1.ResponseHeader) {
				t.Helper()
				before, n = fmt.Sprint(n), n+1
				value = fmt.Sprint(n)
				stored := us.put(t, "k", value)
				return before, value, stored.GetHeader()
			}
			us.put(t, "k", fmt.Sprint(n))
			time.Sleep(2 * way)
			before, value, h := write()
			got, facts, took, err := r.read("k", serializable, patience)
			if err != nil || got != before || took != 0 || facts.logIndex >= h.GetLogIndex() || facts.age < 2*way {
				t.Errorf("%s, serializable, lagging: %q after %v (%+v), %v", r.name, got, took, facts, err)
			}
			got, facts, took, err = r.read("k", token(h), patience)
			if err != nil || got != value || took == 0 || took > 4*way || facts.logIndex < h.GetLogIndex() {
				t.Errorf("%s, token, lagging: %q after %v (%+v), %v", r.name, got, took, facts, err)
			}
			_, value, h = write()
			got, facts, took, err = r.read("k", reached(h.GetRevision()), patience)
			if err != nil || got != value || took == 0 || took > 4*way || facts.revision < h.GetRevision() {
				t.Errorf("%s, min_revision, lagging: %q after %v (%+v), %v", r.name, got, took, facts, err)
			}
			_, value, h = write()
			got, facts, took, err = r.read("k", linearizable, patience)
			if err != nil || got != value || took < 2*way || took > 8*way || facts.logIndex < h.GetLogIndex() {
				t.Errorf("%s, linearizable, lagging: %q after %v (%+v), %v", r.name, got, took, facts, err)
			}
			if _, _, took, err = r.read("k", fresh(way), patience); code(err) != codes.Unavailable || took != 0 {
				t.Errorf("%s, at most %v old, lagging: %v after %v", r.name, way, err, took)
			}
			if _, facts, took, err = r.read("k", fresh(20*way), patience); err != nil || took != 0 || facts.age > 20*way {
				t.Errorf("%s, at most %v old, lagging: %v after %v (%+v)", r.name, 20*way, err, took, facts)
			}
		}

		c.Network().Isolate("ap")
		cut := time.Now()
		time.Sleep(5 * time.Second)
		stored := us.put(t, "k", "meanwhile")
		for _, r := range readers {
			got, facts, took, err := r.read("k", serializable, patience)
			if err != nil || got != fmt.Sprint(n) || took != 0 || facts.age < time.Since(cut) {
				t.Errorf("%s, serializable, cut off: %q after %v (%+v), %v", r.name, got, took, facts, err)
			}
			for name, asked := range map[string]*kvv1.Consistency{"token": token(stored.GetHeader()), "min_revision": reached(stored.GetRevision())} {
				if got, _, took, err = r.read("k", asked, 2*time.Second); err == nil || took < 1500*time.Millisecond ||
					code(err) != codes.OutOfRange && code(err) != codes.DeadlineExceeded {
					t.Errorf("%s, %s, cut off: %q after %v, %v", r.name, name, got, took, err)
				}
			}
			if got, _, _, err = r.read("k", fresh(time.Second), patience); code(err) != codes.Unavailable {
				t.Errorf("%s, at most 1s old, cut off: %q, %v", r.name, got, err)
			}
			if got, _, _, err = r.read("k", linearizable, patience); code(err) != codes.Unavailable {
				t.Errorf("%s, linearizable, cut off: %q, %v", r.name, got, err)
			}
		}

		c.Network().Rejoin("ap")
		for _, r := range readers {
			for name, asked := range map[string]*kvv1.Consistency{
				"token": token(stored.GetHeader()), "min_revision": reached(stored.GetRevision()), "linearizable": linearizable,
				"at most 2s old": fresh(4 * way),
			} {
				c.eventually(r.name+", "+name+", healed", func() error {
					got, _, _, err := r.read("k", asked, 5*time.Second)
					if err == nil && got != "meanwhile" && name != "at most 2s old" {
						t.Errorf("%s, %s, healed: %q", r.name, name, got)
					}
					return err
				})
			}
			if got, _, took, err := r.read("k", serializable, patience); err != nil || got != "meanwhile" || took != 0 {
				t.Errorf("%s, serializable, healed: %q after %v, %v", r.name, got, took, err)
			}
		}
	})
}
