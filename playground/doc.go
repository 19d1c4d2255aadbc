// Package playground is a whole cluster of several regions in one process: a log member and a frontend for each, wired
// as the processes logsvc and frontend wire them, with the wide-area network of internal/wan between the regions. It is
// for trying things out, for demonstrations and for tests; the same code runs over TCP in real time and in memory
// inside a testing/synctest bubble.
//
// What it promises:
//
//   - Every byte between two regions is delayed by half their round trip, between frontends and members too. A client
//     is in the region whose frontend it connects to: it is not delayed. In memory, and for a client that is to be
//     somewhere else, Cluster.Network dials from any region.
//   - Data stays in Config.DataDir. A cluster that is started again with the same directory and regions finds all that
//     was acknowledged, whatever ports it is given. One directory serves one cluster at a time.
//   - Stop returns when every goroutine of the cluster has ended.
//
// There are as many log members as regions, but three for two regions (the third in the first region), so that the
// log has a majority when one member is gone.
//
// It offers plain connections on loopback and no authentication. It is no way to run production.
package playground
