package flagfile

import (
	"math"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func TestBytesAreReadAsTheyAreWritten(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "1": 1, "1024": 1024, "1KiB": 1024, "64KiB": 64 << 10, "256MiB": 256 << 20, "1GiB": 1 << 30, "3TiB": 3 << 40,
		"9223372036854775807": math.MaxInt64, "8388607TiB": 8388607 << 40,
	} {
		got, err := ParseBytes(text)
		if err != nil || got != want {
			t.Errorf("%s: %d, %v, want %d", text, got, err, want)
		}
		if again, err := ParseBytes(FormatBytes(want)); err != nil || again != want {
			t.Errorf("%d is written %s, and read as %d, %v", want, FormatBytes(want), again, err)
		}
	}
	for _, text := range []string{"", "KiB", "-1", "-1KiB", "1.5GiB", "1 GiB", "1GB", "1G", "8388608TiB", "9223372036854775808", "0x10"} {
		if got, err := ParseBytes(text); err == nil {
			t.Errorf("%q is read as %d", text, got)
		}
	}
	for value, want := range map[int64]string{3 << 19: "1536KiB", 256 << 20: "256MiB", 1000: "1000", 1<<20 + 1: "1048577"} {
		if got := FormatBytes(value); got != want {
			t.Errorf("%d is written %s, want %s", value, got, want)
		}
	}
}

func TestFlagOfBytes(t *testing.T) {
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	var size int64
	BytesVar(flags, &size, "size", 64<<20, "how many `bytes`")
	if size != 64<<20 || !strings.Contains(flags.FlagUsages(), "(default 64MiB)") {
		t.Errorf("%d:\n%s", size, flags.FlagUsages())
	}
	if err := flags.Parse([]string{"--size", "2GiB"}); err != nil || size != 2<<30 {
		t.Errorf("%d, %v", size, err)
	}
	if err := flags.Parse([]string{"--size", "2GB"}); err == nil || !strings.Contains(err.Error(), "512MiB") || !strings.Contains(err.Error(), "--size") {
		t.Errorf("%v", err)
	}
}

func TestRequireNamesAllThatIsMissing(t *testing.T) {
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags.String("name", "", "")
	flags.String("data-dir", "", "")
	flags.StringSlice("log", nil, "")
	check := func(want string) {
		t.Helper()
		got := ""
		if err := Require(flags, "name", "data-dir", "log"); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	check("--name, --data-dir and --log are required (or LOGMIRROR_NAME …, or keys of the --config file)")
	_ = flags.Set("name", "a") // a string takes anything
	_ = flags.Set("log", "b")
	check("--data-dir is required (or LOGMIRROR_DATA_DIR, or a key of the --config file)")
	_ = flags.Set("data-dir", "d")
	check("")
}
