package mirror

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/statemachine"
)

// TestSessionTranscripts runs the transcripts in testdata/session: one event a line, and what the core asks for.
// Rewrite them with -rewrite and review the difference.
//
//	after D                       time passes; the timer runs if it is due
//	caughtup N | persisted N | fenced | unfenced | up | down | term N
//	propose NAME [wait] | leave NAME
//	opened INCARNATION session=N  refused INCARNATION [fatal]
//	applied session=N seq=N commands=N | gap session=N seq=N | ended N
//	rejected session=N seq=N [open] reason=R retry=MS
//	stop | holder
func TestSessionTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata/session", func(t *testing.T, path string) {
		run := &transcript{names: map[*proposal]string{}, proposals: map[string]*proposal{}}
		run.core = newSessionCore(sessionConfig{
			open:          func(incarnation uint64) []byte { return fmt.Appendf(nil, "incarnation %d", incarnation) },
			batchBytesMax: 8, inFlightMax: 3, inFlightBytes: 100, hold: 3 * time.Millisecond, queueMax: 4, queueBytesMax: 100,
			failFastAfter: time.Second, unknownAfter: 10 * time.Second, stallAfter: 3 * time.Second,
			resendAfterMin: time.Second, resendAfterMax: 10 * time.Second, retryAfterMax: time.Second, openRetry: 2 * time.Second,
		}, 0)
		datadriven.RunTest(t, path, run.command)
	})
}

type transcript struct {
	core      *sessionCore
	now       time.Duration
	wake      time.Duration
	names     map[*proposal]string
	proposals map[string]*proposal
}

func (r *transcript) command(t *testing.T, d *datadriven.TestData) string {
	var out strings.Builder
	for line := range strings.SplitSeq(d.Input, "\n") {
		fmt.Fprintf(&out, "%s\n", line)
		for _, effect := range r.line(t, line) {
			fmt.Fprintf(&out, "    %s\n", effect)
		}
	}
	return out.String()
}

func (r *transcript) line(t *testing.T, line string) []string {
	words := strings.Fields(line)
	number := func(key string) uint64 {
		for _, word := range words[1:] {
			value, found := strings.CutPrefix(word, key)
			var n uint64
			if _, err := fmt.Sscanf(value, "%d", &n); found && err == nil {
				return n
			}
		}
		return 0
	}
	has := func(flag string) bool {
		for _, word := range words {
			if word == flag {
				return true
			}
		}
		return false
	}
	event := sessionEvent{number: number(""), session: number("session="), seq: number("seq=")}
	switch words[0] {
	case "after":
		d, err := time.ParseDuration(words[1])
		if err != nil {
			t.Fatal(err)
		}
		return r.pass(d)
	case "holder":
		session, until, ok := r.core.holder()
		return []string{fmt.Sprintf("session %d until %v, %v", session, until, ok)}
	case "caughtup":
		event.kind = eventCaughtUp
	case "persisted":
		event.kind = eventPersisted
	case "fenced":
		event.kind = eventFenced
	case "unfenced":
		event.kind = eventUnfenced
	case "up":
		event.kind = eventUp
	case "down":
		event.kind = eventDown
	case "term":
		event.kind = eventTerm
	case "opened":
		event.kind, event.sessionTime = eventOpened, 10*time.Second
	case "refused":
		event.kind = eventOpenRefused
		if has("fatal") {
			event.err = errors.New("never")
		}
	case "applied":
		event.kind, event.results = eventApplied, make([]statemachine.Result, number("commands="))
	case "gap":
		event.kind = eventGap
	case "ended":
		event.kind, event.session = eventEnded, number("")
	case "stop":
		event.kind, event.err = eventStop, ErrStopped
	case "propose":
		p := &proposal{encoded: []byte(words[1]), waitForLog: has("wait")}
		r.names[p], r.proposals[words[1]] = words[1], p
		event.kind, event.proposal = eventPropose, p
	case "leave":
		event.kind, event.proposal = eventLeave, r.proposals[words[1]]
	case "rejected":
		kind := logv1.EntryKind_ENTRY_KIND_BATCH
		if has("open") {
			kind = logv1.EntryKind_ENTRY_KIND_OPEN_SESSION
		}
		event.kind = eventRejected
		reason := logv1.AppendRejection_Reason_value["REASON_"+words[len(words)-1]]
		event.rejections = []*logv1.AppendRejection{{
			Kind: kind, Session: event.session, Seq: event.seq,
			Reason: logv1.AppendRejection_Reason(reason), RetryAfterMilliseconds: uint32(number("retry=")),
		}}
	default:
		t.Fatalf("unknown event %q", line)
	}
	return r.step(event)
}

// pass lets time pass, and the timer fire where it is due.
func (r *transcript) pass(d time.Duration) (effects []string) {
	end := r.now + d
	for r.wake != 0 && r.wake <= end {
		r.now = r.wake
		for _, effect := range r.step(sessionEvent{kind: eventTimer}) {
			effects = append(effects, fmt.Sprintf("at %v: %s", r.now, effect))
		}
	}
	r.now = end
	return effects
}

func (r *transcript) step(event sessionEvent) (lines []string) {
	effects := r.core.step(event, r.now)
	r.wake = effects.wake
	say := func(format string, values ...any) { lines = append(lines, fmt.Sprintf(format, values...)) }
	if effects.resent != "" {
		say("resend because of %s", effects.resent)
	}
	for _, p := range effects.send {
		if p.GetKind() == logv1.EntryKind_ENTRY_KIND_OPEN_SESSION {
			say("send open: %s", p.GetPayload())
			continue
		}
		say("send session %d seq %d: %q", p.GetSession(), p.GetSeq(), p.GetPayload())
	}
	if effects.persist != 0 {
		say("persist incarnation %d", effects.persist)
	}
	for _, a := range effects.applied {
		say("%s: applied", r.names[a.proposal])
	}
	for _, f := range effects.finished {
		say("%s: %v", r.names[f.proposal], f.err)
	}
	if effects.fatal != nil {
		say("fatal: %v", effects.fatal)
	}
	return lines
}
