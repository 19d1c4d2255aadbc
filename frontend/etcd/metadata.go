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

// Keys of answer metadata, beside TokenKey.
const (
	RegionKey      = "logmirror-region"
	IncarnationKey = "logmirror-incarnation"
	LogIndexKey    = "logmirror-log-index"
	AgeKey         = "logmirror-age-microseconds"
)

// asked returns the last value of a key of the request's metadata; empty if there is none. It copies nothing but that
// value, unlike metadata.FromIncomingContext.
func asked(ctx context.Context, key string) string {
	if values := metadata.ValueFromIncomingContext(ctx, key); len(values) > 0 {
		return values[len(values)-1]
	}
	return ""
}

func badMetadata(key, value string, err error) error {
	return status.Errorf(codes.InvalidArgument, "logmirror: metadata %s %.128q: %v", key, value, err)
}

// readConsistency returns what a read asks for: the request's own serializable field, and metadata over it.
func readConsistency(ctx context.Context, serializable bool) (serving.Consistency, error) {
	c := serving.Consistency{Linearizable: !serializable}
	switch value := asked(ctx, ConsistencyKey); value {
	case "":
	case "linearizable":
		c.Linearizable = true
	case "serializable":
		c.Linearizable = false
	default:
		return c, badMetadata(ConsistencyKey, value, errors.New(`want "serializable" or "linearizable"`))
	}
	var err error
	if c.MinRevision, err = askedNumber(ctx, MinRevisionKey); err != nil {
		return c, err
	}
	staleness, err := askedNumber(ctx, MaxStalenessKey)
	if err != nil {
		return c, err
	}
	c.MaxStaleness = milliseconds(staleness)
	if value := asked(ctx, TokenKey); value != "" {
		token, err := serving.ParseToken(value)
		if err != nil {
			return c, badMetadata(TokenKey, value, err)
		}
		c.AtLeast = token
	}
	return c, nil
}

// askedNumber returns the number that a metadata key asks for; zero if there is none.
func askedNumber(ctx context.Context, key string) (int64, error) {
	value := asked(ctx, key)
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

func writeOptions(ctx context.Context) (serving.WriteOptions, error) {
	var o serving.WriteOptions
	o.RequestID = asked(ctx, RequestIDKey)
	if value := asked(ctx, WaitForLogKey); value != "" {
		wait, err := strconv.ParseBool(value)
		if err != nil {
			return o, badMetadata(WaitForLogKey, value, errors.New(`want "true" or "false"`))
		}
		o.WaitForLog = wait
	}
	if value := asked(ctx, SyncRegionsKey); value != "" {
		timeout, err := int64(0), error(nil)
		if value := asked(ctx, SyncTimeoutKey); value != "" {
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
	return &pb.ResponseHeader{
		ClusterId: facts.Identity.ClusterID,
		MemberId:  facts.Identity.FrontendID,
		Revision:  facts.Revision,
		RaftTerm:  facts.Term,
	}
}

// factsMetadata returns what etcd's header has no field for. Every answer has it, so the values share what they can: one
// string and one array.
func factsMetadata(facts serving.Facts) metadata.MD {
	age := int64(-1)
	if facts.Age >= 0 {
		age = facts.Age.Microseconds()
	}
	text := make([]byte, 0, 128)
	text = strconv.AppendUint(text, facts.Identity.Incarnation, 10)
	incarnationEnd := len(text)
	text = strconv.AppendUint(text, facts.LogIndex, 10)
	indexEnd := len(text)
	text = strconv.AppendInt(text, age, 10)
	ageEnd := len(text)
	shared := string(facts.Token().Append(text))
	values := &[...]string{
		facts.Identity.Region, shared[:incarnationEnd], shared[incarnationEnd:indexEnd], shared[indexEnd:ageEnd], shared[ageEnd:],
	}
	return metadata.MD{
		RegionKey: values[0:1:1], IncarnationKey: values[1:2:2], LogIndexKey: values[2:3:3], AgeKey: values[3:4:4],
		TokenKey: values[4:5:5],
	}
}

// tell adds the facts to a unary call's response headers and returns etcd's header.
func tell(ctx context.Context, facts serving.Facts) *pb.ResponseHeader {
	// The one error there can be says that headers were sent already; the answer is good without them.
	_ = grpc.SetHeader(ctx, factsMetadata(facts))
	return header(facts)
}

func unimplemented(what, instead string) error {
	return status.Error(codes.Unimplemented, fmt.Sprintf("logmirror: %s is not served; %s", what, instead))
}
