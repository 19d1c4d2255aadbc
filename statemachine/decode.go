package statemachine

import (
	"fmt"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
)

// Field numbers of command.v1.
const (
	fieldBatchCommands        protowire.Number = 1
	fieldCommandRequestID     protowire.Number = 1
	fieldCommandReportApplied protowire.Number = 2
	fieldCommandPut           protowire.Number = 3
	fieldCommandDeleteRange   protowire.Number = 4
	fieldCommandTxn           protowire.Number = 5
	fieldCommandCompact       protowire.Number = 6
	fieldCommandLeaseGrant    protowire.Number = 7
	fieldCommandLeaseRevoke   protowire.Number = 8
	fieldCommandLeaseAdopt    protowire.Number = 9
	fieldCommandLeaseExpire   protowire.Number = 10
	fieldCommandSettings      protowire.Number = 11
	fieldCommandRegionState   protowire.Number = 12
	fieldCommandApplyVersion  protowire.Number = 13
	fieldCommandAlarm         protowire.Number = 14
	fieldCommandIDNodeGrant   protowire.Number = 15
	fieldCommandIDNodeExtend  protowire.Number = 16
	fieldCommandIDSegment     protowire.Number = 17
	fieldCommandIDSequence    protowire.Number = 18
	fieldCommandMutate        protowire.Number = 19
)

// command is one decoded command. A Put, the command that there are most of, is decoded in place; the others are the
// generated messages, of which a compare-and-swap is put together without the general decoder.
type command struct {
	requestID     []byte // aliases the payload; empty for none
	reportApplied bool
	// operation is the field number of what is to be done and raw the bytes of it; zero where nothing is.
	operation protowire.Number
	raw       []byte
	put       putCommand    // where operation is fieldCommandPut
	message   proto.Message // otherwise
}

// putCommand is a Put. Its slices alias what it was decoded from.
type putCommand struct {
	key, value                         []byte
	lease                              int64
	ignoreValue, ignoreLease, previous bool
}

func putOf(p *commandv1.Put) putCommand {
	return putCommand{
		key: p.GetKey(), value: p.GetValue(), lease: p.GetLease(),
		ignoreValue: p.GetIgnoreValue(), ignoreLease: p.GetIgnoreLease(), previous: p.GetPrevious(),
	}
}

// decodeBatch appends the commands of a CommandBatch to commands. It is stricter than the general decoder in that no
// field may come twice, which no encoder does; and it refuses every field that it does not know, at any depth.
func decodeBatch(payload []byte, commands []command) ([]command, error) {
	for len(payload) > 0 {
		field, kind, n := protowire.ConsumeTag(payload)
		if n < 0 {
			return commands, fmt.Errorf("%w: command batch", ErrMalformed)
		}
		if field != fieldBatchCommands || kind != protowire.BytesType {
			return commands, fmt.Errorf("%w: field %d of a command batch", ErrUnknown, field)
		}
		raw, m := protowire.ConsumeBytes(payload[n:])
		if m < 0 {
			return commands, fmt.Errorf("%w: command batch", ErrMalformed)
		}
		payload = payload[n+m:]
		commands = append(commands, command{})
		if err := commands[len(commands)-1].decode(raw); err != nil {
			return commands, err
		}
	}
	return commands, nil
}

func (c *command) decode(b []byte) error {
	var seen [fieldCommandReportApplied + 1]bool
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("%w: command", ErrMalformed)
		}
		b = b[n:]
		if field <= fieldCommandReportApplied {
			if seen[field] {
				return fmt.Errorf("%w: field %d of a command comes twice", ErrMalformed, field)
			}
			seen[field] = true
		}
		switch {
		case field == fieldCommandRequestID && kind == protowire.BytesType:
			id, m := protowire.ConsumeBytes(b)
			if m < 0 || !utf8.Valid(id) {
				return fmt.Errorf("%w: request id", ErrMalformed)
			}
			c.requestID, b = id, b[m:]
		case field == fieldCommandReportApplied && kind == protowire.VarintType:
			v, m := protowire.ConsumeVarint(b)
			if m < 0 {
				return fmt.Errorf("%w: command", ErrMalformed)
			}
			c.reportApplied, b = v != 0, b[m:]
		case field >= fieldCommandPut && field <= fieldCommandMutate && kind == protowire.BytesType:
			raw, m := protowire.ConsumeBytes(b)
			if m < 0 {
				return fmt.Errorf("%w: command", ErrMalformed)
			}
			if c.operation != 0 {
				return fmt.Errorf("%w: two operations in one command", ErrMalformed)
			}
			c.operation, c.raw, b = field, raw, b[m:]
		default:
			return fmt.Errorf("%w: field %d of a command", ErrUnknown, field)
		}
	}
	return c.decodeOperation()
}

func (c *command) decodeOperation() error {
	switch c.operation {
	case 0:
		return nil // says nothing; refused when it is applied
	case fieldCommandPut:
		return c.put.decode(c.raw)
	case fieldCommandDeleteRange:
		c.message = new(commandv1.DeleteRange)
	case fieldCommandTxn:
		if swap := decodeSwap(c.raw); swap != nil {
			c.message = swap
			return nil
		}
		c.message = new(commandv1.Txn)
	case fieldCommandCompact:
		c.message = new(commandv1.Compact)
	case fieldCommandLeaseGrant:
		c.message = new(commandv1.LeaseGrant)
	case fieldCommandLeaseRevoke:
		c.message = new(commandv1.LeaseRevoke)
	case fieldCommandLeaseAdopt:
		c.message = new(commandv1.LeaseAdopt)
	case fieldCommandLeaseExpire:
		c.message = new(commandv1.LeaseExpire)
	case fieldCommandSettings:
		c.message = new(commandv1.ChangeSettings)
	case fieldCommandRegionState:
		c.message = new(commandv1.SetRegionState)
	case fieldCommandApplyVersion:
		c.message = new(commandv1.RaiseApplyVersion)
	case fieldCommandAlarm:
		c.message = new(commandv1.SetAlarm)
	case fieldCommandIDNodeGrant:
		c.message = new(commandv1.IdNodeGrant)
	case fieldCommandIDNodeExtend:
		c.message = new(commandv1.IdNodeExtend)
	case fieldCommandIDSegment:
		c.message = new(commandv1.IdSegmentGrant)
	case fieldCommandIDSequence:
		c.message = new(commandv1.IdSequenceNext)
	case fieldCommandMutate:
		c.message = new(commandv1.Mutate)
	}
	if err := proto.Unmarshal(c.raw, c.message); err != nil {
		return fmt.Errorf("%w: operation %d: %v", ErrMalformed, c.operation, err)
	}
	if !understood(c.message) {
		return fmt.Errorf("%w: operation %d of a command", ErrUnknown, c.operation)
	}
	return nil
}

// decode reads an encoded Put.
func (p *putCommand) decode(b []byte) error {
	var seen [7]bool
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("%w: put", ErrMalformed)
		}
		b = b[n:]
		if field >= protowire.Number(len(seen)) {
			return fmt.Errorf("%w: field %d of a put", ErrUnknown, field)
		}
		if seen[field] {
			return fmt.Errorf("%w: field %d of a put comes twice", ErrMalformed, field)
		}
		seen[field] = true
		if field <= 2 {
			if kind != protowire.BytesType {
				return fmt.Errorf("%w: field %d of a put", ErrUnknown, field)
			}
			v, m := protowire.ConsumeBytes(b)
			if m < 0 {
				return fmt.Errorf("%w: put", ErrMalformed)
			}
			if field == 1 {
				p.key = v
			} else {
				p.value = v
			}
			b = b[m:]
			continue
		}
		if kind != protowire.VarintType {
			return fmt.Errorf("%w: field %d of a put", ErrUnknown, field)
		}
		v, m := protowire.ConsumeVarint(b)
		if m < 0 {
			return fmt.Errorf("%w: put", ErrMalformed)
		}
		b = b[m:]
		switch field {
		case 3:
			p.lease = int64(v)
		case 4:
			p.ignoreValue = v != 0
		case 5:
			p.ignoreLease = v != 0
		case 6:
			p.previous = v != 0
		}
	}
	return nil
}

// understood reports whether a message and all messages within it have no field that this build does not know.
func understood(m proto.Message) bool {
	if len(m.ProtoReflect().GetUnknown()) > 0 {
		return false
	}
	switch m := m.(type) {
	case *commandv1.Txn:
		for _, c := range m.Compares {
			if !understood(c) {
				return false
			}
		}
		return understoodOperations(m.Success) && understoodOperations(m.Failure)
	case *commandv1.Mutate:
		switch change := m.Change.(type) {
		case *commandv1.Mutate_Insert_:
			return understood(change.Insert)
		case *commandv1.Mutate_Remove_:
			return understood(change.Remove)
		case *commandv1.Mutate_Append_:
			return understood(change.Append)
		}
	}
	return true
}

func understoodOperations(operations []*commandv1.TxnOperation) bool {
	for _, o := range operations {
		if len(o.ProtoReflect().GetUnknown()) > 0 {
			return false
		}
		ok := true
		switch o := o.Operation.(type) {
		case *commandv1.TxnOperation_Range:
			ok = understood(o.Range)
		case *commandv1.TxnOperation_Put:
			ok = understood(o.Put)
		case *commandv1.TxnOperation_DeleteRange:
			ok = understood(o.DeleteRange)
		case *commandv1.TxnOperation_Txn:
			ok = understood(o.Txn)
		case *commandv1.TxnOperation_Mutate:
			ok = understood(o.Mutate)
		}
		if !ok {
			return false
		}
	}
	return true
}
