package command

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a stopped member has becomes a new cluster, once somebody has said that loss is accepted.
func TestRecover(t *testing.T) {
	data := t.TempDir()
	c := startCluster(t, data)
	c.run(exitOK, "", "put", "a", "1")
	c.run(exitOK, "", "put", "b", "2")
	backup := filepath.Join(t.TempDir(), "backup")
	c.run(exitOK, "", "snapshot", "save", backup)
	members, err := filepath.Glob(filepath.Join(data, "log", "*"))
	if err != nil || len(members) != 1 {
		t.Fatalf("members' directories: %v, %v", members, err)
	}
	into := filepath.Join(t.TempDir(), "new")
	recover := []string{"log", "recover", members[0], "--backup", backup, "--data-dir", into, "--initial-cluster", "n1=h:1,n2=h:2"}
	c.run(exitFailed, "", append(recover, "--accept-loss")...) // it runs
	c.stop()
	told := c.run(exitUsage, "", recover...)
	for _, part := range []string{"member log-us", "<- taken", "These are a majority of the voters", "--accept-loss makes the new cluster"} {
		if !strings.Contains(told, part) {
			t.Errorf("it told %q; want it to hold %q", told, part)
		}
	}
	if made, _ := filepath.Glob(filepath.Join(into, "*")); len(made) > 0 {
		t.Errorf("it made %v without being told to", made)
	}
	c.want("want a member's data directory or a --backup", exitUsage, "", "log", "recover")
	c.want("are needed", exitUsage, "", "log", "recover", members[0], "--accept-loss")
	copied := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(copied, os.DirFS(members[0])); err != nil {
		t.Fatal(err)
	}
	c.want("are both of member", exitUsage, "", "log", "recover", members[0], copied)
	var begun struct {
		File     string
		Members  []string
		Keys     int
		Index    uint64
		Revision int64
	}
	if err := json.Unmarshal([]byte(c.run(exitOK, "", append(recover, "--accept-loss", "-o", "json")...)), &begun); err != nil {
		t.Fatal(err)
	}
	if begun.File != members[0] || len(begun.Members) != 2 || begun.Keys != 2 || begun.Revision != 1_000_000_003 || begun.Index <= 1_000_000_000 {
		t.Errorf("it recovered %+v", begun)
	}
	c.want("is not empty", exitFailed, "", append(recover, "--accept-loss")...)

	// What was recovered is of another cluster than what it was made of.
	c.want("is of cluster", exitUsage, "", "log", "recover", members[0], filepath.Join(into, "n1"))
	c.want("2 keys", exitOK, "", "log", "recover", filepath.Join(into, "n1"), "--accept-loss",
		"--data-dir", into+"2", "--initial-cluster", "n1=h:1")
}

func TestMostAdvanced(t *testing.T) {
	longest := &remains{LastTerm: 4, LastIndex: 90}
	latest := &remains{LastTerm: 5, LastIndex: 70}
	backup := &remains{LastTerm: 5, LastIndex: 71}
	if got := mostAdvanced([]*remains{longest, latest}); got != latest {
		t.Errorf("of a longer log and one of a later term it took %+v", got)
	}
	if got := mostAdvanced([]*remains{longest, backup, latest}); got != backup {
		t.Errorf("of these and a backup beyond them it took %+v", got)
	}
}
