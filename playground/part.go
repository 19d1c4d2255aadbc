package playground

import (
	"errors"
	"fmt"
	"sync"
)

// process is what the cluster asks of a log member or a frontend.
type process interface {
	comparable
	Stop()                 // ends it in order; returns when all its goroutines have ended
	Kill()                 // ends it as kill -9 would
	Done() <-chan struct{} // closed when it has ended, by itself or because it was asked to
	Err() error            // why it ended by itself; valid after Done
}

var (
	errRunning    = errors.New("is running already")
	errNotRunning = errors.New("is not running")
)

// part is a process that can be ended and started again. The methods may be called from any goroutine; while one of
// them is at work, the others say so instead of waiting.
type part[P process] struct {
	name, region, address string
	start                 func() (P, error)
	ended                 func(name string, err error) // told when the process ended by itself

	mu       sync.Mutex
	process  P // zero while it does not run
	changing bool
	watchers sync.WaitGroup
}

// begin starts the process.
func (p *part[P]) begin() error {
	_, err := p.change(false)
	if err != nil {
		return err
	}
	started, err := p.start()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.changing = false
	if err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	p.process = started
	p.watchers.Go(func() { p.watch(started) })
	return nil
}

// end ends the process by one of its methods.
func (p *part[P]) end(how func(P)) error {
	running, err := p.change(true)
	if err != nil {
		return err
	}
	how(running)
	p.watchers.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.changing = false
	return nil
}

// change takes the process out to be ended, or finds that there is none and one may be started.
func (p *part[P]) change(wantRunning bool) (running P, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var none P
	switch {
	case p.changing:
		return none, fmt.Errorf("%s is being started or stopped", p.name)
	case wantRunning && p.process == none:
		return none, fmt.Errorf("%s %w", p.name, errNotRunning)
	case !wantRunning && p.process != none:
		return none, fmt.Errorf("%s %w", p.name, errRunning)
	}
	running, p.process, p.changing = p.process, none, true
	return running, nil
}

// watch reports a process that ends without having been asked to.
func (p *part[P]) watch(started P) {
	<-started.Done()
	p.mu.Lock()
	byItself := p.process == started
	if byItself {
		var none P
		p.process = none
	}
	p.mu.Unlock()
	if byItself {
		p.ended(p.name, started.Err())
	}
}

// current returns the running process.
func (p *part[P]) current() (running P, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var none P
	return p.process, p.process != none
}
