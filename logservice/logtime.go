package logservice

import (
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// MaxLogTimeAdvance bounds how far log time advances between two entries: half of the smallest session time, so that
// after a silence the first entry does not end every session.
const MaxLogTimeAdvance = 5 * time.Second

// logClock makes the stamps of one leader's term. Log time begins at the last stamp in the leader's log and advances
// with the leader's monotonic clock. It may stand still; it never jumps and never goes back.
type logClock struct {
	stamp uint64
	at    time.Time
}

// startLogClock begins a term whose log ends with the given stamp.
func startLogClock(lastStamp uint64, now time.Time) logClock {
	return logClock{stamp: lastStamp, at: now}
}

// next returns the stamp of an entry that is proposed now.
func (c *logClock) next(now time.Time) uint64 {
	if elapsed := now.Sub(c.at); elapsed > 0 {
		c.stamp += uint64(min(elapsed, MaxLogTimeAdvance))
		c.at = now
	}
	return c.stamp
}

// envelopeHeader is what the log service reads of an entry.
type envelopeHeader struct {
	kind    logv1.EntryKind
	stamp   uint64
	session uint64
	seq     uint64
	payload []byte
}

// parseEnvelope reads an encoded envelope without copying its payload. It reports false for data that is none.
func parseEnvelope(data []byte) (h envelopeHeader, ok bool) {
	if len(data) == 0 {
		return h, false
	}
	for len(data) > 0 {
		number, wire, n := protowire.ConsumeTag(data)
		if n < 0 {
			return h, false
		}
		data = data[n:]
		var value uint64
		switch {
		case number == 5 && wire == protowire.BytesType:
			h.payload, n = protowire.ConsumeBytes(data)
		case number == 2 && wire == protowire.Fixed64Type:
			value, n = protowire.ConsumeFixed64(data)
			h.stamp = value
		case wire == protowire.VarintType:
			value, n = protowire.ConsumeVarint(data)
			switch number {
			case 1:
				h.kind = logv1.EntryKind(value)
			case 3:
				h.session = value
			case 4:
				h.seq = value
			}
		default:
			n = protowire.ConsumeFieldValue(number, wire, data)
		}
		if n < 0 {
			return h, false
		}
		data = data[n:]
	}
	return h, h.kind != logv1.EntryKind_ENTRY_KIND_UNSPECIFIED
}

// encodeEnvelope encodes an envelope; parseEnvelope and proto.Unmarshal both read it.
func encodeEnvelope(h envelopeHeader) []byte {
	b := make([]byte, 0, len(h.payload)+48)
	b = protowire.AppendTag(b, 1, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(h.kind))
	b = protowire.AppendTag(b, 2, protowire.Fixed64Type)
	b = protowire.AppendFixed64(b, h.stamp)
	if h.session != 0 {
		b = protowire.AppendTag(b, 3, protowire.VarintType)
		b = protowire.AppendVarint(b, h.session)
	}
	if h.seq != 0 {
		b = protowire.AppendTag(b, 4, protowire.VarintType)
		b = protowire.AppendVarint(b, h.seq)
	}
	if len(h.payload) > 0 {
		b = protowire.AppendTag(b, 5, protowire.BytesType)
		b = protowire.AppendBytes(b, h.payload)
	}
	return b
}
