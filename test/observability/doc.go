// Package observability holds the alert rules and the dashboard of deploy/ to what the processes export: every expression is
// parsed by Prometheus' own parser, and every metric and label in it is one of docs/metrics.md, which a test of the main module
// holds to the processes. It is a module of its own because that parser brings much along.
package observability
