// Package command is kvctl: one file for each command.
//
// Every command prints for people by default and one JSON object a line with -o json. Exit codes are for scripts: see
// exitCode. Main is called once by a process.
package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
	"github.com/logmirror/logmirror/internal/flagfile"
	"github.com/logmirror/logmirror/internal/tlsfiles"
	"github.com/logmirror/logmirror/internal/version"
)

// Exit codes.
const (
	exitOK          = 0
	exitFailed      = 1 // anything without a code of its own
	exitUsage       = 2 // the command line, or a request that the cluster refuses as invalid
	exitNotFound    = 3 // no such key or lease
	exitNotHeld     = 4 // a comparison did not hold: the CAS or transaction took its other branch
	exitUnavailable = 5 // the cluster cannot be reached; a write was not applied
	exitUnknown     = 6 // a write's outcome is not known
	exitNotSynced   = 7 // a write was applied, but not every region that it was to wait for has told
)

// exitError ends the process with a code. A nil cause prints nothing: the answer has said it.
type exitError struct {
	code  int
	cause error
}

func (e exitError) Error() string {
	if e.cause == nil {
		return ""
	}
	return e.cause.Error()
}

func (e exitError) Unwrap() error { return e.cause }

// options are the flags that every command has.
type options struct {
	endpoints   []string
	region      string
	resolve     []string
	places      places // of resolve
	consistency string
	output      string
	timeout     time.Duration
	tls         tlsfiles.Files

	in       io.Reader
	out, err io.Writer
}

const exitCodesHelp = `Exit codes: 0 done; 1 failed; 2 the command line or the request is wrong; 3 no such key or lease;
4 a comparison did not hold; 5 the cluster cannot be reached (a write was not applied); 6 a write's outcome is unknown;
7 a write was applied, but not seen to be applied in every region of --sync.`

// Main runs kvctl and returns its exit code.
func Main(arguments []string, in io.Reader, out, errors io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot(in, out, errors)
	root.SetArgs(arguments)
	err := root.ExecuteContext(ctx)
	if err != nil && err.Error() != "" {
		fmt.Fprintln(errors, "kvctl: "+explain(err))
	}
	return exitCode(err)
}

func newRoot(in io.Reader, out, errors io.Writer) *cobra.Command {
	o := &options{in: in, out: out, err: errors}
	root := &cobra.Command{
		Use:   "kvctl",
		Short: "Work with a logmirror cluster",
		Long: "kvctl works with a logmirror cluster through the frontend of a region.\n" +
			"Every flag may also be an environment variable (--endpoints is LOGMIRROR_ENDPOINTS).\n\n" + exitCodesHelp,
		Version:       version.Long(),
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(c *cobra.Command, _ []string) error {
			if err := flagfile.Load(c.Flags(), os.LookupEnv); err != nil {
				return exitError{exitUsage, err}
			}
			return o.validate()
		},
	}
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errors)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return exitError{exitUsage, fmt.Errorf("%w (see %s --help)", err, c.CommandPath())}
	})
	flags := root.PersistentFlags()
	flagfile.AddConfigFlag(flags)
	flags.StringSliceVar(&o.endpoints, "endpoints", []string{"127.0.0.1:2379"}, "frontends, as `host:port,...`")
	flags.StringVar(&o.region, "region", "", "talk to the frontends of this `region`, found through the endpoints")
	flags.StringSliceVar(&o.resolve, "resolve", nil, "dial the second address where a process advertises the first, as through tunnels: "+
		"`HOST:PORT=HOST:PORT,...`; certificates are still checked for the first")
	flags.StringVar(&o.consistency, "consistency", "linearizable", "of reads: linearizable or serializable")
	flags.StringVarP(&o.output, "output", "o", "text", "text for people or json for programs")
	flags.DurationVar(&o.timeout, "timeout", 10*time.Second, "longest wait for one answer")
	flags.StringVar(&o.tls.Certificate, "cert", "", "certificate `file` to show")
	flags.StringVar(&o.tls.Key, "key", "", "private key `file` of --cert")
	flags.StringVar(&o.tls.Authority, "cacert", "", "authority `file` that the frontend's certificate must be signed by")
	root.AddCommand(
		newPut(o), newGet(o), newList(o), newDelete(o), newCompareAndSwap(o), newTxn(o), newWatch(o), newLease(o),
		newID(o), newCounter(o), newSet(o), newAppend(o), newStatus(o), newHealth(o), newImport(o), newPlayground(o), newLog(o), newRegion(o),
		newSettings(o), newSnapshot(o), newCerts(o),
	)
	root.SetUsageTemplate(strings.Replace(root.UsageTemplate(), "{{if .Runnable}}", "{{if and .Runnable (not .HasAvailableSubCommands)}}", 1))
	for _, c := range allCommands(root) {
		if c.HasSubCommands() && c != root {
			c.RunE = wantsCommand
		}
		if c.Args != nil {
			arguments := c.Args
			c.Args = func(c *cobra.Command, args []string) error {
				if err := arguments(c, args); err != nil {
					return exitError{exitUsage, fmt.Errorf("%w\nusage: %s", err, c.UseLine())}
				}
				return nil
			}
		}
	}
	return root
}

// wantsCommand runs a command that only holds others: it shows its help, and refuses what is none of them.
func wantsCommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return c.Help()
	}
	return exitError{exitUsage, fmt.Errorf("unknown command %q for %q (see %s --help)", args[0], c.CommandPath(), c.CommandPath())}
}

func allCommands(c *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{c}
	for _, child := range c.Commands() {
		all = append(all, allCommands(child)...)
	}
	return all
}

func (o *options) validate() error {
	if !slices.Contains([]string{"text", "json"}, o.output) {
		return exitError{exitUsage, fmt.Errorf("--output %q: want text or json", o.output)}
	}
	if !slices.Contains([]string{"linearizable", "serializable"}, o.consistency) {
		return exitError{exitUsage, fmt.Errorf("--consistency %q: want linearizable or serializable", o.consistency)}
	}
	if o.timeout <= 0 {
		return exitError{exitUsage, errors.New("--timeout: want more than zero")}
	}
	if err := o.tls.Validate(""); err != nil {
		return exitError{exitUsage, err}
	}
	var err error
	if o.places, err = parsePlaces(o.resolve); err != nil {
		return exitError{exitUsage, err}
	}
	return nil
}

func (o *options) readConsistency() *kvv1.Consistency {
	if o.consistency == "serializable" {
		return &kvv1.Consistency{Level: kvv1.Consistency_LEVEL_SERIALIZABLE}
	}
	return &kvv1.Consistency{Level: kvv1.Consistency_LEVEL_LINEARIZABLE}
}

// connect returns a client of the region that was asked for.
func (o *options) connect(ctx context.Context) (*client.Client, error) {
	credentials, err := o.tls.Client(nil)
	if err != nil {
		return nil, exitError{exitUsage, err}
	}
	c, err := client.New(client.Config{Endpoints: o.endpoints, Credentials: credentials, Dial: o.places.dial})
	if err != nil {
		return nil, exitError{exitUsage, fmt.Errorf("--endpoints: %w", err)}
	}
	if o.region == "" {
		return c, nil
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	answer, err := c.Status(ctx, &kvv1.StatusRequest{})
	if err != nil {
		return nil, err
	}
	var endpoints, regions []string
	for _, frontend := range answer.GetFrontends() {
		if !slices.Contains(regions, frontend.GetRegion()) {
			regions = append(regions, frontend.GetRegion())
		}
		if frontend.GetRegion() != o.region {
			continue
		}
		for _, url := range frontend.GetClientUrls() {
			endpoints = append(endpoints, strings.TrimPrefix(strings.TrimPrefix(url, "http://"), "https://"))
		}
	}
	if len(endpoints) == 0 {
		return nil, exitError{exitUsage, fmt.Errorf("--region %s: no frontend there is in session; regions that have one: %s",
			o.region, strings.Join(regions, ", "))}
	}
	return client.New(client.Config{Endpoints: endpoints, Credentials: credentials, Dial: o.places.dial})
}

// call runs one request with a connection and the timeout.
func (o *options) call(c *cobra.Command, do func(ctx context.Context, c *client.Client) error) error {
	connection, err := o.connect(c.Context())
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(c.Context(), o.timeout)
	defer cancel()
	return do(ctx, connection)
}

// callWrite is call for requests that write: it tells a write that was not applied from one whose outcome is unknown.
func (o *options) callWrite(c *cobra.Command, do func(ctx context.Context, c *client.Client) error) error {
	err := o.call(c, do)
	if status.Code(err) == codes.Unavailable && !client.NotApplied(err) {
		return exitError{exitUnknown, fmt.Errorf("the connection broke before the answer: whether the write was applied is not "+
			"known; read before you write again (%w)", err)}
	}
	return err
}

func hasReason(err error, reason string) bool {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetReason() == reason {
			return true
		}
	}
	return false
}

// exitCode maps an error to the process's exit code.
func exitCode(err error) int {
	if err == nil {
		return exitOK
	}
	if exit := (exitError{}); errors.As(err, &exit) {
		return exit.code
	}
	switch status.Code(err) {
	case codes.InvalidArgument, codes.OutOfRange:
		return exitUsage
	case codes.DeadlineExceeded, codes.Aborted:
		if hasReason(err, "APPLIED") {
			return exitNotSynced
		}
		return exitUnknown
	case codes.NotFound:
		return exitNotFound
	case codes.Unavailable:
		return exitUnavailable
	case codes.Unknown:
		if hasReason(err, "OUTCOME_UNKNOWN") {
			return exitUnknown
		}
		if strings.HasPrefix(err.Error(), "unknown command") || strings.HasPrefix(err.Error(), "unknown flag") {
			return exitUsage
		}
	}
	return exitFailed
}

// innermost returns the status as it was answered, without what a client's retries put before it.
func innermost(err error) *status.Status {
	if answered := interface{ GRPCStatus() *status.Status }(nil); errors.As(err, &answered) {
		return answered.GRPCStatus()
	}
	return status.Convert(err)
}

// explain says what happened and what to do about it.
func explain(err error) string {
	s, ok := status.FromError(err)
	if !ok {
		return err.Error()
	}
	switch s.Code() {
	case codes.Unavailable:
		for _, detail := range s.Details() {
			if _, refused := detail.(*kvv1.RegionRefusal); refused {
				return s.Message()
			}
		}
		if exit := (exitError{}); errors.As(err, &exit) {
			return s.Message() // it says itself what it means
		}
		message := innermost(err).Message()
		// gRPC tells why there is no connection in words only.
		for _, words := range []string{"tls: ", "authentication handshake failed", "reading server preface: EOF"} {
			if strings.Contains(message, words) {
				return message + "\nClient and server do not agree about TLS: see --cacert, --cert and --key, or LOGMIRROR_CACERT and so on; a cluster without TLS wants none."
			}
		}
		// So ends, with TLS 1.3, also a connection whose server refused the certificate when the client had begun to send.
		for _, words := range []string{"broken pipe", "connection reset"} {
			if strings.Contains(message, words) {
				return message + "\nThe other side ended the connection: is it up, and does it accept what --cert and --key name?"
			}
		}
		if strings.Contains(message, "connection error") || strings.Contains(message, "name resolver error") {
			return message + "\nIs a cluster running (make run), and do --endpoints name its frontends?"
		}
		return message + "\nThe frontend answers, and tells what keeps it from more: see kvctl status."
	case codes.DeadlineExceeded:
		if hasReason(err, "APPLIED") {
			return s.Message()
		}
		return "no answer in time (--timeout raises the bound); whether a write was applied is not known: read before you write again"
	case codes.ResourceExhausted:
		return s.Message() + "\nThe cluster is at a limit: see kvctl status."
	case codes.Unknown:
		return s.Message() + "\nRead before you write again."
	default:
		return s.Message()
	}
}
