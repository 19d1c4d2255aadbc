package idgen

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/statemachine"
)

// testLog is a log that is its own mirror: a real state machine, and sessions that propose to it.
type testLog struct {
	t       testing.TB
	machine *statemachine.Machine
	index   uint64
	logTime uint64
	seqs    map[uint64]uint64 // of every session
}

func newTestLog(t testing.TB) *testLog {
	l := &testLog{
		t: t, machine: statemachine.New(statemachine.Options{}),
		logTime: uint64(statemachine.IDEpoch), seqs: make(map[uint64]uint64),
	}
	l.apply(logv1.EntryKind_ENTRY_KIND_GENESIS, 0, &logv1.Genesis{ClusterId: 7})
	return l
}

func (l *testLog) apply(kind logv1.EntryKind, session uint64, payload proto.Message) *statemachine.Applied {
	encoded, err := proto.Marshal(payload)
	if err != nil {
		l.t.Fatal(err)
	}
	l.index++
	envelope := &logv1.Envelope{Kind: kind, LogTimeNanoseconds: l.logTime, Session: session, Payload: encoded}
	if session != 0 {
		envelope.Seq = l.seqs[session] + 1
	}
	applied, err := l.machine.Apply(l.index, 1, kind, envelope, true)
	if err != nil {
		l.t.Fatal(err)
	}
	if session != 0 && applied.Skipped == statemachine.SkipNone {
		l.seqs[session]++
	}
	return applied
}

// open opens the next session of a frontend, which ends the one before.
func (l *testLog) open(frontend uint64) (session uint64) {
	l.apply(logv1.EntryKind_ENTRY_KIND_OPEN_SESSION, 0, &logv1.OpenSession{FrontendId: frontend, Incarnation: l.index + 1})
	return l.index
}

var errSkipped = errors.New("not applied: the session has ended")

// propose applies a command of a session.
func (l *testLog) propose(session uint64, command *commandv1.Command) (statemachine.Result, error) {
	if err := statemachine.ValidateCommand(command, statemachine.Limits{}); err != nil {
		return statemachine.Result{}, fmt.Errorf("proposed what is not valid: %w", err)
	}
	applied := l.apply(logv1.EntryKind_ENTRY_KIND_BATCH, session, &commandv1.CommandBatch{Commands: []*commandv1.Command{command}})
	if applied.Skipped != statemachine.SkipNone {
		return statemachine.Result{}, errSkipped
	}
	return applied.Results[0], nil
}

func resultOf(first, count int64) *statemachine.IDResult {
	return &statemachine.IDResult{First: first, Count: count}
}

// frontendLog is the log as one frontend's Generator sees it.
type frontendLog struct {
	mu        sync.Mutex
	log       *testLog
	session   uint64
	down      error
	proposals int
}

func newFrontendLog(t testing.TB) *frontendLog {
	l := &frontendLog{log: newTestLog(t)}
	l.session = l.log.open(1)
	return l
}

func (l *frontendLog) Propose(_ context.Context, command *commandv1.Command) (statemachine.Result, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.proposals++
	if l.down != nil {
		return statemachine.Result{}, l.down
	}
	return l.log.propose(l.session, command)
}

func (l *frontendLog) set(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
}
