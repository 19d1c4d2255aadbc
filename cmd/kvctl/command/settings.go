package command

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/reflect/protoreflect"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
	"github.com/logmirror/logmirror/internal/flagfile"
)

// newSettings groups what reads and changes the replicated settings.
func newSettings(o *options) *cobra.Command {
	c := &cobra.Command{Use: "settings", Short: "Read and change the settings of the whole cluster"}
	c.AddCommand(newSettingsGet(o), newSettingsSet(o))
	return c
}

func newSettingsGet(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "get",
		Short: "Print the settings in force",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return o.call(c, func(ctx context.Context, connection *client.Client) error {
				answer, err := connection.GetSettings(ctx, &kvv1.GetSettingsRequest{Consistency: o.readConsistency()})
				if err != nil {
					return err
				}
				return o.printSettings(answer.GetSettings())
			})
		},
	}
}

func newSettingsSet(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "set KEY=VALUE…",
		Short: "Change settings, all of them or none, and print those in force then",
		Long: `Change settings, all of them or none, and print those in force then.

A value is a whole number. One in milliseconds may also be a duration, such as 90m, and one in bytes a size, such as 4GiB.
Keys: ` + strings.Join(settingKeys(), ", ") + `.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			changes, err := parseSettings(args)
			if err != nil {
				return exitError{exitUsage, err}
			}
			return o.callWrite(c, func(ctx context.Context, connection *client.Client) error {
				answer, err := connection.ChangeSettings(ctx, &kvv1.ChangeSettingsRequest{Changes: changes})
				if err != nil {
					return err
				}
				return o.printSettings(answer.GetSettings())
			})
		},
	}
}

// settingFields are the fields of the message, all of them int64: a setting that is added to it needs nothing here.
func settingFields() protoreflect.FieldDescriptors {
	return (*kvv1.Settings)(nil).ProtoReflect().Descriptor().Fields()
}

func settingKeys() []string {
	fields := settingFields()
	keys := make([]string, fields.Len())
	for i := range keys {
		keys[i] = string(fields.Get(i).Name())
	}
	return keys
}

func parseSettings(arguments []string) (*kvv1.Settings, error) {
	changes := &kvv1.Settings{}
	for _, argument := range arguments {
		key, text, ok := strings.Cut(argument, "=")
		if !ok {
			return nil, fmt.Errorf("%q: want KEY=VALUE", argument)
		}
		field := settingFields().ByName(protoreflect.Name(key))
		if field == nil {
			return nil, fmt.Errorf("no setting %q; there are: %s", key, strings.Join(settingKeys(), ", "))
		}
		if changes.ProtoReflect().Has(field) {
			return nil, fmt.Errorf("%s is given twice", key)
		}
		value, err := parseSetting(key, text)
		if err != nil {
			return nil, fmt.Errorf("%s=%s: %w", key, text, err)
		}
		changes.ProtoReflect().Set(field, protoreflect.ValueOfInt64(value))
	}
	return changes, nil
}

// parseSetting reads a value in the unit that its key ends with.
func parseSetting(key, text string) (int64, error) {
	if value, err := strconv.ParseInt(text, 10, 64); err == nil {
		return value, nil
	}
	switch {
	case strings.HasSuffix(key, "_milliseconds"):
		value, err := time.ParseDuration(text)
		if err != nil {
			return 0, errors.New("want milliseconds, or a duration such as 90s")
		}
		if value%time.Millisecond != 0 {
			return 0, errors.New("want whole milliseconds")
		}
		return value.Milliseconds(), nil
	case strings.HasSuffix(key, "_bytes"):
		return flagfile.ParseBytes(text)
	default:
		return 0, errors.New("want a whole number")
	}
}

func (o *options) printSettings(settings *kvv1.Settings) error {
	fields := settingFields()
	value := func(i int) int64 { return settings.ProtoReflect().Get(fields.Get(i)).Int() }
	if o.output == "json" {
		values := make(map[string]int64, fields.Len())
		for i, key := range settingKeys() {
			values[key] = value(i)
		}
		return o.print(values, nil)
	}
	table := tabwriter.NewWriter(o.out, 0, 0, 2, ' ', 0)
	for i, key := range settingKeys() {
		readable := ""
		switch {
		case strings.HasSuffix(key, "_milliseconds"):
			readable = (time.Duration(value(i)) * time.Millisecond).String()
		case strings.HasSuffix(key, "_bytes"):
			readable = bytesText(value(i))
		}
		fmt.Fprintf(table, "%s\t%d\t%s\n", key, value(i), readable)
	}
	return table.Flush()
}
