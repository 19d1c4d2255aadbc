package command

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
)

// newRegion groups what an operator does with whole regions.
func newRegion(o *options) *cobra.Command {
	c := &cobra.Command{Use: "region", Short: "Drain, fence, open and list regions"}
	c.AddCommand(
		newRegionChange(o, "drain", kvv1.RegionState_REGION_STATE_DRAINED,
			"Refuse new writes of clients in a region, and tell them where to go",
			`Refuse new writes of clients in a region: its frontends answer them with UNAVAILABLE and name the frontends of open
regions. Reads, watches and renewals of leases go on, and so do the commands of operators.`),
		newRegionChange(o, "fence", kvv1.RegionState_REGION_STATE_FENCED,
			"End a region's sessions and let it open none, so that it cannot write late",
			`End the sessions of a region's frontends and let them open none. What they had handed to the log and was not applied
before this entry never will be, also when the region was cut off and comes back later. Its leases are orphaned: they end
unless their clients renew them through another region. Its frontends go on serving reads.

Ask through a frontend of another region.`),
		newRegionChange(o, "open", kvv1.RegionState_REGION_STATE_OPEN, "End the drain or fence of a region",
			`End the drain or fence of a region. Its frontends come back by themselves. A fenced region is opened through another.`),
		newRegionList(o),
	)
	return c
}

func newRegionChange(o *options, verb string, state kvv1.RegionState, short, long string) *cobra.Command {
	return &cobra.Command{
		Use:   verb + " REGION",
		Short: short,
		Long:  long,
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return o.callWrite(c, func(ctx context.Context, connection *client.Client) error {
				answer, err := connection.SetRegionState(ctx, &kvv1.SetRegionStateRequest{Region: args[0], State: state})
				if err != nil {
					return err
				}
				if !answer.GetKnown() {
					fmt.Fprintf(o.err, "kvctl: no frontend of region %s was in session: is the name right?\n", args[0])
				}
				region := answer.GetRegion()
				return o.print(regionChangeJSON{regionToJSON(region), answer.GetKnown(), answer.GetHeader().GetLogIndex()}, func() {
					o.line("region %s is %s from log index %d on", region.GetName(), stateText(region.GetState()),
						answer.GetHeader().GetLogIndex())
				})
			})
		},
	}
}

func newRegionList(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the regions that have a frontend in session or are not open",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return o.call(c, func(ctx context.Context, connection *client.Client) error {
				answer, err := connection.ListRegions(ctx, &kvv1.ListRegionsRequest{Consistency: o.readConsistency()})
				if err != nil {
					return err
				}
				if o.output == "json" {
					for _, region := range answer.GetRegions() {
						if err := o.print(regionToJSON(region), nil); err != nil {
							return err
						}
					}
					return nil
				}
				table := tabwriter.NewWriter(o.out, 0, 0, 2, ' ', 0)
				fmt.Fprintln(table, "REGION\tSTATE\tFRONTENDS")
				for _, region := range answer.GetRegions() {
					var frontends []string
					for _, f := range region.GetFrontends() {
						frontends = append(frontends, fmt.Sprintf("%s (%s)", f.GetName(), strings.Join(f.GetClientUrls(), " ")))
					}
					fmt.Fprintf(table, "%s\t%s\t%s\n", region.GetName(), stateText(region.GetState()), orNone(strings.Join(frontends, ", ")))
				}
				return table.Flush()
			})
		},
	}
}

type regionJSON struct {
	Region    string         `json:"region"`
	State     string         `json:"state"`
	Frontends []frontendJSON `json:"frontends"`
}

type frontendJSON struct {
	Name       string   `json:"name"`
	ClientURLs []string `json:"client_urls"`
	Session    uint64   `json:"session"`
}

type regionChangeJSON struct {
	regionJSON
	Known    bool   `json:"known"`
	LogIndex uint64 `json:"log_index"`
}

func regionToJSON(region *kvv1.Region) regionJSON {
	j := regionJSON{Region: region.GetName(), State: stateText(region.GetState()), Frontends: []frontendJSON{}}
	for _, f := range region.GetFrontends() {
		j.Frontends = append(j.Frontends, frontendJSON{f.GetName(), f.GetClientUrls(), f.GetSession()})
	}
	return j
}

// stateText is "open", "drained" or "fenced".
func stateText(state kvv1.RegionState) string {
	return strings.ToLower(strings.TrimPrefix(state.String(), "REGION_STATE_"))
}
