package client

import (
	"bytes"
	"errors"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
)

// Add returns the mutation that adds to the integer of a key, for Mutate or a transaction.
func Add(key string, n int64) *kvv1.Mutation {
	return &kvv1.Mutation{Key: []byte(key), Change: &kvv1.Mutation_Add{Add: n}}
}

// Max returns the mutation that raises the integer of a key to n, if it is lower.
func Max(key string, n int64) *kvv1.Mutation {
	return &kvv1.Mutation{Key: []byte(key), Change: &kvv1.Mutation_Max{Max: n}}
}

// Min returns the mutation that lowers the integer of a key to n, if it is higher.
func Min(key string, n int64) *kvv1.Mutation {
	return &kvv1.Mutation{Key: []byte(key), Change: &kvv1.Mutation_Min{Min: n}}
}

// Insert returns the mutation that puts members into the set of a key, refused if the set would grow beyond membersMax; zero
// for no bound.
func Insert(key string, membersMax int64, members ...string) *kvv1.Mutation {
	return &kvv1.Mutation{Key: []byte(key), Change: &kvv1.Mutation_Insert_{
		Insert: &kvv1.Mutation_Insert{Members: byteSlices(members), MembersMax: membersMax},
	}}
}

// Remove returns the mutation that takes members out of the set of a key.
func Remove(key string, members ...string) *kvv1.Mutation {
	return &kvv1.Mutation{Key: []byte(key), Change: &kvv1.Mutation_Remove_{
		Remove: &kvv1.Mutation_Remove{Members: byteSlices(members)},
	}}
}

// Append returns the mutation that adds data at the end of the value of a key, refused if that would grow beyond bytesMax;
// zero for no bound.
func Append(key string, bytesMax int64, data []byte) *kvv1.Mutation {
	return &kvv1.Mutation{Key: []byte(key), Change: &kvv1.Mutation_Append_{
		Append: &kvv1.Mutation_Append{Data: data, BytesMax: bytesMax},
	}}
}

func byteSlices(texts []string) [][]byte {
	slices := make([][]byte, len(texts))
	for i, text := range texts {
		slices[i] = []byte(text)
	}
	return slices
}

// ErrNotSet is returned for a value that is no set.
var ErrNotSet = errors.New("client: value is not a set")

// Members returns the members of the set that a value is, in the order of their bytes: see kv.v1.Mutation.
func Members(value []byte) ([]string, error) {
	if len(value) == 0 {
		return nil, nil
	}
	var members []string
	for line := range bytes.SplitSeq(value, []byte{'\n'}) {
		member := make([]byte, 0, len(line))
		for i := 0; i < len(line); i++ {
			c := line[i]
			if c == '\\' {
				if i++; i == len(line) || line[i] != '\\' && line[i] != 'n' {
					return nil, ErrNotSet
				}
				if line[i] == 'n' {
					c = '\n'
				}
			}
			member = append(member, c)
		}
		if n := len(members); len(member) == 0 || n > 0 && members[n-1] >= string(member) {
			return nil, ErrNotSet
		}
		members = append(members, string(member))
	}
	return members, nil
}
