package playground

import (
	"errors"
	"testing"
	"testing/synctest"
)

type fakeProcess struct {
	done chan struct{}
	err  error
}

func (f *fakeProcess) Stop()                 { close(f.done) }
func (f *fakeProcess) Kill()                 { close(f.done) }
func (f *fakeProcess) Done() <-chan struct{} { return f.done }
func (f *fakeProcess) Err() error            { return f.err }

func TestPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var running *fakeProcess
		var failures []error
		var refuse error
		p := &part[*fakeProcess]{
			name: "it",
			start: func() (*fakeProcess, error) {
				if refuse != nil {
					return nil, refuse
				}
				running = &fakeProcess{done: make(chan struct{})}
				return running, nil
			},
			ended: func(_ string, err error) { failures = append(failures, err) },
		}
		expect := func(what string, err, want error) {
			t.Helper()
			if !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", what, err, want)
			}
		}
		expect("end before the start", p.end((*fakeProcess).Stop), errNotRunning)
		expect("start", p.begin(), nil)
		expect("second start", p.begin(), errRunning)
		expect("end", p.end((*fakeProcess).Kill), nil)
		if _, ok := p.current(); ok || len(failures) > 0 {
			t.Errorf("ended, and is said to run, or to have failed: %v", failures)
		}

		refuse = errors.New("no")
		expect("failing start", p.begin(), refuse)
		refuse = nil
		expect("start after a failing one", p.begin(), nil)

		running.err = errors.New("disk full")
		close(running.done) // by itself
		synctest.Wait()
		if len(failures) != 1 || failures[0] != running.err {
			t.Errorf("failures %v", failures)
		}
		expect("start after a failure", p.begin(), nil)
		expect("end", p.end((*fakeProcess).Stop), nil)
	})
}
