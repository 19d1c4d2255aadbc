package command

import (
	"encoding/json"
	"net"
	"strings"
	"testing"
)

func TestLogMembers(t *testing.T) {
	c := startCluster(t, t.TempDir())
	c.want("leader", exitOK, "", "log", "member", "list")
	c.want("no log member", exitUsage, "", "log", "member", "promote", "log-eu")
	c.want("usage:", exitUsage, "", "log", "member", "add", "log-eu")
	c.want("nobody votes", exitFailed, "", "log", "member", "remove", "log-us")
	c.want("address", exitUsage, "", "log", "member", "add", "log-eu", "nowhere", "eu")
	c.want("already", exitFailed, "", "log", "member", "add", "log-us", "127.0.0.1:1", "eu")

	// Nobody listens there: the new member does not start.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close()
	out := c.run(exitOK, "", "log", "member", "add", "log-eu", address, "eu")
	for _, part := range []string{"log-eu is a learner", "--name log-eu --region eu --listen " + address, "--join 127.0.0.1:"} {
		if !strings.Contains(out, part) {
			t.Errorf("added with %q, which lacks %q", out, part)
		}
	}
	c.want("can't vote yet: the leader does not hear it", exitFailed, "", "log", "member", "promote", "log-eu")
	var members []struct{ Name, Role, Region, Address string }
	for line := range strings.Lines(c.run(exitOK, "", "-o", "json", "log", "member", "list")) {
		members = append(members, struct{ Name, Role, Region, Address string }{})
		if err := json.Unmarshal([]byte(line), &members[len(members)-1]); err != nil {
			t.Fatal(err)
		}
	}
	roles := map[string]string{}
	for _, m := range members {
		roles[m.Name] = m.Role + " " + m.Region
	}
	if len(roles) != 2 || roles["log-eu"] != "learner eu" || roles["log-us"] != "voter us" {
		t.Errorf("members %v", members)
	}
	c.want("unreachable", exitOK, "", "log", "member", "list")
	c.want("log-eu is removed; voters: log-us", exitOK, "", "log", "member", "remove", "log-eu")
	c.want("no log member", exitUsage, "", "log", "member", "remove", "log-eu")
}
