package command

import (
	"context"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
)

const mutateHelp = `A mutation is decided by the order of the log, from what the key holds then: those of all regions count, each once, without a
read before. It is sent again until it has an outcome or --timeout is over, under a request id of its own; with --request-id it
is sent once, under that.`

func newCounter(o *options) *cobra.Command {
	c := &cobra.Command{
		Use:   "counter",
		Short: "Count in a key, from all regions at once",
		Long: `Count in a key. Its value is the integer as decimal digits, of 64 bits; a key that does not exist is zero.

` + mutateHelp,
		Example: "  kvctl counter add visits\n  kvctl counter add stock --by -3\n  kvctl counter max high 12",
	}
	var by int64
	add := newMutation(o, "add KEY", "Add to the integer of a key", cobra.ExactArgs(1), func(args []string) (*kvv1.Mutation, error) {
		return client.Add(args[0], by), nil
	})
	add.Flags().Int64Var(&by, "by", 1, "add this `number`")
	bound := func(use, short string, mutation func(key string, n int64) *kvv1.Mutation) *cobra.Command {
		return newMutation(o, use, short+"; before a negative one comes --", cobra.ExactArgs(2), func(args []string) (*kvv1.Mutation, error) {
			n, err := strconv.ParseInt(args[1], 10, 64)
			if err != nil {
				return nil, exitError{exitUsage, fmt.Errorf("number %q: want an integer of 64 bits", args[1])}
			}
			return mutation(args[0], n), nil
		})
	}
	get := &cobra.Command{
		Use:   "get KEY",
		Short: "Print the integer of a key; 0 if there is no such key",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return o.getParsed(c, args[0], func(kv *kvv1.KeyValue) (forPrograms map[string]any, text func(), err error) {
				n := int64(0)
				if kv != nil {
					if n, err = strconv.ParseInt(string(kv.GetValue()), 10, 64); err != nil {
						return nil, nil, fmt.Errorf("key %s: its value is not an integer: %.64q", printable(kv.GetKey()), kv.GetValue())
					}
				}
				return map[string]any{"integer": strconv.FormatInt(n, 10)}, func() { o.line("%d", n) }, nil
			})
		},
	}
	c.AddCommand(add,
		bound("max KEY NUMBER", "Raise the integer of a key to NUMBER, if it is lower", client.Max),
		bound("min KEY NUMBER", "Lower the integer of a key to NUMBER, if it is higher", client.Min),
		get)
	return c
}

func newSet(o *options) *cobra.Command {
	c := &cobra.Command{
		Use:   "set",
		Short: "Keep a set of members in a key, changed from all regions at once",
		Long: `Keep a set of members in a key. Its value is the members in order, one a line; in a member a backslash is written as two
and a newline as \n. It suits up to some thousands of members: each change writes the whole value. Larger ones are keys
under a prefix.

` + mutateHelp + `
Exit code 4 when --max kept a member out.`,
		Example: "  kvctl set insert regions us eu\n  kvctl set insert slots me --max 3 --lease 5f1c\n  kvctl set list regions",
	}
	var most int64
	insert := newMutation(o, "insert KEY MEMBER…", "Put members into the set of a key", cobra.MinimumNArgs(2),
		func(args []string) (*kvv1.Mutation, error) { return client.Insert(args[0], most, args[1:]...), nil })
	insert.Flags().Int64Var(&most, "max", 0, "refuse it if the set would have more members than this `number`")
	remove := newMutation(o, "remove KEY MEMBER…", "Take members out of the set of a key", cobra.MinimumNArgs(2),
		func(args []string) (*kvv1.Mutation, error) { return client.Remove(args[0], args[1:]...), nil })
	list := &cobra.Command{
		Use:   "list KEY",
		Short: "Print the members of the set of a key; none if there is no such key",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return o.getParsed(c, args[0], func(kv *kvv1.KeyValue) (forPrograms map[string]any, text func(), err error) {
				members, err := client.Members(kv.GetValue())
				if err != nil {
					return nil, nil, fmt.Errorf("key %s: its value is not a set", printable(kv.GetKey()))
				}
				rows := make([]any, len(members))
				for i, member := range members {
					text, binary := textOrBase64([]byte(member))
					rows[i] = text
					if text == nil {
						rows[i] = map[string]any{"base64": binary}
					}
				}
				return map[string]any{"members": rows}, func() {
					for _, member := range members {
						o.line("%s", printable([]byte(member)))
					}
				}, nil
			})
		},
	}
	c.AddCommand(insert, remove, list)
	return c
}

func newAppend(o *options) *cobra.Command {
	var most int64
	c := newMutation(o, "append KEY [DATA]", "Add data at the end of a key's value; without DATA, or with -, from standard input",
		cobra.RangeArgs(1, 2), func(args []string) (*kvv1.Mutation, error) {
			if len(args) == 2 && args[1] != "-" {
				return client.Append(args[0], most, []byte(args[1])), nil
			}
			data, err := o.readValue()
			return client.Append(args[0], most, data), err
		})
	c.Long = mutateHelp + `
A value grows to 1 MiB at most. Exit code 4 when --max-bytes kept the data out.`
	c.Example = "  kvctl append log/today \"restarted\"$'\\n'"
	c.Flags().Int64Var(&most, "max-bytes", 0, "refuse it if the value would have more bytes than this `number`")
	return c
}

// readValue reads a value from standard input.
func (o *options) readValue() ([]byte, error) {
	value, err := io.ReadAll(io.LimitReader(o.in, valueBytesMax+1))
	if err != nil {
		return nil, fmt.Errorf("standard input: %w", err)
	}
	if len(value) > valueBytesMax {
		return nil, exitError{exitUsage, fmt.Errorf("standard input: a value of more than %d bytes", valueBytesMax)}
	}
	return value, nil
}

// newMutation is a command that sends the mutation which it makes of its arguments, until that has an outcome.
func newMutation(
	o *options, use, short string, arguments cobra.PositionalArgs, mutation func(args []string) (*kvv1.Mutation, error),
) *cobra.Command {
	var lease string
	var write writeFlags
	c := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  arguments,
		RunE: func(c *cobra.Command, args []string) error {
			request := &kvv1.MutateRequest{Options: write.options()}
			var err error
			if request.Mutation, err = mutation(args); err != nil {
				return err
			}
			if lease != "" {
				if request.Mutation.Lease, err = parseLease(lease); err != nil {
					return err
				}
			}
			err = o.callWrite(c, func(ctx context.Context, connection *client.Client) error {
				var answer *kvv1.MutateResponse
				send := func(ctx context.Context, requestID string) (err error) {
					request.Options.RequestId = requestID
					answer, err = connection.Mutate(ctx, request)
					return err
				}
				if write.requestID != "" {
					err = send(ctx, write.requestID)
				} else {
					err = connection.Once(ctx, send)
				}
				if err != nil {
					return err
				}
				return o.print(mutatedJSON(answer), func() {
					o.line("%s, revision %d", mutatedText(request.Mutation, answer.GetResult()), answer.GetRevision())
				})
			})
			if status.Code(err) == codes.FailedPrecondition && hasReason(err, "LIMIT_EXCEEDED") {
				return exitError{exitNotHeld, fmt.Errorf("%s", explain(err))}
			}
			return err
		},
	}
	c.Flags().StringVar(&lease, "lease", "", "attach the key to this lease `id`; without, it keeps the one that it has")
	write.add(c)
	return c
}

func mutatedJSON(answer *kvv1.MutateResponse) map[string]any {
	return map[string]any{
		"header": headerToJSON(answer.GetHeader()), "revision": answer.GetRevision(),
		"result": mutationResultJSON(answer.GetResult()),
	}
}

func mutationResultJSON(r *kvv1.MutationResult) map[string]any {
	return map[string]any{
		// As text: a program that reads JSON numbers as doubles would round a large one.
		"changed": r.GetChanged(), "integer": strconv.FormatInt(r.GetInteger(), 10), "members": r.GetMembers(),
		"members_changed": r.GetMembersChanged(), "current": toJSON(r.GetCurrent()),
	}
}

// mutatedText says what became of a mutation, for people.
func mutatedText(c *kvv1.Mutation, r *kvv1.MutationResult) string {
	switch c.GetChange().(type) {
	case *kvv1.Mutation_Insert_:
		return fmt.Sprintf("%d inserted, %d members", r.GetMembersChanged(), r.GetMembers())
	case *kvv1.Mutation_Remove_:
		return fmt.Sprintf("%d removed, %d members", r.GetMembersChanged(), r.GetMembers())
	case *kvv1.Mutation_Append_:
		return "appended"
	default:
		return strconv.FormatInt(r.GetInteger(), 10)
	}
}

// getParsed reads a key and prints what its value means; kv is nil where there is none.
func (o *options) getParsed(
	c *cobra.Command, key string, parse func(kv *kvv1.KeyValue) (forPrograms map[string]any, text func(), err error),
) error {
	return o.call(c, func(ctx context.Context, connection *client.Client) error {
		answer, err := connection.Get(ctx, &kvv1.GetRequest{Key: []byte(key), Consistency: o.readConsistency()})
		if err != nil {
			return err
		}
		forPrograms, text, err := parse(answer.GetKeyValue())
		if err != nil {
			return err
		}
		forPrograms["header"] = headerToJSON(answer.GetHeader())
		return o.print(forPrograms, text)
	})
}
