// Command distribution measures how the state of machines comes to other hosts: pages that are wanted one by one, slices
// that all hosts want whole, a fork's descriptor and working set, clones on one and on eight hosts; and whether jobs over
// hosts ever hang.
//
//	make bench-distribution                       # benchmarks/results/distribution.json and plots: fetch, bulk, fork, ready
//	make bench-distribution ARGS="-part fetch,bulk -rounds 3"
//	make bench-distribution ARGS="-part hang -jobs 200"
//
// A part that is measured alone replaces its own figures in distribution.json, and leaves those of the others. All sides of
// a part are measured in turns in one run.
//
// # The hosts
//
// A cluster of namespaces on this machine (vmfork/testcluster): all hosts share its cores, memory and kernel, so what
// grows with the number of hosts here is, beside what the network does, the processor time of all of them together. The
// notes of the file have the load of the machine before each part.
//
// In the parts fetch, bulk and fork a host has one process, its worker, with what a daemon has of links (vmfork/link, mutual
// TLS) and of mcdist, and without machines. Each measurement begins another job on them: keys, links and nodes are new.
// Slices are real: sealed files at the origin, far slices in files at the others. In ready and hang it is mpirun-sf as a
// user runs it, with SSH between the hosts.
//
// # The parts
//
//   - fetch: a page that is on another host, by unicast, over wires of 1 Gbit/s that take 0.2 ms from a host to another and
//     back, and then 0.2 ms one way. Beside it what the wires alone take: a ping-pong over UDP, and a page over plain TCP.
//     And how many pages come for a round trip, where a window of them is wanted.
//   - bulk: 64 MB that cannot be compressed to 4 hosts by multicast, without losses and where each host loses 5 % of all
//     packets by itself. Beside it Debian's udpcast with its best options on the same links (udpcast.go says which, and how it
//     is timed).
//   - fork: the descriptor of a booted guest, and then its working set, to 1, 2, 4 and 8 hosts, in each way. The origin's
//     link counts the bytes.
//   - ready: 8 clones by mpirun-sf --hosts, on 1, 2, 4 and 8 hosts. Their number is always the same, so that the cores
//     have the same to do.
//   - hang: many jobs over 3 hosts with 2 ranks each. One that does not end within a minute has hung.
//
// # Clocks
//
// All hosts have one monotonic clock. What begins at one host and ends at another is timed by it.
package main
