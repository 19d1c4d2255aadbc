// Command wanlink is the network between regions whose parts are processes of their own, and steers it: delay, loss, cuts.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/logmirror/logmirror/internal/flagfile"
	"github.com/logmirror/logmirror/internal/tlsfiles"
	"github.com/logmirror/logmirror/internal/version"
	"github.com/logmirror/logmirror/internal/wanlink"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := newCommand(os.Stdout).ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "wanlink:", err)
		stop()
		os.Exit(1)
	}
}

const linkHelp = "A LINK is REGION-REGION, as us-ap, or one REGION for all of its links."

// controlDefault is where the control listens and is looked for.
const controlDefault = "127.0.0.1:2300"

func newCommand(out io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use:   "wanlink",
		Short: "The network between regions: delays, loses and cuts what goes from one to another",
		Long: "wanlink serve carries connections between the networks of regions; the other commands steer its links.\n" +
			"" + linkHelp + "\n\n" +
			"Flags may also be environment variables: --cacert is LOGMIRROR_CACERT. Exit codes: 0 done; 1 failed.",
		Version:       version.Long(),
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(c *cobra.Command, _ []string) error {
			return flagfile.Load(c.Flags(), os.LookupEnv)
		},
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return fmt.Errorf("%w (see %s --help)", err, c.CommandPath()) })
	root.SetOut(out)
	root.AddCommand(newServe(), newProbe(out))
	s := &steering{out: out}
	root.AddCommand(s.commands()...)
	return root
}

// steering is what all commands have that ask a control.
type steering struct {
	out     io.Writer
	control string
	timeout time.Duration
	tls     tlsfiles.Files
}

func (s *steering) commands() []*cobra.Command {
	var oneWay bool
	status := &cobra.Command{
		Use: "status", Short: "Print every link", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return s.ask(c, "", wanlink.Request{}) },
	}
	cut := &cobra.Command{
		Use: "cut LINK", Short: "Silence a link: nothing arrives, nothing is refused",
		Example: "  wanlink cut us-ap              # both ways\n  wanlink cut ap                 # all links of ap\n  wanlink cut ap-us --one-way    # what ap sends to us",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return s.change(c, wanlink.PathCut, args[0], wanlink.Request{OneWay: oneWay})
		},
	}
	cut.Flags().BoolVar(&oneWay, "one-way", false, "only what goes from the first region to the second")
	heal := &cobra.Command{
		Use: "heal [LINK]", Short: "End the cuts of a link, both ways, or of all", Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return s.change(c, wanlink.PathHeal, strings.Join(args, ""), wanlink.Request{})
		},
	}
	rtt := &cobra.Command{
		Use: "rtt LINK DURATION", Short: "Set the round trip of a link, as 150ms", Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			roundTrip, err := time.ParseDuration(args[1])
			if err != nil {
				return fmt.Errorf("DURATION %q: want a time such as 150ms", args[1])
			}
			milliseconds := float64(roundTrip) / float64(time.Millisecond)
			return s.change(c, wanlink.PathRoundTrip, args[0], wanlink.Request{RoundTripMilliseconds: &milliseconds})
		},
	}
	loss := &cobra.Command{
		Use: "loss LINK PERCENT", Short: "Set how many packets of a link are lost and sent again, as 2%", Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			percent, err := strconv.ParseFloat(strings.TrimSuffix(args[1], "%"), 64)
			if err != nil {
				return fmt.Errorf("PERCENT %q: want a number such as 2%%", args[1])
			}
			probability := percent / 100
			return s.change(c, wanlink.PathLoss, args[0], wanlink.Request{LossProbability: &probability})
		},
	}
	all := []*cobra.Command{status, cut, heal, rtt, loss}
	for _, c := range all {
		if strings.Contains(c.Use, "LINK") {
			c.Long = c.Short + ". " + linkHelp
		}
		c.Flags().StringVar(&s.control, "control", controlDefault, "`address` of the control")
		c.Flags().DurationVar(&s.timeout, "timeout", 5*time.Second, "longest wait for an answer")
		c.Flags().StringVar(&s.tls.Certificate, "cert", "", "certificate `file` to show; changes need an operator's")
		c.Flags().StringVar(&s.tls.Key, "key", "", "private key `file` of --cert")
		c.Flags().StringVar(&s.tls.Authority, "cacert", "", "authority `file` that the control's certificate must be signed by")
	}
	return all
}

// change asks for a change of the named link.
func (s *steering) change(c *cobra.Command, path, link string, request wanlink.Request) error {
	request.From, request.To, _ = strings.Cut(link, "-")
	return s.ask(c, path, request)
}

// ask sends a request, or none where path is empty, and prints the links after it.
func (s *steering) ask(c *cobra.Command, path string, request wanlink.Request) error {
	if err := s.tls.Validate(""); err != nil {
		return err
	}
	config, err := s.tls.ClientConfig(nil)
	if err != nil {
		return err
	}
	client := wanlink.Client{
		URL: "http://" + s.control, HTTP: &http.Client{Transport: &http.Transport{TLSClientConfig: config}},
	}
	if config != nil {
		client.URL = "https://" + s.control
	}
	ctx, cancel := context.WithTimeout(c.Context(), s.timeout)
	defer cancel()
	var links []wanlink.Link
	if path == "" {
		links, err = client.Links(ctx)
	} else {
		links, err = client.Change(ctx, path, request)
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%w\nDoes wanlink serve run (make demo), and is --control its address?", err)
	}
	if err != nil {
		return err
	}
	return s.print(links)
}

func (s *steering) print(links []wanlink.Link) error {
	table := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "FROM\tTO\tDELAY\tLOSS\tSTATE\tSENT")
	for _, link := range links {
		state := "ok"
		if link.Cut {
			state = "CUT"
		}
		fmt.Fprintf(table, "%s\t%s\t%g ms\t%g %%\t%s\t%d KiB\n", link.From, link.To, link.DelayMilliseconds,
			100*link.LossProbability, state, link.SentBytes>>10)
	}
	return table.Flush()
}

// probeTimeout is far longer than any round trip that the links may have.
const probeTimeout = 3 * time.Second

func newProbe(out io.Writer) *cobra.Command {
	return &cobra.Command{
		Use:   "probe HOST:PORT",
		Short: "Open a TCP connection and tell whether that is possible: a look at which networks reach which",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			dialer := net.Dialer{Timeout: probeTimeout}
			connection, err := dialer.DialContext(c.Context(), "tcp", args[0])
			if err != nil {
				return err
			}
			fmt.Fprintf(out, "%s is reached at %s\n", args[0], connection.RemoteAddr())
			return connection.Close()
		},
	}
}

// parseRegions reads REGION=HOST pairs.
func parseRegions(pairs []string) (hosts map[string]string, err error) {
	hosts = make(map[string]string)
	for _, pair := range pairs {
		region, host, ok := strings.Cut(pair, "=")
		if !ok || host == "" || region == "" || strings.Contains(region, "-") {
			return nil, fmt.Errorf("--region %q: want REGION=HOST, the region without a dash", pair)
		}
		if hosts[region] != "" {
			return nil, fmt.Errorf("--region %s is given twice", region)
		}
		hosts[region] = host
	}
	if len(hosts) < 2 {
		return nil, fmt.Errorf("--region: want two regions at least")
	}
	return hosts, nil
}

// parseParts reads REGION=HOST:PORT pairs; Start checks them.
func parseParts(pairs []string) (parts []wanlink.Part, err error) {
	for _, pair := range pairs {
		region, address, ok := strings.Cut(pair, "=")
		if !ok {
			return nil, fmt.Errorf("--part %q: want REGION=HOST:PORT", pair)
		}
		parts = append(parts, wanlink.Part{Region: region, Address: address})
	}
	if len(parts) == 0 {
		return nil, fmt.Errorf("--part: want one at least")
	}
	return parts, nil
}

// splitLink reads REGION-REGION, both known.
func splitLink(text string, hosts map[string]string) (a, b string, err error) {
	a, b, ok := strings.Cut(text, "-")
	for _, region := range []string{a, b} {
		if ok && hosts[region] == "" {
			var known []string
			for name := range hosts {
				known = append(known, name)
			}
			slices.Sort(known)
			return "", "", fmt.Errorf("no region %q; there are: %s", region, strings.Join(known, ", "))
		}
	}
	if !ok || a == b {
		return "", "", fmt.Errorf("%q: want two regions, as us-ap", text)
	}
	return a, b, nil
}
