package etcd

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/logmirror/logmirror/frontend/serving"
)

// Keys of request metadata. The package comment says what they ask for.
const (
	ConsistencyKey  = "logmirror-consistency"
	MinRevisionKey  = "logmirror-min-revision"
	TokenKey        = "logmirror-token"
	MaxStalenessKey = "logmirror-max-staleness-milliseconds"
	RequestIDKey    = "logmirror-request-id"
	WaitForLogKey   = "logmirror-wait-for-log"
	SyncRegionsKey  = "logmirror-sync-regions"
	SyncTimeoutKey  = "logmirror-sync-timeout-milliseconds"
)

// AnswerKey is the key of answer metadata, beside TokenKey.
const AnswerKey = "logmirror-answer"

// sentKey is the key under which gRPC keeps a call's metadata in its context. It has no name outside of gRPC, so it is
// learned from a question.
var sentKey = func() any {
	var asked askedKey
	metadata.FromIncomingContext(&asked)
	return asked.key
}()

// askedKey is a context that remembers what it was asked for.
type askedKey struct {
	context.Context
	key any
}

// Value implements context.Context.
func (c *askedKey) Value(key any) any {
	c.key = key
	return nil
}

// sent returns the metadata of the request: what gRPC keeps, which nobody may change. Of gRPC's own ways to it one copies all
// of it, and the other compares a key that is not there, as ours mostly are, with each that is, whatever its case: in what a
// client sends all keys are in lower case.
func sent(ctx context.Context) metadata.MD {
	md, ok := ctx.Value(sentKey).(metadata.MD)
	if !ok {
		md, _ = metadata.FromIncomingContext(ctx)
	}
	return md
}

// asked returns the last value of a key of the request's metadata; empty if there is none.
func asked(md metadata.MD, key string) string {
	if values := md[key]; len(values) > 0 {
		return values[len(values)-1]
	}
	return ""
}

func badMetadata(key, value string, err error) error {
	return status.Errorf(codes.InvalidArgument, "logmirror: metadata %s %.128q: %v", key, value, err)
}

// readConsistency returns what a read asks for: the request's own serializable field, and metadata over it.
func readConsistency(md metadata.MD, serializable bool) (serving.Consistency, error) {
	c := serving.Consistency{Linearizable: !serializable}
	switch value := asked(md, ConsistencyKey); value {
	case "":
	case "linearizable":
		c.Linearizable = true
	case "serializable":
		c.Linearizable = false
	default:
		return c, badMetadata(ConsistencyKey, value, errors.New(`want "serializable" or "linearizable"`))
	}
	var err error
	if c.MinRevision, err = askedNumber(md, MinRevisionKey); err != nil {
		return c, err
	}
	staleness, err := askedNumber(md, MaxStalenessKey)
	if err != nil {
		return c, err
	}
	c.MaxStaleness = milliseconds(staleness)
	if value := asked(md, TokenKey); value != "" {
		token, err := serving.ParseToken(value)
		if err != nil {
			return c, badMetadata(TokenKey, value, err)
		}
		c.AtLeast = token
	}
	return c, nil
}

// askedNumber returns the number that a metadata key asks for; zero if there is none.
func askedNumber(md metadata.MD, key string) (int64, error) {
	value := asked(md, key)
	if value == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil || n < 0 {
		return 0, badMetadata(key, value, errors.New("want a number that is not negative"))
	}
	return n, nil
}

// milliseconds converts without overflow.
func milliseconds(n int64) time.Duration {
	return time.Duration(min(n, int64(1<<62/time.Millisecond))) * time.Millisecond
}

func writeOptions(md metadata.MD) (serving.WriteOptions, error) {
	var o serving.WriteOptions
	o.RequestID = asked(md, RequestIDKey)
	if value := asked(md, WaitForLogKey); value != "" {
		wait, err := strconv.ParseBool(value)
		if err != nil {
			return o, badMetadata(WaitForLogKey, value, errors.New(`want "true" or "false"`))
		}
		o.WaitForLog = wait
	}
	if value := asked(md, SyncRegionsKey); value != "" {
		timeout, err := int64(0), error(nil)
		if value := asked(md, SyncTimeoutKey); value != "" {
			if timeout, err = strconv.ParseInt(value, 10, 64); err != nil {
				return o, badMetadata(SyncTimeoutKey, value, errors.New("want a number"))
			}
		}
		if o.Sync, err = serving.NewSync(strings.Split(value, ","), milliseconds(timeout)); err != nil {
			return o, badMetadata(SyncRegionsKey, value, err)
		}
	}
	return o, nil
}

// header returns etcd's header for an answer from the state that the facts describe.
func header(facts serving.Facts) *pb.ResponseHeader {
	h := new(pb.ResponseHeader)
	setHeader(h, facts)
	return h
}

func setHeader(h *pb.ResponseHeader, facts serving.Facts) {
	h.ClusterId, h.MemberId = facts.Identity.ClusterID, facts.Identity.FrontendID
	h.Revision, h.RaftTerm = facts.Revision, facts.Term
}

// told is what an answer tells of its facts beyond etcd's header. Answers of the same facts share it, so nobody may change
// anything in it.
type told struct {
	facts    serving.Facts // but for the revision, which the header tells
	metadata metadata.MD
}

// ageUnit is what the age in an answer is rounded up to. It is a bound all the same, and most answers of a moment say the
// same then: they share what is told, and a connection sends a value that it has sent lately as its number in a table.
const ageUnit = time.Millisecond

// tellable returns the facts as they are told.
func tellable(facts serving.Facts) serving.Facts {
	facts.Revision = 0
	if facts.Age > 0 {
		facts.Age = (facts.Age + ageUnit - 1).Truncate(ageUnit)
	}
	return facts
}

// newTold returns what is told of facts that are tellable. There are two keys: a key costs more than what it says, on either side,
// and one of them says the same in most answers of a moment.
func newTold(facts serving.Facts) *told {
	age := int64(-1)
	if facts.Age >= 0 {
		age = facts.Age.Microseconds()
	}
	text := make([]byte, 0, 128)
	text = strconv.AppendUint(append(text, "incarnation="...), facts.Identity.Incarnation, 10)
	text = strconv.AppendInt(append(text, " age-microseconds="...), age, 10)
	text = append(append(text, " region="...), facts.Identity.Region...) // last: it may have spaces
	end := len(text)
	shared := string(facts.Token().Append(text))
	values := &[...]string{shared[:end], shared[end:]}
	return &told{facts: facts, metadata: metadata.MD{AnswerKey: values[0:1:1], TokenKey: values[1:2:2]}}
}

// metadataOf returns the answer metadata of facts. Nobody may change them.
func (s *services) metadataOf(facts serving.Facts) metadata.MD {
	facts = tellable(facts)
	t := s.lastTold.Load()
	if t == nil || t.facts != facts {
		t = newTold(facts)
		s.lastTold.Store(t)
	}
	return t.metadata
}

// send sends the facts as a unary call's response headers. The answer comes next: were they set for the answer to take
// along, gRPC would copy them.
func (s *services) send(ctx context.Context, facts serving.Facts) {
	// The one error there can be is one of the stream, which the answer will meet too.
	_ = grpc.SendHeader(ctx, s.metadataOf(facts))
}

// tell sends the facts as a unary call's response headers and returns etcd's header.
func (s *services) tell(ctx context.Context, facts serving.Facts) *pb.ResponseHeader {
	s.send(ctx, facts)
	return header(facts)
}

func unimplemented(what, instead string) error {
	return status.Error(codes.Unimplemented, fmt.Sprintf("logmirror: %s is not served; %s", what, instead))
}
