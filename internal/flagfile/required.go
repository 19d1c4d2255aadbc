package flagfile

import (
	"fmt"
	"strings"

	"github.com/spf13/pflag"
)

// Require wants a value of each flag that is named, and tells of all that have none at once.
func Require(flags *pflag.FlagSet, names ...string) error {
	var missing []string
	for _, name := range names {
		if text := flags.Lookup(name).Value.String(); text == "" || text == "[]" {
			missing = append(missing, "--"+name)
		}
	}
	switch len(missing) {
	case 0:
		return nil
	case 1:
		return fmt.Errorf("%s is required (or %s, or a key of the --%s file)", missing[0],
			EnvironmentName(missing[0][2:]), ConfigFlag)
	}
	last := len(missing) - 1
	return fmt.Errorf("%s and %s are required (or %s …, or keys of the --%s file)", strings.Join(missing[:last], ", "), missing[last],
		EnvironmentName(missing[0][2:]), ConfigFlag)
}
