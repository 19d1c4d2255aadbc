package command

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
)

func newLease(o *options) *cobra.Command {
	c := &cobra.Command{Use: "lease", Short: "Grant, renew, revoke and look at leases"}
	c.AddCommand(newLeaseGrant(o), newLeaseKeepAlive(o), newLeaseRevoke(o), newLeaseTimeToLive(o), newLeaseList(o))
	return c
}

func newLeaseGrant(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "grant SECONDS",
		Short: "Make a lease and print its id",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			seconds, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil || seconds <= 0 {
				return exitError{exitUsage, fmt.Errorf("SECONDS %q: want a whole number above zero", args[0])}
			}
			return o.callWrite(c, func(ctx context.Context, connection *client.Client) error {
				answer, err := connection.Grant(ctx, &kvv1.GrantRequest{TtlSeconds: seconds})
				if err != nil {
					return err
				}
				return o.print(map[string]any{"id": leaseHex(answer.GetId()), "ttl_seconds": answer.GetTtlSeconds()}, func() {
					o.line("lease %s granted, %d s", leaseHex(answer.GetId()), answer.GetTtlSeconds())
				})
			})
		},
	}
}

func newLeaseKeepAlive(o *options) *cobra.Command {
	var once bool
	c := &cobra.Command{
		Use:   "keep-alive ID",
		Short: "Renew a lease until interrupted; exit code 3 when there is no such lease any more",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			id, err := parseLease(args[0])
			if err != nil {
				return err
			}
			connection, err := o.connect(c.Context())
			if err != nil {
				return err
			}
			defer connection.Close()
			for seconds, err := range connection.KeepAlive(c.Context(), id) {
				if err != nil {
					if c.Context().Err() != nil {
						return nil
					}
					return err
				}
				err := o.print(map[string]any{"id": args[0], "ttl_seconds": seconds}, func() {
					o.line("lease %s renewed, %d s", args[0], seconds)
				})
				if err != nil || once {
					return err
				}
			}
			return exitError{exitNotFound, fmt.Errorf("no lease %s", args[0])}
		},
	}
	c.Flags().BoolVar(&once, "once", false, "renew once")
	return c
}

func newLeaseRevoke(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke ID",
		Short: "End a lease and delete its keys",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			id, err := parseLease(args[0])
			if err != nil {
				return err
			}
			return o.callWrite(c, func(ctx context.Context, connection *client.Client) error {
				answer, err := connection.Revoke(ctx, &kvv1.RevokeRequest{Id: id})
				if err != nil {
					return err
				}
				return o.print(map[string]any{"id": args[0], "header": headerToJSON(answer.GetHeader())}, func() {
					o.line("lease %s revoked", args[0])
				})
			})
		},
	}
}

func newLeaseTimeToLive(o *options) *cobra.Command {
	var keys bool
	c := &cobra.Command{
		Use:   "ttl ID",
		Short: "Tell how long a lease has left; exit code 3 if there is no such lease",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			id, err := parseLease(args[0])
			if err != nil {
				return err
			}
			return o.call(c, func(ctx context.Context, connection *client.Client) error {
				answer, err := connection.TimeToLive(ctx, &kvv1.TimeToLiveRequest{Id: id, Keys: keys})
				if err != nil {
					return err
				}
				if answer.GetTtlSeconds() < 0 {
					return exitError{exitNotFound, fmt.Errorf("no lease %s", args[0])}
				}
				attached := []string{}
				for _, key := range answer.GetKeys() {
					attached = append(attached, printable(key))
				}
				return o.print(map[string]any{
					"id": args[0], "ttl_seconds": answer.GetTtlSeconds(), "granted_ttl_seconds": answer.GetGrantedTtlSeconds(), "keys": attached,
				}, func() {
					o.line("lease %s has %d s left of %d s", args[0], answer.GetTtlSeconds(), answer.GetGrantedTtlSeconds())
					for _, key := range attached {
						o.line("  %s", key)
					}
				})
			})
		},
	}
	c.Flags().BoolVar(&keys, "keys", false, "print the keys attached to it too")
	return c
}

func newLeaseList(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List all leases and who owns them",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			connection, err := o.connect(c.Context())
			if err != nil {
				return err
			}
			defer connection.Close()
			request := &kvv1.ListLeasesRequest{PageSize: leasesPage}
			for {
				page, err := o.listLeases(c.Context(), connection, request)
				if err != nil {
					return err
				}
				if request.PageToken = page.GetNextPageToken(); request.PageToken == "" {
					return nil
				}
			}
		},
	}
}

// leasesPage is the number of leases asked for at a time.
const leasesPage = 10_000

func (o *options) listLeases(
	ctx context.Context, connection *client.Client, request *kvv1.ListLeasesRequest,
) (*kvv1.ListLeasesResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	page, err := connection.ListLeases(ctx, request)
	if err != nil {
		return nil, err
	}
	for _, lease := range page.GetLeases() {
		owner := "orphan"
		if lease.GetOwner() != "" {
			owner = lease.GetOwner() + " in " + lease.GetOwnerRegion()
		}
		err := o.print(map[string]any{
			"id": leaseHex(lease.GetId()), "granted_ttl_seconds": lease.GetGrantedTtlSeconds(), "owner": lease.GetOwner(),
			"owner_region": lease.GetOwnerRegion(), "keys": lease.GetKeys(),
		}, func() {
			o.line("%s\t%d s\t%d keys\t%s", leaseHex(lease.GetId()), lease.GetGrantedTtlSeconds(), lease.GetKeys(), owner)
		})
		if err != nil {
			return nil, err
		}
	}
	return page, nil
}
