package flagfile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

type values struct {
	name     string
	members  []string
	interval time.Duration
}

func load(t *testing.T, file string, environment map[string]string, arguments ...string) (values, error) {
	t.Helper()
	var v values
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	AddConfigFlag(flags)
	flags.StringVar(&v.name, "name", "default", "")
	flags.StringSliceVar(&v.members, "member-list", nil, "")
	flags.DurationVar(&v.interval, "interval", time.Second, "")
	if file != "" {
		path := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		arguments = append(arguments, "--config", path)
	}
	if err := flags.Parse(arguments); err != nil {
		t.Fatal(err)
	}
	err := Load(flags, func(name string) (string, bool) {
		value, ok := environment[name]
		return value, ok
	})
	return v, err
}

func TestPrecedence(t *testing.T) {
	const file = "name: file\ninterval: 3s\nmember-list: [a, b]\n"
	environment := map[string]string{"LOGMIRROR_NAME": "environment", "LOGMIRROR_INTERVAL": "2s"}
	v, err := load(t, file, environment, "--name", "line")
	if err != nil {
		t.Fatal(err)
	}
	if v.name != "line" || v.interval != 2*time.Second || strings.Join(v.members, "+") != "a+b" {
		t.Errorf("got %+v; want the name of the line, the interval of the environment, the members of the file", v)
	}
	if v, err = load(t, "# nothing\n", nil); err != nil || v.name != "default" {
		t.Errorf("got %+v, %v; want defaults", v, err)
	}
}

func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		file        string
		environment map[string]string
		want        string
	}{
		"unknown key":      {file: "neme: x\n", want: `line 1: unknown key "neme"`},
		"key twice":        {file: "name: x\nname: y\n", want: `line 2: key "name" appears twice`},
		"bad value":        {file: "name: x\ninterval: soon\n", want: `line 2: key "interval"`},
		"nested value":     {file: "name: {a: b}\n", want: `key "name": want a value`},
		"no mapping":       {file: "- a\n", want: "want flag names"},
		"half a file":      {file: "name: \"x\n", want: "config.yaml: yaml:"},
		"file in the file": {file: "config: other\n", want: `unknown key "config"`},
		"bad environment":  {environment: map[string]string{"LOGMIRROR_INTERVAL": "soon"}, want: "LOGMIRROR_INTERVAL"},
		"no such file":     {environment: map[string]string{"LOGMIRROR_CONFIG": "/does/not/exist"}, want: "/does/not/exist: no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := load(t, c.file, c.environment)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v; want one with %q", err, c.want)
			}
		})
	}
}
