package frontend

import (
	"context"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/statemachine"
)

// Mutate changes one key by what it is.
func (s *kvServer) Mutate(ctx context.Context, r *kvv1.MutateRequest) (*kvv1.MutateResponse, error) {
	mutate, err := mutateCommand("mutation", r.GetMutation())
	if err != nil {
		return nil, err
	}
	result, h, err := answerWrite(ctx, s.region, r.GetOptions(), &commandv1.Command{
		Operation: &commandv1.Command_Mutate{Mutate: mutate},
	})
	if err != nil {
		return nil, err
	}
	return &kvv1.MutateResponse{Header: h, Revision: result.Revision, Result: mutationResult(result.Mutate)}, nil
}

// mutateCommand checks a mutation and turns it into a command. field is its path in the request, for errors.
func mutateCommand(field string, c *kvv1.Mutation) (*commandv1.Mutate, error) {
	if err := checkKey(field+".key", c.GetKey()); err != nil {
		return nil, err
	}
	command := &commandv1.Mutate{Key: c.GetKey(), Lease: c.GetLease()}
	switch change := c.GetChange().(type) {
	case *kvv1.Mutation_Add:
		command.Change = &commandv1.Mutate_Add{Add: change.Add}
	case *kvv1.Mutation_Max:
		command.Change = &commandv1.Mutate_Max{Max: change.Max}
	case *kvv1.Mutation_Min:
		command.Change = &commandv1.Mutate_Min{Min: change.Min}
	case *kvv1.Mutation_Insert_:
		if err := checkMembers(field+".insert.members", change.Insert.GetMembers()); err != nil {
			return nil, err
		}
		if change.Insert.GetMembersMax() < 0 {
			return nil, invalid(field+".insert.members_max", "must not be negative")
		}
		command.Change = &commandv1.Mutate_Insert_{Insert: &commandv1.Mutate_Insert{
			Members: change.Insert.GetMembers(), MembersMax: change.Insert.GetMembersMax(),
		}}
	case *kvv1.Mutation_Remove_:
		if err := checkMembers(field+".remove.members", change.Remove.GetMembers()); err != nil {
			return nil, err
		}
		command.Change = &commandv1.Mutate_Remove_{Remove: &commandv1.Mutate_Remove{Members: change.Remove.GetMembers()}}
	case *kvv1.Mutation_Append_:
		if len(change.Append.GetData()) == 0 {
			return nil, invalid(field+".append.data", "must be at least one byte")
		}
		if change.Append.GetBytesMax() < 0 {
			return nil, invalid(field+".append.bytes_max", "must not be negative")
		}
		command.Change = &commandv1.Mutate_Append_{Append: &commandv1.Mutate_Append{
			Data: change.Append.GetData(), BytesMax: change.Append.GetBytesMax(),
		}}
	default:
		return nil, invalid(field+".change", "must be one of add, max, min, insert, remove and append")
	}
	return command, nil
}

func checkMembers(field string, members [][]byte) error {
	if len(members) == 0 {
		return invalid(field, "must be at least one")
	}
	for _, member := range members {
		if len(member) == 0 {
			return invalid(field, "must be at least one byte each")
		}
	}
	return nil
}

// mutationResult is nil for the result of a replayed outcome of which nothing is remembered.
func mutationResult(r *statemachine.MutateResult) *kvv1.MutationResult {
	if r == nil {
		return nil
	}
	return &kvv1.MutationResult{
		Changed: r.Changed, Integer: r.Integer, Members: r.Members, MembersChanged: r.MembersChanged,
		Current: previous(r.Current),
	}
}
