// Package cluster starts the daemons of a job on hosts where a service of
// mpirun-sf's runs: a way for clusters without logins between their hosts.
//
// # Flow
//
//  1. One key is made ([MakeKey]) and put on every host of the cluster, and on
//     those that launch jobs. From it follow the identities of the service and its
//     callers ([Key.Identity]): an Ed25519 key that both ends have, and nobody
//     else. There is nothing that would have to be told of each host.
//  2. [Service.Serve] listens, over vmfork/link: mutual TLS with that identity and
//     no other.
//  3. [Allocation.Start] makes a link to the host's service, one for each
//     daemon, and opens two streams: one is the daemon's standard input and
//     output; the other carries the request, and then the lines of standard error
//     and how it ended (wire.go).
//  4. The service starts its own program, with the arguments of a host's daemon,
//     and no others: who has the key can have daemons, not a shell. (A daemon runs what its
//     job wants in virtual machines.) Versions are compared by the daemon's
//     hello.
//  5. The daemon ends when it is closed, or when the link ends, whichever end it was that died.
//
// # Locking
//
// Service.mu guards the number of jobs and whether it drains, Allocation.mu what
// was started. Nothing waits under either.
package cluster
