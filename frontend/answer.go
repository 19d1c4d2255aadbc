package frontend

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/frontend/serving"
	"github.com/logmirror/logmirror/frontend/wire"
	"github.com/logmirror/logmirror/statemachine/keyspace"
)

func consistency(c *kvv1.Consistency) (serving.Consistency, error) {
	asked := serving.Consistency{MinRevision: c.GetMinRevision()}
	switch c.GetLevel() {
	case kvv1.Consistency_LEVEL_UNSPECIFIED, kvv1.Consistency_LEVEL_LINEARIZABLE:
		asked.Linearizable = true
	case kvv1.Consistency_LEVEL_SERIALIZABLE:
	default:
		return asked, invalid("consistency.level", "must be LINEARIZABLE or SERIALIZABLE")
	}
	if c.GetMinRevision() < 0 {
		return asked, invalid("consistency.min_revision", "must not be negative")
	}
	if n := c.GetMaxStalenessMilliseconds(); n < 0 || n > int64(1<<62/time.Millisecond) {
		return asked, invalid("consistency.max_staleness_milliseconds", "is out of range")
	}
	asked.MaxStaleness = time.Duration(c.GetMaxStalenessMilliseconds()) * time.Millisecond
	if t := c.GetAtLeast(); t != nil {
		asked.AtLeast = serving.Token{ClusterID: t.GetClusterId(), Epoch: t.GetEpoch(), LogIndex: t.GetLogIndex()}
	}
	return asked, nil
}

func header(facts serving.Facts) *kvv1.ResponseHeader { return serving.HeaderOf(facts) }

func encodedHeader(facts serving.Facts) []byte {
	encoded, _ := proto.Marshal(header(facts)) // names are checked to be UTF-8 at the start; nothing else can fail
	return encoded
}

func keyValue(v *keyspace.Version) *kvv1.KeyValue {
	return &kvv1.KeyValue{
		Key:            v.Key,
		Value:          v.Value,
		CreateRevision: v.CreateRevision,
		ModRevision:    v.ModRevision,
		Version:        v.Version,
		Lease:          v.Lease,
	}
}

func keyValues(versions []keyspace.Version) []*kvv1.KeyValue {
	kvs := make([]*kvv1.KeyValue, len(versions))
	for i := range versions {
		kvs[i] = keyValue(&versions[i])
	}
	return kvs
}

func previous(v *keyspace.Version) *kvv1.KeyValue {
	if v == nil {
		return nil
	}
	return keyValue(v)
}

// pageToken names the place in a listing where the next page begins.
type pageToken struct {
	revision int64
	next     []byte
}

// What begins every token, so that its form can change, and so that no listing takes another's.
const (
	pageTokenVersion      = 1
	leasePageTokenVersion = 2
)

// String encodes the token.
func (t pageToken) String() string {
	b := binary.AppendUvarint([]byte{pageTokenVersion}, uint64(t.revision))
	return base64.RawURLEncoding.EncodeToString(append(b, t.next...))
}

var errMalformedToken = errors.New("is none that a listing of this cluster gave")

func parsePageToken(text string) (pageToken, error) {
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(b) < 2 || b[0] != pageTokenVersion {
		return pageToken{}, errMalformedToken
	}
	revision, n := binary.Uvarint(b[1:])
	if n <= 0 || int64(revision) <= 0 || len(b) == 1+n {
		return pageToken{}, errMalformedToken
	}
	return pageToken{revision: int64(revision), next: b[1+n:]}, nil
}

// leasePageToken names the lease with which the next page of leases begins.
func leasePageToken(first int64) string {
	return base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint64([]byte{leasePageTokenVersion}, uint64(first)))
}

func parseLeasePageToken(text string) (first int64, err error) {
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(b) != 1+8 || b[0] != leasePageTokenVersion {
		return 0, errMalformedToken
	}
	return int64(binary.BigEndian.Uint64(b[1:])), nil
}

// getAnswer is a kvv1.GetResponse whose key-value is encoded already.
type getAnswer struct {
	header   []byte
	keyValue []byte // nil: none
}

const (
	getHeaderField   protowire.Number = 1
	getKeyValueField protowire.Number = 2
)

// EncodedSize implements wire.Message.
func (a *getAnswer) EncodedSize() int {
	size := wire.SizeElement(getHeaderField, a.header)
	if a.keyValue != nil {
		size += wire.SizeElement(getKeyValueField, a.keyValue)
	}
	return size
}

// AppendEncoded implements wire.Message.
func (a *getAnswer) AppendEncoded(b []byte) []byte {
	b = wire.AppendElement(b, getHeaderField, a.header)
	if a.keyValue != nil {
		b = wire.AppendElement(b, getKeyValueField, a.keyValue)
	}
	return b
}

// listAnswer is a kvv1.ListResponse whose key-values are encoded already.
type listAnswer struct {
	header        []byte
	keyValues     [][]byte
	nextPageToken string
	revision      int64
	keysOnly      bool
}

const (
	listHeaderField        protowire.Number = 1
	listKeyValuesField     protowire.Number = 2
	listNextPageTokenField protowire.Number = 3
	listRevisionField      protowire.Number = 4
)

// EncodedSize implements wire.Message.
func (a *listAnswer) EncodedSize() int {
	size := wire.SizeElement(listHeaderField, a.header) +
		wire.SizeString(listNextPageTokenField, a.nextPageToken) +
		wire.SizeVarint(listRevisionField, uint64(a.revision))
	for _, kv := range a.keyValues {
		size += wire.SizeElement(listKeyValuesField, kv)
	}
	return size
}

// AppendEncoded implements wire.Message.
func (a *listAnswer) AppendEncoded(b []byte) []byte {
	b = wire.AppendElement(b, listHeaderField, a.header)
	for _, kv := range a.keyValues {
		b = wire.AppendElement(b, listKeyValuesField, kv)
	}
	b = wire.AppendString(b, listNextPageTokenField, a.nextPageToken)
	return wire.AppendVarint(b, listRevisionField, uint64(a.revision))
}
