// Package observability holds the alert rules and the dashboard of deploy/ to what the processes export: every expression is
// parsed by Prometheus' own parser, and every metric and label in it is one of docs/metrics.md, which a test of the main module
// holds to the processes. Each alert is evaluated, by Prometheus' own engine, against the series of
// deploy/prometheus/alerts_test.yaml, for which it must fire with the words that are expected there, or be silent. It is a
// module of its own because parser and engine bring much along.
package observability
