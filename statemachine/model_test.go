package statemachine

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/big"
	"slices"
	"sort"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/statemachine/keyspace"
)

// model is a second, slow opinion on what commands mean: the whole key space is a map that is copied for every
// revision, a transaction works on a copy that is thrown away if it fails, and nothing is clever.
type model struct {
	revision, compacted int64
	states              map[int64]map[string]modelKey // by revision
	leases              map[int64]int64               // id to TTL
	minimumTTL          int64
}

type modelKey struct {
	value                               string
	create, modified, version, attached int64
}

func newModel() *model {
	return &model{
		revision: 1, states: map[int64]map[string]modelKey{1: {}}, leases: make(map[int64]int64),
		minimumTTL: DefaultSettings().LeaseMinimumTTLSeconds,
	}
}

func (m *model) now() map[string]modelKey { return m.states[m.revision] }

// attempt is a change under way.
type attempt struct {
	m       *model
	keys    map[string]modelKey
	changed bool
}

func (m *model) attempt() *attempt { return &attempt{m: m, keys: maps.Clone(m.now())} }

func (a *attempt) commit() {
	if a.changed {
		a.m.revision++
		a.m.states[a.m.revision] = a.keys
	}
}

func inRange(key string, from, end []byte) bool {
	switch {
	case len(end) == 0:
		return key == string(from)
	case len(end) == 1 && end[0] == 0:
		return key >= string(from)
	default:
		return key >= string(from) && key < string(end)
	}
}

func keysIn(state map[string]modelKey, from, end []byte) (keys []string) {
	for key := range state {
		if inRange(key, from, end) {
			keys = append(keys, key)
		}
	}
	sort.Strings(keys)
	return keys
}

func (k modelKey) format(key string) string {
	s := fmt.Sprintf("%q=%q mod=%d create=%d version=%d", key, k.value, k.modified, k.create, k.version)
	if k.attached != 0 {
		s += fmt.Sprintf(" lease=%d", k.attached)
	}
	return s
}

func (a *attempt) put(p *commandv1.Put) (string, error) {
	switch {
	case len(p.Key) == 0:
		return "", ErrEmptyKey
	case p.IgnoreValue && len(p.Value) > 0:
		return "", ErrValueProvided
	case p.IgnoreLease && p.Lease != 0:
		return "", ErrLeaseProvided
	}
	if _, ok := a.m.leases[p.Lease]; p.Lease != 0 && !ok {
		return "", ErrLeaseNotFound
	}
	key := string(p.Key)
	before, existed := a.keys[key]
	if (p.IgnoreValue || p.IgnoreLease) && !existed {
		return "", ErrKeyNotFound
	}
	after := modelKey{
		value: string(p.Value), create: a.m.revision + 1, modified: a.m.revision + 1, version: 1, attached: p.Lease,
	}
	if existed {
		after.create, after.version = before.create, before.version+1
	}
	if p.IgnoreValue {
		after.value = before.value
	}
	if p.IgnoreLease {
		after.attached = before.attached
	}
	a.keys[key], a.changed = after, true
	if p.Previous && existed {
		return "put previous {" + before.format(key) + "}", nil
	}
	return "put", nil
}

// modelSet reads an encoded set; false where the value is none.
func modelSet(value string) (members []string, ok bool) {
	if value == "" {
		return nil, true
	}
	for line := range strings.SplitSeq(value, "\n") {
		member := strings.NewReplacer(`\\`, `\`, `\n`, "\n").Replace(line)
		if member == "" || modelLine(member) != line || len(members) > 0 && members[len(members)-1] >= member {
			return nil, false
		}
		members = append(members, member)
	}
	return members, true
}

func modelLine(member string) string {
	return strings.ReplaceAll(strings.ReplaceAll(member, `\`, `\\`), "\n", `\n`)
}

func (a *attempt) mutate(c *commandv1.Mutate) (string, error) {
	if _, ok := a.m.leases[c.Lease]; c.Lease != 0 && !ok {
		return "", ErrLeaseNotFound
	}
	key := string(c.Key)
	before, existed := a.keys[key]
	value, result := "", ""
	number := func(change int64, combine func(have, change *big.Int) *big.Int) error {
		have, ok := new(big.Int).SetString(before.value, 10)
		if !existed {
			have, ok = nil, true
		} else if ok && have.String() != before.value {
			ok = false
		}
		if !ok || have != nil && !have.IsInt64() {
			return ErrNotInteger
		}
		after := combine(have, big.NewInt(change))
		if !after.IsInt64() {
			return ErrIntegerRange
		}
		if value = after.String(); value != "0" {
			result = " integer=" + value
		}
		return nil
	}
	set := func(named [][]byte, most int64, insert bool) error {
		members, ok := modelSet(before.value)
		if !ok {
			return ErrNotSet
		}
		changed := 0
		for _, m := range named {
			if slices.Contains(members, string(m)) == insert {
				continue
			}
			if changed++; insert {
				members = append(members, string(m))
			} else {
				members = slices.DeleteFunc(members, func(other string) bool { return other == string(m) })
			}
		}
		if most > 0 && changed > 0 && int64(len(members)) > most {
			return ErrOverLimit
		}
		sort.Strings(members)
		var lines []string
		for _, m := range members {
			lines = append(lines, modelLine(m))
		}
		value = strings.Join(lines, "\n")
		if len(members) > 0 {
			result += fmt.Sprintf(" members=%d", len(members))
		}
		if changed > 0 {
			result += fmt.Sprintf(" members changed=%d", changed)
		}
		return nil
	}
	var err error
	switch change := c.Change.(type) {
	case *commandv1.Mutate_Add:
		err = number(change.Add, func(have, change *big.Int) *big.Int {
			if have == nil {
				return change
			}
			return new(big.Int).Add(have, change)
		})
	case *commandv1.Mutate_Max:
		err = number(change.Max, func(have, change *big.Int) *big.Int {
			if have == nil || have.Cmp(change) < 0 {
				return change
			}
			return have
		})
	case *commandv1.Mutate_Min:
		err = number(change.Min, func(have, change *big.Int) *big.Int {
			if have == nil || have.Cmp(change) > 0 {
				return change
			}
			return have
		})
	case *commandv1.Mutate_Insert_:
		err = set(change.Insert.Members, change.Insert.MembersMax, true)
	case *commandv1.Mutate_Remove_:
		err = set(change.Remove.Members, 0, false)
	case *commandv1.Mutate_Append_:
		value = before.value + string(change.Append.Data)
		if most := change.Append.BytesMax; most > 0 && int64(len(value)) > most {
			err = ErrOverLimit
		}
	}
	if err != nil {
		return "", err
	}
	after := modelKey{
		value: value, create: a.m.revision + 1, modified: a.m.revision + 1, version: 1, attached: before.attached,
	}
	if existed {
		after.create, after.version = before.create, before.version+1
	}
	if c.Lease != 0 {
		after.attached = c.Lease
	}
	if !existed && c.GetRemove() != nil {
		return "mutate changed=false" + result, nil
	}
	if existed && after.value == before.value && after.attached == before.attached {
		return "mutate changed=false" + result + " {" + before.format(key) + "}", nil
	}
	a.keys[key], a.changed = after, true
	return "mutate changed=true" + result + " {" + after.format(key) + "}", nil
}

func (a *attempt) delete(d *commandv1.DeleteRange) (string, error) {
	if len(d.Key) == 0 {
		return "", ErrEmptyKey
	}
	keys := keysIn(a.keys, d.Key, d.RangeEnd)
	result := fmt.Sprintf("deleted %d", len(keys))
	if d.Previous && len(keys) > 0 {
		result += " previous " + formatModel(a.keys, keys)
	}
	for _, key := range keys {
		delete(a.keys, key)
		a.changed = true
	}
	return result, nil
}

func formatModel(state map[string]modelKey, keys []string) string {
	var b bytes.Buffer
	for i, key := range keys {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString("{" + state[key].format(key) + "}")
	}
	return "[" + b.String() + "]"
}

func (m *model) rangeIn(state map[string]modelKey, r *commandv1.Range) string {
	keys := keysIn(state, r.Key, r.RangeEnd)
	count := len(keys)
	if r.CountOnly {
		return fmt.Sprintf("range count=%d more=false []", count)
	}
	keys = slices.DeleteFunc(keys, func(key string) bool {
		k := state[key]
		return r.MinModRevision != 0 && k.modified < r.MinModRevision || r.MaxModRevision != 0 && k.modified > r.MaxModRevision ||
			r.MinCreateRevision != 0 && k.create < r.MinCreateRevision || r.MaxCreateRevision != 0 && k.create > r.MaxCreateRevision
	})
	less := func(a, b string) bool {
		x, y := state[a], state[b]
		switch r.SortTarget {
		case commandv1.Range_SORT_TARGET_VERSION:
			return x.version < y.version
		case commandv1.Range_SORT_TARGET_CREATE_REVISION:
			return x.create < y.create
		case commandv1.Range_SORT_TARGET_MOD_REVISION:
			return x.modified < y.modified
		case commandv1.Range_SORT_TARGET_VALUE:
			return x.value < y.value
		default:
			return a < b
		}
	}
	sort.SliceStable(keys, func(i, j int) bool {
		if r.SortOrder == commandv1.Range_SORT_ORDER_DESCEND {
			return less(keys[j], keys[i])
		}
		return less(keys[i], keys[j])
	})
	more := r.Limit > 0 && int64(len(keys)) > r.Limit
	if more {
		keys = keys[:r.Limit]
	}
	if r.KeysOnly {
		state = maps.Clone(state)
		for _, key := range keys {
			k := state[key]
			k.value = ""
			state[key] = k
		}
	}
	return fmt.Sprintf("range count=%d more=%v %s", count, more, formatModel(state, keys))
}

func (m *model) holds(c *commandv1.Compare) bool {
	state := m.now()
	keys := keysIn(state, c.Key, c.RangeEnd)
	if len(keys) == 0 {
		if _, ok := c.Target.(*commandv1.Compare_Value); ok {
			return false
		}
		keys = []string{"\xffabsent"}
	}
	for _, key := range keys {
		k, order := state[key], 0
		number := func(have, want int64) {
			if have < want {
				order = -1
			} else if have > want {
				order = 1
			}
		}
		switch target := c.Target.(type) {
		case *commandv1.Compare_Version:
			number(k.version, target.Version)
		case *commandv1.Compare_CreateRevision:
			number(k.create, target.CreateRevision)
		case *commandv1.Compare_ModRevision:
			number(k.modified, target.ModRevision)
		case *commandv1.Compare_Lease:
			number(k.attached, target.Lease)
		case *commandv1.Compare_Value:
			order = bytes.Compare([]byte(k.value), target.Value)
		}
		if !map[commandv1.Compare_Result]bool{
			commandv1.Compare_RESULT_EQUAL: order == 0, commandv1.Compare_RESULT_NOT_EQUAL: order != 0,
			commandv1.Compare_RESULT_GREATER: order > 0, commandv1.Compare_RESULT_LESS: order < 0,
		}[c.Result] {
			return false
		}
	}
	return true
}

func (a *attempt) txn(t *commandv1.Txn) (string, error) {
	succeeded := true
	for _, c := range t.Compares {
		succeeded = succeeded && a.m.holds(c)
	}
	list := t.Success
	if !succeeded {
		list = t.Failure
	}
	result := fmt.Sprintf("txn succeeded=%v (", succeeded)
	for i, o := range list {
		var part string
		var err error
		switch o := o.Operation.(type) {
		case *commandv1.TxnOperation_Put:
			part, err = a.put(o.Put)
		case *commandv1.TxnOperation_DeleteRange:
			part, err = a.delete(o.DeleteRange)
		case *commandv1.TxnOperation_Mutate:
			part, err = a.mutate(o.Mutate)
		case *commandv1.TxnOperation_Txn:
			part, err = a.txn(o.Txn)
		case *commandv1.TxnOperation_Range:
			switch revision := o.Range.Revision; {
			case revision > a.m.revision:
				err = ErrFutureRevision
			case revision != 0 && revision < a.m.compacted:
				err = ErrCompacted
			case revision > 0:
				part = a.m.rangeIn(a.m.states[revision], o.Range)
			default:
				part = a.m.rangeIn(a.keys, o.Range)
			}
		}
		if err != nil {
			return "", err
		}
		if i > 0 {
			result += "; "
		}
		result += part
	}
	return result + ")", nil
}

// conflict is etcd's rule on keys that are written twice, told with lists.
func conflict(list []*commandv1.TxnOperation) (puts []string, deletes []*commandv1.DeleteRange, bad bool) {
	met := func(key string) bool {
		for _, d := range deletes {
			if string(d.Key) == key || (len(d.RangeEnd) > 0 && string(d.Key) <= key && key < string(d.RangeEnd)) {
				return true
			}
		}
		return slices.Contains(puts, key)
	}
	for _, o := range list {
		if d := o.GetDeleteRange(); d != nil {
			deletes = append(deletes, d)
		}
	}
	for _, o := range list {
		if t := o.GetTxn(); t != nil {
			thenPuts, thenDeletes, badThen := conflict(t.Success)
			elsePuts, elseDeletes, badElse := conflict(t.Failure)
			if badThen || badElse || slices.ContainsFunc(thenPuts, met) || slices.ContainsFunc(elsePuts, met) {
				return nil, nil, true
			}
			puts = append(append(puts, thenPuts...), elsePuts...)
			deletes = append(append(deletes, thenDeletes...), elseDeletes...)
		}
	}
	for _, o := range list {
		key := o.GetPut().GetKey()
		if c := o.GetMutate(); c != nil {
			key = c.Key
		} else if o.GetPut() == nil {
			continue
		}
		if met(string(key)) {
			return nil, nil, true
		}
		puts = append(puts, string(key))
	}
	return puts, deletes, false
}

// apply returns the result that a command has, as formatResult shows it, and its error.
func (m *model) apply(c *commandv1.Command) (result string, err error) {
	a := m.attempt()
	switch o := c.Operation.(type) {
	case *commandv1.Command_Put:
		result, err = a.put(o.Put)
	case *commandv1.Command_DeleteRange:
		result, err = a.delete(o.DeleteRange)
	case *commandv1.Command_Txn:
		_, _, badThen := conflict(o.Txn.Success)
		_, _, badElse := conflict(o.Txn.Failure)
		if badThen || badElse {
			return "", ErrDuplicateKey
		}
		result, err = a.txn(o.Txn)
	case *commandv1.Command_Mutate:
		result, err = a.mutate(o.Mutate)
	case *commandv1.Command_Compact:
		switch revision := o.Compact.Revision; {
		case revision <= m.compacted:
			err = ErrCompacted
		case revision > m.revision:
			err = ErrFutureRevision
		default:
			m.compacted, result = revision, "ok"
		}
	case *commandv1.Command_LeaseGrant:
		id, ttl := o.LeaseGrant.Id, max(o.LeaseGrant.TtlSeconds, m.minimumTTL)
		if _, ok := m.leases[id]; ok {
			return "", ErrLeaseExists
		}
		m.leases[id] = ttl
		result = fmt.Sprintf("lease %d ttl=%d", id, ttl)
	case *commandv1.Command_LeaseRevoke:
		id := o.LeaseRevoke.Id
		if _, ok := m.leases[id]; !ok {
			return "", ErrLeaseNotFound
		}
		delete(m.leases, id)
		for key, k := range a.keys {
			if k.attached == id {
				delete(a.keys, key)
				a.changed = true
			}
		}
		result = fmt.Sprintf("lease %d ttl=0", id)
	}
	if err == nil {
		a.commit()
	}
	return result, err
}

// Generators: few keys, so that everything meets everything.

func genKey() *rapid.Generator[[]byte] {
	return rapid.Custom(func(t *rapid.T) []byte {
		return []byte(rapid.SampledFrom([]string{"a", "b", "ba", "c", "d", "\x00"}).Draw(t, "key"))
	})
}

func genEnd() *rapid.Generator[[]byte] {
	return rapid.Custom(func(t *rapid.T) []byte {
		return []byte(rapid.SampledFrom([]string{"", "", "\x00", "b", "bb", "d"}).Draw(t, "end"))
	})
}

// values are those of puts: plain ones, and those that mutations meet or only nearly do.
var values = []string{
	"", "x", "y", "z", "7", "-3", "007", "-0", "9223372036854775807", "-9223372036854775808", "9223372036854775808",
	"x\ny", "y\nx", "x\nx", "x\n", "x\\n\ny", "\\\\", "\\x", "\\",
}

func genMutate(t *rapid.T) *commandv1.Mutate {
	c := &commandv1.Mutate{
		Key: genKey().Draw(t, "mutate"), Lease: rapid.SampledFrom([]int64{0, 0, 0, 1, 2, 3}).Draw(t, "lease"),
	}
	number := rapid.SampledFrom([]int64{0, 1, -1, 5, -9, math.MaxInt64, math.MinInt64}).Draw(t, "number")
	most := rapid.Int64Range(0, 5).Draw(t, "most")
	members := func() (members [][]byte) {
		for range rapid.IntRange(1, 3).Draw(t, "members") {
			members = append(members, []byte(rapid.SampledFrom([]string{"x", "y", "z", "x\n", "\\", "\t", "\xff"}).Draw(t, "member")))
		}
		return members
	}
	switch rapid.IntRange(0, 6).Draw(t, "change") {
	case 0, 1:
		c.Change = &commandv1.Mutate_Add{Add: number}
	case 2:
		c.Change = &commandv1.Mutate_Max{Max: number}
	case 3:
		c.Change = &commandv1.Mutate_Min{Min: number}
	case 4:
		c.Change = &commandv1.Mutate_Insert_{Insert: &commandv1.Mutate_Insert{Members: members(), MembersMax: most}}
	case 5:
		c.Change = &commandv1.Mutate_Remove_{Remove: &commandv1.Mutate_Remove{Members: members()}}
	default:
		data := []byte(rapid.SampledFrom([]string{"1", "x", "\nz"}).Draw(t, "data"))
		c.Change = &commandv1.Mutate_Append_{Append: &commandv1.Mutate_Append{Data: data, BytesMax: most}}
	}
	return c
}

func genPut(t *rapid.T) *commandv1.Put {
	p := &commandv1.Put{Key: genKey().Draw(t, "put"), Previous: rapid.Bool().Draw(t, "previous")}
	if p.IgnoreValue = rapid.IntRange(0, 5).Draw(t, "ignore value") == 0; !p.IgnoreValue {
		p.Value = []byte(rapid.SampledFrom(values).Draw(t, "value"))
	}
	if p.IgnoreLease = rapid.IntRange(0, 5).Draw(t, "ignore lease") == 0; !p.IgnoreLease {
		p.Lease = rapid.SampledFrom([]int64{0, 0, 0, 1, 2, 3}).Draw(t, "lease")
	}
	return p
}

func genDelete(t *rapid.T) *commandv1.DeleteRange {
	return &commandv1.DeleteRange{
		Key: genKey().Draw(t, "delete"), RangeEnd: genEnd().Draw(t, "end"), Previous: rapid.Bool().Draw(t, "previous"),
	}
}

func genRange(t *rapid.T) *commandv1.Range {
	r := &commandv1.Range{
		Key: genKey().Draw(t, "range"), RangeEnd: genEnd().Draw(t, "end"),
		Limit:      rapid.SampledFrom([]int64{0, 0, 1, 2, 3, -1}).Draw(t, "limit"),
		Revision:   rapid.SampledFrom([]int64{0, 0, 0, 1, 2, 5, 9, 20}).Draw(t, "revision"),
		SortOrder:  commandv1.Range_SortOrder(rapid.IntRange(0, 2).Draw(t, "order")),
		SortTarget: commandv1.Range_SortTarget(rapid.IntRange(0, 4).Draw(t, "target")),
		KeysOnly:   rapid.Bool().Draw(t, "keys only"),
		CountOnly:  rapid.IntRange(0, 9).Draw(t, "count only") == 0,
	}
	if rapid.IntRange(0, 3).Draw(t, "filters") == 0 {
		bound := rapid.SampledFrom([]int64{0, 2, 4, 8})
		r.MinModRevision, r.MaxModRevision = bound.Draw(t, "min mod"), bound.Draw(t, "max mod")
		r.MinCreateRevision, r.MaxCreateRevision = bound.Draw(t, "min create"), bound.Draw(t, "max create")
	}
	return r
}

func genCompare(t *rapid.T) *commandv1.Compare {
	c := &commandv1.Compare{
		Key: genKey().Draw(t, "compare"), RangeEnd: genEnd().Draw(t, "end"),
		Result: commandv1.Compare_Result(rapid.IntRange(1, 4).Draw(t, "result")),
	}
	number := rapid.Int64Range(0, 6).Draw(t, "number")
	switch rapid.IntRange(0, 4).Draw(t, "target") {
	case 0:
		c.Target = &commandv1.Compare_Version{Version: number}
	case 1:
		c.Target = &commandv1.Compare_CreateRevision{CreateRevision: number}
	case 2:
		c.Target = &commandv1.Compare_ModRevision{ModRevision: number}
	case 3:
		c.Target = &commandv1.Compare_Lease{Lease: number}
	default:
		c.Target = &commandv1.Compare_Value{Value: []byte(rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, "value"))}
	}
	return c
}

func genTxn(t *rapid.T, depth int) *commandv1.Txn {
	txn := &commandv1.Txn{}
	for range rapid.IntRange(0, 2).Draw(t, "compares") {
		txn.Compares = append(txn.Compares, genCompare(t))
	}
	list := func() (list []*commandv1.TxnOperation) {
		for range rapid.IntRange(0, 3).Draw(t, "operations") {
			o := &commandv1.TxnOperation{}
			switch kind := rapid.IntRange(0, 6).Draw(t, "operation"); {
			case kind == 0:
				o.Operation = &commandv1.TxnOperation_Range{Range: genRange(t)}
			case kind == 1:
				o.Operation = &commandv1.TxnOperation_DeleteRange{DeleteRange: genDelete(t)}
			case kind == 2 || kind == 3:
				o.Operation = &commandv1.TxnOperation_Mutate{Mutate: genMutate(t)}
			case kind == 4 && depth > 0:
				o.Operation = &commandv1.TxnOperation_Txn{Txn: genTxn(t, depth-1)}
			default:
				o.Operation = &commandv1.TxnOperation_Put{Put: genPut(t)}
			}
			list = append(list, o)
		}
		return list
	}
	txn.Success, txn.Failure = list(), list()
	return txn
}

func genCommand(t *rapid.T) *commandv1.Command {
	c := &commandv1.Command{}
	switch rapid.IntRange(0, 14).Draw(t, "command") {
	case 0, 1, 2:
		c.Operation = &commandv1.Command_Put{Put: genPut(t)}
	case 3, 4:
		c.Operation = &commandv1.Command_DeleteRange{DeleteRange: genDelete(t)}
	case 5:
		c.Operation = &commandv1.Command_Compact{Compact: &commandv1.Compact{
			Revision: rapid.Int64Range(-1, 30).Draw(t, "compact"),
		}}
	case 6, 7:
		c.Operation = &commandv1.Command_LeaseGrant{LeaseGrant: &commandv1.LeaseGrant{
			Id: rapid.Int64Range(1, 3).Draw(t, "grant"), TtlSeconds: rapid.Int64Range(-1, 5).Draw(t, "ttl"),
		}}
	case 8:
		c.Operation = &commandv1.Command_LeaseRevoke{LeaseRevoke: &commandv1.LeaseRevoke{
			Id: rapid.Int64Range(1, 3).Draw(t, "revoke"),
		}}
	case 9, 10, 11:
		c.Operation = &commandv1.Command_Mutate{Mutate: genMutate(t)}
	default:
		c.Operation = &commandv1.Command_Txn{Txn: genTxn(t, 2)}
	}
	return c
}

// TestAgainstModel applies random commands and compares every result, every readable revision and random ranges with
// the model's.
func TestAgainstModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m, index, session := started(t, Options{CompactionBudget: 3})
		second := newModel()
		for seq := range uint64(rapid.IntRange(1, 10).Draw(rt, "batches")) {
			batch := &commandv1.CommandBatch{}
			for range rapid.IntRange(1, 5).Draw(rt, "commands") {
				batch.Commands = append(batch.Commands, genCommand(rt))
			}
			index++
			applied, err := m.Apply(index, 1, logv1.EntryKind_ENTRY_KIND_BATCH, &logv1.Envelope{
				Kind: logv1.EntryKind_ENTRY_KIND_BATCH, LogTimeNanoseconds: 2e9, Session: session, Seq: seq + 1,
				Payload: encode(t, batch),
			}, true)
			if err != nil {
				rt.Fatal(err)
			}
			for i, c := range batch.Commands {
				want, wantErr := second.apply(c)
				got := applied.Results[i]
				if !errors.Is(got.Err, wantErr) || (got.Err == nil) != (wantErr == nil) {
					rt.Fatalf("%v: error %v, the model says %v", c, got.Err, wantErr)
				}
				if want = fmt.Sprintf("%s @%d", want, second.revision); got.Err == nil && formatResult(got) != want {
					rt.Fatalf("%v:\n got %s\nwant %s", c, formatResult(got), want)
				}
			}
			compareSpaces(rt, m, second, genRange(rt))
			verify(t, m)
		}
	})
}

func compareSpaces(rt *rapid.T, m *Machine, second *model, probe *commandv1.Range) {
	sn := m.Space().Acquire()
	defer sn.Release()
	if sn.Revision() != second.revision || sn.CompactRevision() != second.compacted {
		rt.Fatalf("at %d, compacted %d; the model at %d, compacted %d",
			sn.Revision(), sn.CompactRevision(), second.revision, second.compacted)
	}
	for revision := max(second.compacted, 1); revision <= second.revision; revision++ {
		for _, r := range []*commandv1.Range{{Key: []byte{0}, RangeEnd: []byte{0}}, proto.Clone(probe).(*commandv1.Range)} {
			r.Revision = revision
			got, err := EvaluateRange(sn, r)
			if err != nil {
				rt.Fatalf("%v: %v", r, err)
			}
			if want := second.rangeIn(second.states[revision], r); formatRange(&got) != want {
				rt.Fatalf("%v:\n got %s\nwant %s", r, formatRange(&got), want)
			}
			compareGathered(rt, sn, r)
		}
	}
}

const packedTag = 2<<3 | byte(protowire.BytesType)

// compareGathered checks that a range which is gathered has the answer of one that is evaluated.
func compareGathered(rt *rapid.T, sn *keyspace.Snapshot, r *commandv1.Range) {
	if !Gatherable(r) {
		return
	}
	r = proto.CloneOf(r)
	r.KeysOnly = false
	want, err := EvaluateRange(sn, r)
	if err != nil {
		rt.Fatalf("%v: %v", r, err)
	}
	for range 3 { // what is asked for again is packed, and then used
		got := RangeResult{}
		got.Count, got.More, err = GatherRange(sn, r, func(encoded []byte) bool {
			v, err := keyspace.DecodeKeyValue(encoded)
			if err != nil {
				rt.Fatalf("%v: %v", r, err)
			}
			got.KVs = append(got.KVs, v)
			return true
		}, packedTag, func(elements []byte, count int) bool {
			if rapid.IntRange(0, 9).Draw(rt, "decline packed keys") == 0 {
				return false
			}
			for range count {
				number, kind, n := protowire.ConsumeTag(elements)
				encoded, m := protowire.ConsumeBytes(elements[max(n, 0):])
				if number != 2 || kind != protowire.BytesType || m < 0 {
					rt.Fatalf("%v: packed elements %x", r, elements)
				}
				v, err := keyspace.DecodeKeyValue(encoded)
				if err != nil {
					rt.Fatalf("%v: %v", r, err)
				}
				got.KVs, elements = append(got.KVs, v), elements[n+m:]
			}
			if len(elements) > 0 {
				rt.Fatalf("%v: %d bytes more than %d elements", r, len(elements), count)
			}
			return true
		})
		if err != nil || formatRange(&got) != formatRange(&want) {
			rt.Fatalf("%v: gathered %s and %v,\nwant %s", r, formatRange(&got), err, formatRange(&want))
		}
	}
}
