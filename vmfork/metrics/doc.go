// Package metrics tells what a job does: as JSON for mpirun-sf ps and top, and
// for Prometheus.
//
// # Flow
//
//  1. The job's coordinator implements [Source]: it asks its hosts and puts a
//     [State] together. Nothing is collected while nobody asks.
//  2. [Publish] serves it on a unix socket in the folder where the jobs of a machine
//     meet, which only root can connect to: GET /state is the State, and GET
//     /metrics the same for Prometheus (collect.go).
//  3. [Jobs] reads the State of each job of the machine. A socket that nobody
//     listens on any more was left by a job that was killed; who finds one removes
//     it.
//  4. [Handler] serves /metrics of all jobs of a machine together. The cluster's
//     service does, so that Prometheus asks one address for each machine.
//
// Counters are of the job since its beginning. What two States differ in, over
// the time between them, is a rate ([Rates]).
//
// # Locking
//
// A [Histogram] has a mutex. Nothing else here is shared.
package metrics
