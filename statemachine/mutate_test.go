package statemachine

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
)

func appendTo(key string, size int) *commandv1.Mutate {
	data := bytes.Repeat([]byte{'x'}, size)
	return &commandv1.Mutate{Key: []byte(key), Change: &commandv1.Mutate_Append_{Append: &commandv1.Mutate_Append{Data: data}}}
}

func mutateCommand(c *commandv1.Mutate) *commandv1.Command {
	return &commandv1.Command{Operation: &commandv1.Command_Mutate{Mutate: c}}
}

func members(change string, names ...string) *commandv1.Command {
	var list [][]byte
	for _, name := range names {
		list = append(list, []byte(name))
	}
	c := &commandv1.Mutate{Key: []byte("set")}
	if change == "insert" {
		c.Change = &commandv1.Mutate_Insert_{Insert: &commandv1.Mutate_Insert{Members: list}}
	} else {
		c.Change = &commandv1.Mutate_Remove_{Remove: &commandv1.Mutate_Remove{Members: list}}
	}
	return mutateCommand(c)
}

// TestMutatedValueIsBounded: no mutation makes a value larger than the bound, and one that is larger, by a put, can shrink.
func TestMutatedValueIsBounded(t *testing.T) {
	s := newScript(t)
	results := s.batch(
		mutateCommand(appendTo("log", maxMutatedValueBytes)),
		mutateCommand(appendTo("log", 1)),
		members("insert", strings.Repeat("a", maxMutatedValueBytes-2), "b"),
		members("insert", "c"),
		members("insert", "b"),
		put("set", strings.Repeat("a", maxMutatedValueBytes+100)+"\nb\nc"),
		members("insert", "d"),
		members("remove", "b"),
	).Results
	for i, want := range []error{nil, ErrValueTooLarge, nil, ErrValueTooLarge, nil, nil, ErrValueTooLarge, nil} {
		if !errors.Is(results[i].Err, want) || (results[i].Err == nil) != (want == nil) {
			t.Errorf("command %d: %v, want %v", i, results[i].Err, want)
		}
	}
	if text := results[1].Err.Error(); text != `key "log": value would be too large: 1048577 bytes, limit 1048576` {
		t.Error(text)
	}
}

// TestMutationsAreCharged: what mutations make of their keys counts against the quota before any of it is written, also
// many of one transaction; what they leave alone does not.
func TestMutationsAreCharged(t *testing.T) {
	const quota = 1 << 17
	settings := &commandv1.Command{Operation: &commandv1.Command_ChangeSettings{
		ChangeSettings: &commandv1.ChangeSettings{QuotaBytes: proto.Int64(quota)},
	}}
	txn := &commandv1.Txn{}
	for _, key := range []string{"a", "b", "c", "d"} {
		txn.Success = append(txn.Success, &commandv1.TxnOperation{
			Operation: &commandv1.TxnOperation_Mutate{Mutate: appendTo(key, quota/3)},
		})
	}
	for name, c := range map[string]*commandv1.Command{
		"alone": mutateCommand(appendTo("a", quota)), "in a transaction": {Operation: &commandv1.Command_Txn{Txn: txn}},
	} {
		s := newScript(t)
		applied := s.batch(settings, members("insert", "a"), c)
		if err := applied.Results[2].Err; !errors.Is(err, ErrNoSpace) || len(applied.Events) != 1 || !applied.AlarmsChanged {
			t.Errorf("%s: %v, %d events", name, err, len(applied.Events))
		}
		if err := s.batch(members("remove", "a")).Results[0].Err; !errors.Is(err, ErrNoSpace) {
			t.Errorf("%s: with the alarm raised: %v", name, err)
		}
	}
	s := newScript(t)
	s.batch(settings, put("set", strings.Repeat("m", quota*2/3)))
	if err := s.batch(members("insert", strings.Repeat("m", quota*2/3))).Results[0].Err; err != nil {
		t.Errorf("what is there already was charged: %v", err)
	}
}

// TestTruncatedMutation: of a large outcome all but the value is remembered.
func TestTruncatedMutation(t *testing.T) {
	s := newScript(t)
	c := members("insert", strings.Repeat("m", maxOutcomeBytes), "n")
	c.RequestId = "1-large"
	again := s.batch(c, c).Results[1]
	if r := again.Mutate; !again.Truncated || !again.Replayed || !r.Changed || r.Members != 2 || r.MembersChanged != 2 || r.Current != nil {
		t.Errorf("%+v, %+v", again, again.Mutate)
	}
}

// FuzzChangeSet: whatever a value holds, it is refused or is the one encoding of a set, and the outcome is that of the set
// that the model makes.
func FuzzChangeSet(f *testing.F) {
	for _, value := range values {
		f.Add([]byte(value), []byte("x,y"), true)
		f.Add([]byte(value), []byte("x,\n,\\"), false)
	}
	f.Fuzz(func(t *testing.T, value, list []byte, insert bool) {
		named := bytes.FieldsFunc(list, func(r rune) bool { return r == ',' })
		if len(named) == 0 {
			return
		}
		after, count, differing, err := changeSet(value, sortMembers(named), insert)
		before, ok := modelSet(string(value))
		if ok != (err == nil) {
			t.Fatalf("%q: %v, the model says %v", value, err, ok)
		}
		if err != nil {
			return
		}
		want := make(map[string]bool)
		for _, m := range before {
			want[m] = true
		}
		for _, m := range named {
			if insert {
				want[string(m)] = true
			} else {
				delete(want, string(m))
			}
		}
		got, ok := modelSet(string(after))
		if !ok || len(got) != len(want) || count != int64(len(got)) {
			t.Fatalf("%q became %q: %d of %d members", value, after, len(got), len(want))
		}
		for _, m := range got {
			if !want[m] {
				t.Fatalf("%q became %q, with %q", value, after, m)
			}
		}
		if change := int64(len(got) - len(before)); insert && change != differing || !insert && -change != differing {
			t.Fatalf("%q became %q: said to differ by %d", value, after, differing)
		}
	})
}

// BenchmarkMutate is what working out a mutation costs: an add, and an insert into a set of 1,000 members.
func BenchmarkMutate(b *testing.B) {
	var many []string
	for i := range 1000 {
		many = append(many, strings.Repeat("m", 12)+string(rune('a'+i%26))+string(rune('a'+i/26)))
	}
	for name, c := range map[string]*commandv1.Mutate{
		"add":         {Key: []byte("n"), Change: &commandv1.Mutate_Add{Add: 1}},
		"insert":      members("insert", "zz").GetMutate(),
		"insert none": members("insert", many[500]).GetMutate(),
	} {
		b.Run(name, func(b *testing.B) {
			s := newScript(b)
			s.batch(members("insert", many...))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.m.checkMutate(c, false); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
