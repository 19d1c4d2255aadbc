package mutation

import "slices"

// mutant is a mistake that can be switched on in the patched copy.
type mutant struct {
	// name is what switches it on.
	name string
	// rule is what it breaks, as the table shows it, in the part of the system that is its group.
	rule, group string
	// also are switched on with it.
	also []string
	// patches plant it. Patches of all mutants are made in one copy, in order.
	patches []patch
	// profile is that of the simulation's seeds that find it soonest, within the number of them; empty where they do not.
	profile string
	within  int
	// unseen says why the simulation cannot find it; empty where it is searched.
	unseen string
	// tests find it.
	tests []unit
	// quick ones are looked for in `make test`.
	quick bool
}

func (m mutant) switched() []string { return append(slices.Clone(m.also), m.name) }

// patch replaces old, which must be there once, in a file.
type patch struct{ file, old, new string }

// unit names tests of a package.
type unit struct{ in, run string }

func (u unit) pattern() string { return "^(" + u.run + ")$" }

// mutants are all of them, by their parts of the system.
var mutants = grouped("State machine", stateMachineMutants, "Key space", keySpaceMutants, "Leases", leaseMutants,
	"Mirror", mirrorMutants, "Log client", logClientMutants, "Watches", watchMutants, "Ids", idMutants,
	"Image and checkpoints", imageMutants, "Segments of the log", segmentMutants, "Frontend", frontendMutants,
	"Translation of etcd's API", etcdMutants)

func grouped(parts ...any) (all []mutant) {
	for i := 0; i < len(parts); i += 2 {
		for _, m := range parts[i+1].([]mutant) {
			m.group = parts[i].(string)
			all = append(all, m)
		}
	}
	return all
}

// What the simulation does not have.
const (
	noSuch = "no client asks for it"
)
