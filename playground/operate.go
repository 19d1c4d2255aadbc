package playground

import (
	"errors"
	"fmt"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/frontend"
	"github.com/logmirror/logmirror/logservice"
)

func find[P process](parts []*part[P], name string) (*part[P], error) {
	for _, p := range parts {
		if p.name == name {
			return p, nil
		}
	}
	return nil, fmt.Errorf("there is no %q in this cluster", name)
}

// KillMember ends a log member as kill -9 would.
func (c *Cluster) KillMember(name string) error {
	p, err := find(c.memberParts(), name)
	if err != nil {
		return err
	}
	return p.end((*logservice.Server).Kill)
}

// RestartMember starts a log member that was killed or stopped.
func (c *Cluster) RestartMember(name string) error {
	p, err := find(c.memberParts(), name)
	if err != nil {
		return err
	}
	return p.begin()
}

// KillFrontend ends the frontend of a region as kill -9 would.
func (c *Cluster) KillFrontend(region string) error {
	p, err := find(c.frontends, "frontend-"+region)
	if err != nil {
		return err
	}
	return p.end((*frontend.Server).Kill)
}

// StopFrontend ends the frontend of a region in order.
func (c *Cluster) StopFrontend(region string) error {
	p, err := find(c.frontends, "frontend-"+region)
	if err != nil {
		return err
	}
	return p.end((*frontend.Server).Stop)
}

// RestartFrontend starts the frontend of a region that was killed or stopped.
func (c *Cluster) RestartFrontend(region string) error {
	p, err := find(c.frontends, "frontend-"+region)
	if err != nil {
		return err
	}
	return p.begin()
}

// RegionReady returns a channel that is closed when the region's frontend, as it runs now, serves.
func (c *Cluster) RegionReady(region string) (<-chan struct{}, error) {
	p, err := find(c.frontends, "frontend-"+region)
	if err != nil {
		return nil, err
	}
	server, ok := p.current()
	if !ok {
		return nil, fmt.Errorf("%s %w", p.name, errNotRunning)
	}
	return server.Ready(), nil
}

// StopRegion ends all parts of a region in order.
func (c *Cluster) StopRegion(region string) error {
	return c.eachOf(region,
		func(p *part[*logservice.Server]) error { return p.end((*logservice.Server).Stop) },
		func(p *part[*frontend.Server]) error { return p.end((*frontend.Server).Stop) },
		errNotRunning)
}

// KillRegion ends all parts of a region as a power cut would.
func (c *Cluster) KillRegion(region string) error {
	return c.eachOf(region,
		func(p *part[*logservice.Server]) error { return p.end((*logservice.Server).Kill) },
		func(p *part[*frontend.Server]) error { return p.end((*frontend.Server).Kill) },
		errNotRunning)
}

// StartRegion starts all parts of a region that do not run.
func (c *Cluster) StartRegion(region string) error {
	return c.eachOf(region, (*part[*logservice.Server]).begin, (*part[*frontend.Server]).begin, errRunning)
}

// eachOf does something with all parts of a region; already means that there is nothing to do.
func (c *Cluster) eachOf(region string, member func(*part[*logservice.Server]) error,
	front func(*part[*frontend.Server]) error, already error) error {
	var errs []error
	for _, p := range c.frontends {
		if p.region == region {
			errs = append(errs, front(p))
		}
	}
	for _, p := range c.memberParts() {
		if p.region == region {
			errs = append(errs, member(p))
		}
	}
	for i, err := range errs {
		if errors.Is(err, already) {
			errs[i] = nil
		}
	}
	return errors.Join(errs...)
}

// MemberStatus returns what a running log member says of itself.
func (c *Cluster) MemberStatus(name string) (*logv1.StatusResponse, error) {
	p, err := find(c.memberParts(), name)
	if err != nil {
		return nil, err
	}
	server, ok := p.current()
	if !ok {
		return nil, fmt.Errorf("%s %w", name, errNotRunning)
	}
	return server.Status(), nil
}

// Leader returns the name of the log member that knows itself to lead in the highest term, if there is one.
func (c *Cluster) Leader() (name string, ok bool) {
	var term uint64
	for _, p := range c.memberParts() {
		server, running := p.current()
		if !running {
			continue
		}
		s := server.Status()
		if s.GetTerm() > term && s.GetLeaderId() != 0 && s.GetLeaderId() == s.GetHandshake().GetId() {
			name, ok, term = p.name, true, s.GetTerm()
		}
	}
	return name, ok
}
