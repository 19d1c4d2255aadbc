// Package programs holds the programs of the tutorials: each directory is one, complete, and stands in a page of
// docs/tutorials as it is here. The tests of this package build and run them against a cluster, and keep the pages equal.
package programs
