package playground

import (
	"encoding/json"
	"fmt"

	"github.com/logmirror/logmirror/internal/disk"
)

// Info says where the parts of a cluster are. Its JSON form is the ready file.
type Info struct {
	Regions []RegionInfo `json:"regions"`
	Log     []MemberInfo `json:"log"`
}

// RegionInfo is one region and the address of its frontend.
type RegionInfo struct {
	Name     string `json:"name"`
	Frontend string `json:"frontend"`
}

// MemberInfo is one log member.
type MemberInfo struct {
	Name    string `json:"name"`
	Region  string `json:"region"`
	Address string `json:"address"`
}

// WriteReadyFile writes info as one line of JSON. The file appears, or replaces an older one, in one rename: who waits
// for it never reads half of it.
func WriteReadyFile(path string, info Info) error {
	content, err := json.Marshal(info)
	if err != nil {
		return err
	}
	if err := disk.WriteFile(disk.OS(), path, append(content, '\n')); err != nil {
		return fmt.Errorf("ready file: %w", err)
	}
	return nil
}
