package statemachine

import (
	"testing"

	commandv1 "github.com/logmirror/logmirror/api/proto/logmirror/command/v1"
)

// All leases are listed by id, whatever their ids and however many pages they fill.
func TestLeasesAreListedByID(t *testing.T) {
	s := newScript(t)
	const least = -2 * leasesPerPage
	var grants []*commandv1.Command
	for id := int64(least); id <= -least; id++ {
		if id != 0 {
			grants = append(grants, grant(-id, 60))
		}
	}
	s.batch(grants...)
	list := s.m.Leases()
	if len(list) != len(grants) {
		t.Fatalf("%d leases listed, want %d", len(list), len(grants))
	}
	for i := 1; i < len(list); i++ {
		if list[i-1].ID >= list[i].ID {
			t.Fatalf("%d before %d", list[i-1].ID, list[i].ID)
		}
	}
}
