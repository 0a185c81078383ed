// Package allocator decides how many clones each host of a job carries, and knows
// which hosts those are.
//
// A resource manager, or a user, gives hosts to a job: an [Allocation], which is
// also the way to start a daemon on each of them. Packages below this one make
// allocations: of hosts that a user named (hostlist, ssh), of jobs of managers,
// and of a cluster's own service.
//
// On each host memory is a hard limit, accounted before anything starts: a job's
// clones may all dirty all of their RAM, so all of it is reserved. Cores are soft
// unless the demand is strict: more virtual CPUs than cores run, only slower.
//
// # Flow
//
//  1. [Allocation.Hosts] says which hosts there are, with how many slots; [Here]
//     which of them is this machine. [StartAll] starts a daemon on the others, and
//     says of all hosts at once what is wrong ([HostErrors]). A [Process] is a
//     daemon as a stream, that ends it when it ends.
//  2. A job makes a [Demand] for each ticket: for clones of so many virtual
//     CPUs, or (hierarchical, section 2.2 of the paper) for processors, to be
//     had as few clones of several virtual CPUs.
//  3. [Divide] places the clones on the hosts, by what each has room for
//     ([Local.Room] there). [Demand.On] is the demand of a host's share.
//  4. On each host, [Local.Reserve] looks what is available and what is reserved,
//     by other jobs and by this one, and gives a [Grant] of what fits: all, less,
//     or nothing, with the numbers behind it.
//  5. [Grant.Release] gives it back, when the ticket's clones are gone. Grants
//     are independent of each other.
//
// # Locking
//
// A reservation is a file, JOB.SERIAL.job, in a folder that the machine's jobs
// share, and a lock on it (flock(2)). The lock goes with the process that holds
// it, so a reservation whose job was killed counts for nothing and is removed
// by the next who looks. Each grant has a file of its own, opened for itself:
// to its own process too, the lock is one that somebody holds.
//
// Who adds up, reserves or cleans holds the folder's lock meanwhile: a file
// without a lock is then one that its holder left, never one that is being
// made. Release needs no such order, for it removes the file before the lock.
//
// A Local may be used, and a Grant released, from many goroutines.
package allocator
