package command

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
)

func TestParseTxn(t *testing.T) {
	const text = `
# take the lock
if version(lock) = 0
if value("a key") != "two words"
then put lock me 1f
then del old
then add n -3
then insert "a set" x y
else get lock
else list jobs/
`
	got, err := parseTxn(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	want := &kvv1.TxnRequest{
		Compares: []*kvv1.Compare{
			{Key: []byte("lock"), Relation: kvv1.Compare_RELATION_EQUAL, Target: &kvv1.Compare_Version{}},
			{Key: []byte("a key"), Relation: kvv1.Compare_RELATION_NOT_EQUAL, Target: &kvv1.Compare_Value{Value: []byte("two words")}},
		},
		Success: []*kvv1.TxnOperation{
			{Operation: &kvv1.TxnOperation_Put_{Put: &kvv1.TxnOperation_Put{Key: []byte("lock"), Value: []byte("me"), Lease: 0x1f}}},
			{Operation: &kvv1.TxnOperation_Delete_{Delete: &kvv1.TxnOperation_Delete{Key: []byte("old")}}},
			{Operation: &kvv1.TxnOperation_Mutate{Mutate: client.Add("n", -3)}},
			{Operation: &kvv1.TxnOperation_Mutate{Mutate: client.Insert("a set", 0, "x", "y")}},
		},
		Failure: []*kvv1.TxnOperation{
			{Operation: &kvv1.TxnOperation_Read_{Read: &kvv1.TxnOperation_Read{Key: []byte("lock")}}},
			{Operation: &kvv1.TxnOperation_Read_{Read: &kvv1.TxnOperation_Read{Key: []byte("jobs/"), RangeEnd: []byte("jobs0")}}},
		},
	}
	if !proto.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestParseTxnRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                                 "no operation",
		"when version(a) = 0":              `line 1: "when": want if, then or else`,
		"if version(a) ~ 0\nthen get a":    `relation "~"`,
		"if version(a) = x\nthen get a":    `"x" is no number`,
		"if size(a) = 1\nthen get a":       `target "size"`,
		"if version a = 1\nthen get a":     "want: if TARGET(KEY)",
		"then put a":                       "line 1: want: put KEY VALUE",
		"then put a b zz":                  "lease",
		"then get \"a":                     "quote is not closed",
		"then":                             "want: put KEY VALUE",
		"then add n":                       "want: add KEY NUMBER",
		"then max n 1.5":                   `"1.5" is no integer`,
		"then remove s":                    "want: remove KEY and one MEMBER",
		"then append l":                    "want: append KEY DATA",
		"then get a\nthen frobnicate b\n ": "line 2",
	} {
		if _, err := parseTxn(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got error %v; want one with %q", text, err, want)
		}
	}
}
