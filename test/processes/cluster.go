package processes

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// Cluster is one of real processes: a log member and a frontend for each region. It is made, not started.
type Cluster struct {
	Regions []string
	// Members and Frontends are in the order of Regions. Each log member is log-REGION, each frontend frontend-REGION.
	Members, Frontends []*Process
	// Binaries is where logsvc and frontend are, Data where each process has a directory of its name.
	Binaries, Data string
	// Links are nil where all are on loopback.
	Links *Links
}

// New lays out a cluster. Links may be nil; they belong to the caller.
func New(binaries, data string, links *Links, regions ...string) (*Cluster, error) {
	addresses, err := FreePorts(2 * len(regions))
	if err != nil {
		return nil, err
	}
	c := &Cluster{Regions: regions, Binaries: binaries, Data: data, Links: links}
	var initial, log []string
	for i, region := range regions {
		reached := addresses[i]
		if links != nil {
			if reached, err = links.Front(region, addresses[i]); err != nil {
				return nil, err
			}
		}
		initial = append(initial, "log-"+region+"="+reached)
		log = append(log, reached)
	}
	for i, region := range regions {
		c.Members = append(c.Members, c.NewProcess("log-"+region, addresses[i], "logsvc",
			"--region", region, "--initial-cluster", strings.Join(initial, ",")))
		c.Frontends = append(c.Frontends, c.NewProcess("frontend-"+region, addresses[len(regions)+i], "frontend",
			"--region", region, "--log", strings.Join(log, ",")))
		if links != nil {
			links.Own(region, c.Members[i])
			links.Own(region, c.Frontends[i])
			advertised, err := links.Front(region, c.Frontends[i].Address)
			if err != nil {
				return nil, err
			}
			c.Frontends[i].Arguments = append(c.Frontends[i].Arguments, "--advertise", advertised)
		}
	}
	return c, nil
}

// NewProcess lays out a process of the cluster.
func (c *Cluster) NewProcess(name, address, binary string, flags ...string) *Process {
	arguments := append([]string{filepath.Join(c.Binaries, binary), "--name", name, "--listen", address,
		"--data-dir", filepath.Join(c.Data, name)}, flags...)
	return &Process{Name: name, Address: address, Arguments: arguments, Output: filepath.Join(c.Data, name+".output")}
}

// All are the members and the frontends.
func (c *Cluster) All() []*Process { return slices.Concat(c.Members, c.Frontends) }

// Start starts all of them.
func (c *Cluster) Start() error {
	for _, p := range c.All() {
		if err := p.Start(); err != nil {
			return err
		}
	}
	return nil
}

// Leader returns the one of these members that leads now, as it says itself.
func Leader(ctx context.Context, members []*Process) (*Process, error) {
	for _, p := range members {
		if !p.Running() {
			continue
		}
		status, err := MemberStatus(ctx, p.Address)
		if err == nil && status.GetLeaderId() != 0 && status.GetLeaderId() == status.GetHandshake().GetId() {
			return p, nil
		}
	}
	return nil, errors.New("no member says that it leads")
}

// MemberStatus asks a log member for its status.
func MemberStatus(ctx context.Context, address string) (*logv1.StatusResponse, error) {
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return logv1.NewLogServiceClient(connection).Status(ctx, &logv1.StatusRequest{})
}
