package e2e

import (
	"context"
	"slices"
	"testing"

	"github.com/logmirror/logmirror/test/processes"
)

// process is one that fails the test where it can't do what it is told.
type process struct{ *processes.Process }

func (p *process) start(t *testing.T) {
	t.Helper()
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
}

// stop ends a process in order.
func (p *process) stop(t *testing.T) {
	t.Helper()
	if err := p.Stop(); err != nil {
		t.Errorf("%s ended with %v", p.Name, err)
	}
}

// processCluster is one of real processes: a log member and a frontend for each region, on loopback without delay.
type processCluster struct {
	*processes.Cluster
	regions            []string
	members, frontends []*process
	// removed are members that are to be removed, and have not ended.
	removed []*process
	// memberFlags are those that members have beside their names and places.
	memberFlags []string
}

func newProcessCluster(t *testing.T, regions ...string) *processCluster {
	t.Helper()
	directory, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	laidOut, err := processes.New(directory, t.TempDir(), nil, regions...)
	if err != nil {
		t.Fatal(err)
	}
	c := &processCluster{Cluster: laidOut, regions: regions, members: wrap(laidOut.Members), frontends: wrap(laidOut.Frontends)}
	t.Cleanup(func() {
		c.killAll()
		if t.Failed() {
			processes.Show(t.Output(), unwrap(c.all()))
		}
	})
	return c
}

func wrap(all []*processes.Process) (wrapped []*process) {
	for _, p := range all {
		wrapped = append(wrapped, &process{p})
	}
	return wrapped
}

func unwrap(all []*process) (unwrapped []*processes.Process) {
	for _, p := range all {
		unwrapped = append(unwrapped, p.Process)
	}
	return unwrapped
}

func (c *processCluster) newProcess(name, address, binary string, flags ...string) *process {
	return &process{c.NewProcess(name, address, binary, flags...)}
}

// all are the processes that may run.
func (c *processCluster) all() []*process { return slices.Concat(c.members, c.removed, c.frontends) }

func (c *processCluster) startAll(t *testing.T) {
	t.Helper()
	for _, p := range c.all() {
		p.start(t)
	}
}

// killAll kills every process, the first before any has ended.
func (c *processCluster) killAll() { processes.KillAll(unwrap(c.all())) }

// leader returns the member that leads now, as it says itself.
func (c *processCluster) leader(ctx context.Context) (*process, error) {
	all := slices.Concat(c.members, c.removed)
	leader, err := processes.Leader(ctx, unwrap(all))
	if err != nil {
		return nil, err
	}
	return all[slices.IndexFunc(all, func(p *process) bool { return p.Process == leader })], nil
}

// freePorts returns addresses on loopback that nobody listened on a moment ago, all different.
func freePorts(t *testing.T, count int) []string {
	t.Helper()
	addresses, err := processes.FreePorts(count)
	if err != nil {
		t.Fatal(err)
	}
	return addresses
}
