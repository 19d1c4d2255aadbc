// Package flagfile lets every flag of a process also be given as an environment variable or in a YAML file.
//
// A value is taken from the first place that has one: the command line, the environment (LOGMIRROR_ and the flag's
// name in capitals with underscores), the file that --config names, the flag's default. A key of the file that is no
// flag is an error, so that a misspelt setting cannot be ignored in silence. Environment variables that are no flag are
// left alone: processes share environments, and orchestrators add names of their own.
//
// Load is called once, after the command line is parsed and before any flag is read.
package flagfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// ConfigFlag is the name of the flag that names the YAML file.
const ConfigFlag = "config"

// environmentPrefix begins the name of every environment variable.
const environmentPrefix = "LOGMIRROR_"

// fileBytesMax bounds the size of a file.
const fileBytesMax = 1 << 20

// AddConfigFlag adds --config.
func AddConfigFlag(flags *pflag.FlagSet) {
	flags.String(ConfigFlag, "", "YAML `file` with flag names as keys; the environment (LOGMIRROR_DATA_DIR is --data-dir) and the command line win over it")
}

// EnvironmentName returns the environment variable of a flag.
func EnvironmentName(flag string) string {
	return environmentPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// Load fills the flags that the command line left out. lookupEnvironment is os.LookupEnv outside tests. The error names
// the variable, or the file and key, whose value was refused.
func Load(flags *pflag.FlagSet, lookupEnvironment func(string) (string, bool)) error {
	var errs []error
	given := func(name string) bool { return flags.Lookup(name).Changed }
	flags.VisitAll(func(flag *pflag.Flag) {
		if flag.Changed || flag.Name == "help" || flag.Name == "version" {
			return
		}
		variable := EnvironmentName(flag.Name)
		value, ok := lookupEnvironment(variable)
		if !ok {
			return
		}
		if err := flags.Set(flag.Name, value); err != nil {
			errs = append(errs, fmt.Errorf("environment variable %s: %w", variable, err))
		}
	})
	if err := errors.Join(errs...); err != nil {
		return err
	}
	config := flags.Lookup(ConfigFlag)
	if config == nil || config.Value.String() == "" {
		return nil
	}
	path := config.Value.String()
	values, err := readFile(path)
	if err != nil {
		return fmt.Errorf("--%s %s: %w", ConfigFlag, path, err)
	}
	for _, value := range values {
		if flags.Lookup(value.key) == nil || value.key == ConfigFlag || value.key == "help" {
			return fmt.Errorf("--%s %s: line %d: unknown key %q", ConfigFlag, path, value.line, value.key)
		}
		if given(value.key) {
			continue
		}
		if err := flags.Set(value.key, value.value); err != nil {
			return fmt.Errorf("--%s %s: line %d: key %q: %w", ConfigFlag, path, value.line, value.key, err)
		}
	}
	return nil
}

type fileValue struct {
	key, value string
	line       int
}

// readFile returns the file's keys in order. A sequence of scalars is joined by commas, as the slice flags take it.
func readFile(path string) ([]fileValue, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, fileBytesMax+1))
	if err != nil {
		return nil, err
	}
	if len(data) > fileBytesMax {
		return nil, fmt.Errorf("larger than %d bytes", fileBytesMax)
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, nil
	}
	var document yaml.Node
	if err := yaml.Unmarshal(data, &document); err != nil {
		return nil, err
	}
	if len(document.Content) == 0 { // only comments
		return nil, nil
	}
	root := document.Content[0]
	if root.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("line %d: want flag names with values", root.Line)
	}
	var values []fileValue
	for i := 0; i < len(root.Content); i += 2 {
		key, node := root.Content[i], root.Content[i+1]
		value, err := scalars(node)
		if err != nil {
			return nil, fmt.Errorf("line %d: key %q: %w", key.Line, key.Value, err)
		}
		if slices.ContainsFunc(values, func(v fileValue) bool { return v.key == key.Value }) {
			return nil, fmt.Errorf("line %d: key %q appears twice", key.Line, key.Value)
		}
		values = append(values, fileValue{key: key.Value, value: value, line: key.Line})
	}
	return values, nil
}

func scalars(node *yaml.Node) (string, error) {
	switch node.Kind {
	case yaml.ScalarNode:
		return node.Value, nil
	case yaml.SequenceNode:
		items := make([]string, 0, len(node.Content))
		for _, item := range node.Content {
			if item.Kind != yaml.ScalarNode {
				return "", errors.New("a list may hold only plain values")
			}
			items = append(items, item.Value)
		}
		return strings.Join(items, ","), nil
	default:
		return "", errors.New("want a value or a list of values")
	}
}
