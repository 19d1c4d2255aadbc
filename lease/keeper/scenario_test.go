package keeper

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
)

// TestScenarios replays what happens to leases when their owners fail, with exact virtual times. The session
// time is 10 s, a message takes 50 ms, and time goes by in steps of 10 ms. Every file is one cluster with the
// frontends us and eu.
//
//	run 5s                       let time pass
//	grant us 1 5                 lease 1 with a TTL of 5 s, owned by us
//	renew us 1                   a client's renewal, once; every=2s for=10s: again and again
//	cut us out|in|both, heal us  between the frontend and the log
//	freeze us, thaw us           the process; its clock goes on
//	kill us, restart us
//	clock us +1h                 the clock jumps
//	ttl us 1                     what the owner knows
//
// The output is what was decided since the last command.
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata/scenarios", func(t *testing.T, path string) {
		w := newWorld(t.Fatalf)
		byName := map[string]*simFrontend{"us": w.frontend("us", 1, 0), "eu": w.frontend("eu", 1, time.Hour)}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			w.fail = func(format string, arguments ...any) { d.Fatalf(t, format, arguments...) }
			w.trace.Reset()
			scenarioCommand(t, w, byName, d)
			if w.trace.Len() == 0 {
				return "ok\n"
			}
			return w.trace.String()
		})
	})
}

func scenarioCommand(t *testing.T, w *world, byName map[string]*simFrontend, d *datadriven.TestData) {
	var words, options []string
	for _, a := range d.CmdArgs {
		if len(a.Vals) == 0 {
			words = append(words, a.Key)
		} else {
			options = append(options, a.Key)
		}
	}
	duration := func(s string) time.Duration {
		v, err := time.ParseDuration(strings.TrimPrefix(s, "+"))
		if err != nil {
			d.Fatalf(t, "%v", err)
		}
		return v
	}
	number := func(s string) int64 {
		v, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			d.Fatalf(t, "%v", err)
		}
		return v
	}
	if d.Cmd == "run" {
		w.run(duration(words[0]))
		return
	}
	f := byName[words[0]]
	switch d.Cmd {
	case "grant":
		f.grant(number(words[1]), number(words[2]))
	case "renew":
		every, total := time.Duration(0), time.Duration(0)
		if len(options) > 0 {
			var e, o string
			d.ScanArgs(t, "every", &e)
			d.ScanArgs(t, "for", &o)
			every, total = duration(e), duration(o)
		}
		for {
			w.tracef("%s: renewal of %s: %s", f.name, words[1], f.renew(number(words[1])))
			if total -= every; total <= 0 {
				break
			}
			w.run(every)
		}
	case "cut", "heal":
		cut := d.Cmd == "cut"
		if !cut || words[1] != "in" {
			f.cutOut = cut
		}
		if !cut || words[1] != "out" {
			f.cutIn = cut
		}
	case "freeze", "thaw":
		f.frozen = d.Cmd == "freeze"
	case "kill":
		f.dead = true
	case "restart":
		f.start()
	case "clock":
		f.offset += duration(words[1])
	case "ttl":
		if r := f.core.records[number(words[1])]; r != nil && f.moment().holder() {
			w.tracef("%s: %v left", f.name, r.deadline-f.clock())
		} else {
			w.tracef("%s: cannot say", f.name)
		}
	default:
		d.Fatalf(t, "unknown command %s", d.Cmd)
	}
}
