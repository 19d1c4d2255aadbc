// Package chaos does harm to real processes, as a seed draws it, while clients in every region read, write, watch, lock,
// hold leases and take ids through them, and then holds all that they saw against the models of test/check.
//
// The harm: kill -9 of members, frontends, the leader, everything at once; SIGSTOP; regions cut off, both ways and one way,
// at the links; full disks (small file systems, which take root to mount); images of frontends deleted and damaged; no file
// descriptors left; no memory left. After the last of it everything must come back within a bound.
//
// A run is told by its seed, but is not repeated by it: the processes have clocks and threads of their own. What a seed fixes
// is the order and the victims. test/sim is the one that repeats itself.
package chaos
