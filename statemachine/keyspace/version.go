package keyspace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"google.golang.org/protobuf/encoding/protowire"
)

// VersionOverheadBytes is what one retained version counts in LogicalBytes on top of its encoded key-value:
// about what its place in the index, the history and the slab costs. Part of what every mirror must agree on:
// never changed without a new apply version.
const VersionOverheadBytes = 64

// Version is one version of one key. The zero Version stands for none.
//
// All slices point into memory that is never written again and stays valid as long as it is referenced. Nobody may
// modify them. Value is empty for a tombstone and for an empty value.
type Version struct {
	Key, Value []byte
	// CreateRevision, Version and Lease are zero for a tombstone.
	CreateRevision, ModRevision, Version, Lease int64
	// Sub orders the changes under one ModRevision.
	Sub       int64
	Tombstone bool
	// Checksum is the CRC32C made when the version was written, over Encoded, Sub and Tombstone. See Intact.
	Checksum uint32
	// Encoded is the wire form of kv.v1.KeyValue, which is that of etcd's mvccpb.KeyValue too; of a tombstone:
	// key and mod_revision only.
	Encoded []byte
}

// Intact reports whether the bytes are still those that were written.
func (v Version) Intact() bool {
	return recordChecksum(subAndKind(v.Sub, v.Tombstone), v.Encoded) == v.Checksum
}

// LogicalBytes is what the version counts in Space.LogicalBytes while it is retained.
func (v Version) LogicalBytes() int64 { return logicalBytes(len(v.Encoded)) }

func logicalBytes(encodedBytes int) int64 { return int64(encodedBytes) + VersionOverheadBytes }

// Field numbers of kv.v1.KeyValue.
const (
	fieldKey            protowire.Number = 1
	fieldCreateRevision protowire.Number = 2
	fieldModRevision    protowire.Number = 3
	fieldVersion        protowire.Number = 4
	fieldValue          protowire.Number = 5
	fieldLease          protowire.Number = 6
)

// ErrMalformed is returned for bytes that are no encoded key-value of this package's form.
var ErrMalformed = errors.New("keyspace: malformed key-value")

// keyValue is what the encoding carries.
type keyValue struct {
	key, value                                  []byte
	createRevision, modRevision, version, lease int64
}

func (v *Version) keyValue() keyValue {
	return keyValue{key: v.Key, value: v.Value, createRevision: v.CreateRevision, modRevision: v.ModRevision,
		version: v.Version, lease: v.Lease}
}

// tombstoneOf is the encoded content of a delete of key.
func tombstoneOf(key []byte, modRevision int64) keyValue {
	return keyValue{key: key, modRevision: modRevision}
}

func (kv *keyValue) encodedBytes() int {
	n := 0
	if len(kv.key) > 0 {
		n += 1 + protowire.SizeBytes(len(kv.key))
	}
	n += sizeVarintField(kv.createRevision) + sizeVarintField(kv.modRevision) + sizeVarintField(kv.version)
	if len(kv.value) > 0 {
		n += 1 + protowire.SizeBytes(len(kv.value))
	}
	return n + sizeVarintField(kv.lease)
}

// appendTo appends the wire form, fields in ascending order and zero ones omitted, as proto3's own encoders do.
func (kv *keyValue) appendTo(b []byte) []byte {
	b = appendBytesField(b, fieldKey, kv.key)
	b = appendVarintField(b, fieldCreateRevision, kv.createRevision)
	b = appendVarintField(b, fieldModRevision, kv.modRevision)
	b = appendVarintField(b, fieldVersion, kv.version)
	b = appendBytesField(b, fieldValue, kv.value)
	return appendVarintField(b, fieldLease, kv.lease)
}

func sizeVarintField(v int64) int {
	if v == 0 {
		return 0
	}
	return 1 + protowire.SizeVarint(uint64(v))
}

func appendVarintField(b []byte, field protowire.Number, v int64) []byte {
	if v == 0 {
		return b
	}
	b = append(b, byte(field)<<3|byte(protowire.VarintType))
	return protowire.AppendVarint(b, uint64(v))
}

func appendBytesField(b []byte, field protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return b
	}
	b = append(b, byte(field)<<3|byte(protowire.BytesType))
	b = protowire.AppendVarint(b, uint64(len(v)))
	return append(b, v...)
}

// decodeKeyValue reads the wire form that appendTo writes and nothing else: fields in ascending order, each at most
// once. The slices of the result alias b, with no room to append.
func decodeKeyValue(b []byte) (kv keyValue, err error) {
	last := protowire.Number(0)
	for len(b) > 0 {
		field, kind := protowire.Number(b[0]>>3), protowire.Type(b[0]&7)
		if field <= last || field > fieldLease {
			return keyValue{}, ErrMalformed
		}
		last, b = field, b[1:]
		var length uint64
		if len(b) > 0 && b[0] < 0x80 { // most are one byte long
			length, b = uint64(b[0]), b[1:]
		} else {
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return keyValue{}, ErrMalformed
			}
			length, b = v, b[n:]
		}
		if field == fieldKey || field == fieldValue {
			if kind != protowire.BytesType || length > uint64(len(b)) {
				return keyValue{}, ErrMalformed
			}
			if field == fieldKey {
				kv.key = b[:length:length]
			} else {
				kv.value = b[:length:length]
			}
			b = b[length:]
			continue
		}
		if kind != protowire.VarintType {
			return keyValue{}, ErrMalformed
		}
		switch field {
		case fieldCreateRevision:
			kv.createRevision = int64(length)
		case fieldModRevision:
			kv.modRevision = int64(length)
		case fieldVersion:
			kv.version = int64(length)
		case fieldLease:
			kv.lease = int64(length)
		}
	}
	return kv, nil
}

// A record is a version at rest in a slab, at an offset that is a multiple of recordAlignment:
//
//	bytes 0..3    CRC32C over the sub-revision << 1 | 1 for a tombstone, four bytes, and the encoding
//	bytes 4..7    slot of the version
//	bytes 8..11   bit 0 for a tombstone, bit 1 zero, bits 2..9 the sub-revision, bits 10..31 the length of the encoding
//	bytes 12..    the encoding, padded to recordAlignment
//
// One whose sub-revision or length does not fit into that is wide:
//
//	bytes 8..11   bit 0 for a tombstone, bit 1 one, bits 2..31 the length of the encoding
//	bytes 12..15  the sub-revision
//	bytes 16..    the encoding, padded to recordAlignment
//
// Integers are little-endian. The slot is left out of the checksum, which thus depends on content alone; it is
// checked against the slot's own reference instead.
const (
	recordHeaderBytes     = 12
	wideRecordHeaderBytes = 16
	recordAlignment       = 4

	recordTombstone = 1 << 0
	recordWide      = 1 << 1
	narrowSubEnd    = 1 << 8
	narrowBytesEnd  = 1 << 22

	maxEncodedBytes = 1<<30 - 1
	maxSub          = 1<<31 - 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func subAndKind(sub int64, tombstone bool) uint32 {
	s := uint32(sub) << 1
	if tombstone {
		s |= 1
	}
	return s
}

func recordChecksum(subAndKind uint32, encoded []byte) uint32 {
	var head [4]byte
	binary.LittleEndian.PutUint32(head[:], subAndKind)
	return crc32.Update(headChecksum(head), castagnoli, encoded)
}

// headChecksum is CRC32C of four bytes. Separate so that head need not escape through the table-driven fallback.
func headChecksum(head [4]byte) uint32 {
	crc := ^uint32(0)
	for _, b := range head {
		crc = castagnoli[byte(crc)^b] ^ (crc >> 8)
	}
	return ^crc
}

// recordBytes is the room that a record takes.
func recordBytes(sub int64, encodedBytes int) int {
	if isWide(sub, encodedBytes) {
		return aligned(wideRecordHeaderBytes + encodedBytes)
	}
	return aligned(recordHeaderBytes + encodedBytes)
}

func isWide(sub int64, encodedBytes int) bool {
	return sub >= narrowSubEnd || encodedBytes >= narrowBytesEnd
}

func aligned(n int) int { return (n + recordAlignment - 1) &^ (recordAlignment - 1) }

// record is the bytes of one record from its header to the end of its encoding.
type record []byte

// beginRecord writes what the header says of sub-revision, kind and length, and returns where the encoding belongs.
func beginRecord(room []byte, sub int64, tombstone bool, encodedBytes int) []byte {
	var word uint32
	if tombstone {
		word = recordTombstone
	}
	if isWide(sub, encodedBytes) {
		binary.LittleEndian.PutUint32(room[8:], word|recordWide|uint32(encodedBytes)<<2)
		binary.LittleEndian.PutUint32(room[12:], uint32(sub))
		return room[wideRecordHeaderBytes:][:encodedBytes]
	}
	binary.LittleEndian.PutUint32(room[8:], word|uint32(sub)<<2|uint32(encodedBytes)<<10)
	return room[recordHeaderBytes:][:encodedBytes]
}

// sealRecord completes a record whose encoding is in place, but for its slot.
func sealRecord(room []byte) record {
	r := recordAt(room)
	binary.LittleEndian.PutUint32(r, recordChecksum(r.subAndKind(), r.encoded()))
	return r
}

func (r record) checksum() uint32 { return binary.LittleEndian.Uint32(r) }
func (r record) slot() uint32     { return binary.LittleEndian.Uint32(r[4:]) }
func (r record) word() uint32     { return binary.LittleEndian.Uint32(r[8:]) }

// wide is false for what is too short to be, which only rotten memory can have.
func (r record) wide() bool { return r.word()&recordWide != 0 && len(r) >= wideRecordHeaderBytes }

func (r record) sub() int64 {
	if r.wide() {
		return int64(binary.LittleEndian.Uint32(r[12:]))
	}
	return int64(r.word() >> 2 & (narrowSubEnd - 1))
}

func (r record) encoded() []byte {
	if r.wide() {
		return r[wideRecordHeaderBytes:len(r):len(r)]
	}
	return r[recordHeaderBytes:len(r):len(r)]
}

func (r record) subAndKind() uint32 { return subAndKind(r.sub(), r.tombstone()) }
func (r record) tombstone() bool    { return r.word()&recordTombstone != 0 }
func (r record) setSlot(n uint32)   { binary.LittleEndian.PutUint32(r[4:], n) }
func (r record) intact() bool       { return recordChecksum(r.subAndKind(), r.encoded()) == r.checksum() }

// room is what the record takes in its slab.
func (r record) room() int { return aligned(len(r)) }

// recordAt cuts the record at the start of b. A length that does not fit, which only rotten memory can have, is
// cut to b: the checksum tells.
func recordAt(b []byte) record {
	word := record(b).word()
	n := recordHeaderBytes + int(word>>10)
	if word&recordWide != 0 {
		n = wideRecordHeaderBytes + int(word>>2)
	}
	return b[:min(n, len(b))]
}

// key reads only the key, for comparisons. Nil if the record is rotten.
func (r record) key() []byte {
	b := r.encoded()
	if len(b) < 2 || b[0] != byte(fieldKey)<<3|byte(protowire.BytesType) {
		return nil
	}
	length, n := uint64(b[1]), 1
	if length >= 0x80 {
		length, n = protowire.ConsumeVarint(b[1:])
		if n < 0 {
			return nil
		}
	}
	b = b[1+n:]
	if length > uint64(len(b)) {
		return nil
	}
	return b[:length:length]
}

// version decodes the whole record. A record that does not decode, which only rotten memory can cause, gives
// what its encoding says nonetheless; Intact and the verifier tell.
func (r record) version() Version {
	encoded := r.encoded()
	kv, _ := decodeKeyValue(encoded)
	return Version{
		Key: kv.key, Value: kv.value,
		CreateRevision: kv.createRevision, ModRevision: kv.modRevision, Version: kv.version, Lease: kv.lease,
		Sub: r.sub(), Tombstone: r.tombstone(), Checksum: r.checksum(), Encoded: encoded,
	}
}

// DecodeKeyValue reads the wire form of a key-value as this package writes it: a live version has a version
// number, a tombstone only key and mod_revision. Sub and Checksum are left zero. The slices of the result alias
// encoded.
func DecodeKeyValue(encoded []byte) (Version, error) {
	kv, err := decodeKeyValue(encoded)
	if err != nil {
		return Version{}, err
	}
	if len(kv.key) == 0 || kv.modRevision <= 0 {
		return Version{}, fmt.Errorf("%w: no key or no mod_revision", ErrMalformed)
	}
	tombstone := kv.version == 0
	switch {
	case tombstone && (kv.createRevision != 0 || kv.lease != 0 || len(kv.value) != 0):
		return Version{}, fmt.Errorf("%w: a tombstone with more than key and mod_revision", ErrMalformed)
	case !tombstone && (kv.version < 0 || kv.createRevision <= 0 || kv.createRevision > kv.modRevision):
		return Version{}, fmt.Errorf("%w: create_revision and version do not fit mod_revision", ErrMalformed)
	}
	return Version{
		Key: kv.key, Value: kv.value,
		CreateRevision: kv.createRevision, ModRevision: kv.modRevision, Version: kv.version, Lease: kv.lease,
		Tombstone: tombstone, Encoded: encoded[:len(encoded):len(encoded)],
	}, nil
}
