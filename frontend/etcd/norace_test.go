//go:build !race

package etcd

const poolLosses = 0
