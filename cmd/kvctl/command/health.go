package command

import (
	"context"

	"github.com/spf13/cobra"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

func newHealth(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "health",
		Short: "Tell whether each of --endpoints, frontends or log members, serves; exit code 5 if one does not",
		Long: "Ask each of --endpoints by gRPC's health protocol whether it serves. It asks the process itself and nothing behind it,\n" +
			"so it also suits the health checks of containers: a frontend that has lost the log serves.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(c.Context(), o.timeout)
			defer cancel()
			healthy := true
			for _, endpoint := range o.endpoints {
				state, err := o.health(ctx, endpoint)
				serves := err == nil && state == healthv1.HealthCheckResponse_SERVING
				healthy = healthy && serves
				if err := o.print(map[string]any{"endpoint": endpoint, "serves": serves}, func() {
					switch {
					case err != nil:
						o.line("%s\tdoes not answer: %s", endpoint, status.Convert(err).Message())
					case serves:
						o.line("%s\tserves", endpoint)
					default:
						o.line("%s\tdoes not serve yet, or no more", endpoint)
					}
				}); err != nil {
					return err
				}
			}
			if !healthy {
				return exitError{code: exitUnavailable}
			}
			return nil
		},
	}
}

func (o *options) health(ctx context.Context, endpoint string) (healthv1.HealthCheckResponse_ServingStatus, error) {
	connection, err := o.dialOne(endpoint)
	if err != nil {
		return 0, err
	}
	defer connection.Close()
	answer, err := healthv1.NewHealthClient(connection).Check(ctx, &healthv1.HealthCheckRequest{})
	if err != nil {
		return 0, err
	}
	return answer.GetStatus(), nil
}
