package command

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
)

const txnHelp = `Apply a transaction, read from FILE or standard input, one step a line:

  if   value(KEY) = VALUE        also version, create, mod, lease; also !=, <, >
  then put KEY VALUE [LEASE]     applied if every "if" holds
  then get KEY
  then list PREFIX
  then del KEY
  then add KEY NUMBER            also max, min: to the integer of a key
  then insert KEY MEMBER...      also remove: into the set of a key
  then append KEY DATA
  else ...                       applied if one does not

A word with spaces is quoted as in Go. Empty lines and lines that begin with # are skipped.
Exit code 4 when the "else" branch was taken.`

// txnLinesMax bounds the size of a transaction file; the cluster's own limit is lower.
const txnLinesMax = 10_000

func newTxn(o *options) *cobra.Command {
	var write writeFlags
	c := &cobra.Command{
		Use:     "txn [FILE]",
		Short:   "Apply a transaction of comparisons and operations under one revision",
		Long:    txnHelp,
		Example: "  printf 'if version(lock) = 0\\nthen put lock me\\nelse get lock\\n' | kvctl txn",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			in := o.in
			if len(args) == 1 && args[0] != "-" {
				file, err := os.Open(args[0])
				if err != nil {
					return exitError{exitUsage, err}
				}
				defer file.Close()
				in = file
			}
			request, err := parseTxn(in)
			if err != nil {
				return exitError{exitUsage, err}
			}
			request.Consistency, request.Options = o.readConsistency(), write.options()
			return o.callWrite(c, func(ctx context.Context, connection *client.Client) error {
				answer, err := connection.Txn(ctx, request)
				if err != nil {
					return err
				}
				var results []any
				for _, result := range answer.GetResults() {
					results = append(results, txnResultJSON(result))
				}
				err = o.print(map[string]any{
					"header": headerToJSON(answer.GetHeader()), "succeeded": answer.GetSucceeded(),
					"revision": answer.GetRevision(), "results": results,
				}, func() { o.printTxn(answer) })
				if err == nil && !answer.GetSucceeded() {
					err = exitError{code: exitNotHeld}
				}
				return err
			})
		},
	}
	write.add(c)
	return c
}

func txnResultJSON(result *kvv1.TxnResult) any {
	list := func(kvs []*kvv1.KeyValue) []*keyValueJSON {
		out := []*keyValueJSON{}
		for _, kv := range kvs {
			out = append(out, toJSON(kv))
		}
		return out
	}
	switch r := result.GetResult().(type) {
	case *kvv1.TxnResult_Put_:
		return map[string]any{"put": map[string]any{"previous": toJSON(r.Put.GetPrevious())}}
	case *kvv1.TxnResult_Delete_:
		return map[string]any{"delete": map[string]any{"deleted": r.Delete.GetDeleted(), "previous": list(r.Delete.GetPrevious())}}
	case *kvv1.TxnResult_Read_:
		return map[string]any{"read": map[string]any{"key_values": list(r.Read.GetKeyValues()), "more": r.Read.GetMore(), "count": r.Read.GetCount()}}
	case *kvv1.TxnResult_Mutate:
		return map[string]any{"mutate": mutationResultJSON(r.Mutate)}
	default:
		return map[string]any{}
	}
}

func (o *options) printTxn(answer *kvv1.TxnResponse) {
	branch := "then"
	if !answer.GetSucceeded() {
		branch = "else"
	}
	o.line("%s, revision %d", branch, answer.GetRevision())
	for _, result := range answer.GetResults() {
		switch r := result.GetResult().(type) {
		case *kvv1.TxnResult_Mutate:
			if kv := r.Mutate.GetCurrent(); kv != nil {
				o.line("%s\t%s", printable(kv.GetKey()), printable(kv.GetValue()))
			} else {
				o.line("no such key")
			}
		case *kvv1.TxnResult_Put_:
			o.line("put OK")
		case *kvv1.TxnResult_Delete_:
			o.line("%d deleted", r.Delete.GetDeleted())
		case *kvv1.TxnResult_Read_:
			for _, kv := range r.Read.GetKeyValues() {
				o.line("%s\t%s", printable(kv.GetKey()), printable(kv.GetValue()))
			}
		}
	}
}

// parseTxn reads the language of txnHelp.
func parseTxn(in io.Reader) (*kvv1.TxnRequest, error) {
	request := &kvv1.TxnRequest{}
	scanner := bufio.NewScanner(in)
	scanner.Buffer(make([]byte, 64<<10), valueBytesMax)
	for number := 1; scanner.Scan(); number++ {
		if number > txnLinesMax {
			return nil, fmt.Errorf("more than %d lines", txnLinesMax)
		}
		line := strings.TrimSpace(scanner.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if err := parseTxnLine(request, line); err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
	}
	if err := scanner.Err(); err != nil {
		return nil, err
	}
	if len(request.Success)+len(request.Failure) == 0 {
		return nil, errors.New("the transaction has no operation: see kvctl txn --help")
	}
	return request, nil
}

func parseTxnLine(request *kvv1.TxnRequest, line string) error {
	words, err := splitWords(line)
	if err != nil {
		return err
	}
	switch words[0] {
	case "if":
		compare, err := parseCompare(words[1:])
		if err != nil {
			return err
		}
		request.Compares = append(request.Compares, compare)
	case "then", "else":
		operation, err := parseOperation(words[1:])
		if err != nil {
			return err
		}
		if words[0] == "then" {
			request.Success = append(request.Success, operation)
		} else {
			request.Failure = append(request.Failure, operation)
		}
	default:
		return fmt.Errorf("%q: want if, then or else", words[0])
	}
	return nil
}

var relations = map[string]kvv1.Compare_Relation{
	"=": kvv1.Compare_RELATION_EQUAL, "!=": kvv1.Compare_RELATION_NOT_EQUAL,
	">": kvv1.Compare_RELATION_GREATER, "<": kvv1.Compare_RELATION_LESS,
}

// parseCompare takes the words of `value ( KEY ) = VALUE`, where splitWords sets parentheses apart.
func parseCompare(words []string) (*kvv1.Compare, error) {
	if len(words) != 6 || words[1] != "(" || words[3] != ")" {
		return nil, errors.New("want: if TARGET(KEY) RELATION VALUE")
	}
	target, key, relation, value := words[0], words[2], words[4], words[5]
	compare := &kvv1.Compare{Key: []byte(key), Relation: relations[relation]}
	if compare.Relation == kvv1.Compare_RELATION_UNSPECIFIED {
		return nil, fmt.Errorf("relation %q: want =, !=, < or >", relation)
	}
	if target == "value" {
		compare.Target = &kvv1.Compare_Value{Value: []byte(value)}
		return compare, nil
	}
	base := 10
	if target == "lease" {
		base = 16
	}
	number, err := strconv.ParseInt(value, base, 64)
	if err != nil {
		return nil, fmt.Errorf("%s(%s): %q is no number", target, key, value)
	}
	switch target {
	case "version":
		compare.Target = &kvv1.Compare_Version{Version: number}
	case "create":
		compare.Target = &kvv1.Compare_CreateRevision{CreateRevision: number}
	case "mod":
		compare.Target = &kvv1.Compare_ModRevision{ModRevision: number}
	case "lease":
		compare.Target = &kvv1.Compare_Lease{Lease: number}
	default:
		return nil, fmt.Errorf("target %q: want value, version, create, mod or lease", target)
	}
	return compare, nil
}

func parseOperation(words []string) (*kvv1.TxnOperation, error) {
	wrong := errors.New("want: put KEY VALUE [LEASE], get KEY, list PREFIX, del KEY, add, max or min KEY NUMBER, " +
		"insert or remove KEY MEMBER..., append KEY DATA")
	if len(words) < 2 {
		return nil, wrong
	}
	key, rest := []byte(words[1]), words[2:]
	if mutation, known, err := parseMutation(words[0], words[1], rest); known {
		return &kvv1.TxnOperation{Operation: &kvv1.TxnOperation_Mutate{Mutate: mutation}}, err
	}
	switch {
	case words[0] == "put" && (len(rest) == 1 || len(rest) == 2):
		put := &kvv1.TxnOperation_Put{Key: key, Value: []byte(rest[0])}
		if len(rest) == 2 {
			id, err := parseLease(rest[1])
			if err != nil {
				return nil, err
			}
			put.Lease = id
		}
		return &kvv1.TxnOperation{Operation: &kvv1.TxnOperation_Put_{Put: put}}, nil
	case words[0] == "get" && len(rest) == 0:
		return &kvv1.TxnOperation{Operation: &kvv1.TxnOperation_Read_{Read: &kvv1.TxnOperation_Read{Key: key}}}, nil
	case words[0] == "list" && len(rest) == 0:
		return &kvv1.TxnOperation{Operation: &kvv1.TxnOperation_Read_{Read: &kvv1.TxnOperation_Read{Key: key, RangeEnd: client.PrefixEnd(key)}}}, nil
	case words[0] == "del" && len(rest) == 0:
		return &kvv1.TxnOperation{Operation: &kvv1.TxnOperation_Delete_{Delete: &kvv1.TxnOperation_Delete{Key: key}}}, nil
	}
	return nil, wrong
}

// parseMutation takes the words of an operation that is a mutation; known is false for another.
func parseMutation(what, key string, rest []string) (mutation *kvv1.Mutation, known bool, err error) {
	switch what {
	case "add", "max", "min":
		if len(rest) != 1 {
			return nil, true, fmt.Errorf("want: %s KEY NUMBER", what)
		}
		n, err := strconv.ParseInt(rest[0], 10, 64)
		if err != nil {
			return nil, true, fmt.Errorf("%s %s: %q is no integer of 64 bits", what, key, rest[0])
		}
		mutations := map[string]func(string, int64) *kvv1.Mutation{"add": client.Add, "max": client.Max, "min": client.Min}
		return mutations[what](key, n), true, nil
	case "insert", "remove":
		if len(rest) == 0 {
			return nil, true, fmt.Errorf("want: %s KEY and one MEMBER or more", what)
		}
		if what == "insert" {
			return client.Insert(key, 0, rest...), true, nil
		}
		return client.Remove(key, rest...), true, nil
	case "append":
		if len(rest) != 1 {
			return nil, true, errors.New("want: append KEY DATA")
		}
		return client.Append(key, 0, []byte(rest[0])), true, nil
	default:
		return nil, false, nil
	}
}

// splitWords splits at white space and around parentheses; a word in double quotes is unquoted as in Go.
func splitWords(line string) ([]string, error) {
	var words []string
	for line = strings.TrimSpace(line); line != ""; line = strings.TrimSpace(line) {
		if line[0] == '"' {
			quoted, err := strconv.QuotedPrefix(line)
			if err != nil {
				return nil, fmt.Errorf("a quote is not closed: %s", line)
			}
			word, err := strconv.Unquote(quoted)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", quoted, err)
			}
			words = append(words, word)
			line = line[len(quoted):]
			continue
		}
		if line[0] == '(' || line[0] == ')' {
			words = append(words, line[:1])
			line = line[1:]
			continue
		}
		end := strings.IndexFunc(line, func(r rune) bool { return unicode.IsSpace(r) || r == '(' || r == ')' })
		if end < 0 {
			end = len(line)
		}
		words = append(words, line[:end])
		line = line[end:]
	}
	return words, nil
}
