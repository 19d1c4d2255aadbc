package sim

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	"github.com/logmirror/logmirror/mirror"
	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/test/check"
)

// load is what clients did and saw.
type load struct {
	operations []check.Operation
	reads      []check.Read
	steps      []check.Step
	retries    []check.Retry
	guarded    []check.Guarded
	ids        []check.IDs
	watchers   []*watcher
	values     int
	nextLease  int64
}

const (
	clientTimeout = 5 * time.Second
	// kvClients are bound by what porcupine can search.
	kvClients    = 8
	roamers      = 4
	retriers     = 3
	lockers      = 4
	renewers     = 3
	idClients    = 4
	pairWriters  = 2
	watchClients = 5
	// moderns use what the next build has; see versions.go.
	moderns = 2
)

// client is one of many. Its calls do not overlap.
type client struct {
	s     *Simulation
	index int
	// home is the frontend that it prefers.
	home int
	// token and revision are the newest state that it has seen.
	token    uint64
	revision int64
	busy     bool
}

func (s *Simulation) startClients() {
	kinds := []struct {
		count int
		act   func(*client)
	}{{kvClients, (*client).kv}, {roamers, (*client).roam}, {retriers, (*client).retry}, {lockers, (*client).lock},
		{renewers, (*client).renew}, {idClients, (*client).takeIDs}, {pairWriters, (*client).pair}}
	if s.profile.versions {
		kinds = append(kinds, struct {
			count int
			act   func(*client)
		}{moderns, (*client).modern})
	}
	index := 0
	for _, kind := range kinds {
		for range kind.count {
			c := &client{s: s, index: index, home: s.random.IntN(len(s.frontends))}
			index++
			s.every(10*time.Millisecond, 2*s.profile.think, func() {
				if !c.busy && !s.stopped {
					kind.act(c)
				}
			})
		}
	}
	for i := range watchClients {
		s.startWatcher(i)
	}
}

// frontend draws one: mostly the client's own.
func (c *client) frontend() *frontend {
	if c.s.one(6) {
		return c.s.frontends[c.s.random.IntN(len(c.s.frontends))]
	}
	return c.s.frontends[c.home]
}

// answerOf is what a frontend answers with.
type answerOf struct {
	outcome  check.Outcome
	result   statemachine.Result
	index    uint64
	revision int64
	// value is what a read found.
	value string
	err   error
}

// ask takes a request to a frontend and its answer back. done is called once: with the answer, or with Unknown when the
// time is over. What the frontend refuses at once was not applied.
func (c *client) ask(f *frontend, request func(answer func(answerOf)), done func(answerOf)) {
	s := c.s
	c.busy = true
	settled := false
	settle := func(a answerOf) {
		if !settled {
			settled, c.busy = true, false
			s.note(uint64(c.index), uint64(a.outcome), uint64(a.revision))
			done(a)
		}
	}
	s.after(clientTimeout, func() { settle(answerOf{}) })
	refuse := func() {
		s.after(s.between(time.Millisecond, 20*time.Millisecond), func() { settle(answerOf{outcome: check.NotApplied, err: mirror.ErrUnavailable}) })
	}
	life := f.life
	s.after(s.between(200*time.Microsecond, 3*time.Millisecond), func() {
		if !f.up || f.life != life {
			refuse()
			return
		}
		f.do(life, func() {
			if settled {
				return
			}
			if !f.mirror.Ready() {
				refuse()
				return
			}
			request(func(a answerOf) {
				if !s.quiet && s.one(200) {
					s.counts.add("answer to a client lost")
					return
				}
				s.after(s.between(200*time.Microsecond, 3*time.Millisecond), func() { settle(a) })
			})
			f.pump()
		})
	})
}

// command proposes a command through a frontend. Some calls end there before their outcome is known, as a stream or a deadline
// does: they are answered with what can be said then.
func (c *client) command(f *frontend, command *commandv1.Command, done func(answerOf)) {
	c.commandOf(f, func() *commandv1.Command { return command }, done)
}

// commandOf has the frontend say which command it makes of a request, when that has come to it.
func (c *client) commandOf(f *frontend, command func() *commandv1.Command, done func(answerOf)) {
	patience := clientTimeout
	if c.s.one(12) {
		patience = c.s.between(0, 150*time.Millisecond)
	}
	c.ask(f, func(answer func(answerOf)) {
		call := f.propose(command(), c.s.one(2), func(r statemachine.Result, err error) { answer(answered(r, err)) })
		f.after(patience, func() {
			if !call.Done {
				c.s.counts.add("call ended before its outcome")
			}
			f.mirror.Leave(f.boot(), call)
			f.pump()
		})
	}, done)
}

func answered(r statemachine.Result, err error) answerOf {
	a := answerOf{result: r, index: r.Index, revision: r.Revision, err: err}
	switch {
	case err == nil && r.Err == nil:
		a.outcome = check.Done
	case err == nil:
		a.outcome, a.err = check.NotApplied, r.Err // refused at apply
	case errors.Is(err, mirror.ErrUnknown):
		a.outcome = check.Unknown
	case errors.Is(err, mirror.ErrNotApplied):
		a.outcome = check.NotApplied
	}
	return a
}

// get reads a key from a frontend's state as it is.
func (f *frontend) get(key string) answerOf {
	snapshot := f.machine.Space().Acquire()
	defer snapshot.Release()
	a := answerOf{outcome: check.Done, index: snapshot.Index(), revision: snapshot.Revision()}
	version, found, err := snapshot.Get([]byte(key), 0)
	if err != nil {
		f.s.fail("%s: get %q: %v", f.name, key, err)
	}
	if found {
		a.value = string(version.Value)
	}
	return a
}

// linearizable reads a key after a read round.
func (c *client) linearizable(f *frontend, key string, done func(answerOf)) {
	c.ask(f, func(answer func(answerOf)) {
		f.reads[f.mirror.Linearize(f.boot())] = func(err error) {
			if err != nil {
				answer(answerOf{outcome: check.NotApplied, err: err})
				return
			}
			answer(f.get(key))
		}
	}, done)
}

func (c *client) value() string {
	c.s.load.values++
	return "v" + strconv.Itoa(c.s.load.values)
}

func put(key, value string) *commandv1.Command {
	return &commandv1.Command{Operation: &commandv1.Command_Put{Put: &commandv1.Put{Key: []byte(key), Value: []byte(value)}}}
}

func compareValue(key, value string) *commandv1.Compare {
	if value == "" {
		return &commandv1.Compare{Result: commandv1.Compare_RESULT_EQUAL, Key: []byte(key), Target: &commandv1.Compare_Version{Version: 0}}
	}
	return &commandv1.Compare{Result: commandv1.Compare_RESULT_EQUAL, Key: []byte(key), Target: &commandv1.Compare_Value{Value: []byte(value)}}
}

func putOperation(key, value string, leaseID int64) *commandv1.TxnOperation {
	return &commandv1.TxnOperation{Operation: &commandv1.TxnOperation_Put{Put: &commandv1.Put{Key: []byte(key), Value: []byte(value), Lease: leaseID}}}
}

func txn(compare *commandv1.Compare, operations ...*commandv1.TxnOperation) *commandv1.Command {
	t := &commandv1.Txn{Success: operations}
	if compare != nil {
		t.Compares = []*commandv1.Compare{compare}
	}
	return &commandv1.Command{Operation: &commandv1.Command_Txn{Txn: t}}
}

// kv does one operation on one of a few keys, and notes what it is told.
func (c *client) kv() {
	s, f := c.s, c.frontend()
	o := check.Operation{Client: c.index, Key: fmt.Sprintf("k%d", s.random.IntN(4)), Call: s.now}
	done := func(a answerOf, fill func(*check.Operation)) {
		if o.Outcome = a.outcome; a.outcome == check.Done {
			o.Return, o.Revision = s.now, a.revision
			fill(&o)
			s.worked(f, o.Kind != check.Get)
		}
		s.counts.add("operation " + a.outcome.String())
		s.load.operations = append(s.load.operations, o)
	}
	switch s.random.IntN(10) {
	case 0, 1, 2:
		o.Kind = check.Get
		c.linearizable(f, o.Key, func(a answerOf) { done(a, func(o *check.Operation) { o.Read = a.value }) })
	case 3, 4:
		o.Kind, o.Value = check.Put, c.value()
		c.command(f, put(o.Key, o.Value), func(a answerOf) { done(a, func(*check.Operation) {}) })
	case 5:
		o.Kind = check.Delete
		c.command(f, &commandv1.Command{Operation: &commandv1.Command_DeleteRange{DeleteRange: &commandv1.DeleteRange{Key: []byte(o.Key)}}},
			func(a answerOf) { done(a, func(o *check.Operation) { o.Applied = a.result.Delete.Deleted > 0 }) })
	case 6, 7:
		o.Key, o.Kind, o.Delta = fmt.Sprintf("n%d", s.random.IntN(2)), check.Add, int64(1+s.random.IntN(9))
		c.command(f, &commandv1.Command{Operation: &commandv1.Command_Mutate{Mutate: &commandv1.Mutate{Key: []byte(o.Key),
			Change: &commandv1.Mutate_Add{Add: o.Delta}}}},
			func(a answerOf) { done(a, func(o *check.Operation) { o.Read = string(a.result.Mutate.Current.Value) }) })
	default:
		o.Kind, o.Value = check.CompareAndSwap, c.value()
		if f.up {
			o.Expect = f.get(o.Key).value
		}
		c.command(f, txn(compareValue(o.Key, o.Expect), putOperation(o.Key, o.Value, 0)), func(a answerOf) {
			done(a, func(o *check.Operation) { o.Applied = a.result.Txn.Succeeded })
		})
	}
}

// worked notes when a frontend first works again after all was healed.
func (s *Simulation) worked(f *frontend, wrote bool) {
	switch {
	case !s.quiet:
	case wrote && f.firstWrite == 0:
		f.firstWrite = s.now
	case !wrote && f.firstRead == 0:
		f.firstRead = s.now
	}
}

// pair writes two keys in one transaction, or reads both serializably.
func (c *client) pair() {
	s, f := c.s, c.frontend()
	if s.one(2) {
		value, call := c.value(), s.now
		c.command(f, txn(nil, putOperation("p/a", value, 0), putOperation("p/b", value+"'", 0)), func(a answerOf) {
			for _, o := range []check.Operation{{Key: "p/a", Value: value}, {Key: "p/b", Value: value + "'"}} {
				o.Client, o.Kind, o.Call, o.Return, o.Outcome, o.Revision = c.index, check.Put, call, s.now, a.outcome, a.revision
				s.load.operations = append(s.load.operations, o)
			}
		})
		return
	}
	call, life := s.now, f.life
	var values map[string]string
	c.ask(f, func(answer func(answerOf)) {
		a, b := f.get("p/a"), f.get("p/b")
		values = map[string]string{"p/a": a.value, "p/b": b.value}
		answer(a)
	}, func(a answerOf) {
		if a.outcome == check.Done {
			s.counts.add("serializable read")
			s.load.reads = append(s.load.reads, check.Read{Frontend: f.id, Life: uint64(life), Call: call, Return: s.now, Revision: a.revision, Values: values})
		}
	})
}

// roam writes and reads through any frontend and carries its token.
func (c *client) roam() {
	s := c.s
	f := s.frontends[s.random.IntN(len(s.frontends))]
	step := check.Step{Client: c.index, Frontend: f.id, Call: s.now, Carried: !s.one(5)}
	done := func(a answerOf) {
		if a.outcome != check.Done {
			return
		}
		step.Index, step.Revision = a.index, a.revision
		s.load.steps = append(s.load.steps, step)
		if a.index > c.token {
			c.token, c.revision = a.index, a.revision
		}
		s.counts.add("step of a roaming client")
	}
	if s.one(3) {
		c.command(f, put(fmt.Sprintf("r%d", c.index), c.value()), done)
		return
	}
	token := c.token
	if !step.Carried {
		token = 0
	}
	c.ask(f, func(answer func(answerOf)) {
		f.waitApplied(token, func() { answer(f.get(fmt.Sprintf("r%d", c.index))) })
	}, done)
}

// waitApplied calls back when an index has been applied.
func (f *frontend) waitApplied(index uint64, then func()) {
	if f.machine.Index() >= index {
		then()
		return
	}
	f.after(10*time.Millisecond, func() { f.waitApplied(index, then) })
}

// retry sends one write under one request id until it has an outcome, through whatever frontend.
func (c *client) retry() {
	s := c.s
	c.busy = true
	value := c.value()
	key, id := fmt.Sprintf("q%d", c.index), fmt.Sprintf("%d-%s", c.token, value)
	command := func() *commandv1.Command {
		p := put(key, value)
		p.RequestId = id
		return p
	}
	s.load.operations = append(s.load.operations, check.Operation{Client: c.index, Kind: check.Put, Key: key, Value: value, Call: s.now})
	operation := len(s.load.operations) - 1
	doneTimes, tries := 0, 0
	var attempt func()
	attempt = func() {
		f := s.frontends[s.random.IntN(len(s.frontends))]
		tries++
		c.command(f, command(), func(a answerOf) {
			if a.outcome == check.Done {
				s.load.retries = append(s.load.retries, check.Retry{ID: id, Outcome: a.outcome, Revision: a.revision})
				if a.result.Replayed {
					s.counts.add("request answered again")
				}
				if o := &s.load.operations[operation]; o.Outcome != check.Done {
					o.Outcome, o.Return, o.Revision = check.Done, s.now, a.revision
				}
				c.token = max(c.token, a.index)
				doneTimes++
			}
			if doneTimes >= 2 || tries > 12 || errors.Is(a.err, statemachine.ErrRequestIDTooOld) || s.stopped {
				return
			}
			c.busy = true
			s.after(s.between(time.Millisecond, 300*time.Millisecond), attempt)
		})
	}
	attempt()
}
