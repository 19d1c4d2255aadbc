package e2e

import (
	"net"
	"testing"

	"github.com/logmirror/logmirror/internal/wan"
	"github.com/logmirror/logmirror/test/processes"
)

// serveProxy returns an address at which what a region's process dials reaches a target over the region's links.
func serveProxy(t *testing.T, region *wan.Region, target string) (address string) {
	t.Helper()
	relay, err := processes.NewRelay(target, func(net.Conn) (*wan.Region, error) { return region, nil })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(relay.Close)
	return relay.Address()
}
