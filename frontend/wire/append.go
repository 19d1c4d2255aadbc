package wire

import (
	"google.golang.org/protobuf/encoding/protowire"
)

// The helpers below leave a zero field out, as proto3 does.

// SizeVarint returns the size of an integer or bool field.
func SizeVarint(number protowire.Number, value uint64) int {
	if value == 0 {
		return 0
	}
	return protowire.SizeTag(number) + protowire.SizeVarint(value)
}

// AppendVarint appends an integer or bool field.
func AppendVarint(b []byte, number protowire.Number, value uint64) []byte {
	if value == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, number, protowire.VarintType), value)
}

// SizeString returns the size of a string or bytes field.
func SizeString[T string | []byte](number protowire.Number, value T) int {
	if len(value) == 0 {
		return 0
	}
	return SizeElement(number, value)
}

// AppendString appends a string or bytes field.
func AppendString[T string | []byte](b []byte, number protowire.Number, value T) []byte {
	if len(value) == 0 {
		return b
	}
	return AppendElement(b, number, value)
}

// SizeElement returns the size of an encoded message, or of an element of a repeated field, even where it is empty.
func SizeElement[T string | []byte](number protowire.Number, encoded T) int {
	return protowire.SizeTag(number) + protowire.SizeBytes(len(encoded))
}

// AppendElement appends an encoded message, or an element of a repeated field, even where it is empty.
func AppendElement[T string | []byte](b []byte, number protowire.Number, encoded T) []byte {
	b = protowire.AppendTag(b, number, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(len(encoded)))
	return append(b, encoded...)
}

// Bool returns a bool as a varint field's value.
func Bool(value bool) uint64 {
	if value {
		return 1
	}
	return 0
}

// valueField is the number of the value in a key-value.
const valueField = 5

// KeyValue returns the encoded key-value to answer with: all of it, or with keysOnly all but the value. The result shares
// memory with encoded where nothing is left out.
func KeyValue(encoded []byte, keysOnly bool) []byte {
	if !keysOnly {
		return encoded
	}
	kept := make([]byte, 0, 64)
	for rest := encoded; len(rest) > 0; {
		number, _, length := protowire.ConsumeField(rest)
		if length < 0 {
			return encoded // not reached: encoded is what the state machine made
		}
		if number != valueField {
			kept = append(kept, rest[:length]...)
		}
		rest = rest[length:]
	}
	return kept
}
