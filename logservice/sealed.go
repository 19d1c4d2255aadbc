package logservice

import (
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// sealedKept is the number of sealed checkpoints that a member keeps. Where it holds none of these, because others sealed them
// while it could not fetch them, it keeps the newest that it does hold as well: its log may begin right after that one.
const sealedKept = 2

// logPoint is a place in the log: an entry, and what all that begins after it must know of what is before.
type logPoint struct {
	index, term uint64
	// digest is the running digest of the log up to the entry, stamp the log time there.
	digest, stamp uint64
}

// sealedCheckpoint is a checkpoint that is as durable as the log.
type sealedCheckpoint struct {
	name CheckpointName
	// point is where the log goes on after it; its index is the name's.
	point logPoint
	// sealedIndex is the index of the CHECKPOINT_SEALED entry.
	sealedIndex uint64
}

// checkpointRequest is a CHECKPOINT_REQUEST entry.
type checkpointRequest struct {
	point         logPoint
	builders      []uint64
	formatVersion uint32
}

// noteCheckpoint takes an entry that asks for a checkpoint or seals one, in the order of the log. digest is that of the
// log up to the entry, needed for a request only; held are the checkpoints in this member's store. It reports whether it
// sealed one. A seal of another checkpoint than the one asked for last is void, on every member alike.
func (r *record) noteCheckpoint(e *raftpb.Entry, h envelopeHeader, digest uint64, held map[CheckpointName]bool) (sealed bool) {
	switch h.kind {
	case logv1.EntryKind_ENTRY_KIND_CHECKPOINT_REQUEST:
		request := &logv1.CheckpointRequest{}
		if proto.Unmarshal(h.payload, request) != nil {
			return false
		}
		r.request = &checkpointRequest{builders: request.BuilderSessions, formatVersion: request.FormatVersion,
			point: logPoint{index: e.GetIndex(), term: e.GetTerm(), digest: digest, stamp: h.stamp}}
	case logv1.EntryKind_ENTRY_KIND_CHECKPOINT_SEALED:
		message := &logv1.CheckpointSealed{}
		if proto.Unmarshal(h.payload, message) != nil {
			return false
		}
		name, err := checkpointName(message.GetCheckpoint())
		if err != nil || r.request == nil || r.request.point.index != name.Index {
			return false
		}
		r.sealed = slices.Insert(slices.Clone(r.sealed), 0,
			sealedCheckpoint{name: name, point: r.request.point, sealedIndex: e.GetIndex()})
		r.forgetSealed(held)
		r.request = nil
		return true
	}
	return false
}

// forgetSealed drops the sealed checkpoints that are kept no more.
func (r *record) forgetSealed(held map[CheckpointName]bool) {
	isHeld := func(s sealedCheckpoint) bool { return held[s.name] }
	kept := min(len(r.sealed), sealedKept)
	if newest := slices.IndexFunc(r.sealed, isHeld); newest >= kept {
		r.sealed[kept] = r.sealed[newest]
		kept++
	}
	r.sealed = r.sealed[:kept]
}

// findSealed finds a checkpoint among the sealed ones that are kept.
func (r *record) findSealed(name CheckpointName) *sealedCheckpoint {
	for i := range r.sealed {
		if r.sealed[i].name == name {
			return &r.sealed[i]
		}
	}
	return nil
}

func (s *sealedCheckpoint) encode() []byte {
	name, err := proto.Marshal(wireName(s.name))
	if err != nil {
		panic(fmt.Sprintf("logservice: encode the name of a checkpoint: %v", err))
	}
	b := protowire.AppendTag(nil, 1, protowire.BytesType)
	b = protowire.AppendBytes(b, name)
	b = appendVarint(b, 2, s.sealedIndex)
	return s.point.append(b)
}

func decodeSealed(b []byte) (s sealedCheckpoint, err error) {
	err = decodeFields(b, func(number protowire.Number, value uint64, field []byte) error {
		if number == 1 {
			name := &logv1.CheckpointName{}
			if err := proto.Unmarshal(field, name); err != nil {
				return err
			}
			s.name, err = checkpointName(name)
			return err
		}
		if number == 2 {
			s.sealedIndex = value
		}
		s.point.decode(number, value)
		return nil
	})
	if err == nil && s.name == (CheckpointName{}) {
		err = errors.New("logservice: a sealed checkpoint without a name")
	}
	return s, err
}

func (r *checkpointRequest) encode() []byte {
	b := appendVarint(nil, 1, uint64(r.formatVersion))
	for _, session := range r.builders {
		b = appendVarint(b, 2, session)
	}
	return r.point.append(b)
}

func decodeRequest(b []byte) (*checkpointRequest, error) {
	r := &checkpointRequest{}
	err := decodeFields(b, func(number protowire.Number, value uint64, _ []byte) error {
		switch number {
		case 1:
			r.formatVersion = uint32(value)
		case 2:
			r.builders = append(r.builders, value)
		}
		r.point.decode(number, value)
		return nil
	})
	return r, err
}

// append writes a point as the fields 10 to 13 of a message.
func (p *logPoint) append(b []byte) []byte {
	b = appendVarint(b, 10, p.index)
	b = appendVarint(b, 11, p.term)
	b = appendVarint(b, 12, p.digest)
	return appendVarint(b, 13, p.stamp)
}

func (p *logPoint) decode(number protowire.Number, value uint64) {
	switch number {
	case 10:
		p.index = value
	case 11:
		p.term = value
	case 12:
		p.digest = value
	case 13:
		p.stamp = value
	}
}

func appendVarint(b []byte, number protowire.Number, value uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, number, protowire.VarintType), value)
}

// decodeFields hands out the fields of a message that has varints and bytes only.
func decodeFields(b []byte, each func(number protowire.Number, value uint64, field []byte) error) error {
	for len(b) > 0 {
		number, wire, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errBadRecord
		}
		b = b[n:]
		var value uint64
		var field []byte
		switch wire {
		case protowire.VarintType:
			value, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			field, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(number, wire, b)
		}
		if n < 0 {
			return errBadRecord
		}
		if err := each(number, value, field); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}
