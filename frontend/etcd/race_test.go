//go:build race

package etcd

// poolLosses is what sync.Pool forgets on purpose where the race detector looks: it drops one thing in four.
const poolLosses = 5
